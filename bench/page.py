"""The report: one HTML file with everything in it, for people who were not there.

It says in words what the figures say, also what does not speak for Stalecast. Every text that comes from a result
is escaped here, and nothing is fetched from anywhere.
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
    return f'<p class="alarm">Measured with --quick, which says nothing about speed: {escape(", ".join(names))}.</p>'


def _violations(shown: Iterable[Result]) -> str:
    items = [f"{result.scenario}: {text}" for result in shown for text in result.violations]
    if not items:
        return ""
    return f'<div class="alarm"><p><strong>Broken promises</strong></p>{_list(items)}</div>'


def _in_words(shown: Iterable[Result]) -> list[str]:
    """A sentence for each scenario about its first headline figure, and one about where Stalecast is behind."""
    sentences: list[str] = []
    behind: list[str] = []
    compared = 0
    for result in shown:
        rows = figures.summarize(result)
        compared += sum(
            name in (row.stalecast_over or {})
            for row in rows
            for name in figures.scenario(result.scenario).headline
        )
        behind += [text for row in rows for text in _behind(row)]
        sentences += _sentence(result, rows)
    if compared:
        ahead = compared - len(behind)
        sentences.append(
            f"Set beside a peer {compared} times, Stalecast is ahead {ahead} times."
            + (
                f" It is not ahead here:<ul>{''.join(f'<li>{escape(text)}</li>' for text in behind)}</ul>"
                if behind
                else ""
            )
        )
    return sentences


def _behind(row: Row) -> list[str]:
    ratios = row.stalecast_over or {}
    title, size = figures.scenario(row.scenario).title, figures.size_words(row.size)
    return [
        f"{title}, {size}: {figures.figure(name).label} {figures.ratio_text(ratios[name])} of {row.side}'s"
        for name in row.not_ahead
    ]


def _sentence(result: Result, rows: Sequence[Row]) -> list[str]:
    """At the size that most sides have, of these the largest: `<b>title</b>, size: p50 is 1.1 of the limit's ...`"""
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
        f"<b>{figures.ratio_text(ratio)}</b> of {escape('the limit' if side == LIMIT else side)}'s"
        for side, ratio in ratios.items()
        if ratio is not None
    ]
    label = f"{figures.figure(name).label} {figures.with_unit(name, own.figures[name])}"
    where = f"<strong>{escape(about.title)}</strong>, {escape(figures.size_words(size))}"
    return [f"{where}: {escape(label)}" + (f"; that is {_and(parts)}." if parts else ".")]


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# -- tables


def _overview(results: Mapping[str, Result]) -> str:
    found = table.overview(results)
    return _table(found.titles, found.lines) if found.lines else f"<p>{NOTHING_MEASURED}</p>"


def _table(titles: Sequence[str], lines: Iterable[Sequence[Cell]], names: int = 1) -> str:
    """The first `names` columns are names, the others figures."""
    head = "".join(
        f'<th scope="col"{_class("" if at < names else "figure")}>{escape(title)}</th>'
        for at, title in enumerate(titles)
    )
    body = "".join(
        f"<tr>{''.join(_cell(cell, at < names) for at, cell in enumerate(line))}</tr>" for line in lines
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell, is_name: bool) -> str:
    text = escape(cell.text)
    if is_name:
        return f'<th scope="row">{text}</th>'
    if cell.marked:
        return f'<td class="figure marked">{text}{MARK}</td>'
    return f'<td class="figure">{text}</td>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _ratio_table(rows: Sequence[Row]) -> str:
    headline = figures.scenario(rows[0].scenario).headline
    shown = [row for row in rows if row.over_limit or row.stalecast_over]
    limits = [name for name in headline if any(name in (row.over_limit or {}) for row in shown)]
    peers = [name for name in headline if any(name in (row.stalecast_over or {}) for row in shown)]
    titles = [f"{figures.figure(name).label}, × limit" for name in limits]
    titles += [f"{figures.figure(name).label}, Stalecast over it" for name in peers]
    lines = [
        [
            Cell(figures.size_words(row.size)),
            Cell(row.side),
            *(_ratio(row.over_limit, name, row.far_from_limit) for name in limits),
            *(_ratio(row.stalecast_over, name, row.not_ahead) for name in peers),
        ]
        for row in shown
    ]
    return _table(["", "side", *titles], lines, names=2) if lines else ""


def _ratio(ratios: Mapping[str, float] | None, name: str, marked: Sequence[str]) -> Cell:
    ratio = (ratios or {}).get(name)
    return Cell("") if ratio is None else Cell(figures.ratio_text(ratio), name in marked)


def _absolute_table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    names.sort(
        key=lambda name: (
            list(figures.FIGURES).index(name) if name in figures.FIGURES else len(figures.FIGURES)
        )
    )
    titles = [f"{figures.figure(name).label} {figures.figure(name).unit}".strip() for name in names]
    lines = [
        [
            Cell(figures.size_words(row.size)),
            Cell(row.side),
            *(
                Cell(figures.figure_text(name, row.figures[name]) if name in row.figures else "")
                for name in names
            ),
            Cell(str(row.rounds)),
        ]
        for row in rows
    ]
    return _table(["", "side", *titles, "rounds"], lines, names=2)


# -- a scenario


def _scenario(result: Result, results: Mapping[str, Result], charts: Sequence[plot.Chart]) -> str:
    about = figures.scenario(result.scenario)
    rows = figures.summarize(result)
    parts = [f'<section id="{escape(about.name)}"><h2>{escape(about.title)}</h2>']
    if about.about:
        parts.append(f"<p>{escape(about.about)}</p>")
    parts += [_chart(chart, results) for chart in charts if _first_of(chart, results) == result.scenario]
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


def _first_of(chart: plot.Chart, results: Mapping[str, Result]) -> str:
    """A chart of several scenarios stands with the first of them."""
    return next(name for name in chart.shows if name in results)


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
