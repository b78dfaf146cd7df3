"""The report: one HTML file with everything in it, for people who were not there.

It says in words what the figures say, also what does not speak for Stalecast. Every text that comes from a
result is escaped here, and nothing is fetched from anywhere.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from bench import figures, plot, table
from bench.figures import LIMIT, STALECAST, Row
from bench.results import Result
from bench.table import Cell

TEMPLATE = Path(__file__).with_name("page.html")
MARK = " ▲"  # beside the bold figure: colour alone would not be seen by all
FIGURE = ' class="figure"'
NOTHING_MEASURED = "Nothing was measured."


def write_page(results: Mapping[str, Result], path: Path) -> Path:
    """Returns `path`. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(results), encoding="utf-8")
    return path


def page(results: Mapping[str, Result]) -> str:
    shown = figures.ordered(results)
    charts = plot.charts_of(results)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        when=escape(_when(shown)),
        quick=_quick(shown),
        violations=_violations(shown),
        words="".join(f"<li>{text}</li>" for text in _in_words(shown)) or f"<li>{NOTHING_MEASURED}</li>",
        overview=_overview(results),
        scenarios="".join(_scenario(result, results, charts) for result in shown),
        environment="".join(_environments(shown)),
    )


# -- in words


def _when(shown: Iterable[Result]) -> str:
    days = sorted({result.started_at[:10] for result in shown if result.started_at})
    return " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "on an unknown day"


def _quick(shown: Sequence[Result]) -> str:
    names = [result.scenario for result in shown if result.quick]
    if not names:
        return ""
    text = f"Measured with --quick, which says nothing about speed: {', '.join(names)}."
    return f'<p class="alarm">{escape(text)}</p>'


def _violations(shown: Iterable[Result]) -> str:
    items = [f"{result.scenario}: {text}" for result in shown for text in result.violations]
    if not items:
        return ""
    return f'<div class="alarm"><p><strong>Broken promises</strong></p>{_list(items)}</div>'


def _in_words(shown: Iterable[Result]) -> list[str]:
    """A sentence for each scenario about its first headline figure; one about where Stalecast is behind."""
    sentences: list[str] = []
    behind: list[str] = []
    compared = ahead = 0
    for result in shown:
        rows = figures.summarize(result)
        sentences += _sentence(result, rows)
        behind += _behind(result.scenario, rows)
        for row in rows:
            names = [name for name in figures.scenario(result.scenario).headline if name in _ours_over(row)]
            compared += len(names)
            ahead += len(names) - len(row.not_ahead)
    if compared:
        text = f"Of {compared} figures beside a peer's, Stalecast is ahead in {ahead}."
        sentences.append(f"{text} It is not ahead here:{_list(behind)}" if behind else text)
    return sentences


def _behind(scenario: str, rows: Sequence[Row]) -> list[str]:
    """A line for each peer; sizes are put together."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for name in row.not_ahead:
            found.setdefault(row.side, {}).setdefault(name, []).append(row)
    title, sizes = figures.scenario(scenario).title, len({figures.size_words(row.size) for row in rows})
    return [
        f"{title}, beside {side}: " + ", ".join(_times(name, there, sizes) for name, there in names.items())
        for side, names in found.items()
    ]


def _times(name: str, there: Sequence[Row], sizes: int) -> str:
    """`sizes` is how many there are: of the only one nothing is said."""
    ratios = sorted(_ours_over(row)[name] for row in there)
    worst = " to ".join(dict.fromkeys(map(figures.ratio_text, (ratios[0], ratios[-1]))))
    text = f"{figures.figure(name).label} {worst} times"
    if sizes == 1:
        return text
    where = figures.size_words(there[0].size) if len(there) == 1 else f"{len(there)} of {sizes} sizes"
    return f"{text} ({where})"


def _ours_over(row: Row) -> Mapping[str, float]:
    return row.stalecast_over or {}


def _sentence(result: Result, rows: Sequence[Row]) -> list[str]:
    """At the size that most sides have, and of these the largest."""
    about = figures.scenario(result.scenario)
    sizes = figures.sizes_of(result)
    if not about.headline or not sizes:
        return []
    size = max(sizes, key=lambda one: (sum(row.size == one for row in rows), sizes.index(one)))
    here = {row.side: row for row in rows if row.size == size}
    name = about.headline[0]
    own = here.get(STALECAST)
    if own is None or name not in own.figures:
        return []
    ratios = {LIMIT: (own.over_limit or {}).get(name)}
    ratios |= {side: (row.stalecast_over or {}).get(name) for side, row in here.items() if row.stalecast_over}
    parts = [
        f"<b>{figures.ratio_text(ratio)}</b> {'times' if ratio >= 1 else 'of'} {_called(side)}'s"
        for side, ratio in ratios.items()
        if ratio is not None
    ]
    label = f"{figures.figure(name).label} {figures.with_unit(name, own.figures[name])}"
    where = f"<strong>{escape(about.title)}</strong>, {escape(figures.size_words(size))}"
    return [f"{where}: {escape(label)}" + (f"; that is {_and(parts)}." if parts else ".")]


def _called(side: str) -> str:
    return "the limit" if side == LIMIT else f"<i>{escape(side)}</i>"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# -- tables


def _overview(results: Mapping[str, Result]) -> str:
    found = table.overview(results)
    if not found.lines:
        return f"<p>{NOTHING_MEASURED}</p>"
    return _table(
        ["Stalecast over", *found.titles], [(what, [Cell(size), *cells]) for what, size, cells in found.lines]
    )


def _table(titles: Sequence[str], lines: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    """Each line with the heading that it stands under. The first column is a name, the others are figures."""
    head = "".join(
        f'<th scope="col"{FIGURE if at else ""}>{_title(title)}</th>' for at, title in enumerate(titles)
    )
    body: list[str] = []
    before = ""
    for group, cells in lines:
        if group != before:
            body.append(
                f'<tr><th scope="rowgroup" colspan="{len(titles)}" class="group">'
                f"<span>{escape(group)}</span></th></tr>"
            )
        body.append(f"<tr>{''.join(_cell(cell, is_name=not at) for at, cell in enumerate(cells))}</tr>")
        before = group
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _title(title: str) -> str:
    """A side's name stays in one piece, although it has a hyphen."""
    return f"<i>{escape(title)}</i>" if title in figures.SIDES else escape(title)


def _cell(cell: Cell, *, is_name: bool) -> str:
    text = escape(cell.text)
    if is_name:
        return f'<th scope="row">{text}</th>'
    if cell.marked:
        return f'<td class="figure marked">{text}{MARK}</td>'
    return f"<td{FIGURE}>{text}</td>"


def _ratio_table(rows: Sequence[Row]) -> str:
    headline = figures.scenario(rows[0].scenario).headline
    shown = [row for row in rows if row.over_limit or row.stalecast_over]
    limits = [name for name in headline if any(name in (row.over_limit or {}) for row in shown)]
    peers = [name for name in headline if any(name in (row.stalecast_over or {}) for row in shown)]
    titles = [f"{figures.figure(name).label} x limit" for name in limits]
    titles += [f"{figures.figure(name).label} ours/its" for name in peers]
    lines = [
        (
            figures.size_words(row.size),
            [
                Cell(row.side),
                *(_ratio(row.over_limit, name, row.far_from_limit) for name in limits),
                *(_ratio(row.stalecast_over, name, row.not_ahead) for name in peers),
            ],
        )
        for row in shown
    ]
    return f"<p>{escape(table.RATIOS_ARE)}</p>{_table(['side', *titles], lines)}" if lines else ""


def _ratio(ratios: Mapping[str, float] | None, name: str, marked: Sequence[str]) -> Cell:
    ratio = (ratios or {}).get(name)
    return Cell("") if ratio is None else Cell(figures.ratio_text(ratio), name in marked)


def _absolute_table(rows: Sequence[Row]) -> str:
    found = {name for row in rows for name in row.figures}
    names = [name for name in figures.FIGURES if name in found] + sorted(found - set(figures.FIGURES))
    titles = [f"{figures.figure(name).label} {figures.figure(name).unit}".strip() for name in names]
    lines = [(figures.size_words(row.size), _absolute_cells(row, names)) for row in rows]
    return _table(["side", *titles, "rounds"], lines)


def _absolute_cells(row: Row, names: Iterable[str]) -> list[Cell]:
    texts = [figures.figure_text(name, row.figures[name]) if name in row.figures else "" for name in names]
    return [Cell(row.side), *map(Cell, texts), Cell(str(row.rounds))]


# -- a scenario


def _scenario(result: Result, results: Mapping[str, Result], charts: Sequence[plot.Chart]) -> str:
    about = figures.scenario(result.scenario)
    rows = figures.summarize(result)
    parts = [f'<section id="{escape(about.name)}"><h2>{escape(about.title)}</h2>']
    if about.about:
        parts.append(f"<p>{escape(about.about)}</p>")
    parts += [
        _chart(chart, results) for chart in charts if plot.shown_in(chart, results)[0] == result.scenario
    ]
    if rows:
        ratios = _ratio_table(rows)
        if ratios:
            parts.append(f"<details><summary>Ratios</summary>{ratios}</details>")
        opened = "" if ratios else " open"
        parts.append(f"<details{opened}><summary>Absolute figures</summary>{_absolute_table(rows)}</details>")
    else:
        parts.append(f"<p>{NOTHING_MEASURED}</p>")
    skipped = [table.skip_words(skip.side, skip.why, skip.install) for skip in result.skipped]
    for title, items in (
        ("Left out", skipped),
        ("Notes", result.notes),
        ("Broken promises", result.violations),
    ):
        if items:
            parts.append(f"<h3>{title}</h3>{_list(items)}")
    parts.append("</section>")
    return "".join(parts)


def _chart(chart: plot.Chart, results: Mapping[str, Result]) -> str:
    light, dark = (_data_url(plot.render(chart, results, scheme, ("svg",))["svg"]) for scheme in plot.SCHEMES)
    return (
        '<figure class="wide" tabindex="0"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(chart.alt)}" width="800">'
        "</picture></figure>"
    )


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


# -- where


def _environments(shown: Sequence[Result]) -> Iterable[str]:
    """One block for each machine with its versions: scenarios may have been measured apart."""
    blocks: dict[str, list[Result]] = {}
    for result in shown:
        blocks.setdefault(repr((sorted(result.machine.items()), sorted(result.versions.items()))), []).append(
            result
        )
    for together in blocks.values():
        lines = [
            (name, str(value)) for name, value in {**together[0].machine, **together[0].versions}.items()
        ]
        if len(blocks) > 1:
            lines.insert(0, ("scenarios", ", ".join(result.scenario for result in together)))
        lines.append(("rounds", ", ".join(dict.fromkeys(str(result.rounds) for result in together))))
        commands = dict.fromkeys(result.command for result in together if result.command)
        terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines)
        yield f"<dl>{terms}</dl>" + "".join(f"<pre>{escape(command)}</pre>" for command in commands)
