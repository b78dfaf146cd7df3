"""Results in a terminal, and as Markdown for the README: ratios first, what they are ratios of afterwards.

What matters is said in words; colour only repeats it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from bench import figures
from bench.figures import LIMIT, STALECAST, Row
from bench.results import Result

LEAST_COLUMNS = 110  # in less the figures themselves would be folded
ENDLESS_COLUMNS = 10_000  # a file or a pipe has no edge at which to cut
NOTHING = ""
RATIOS_ARE = (
    "x limit: this side over the limit. ours/its: Stalecast over this side; below 1 Stalecast is ahead."
)
S_PER_MINUTE = 60


def console_for(stream: TextIO | None = None) -> Console:
    """Without a terminal: no colours, and nothing is cut. In a narrow one the terminal itself wraps lines."""
    found = Console(file=stream, highlight=False)
    if not found.is_terminal:
        return Console(file=stream, highlight=False, width=ENDLESS_COLUMNS)
    return Console(file=stream, highlight=False, width=max(found.width, LEAST_COLUMNS))


def new_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)


def add_column(table: Table, title: str, *, right: bool = False, wraps: bool = False) -> None:
    """In a narrow terminal those that wrap give way; none ends in dots."""
    table.add_column(title, justify="right" if right else "left", overflow="fold", no_wrap=not wraps)


# -- one result


def show(result: Result, console: Console | None = None) -> None:
    """The whole result, violations last: the end is what one sees."""
    console = console or console_for()
    rows = figures.summarize(result)
    about = figures.scenario(result.scenario)
    console.print()
    console.print(escape(f"== {about.title} ({result.scenario})"), style="bold", soft_wrap=True)
    if about.about:
        console.print(escape(about.about), soft_wrap=True)
    if result.quick:
        console.print("--quick: this checks promises and says nothing about speed", style="yellow")
    if any(row.over_limit or row.stalecast_over for row in rows):
        console.print(_ratio_table(result.scenario, rows))
        console.print(RATIOS_ARE, style="dim", soft_wrap=True)
    if rows and about.headline:
        console.print(_absolute_table(rows))
    for row in rows if not about.headline else []:
        _print_counts(console, row)
    for skip in result.skipped:
        console.print(escape(f"skipped: {skip_words(skip.side, skip.why, skip.install)}"), soft_wrap=True)
    for note in result.notes:
        console.print(escape(f"note: {note}"), style="dim", soft_wrap=True)
    for violation in result.violations:
        console.print(escape(f"VIOLATION {violation}"), style="bold red", soft_wrap=True)


def skip_words(side: str, why: str, install: str | None) -> str:
    return f"{side}: {why}" + (f" (to install it: {install})" if install else "")


def remark(row: Row) -> str:
    """In words what is not as one would wish."""
    if row.not_ahead:
        return f"Stalecast is not ahead: {_labels(row.not_ahead)}"
    if row.far_from_limit:
        return f"far from the limit: {_labels(row.far_from_limit)}"
    return NOTHING


def _labels(names: Iterable[str]) -> str:
    return ", ".join(figures.figure(name).label for name in names)


def _ratio_table(scenario: str, rows: Sequence[Row]) -> Table:
    """Columns that nobody fills are left out."""
    headline = figures.scenario(scenario).headline
    columns = [(ratio, name) for ratio in (_over_limit, _ours_over) for name in headline]
    columns = [(ratio, name) for ratio, name in columns if any(name in ratio(row) for row in rows)]
    table = new_table()
    add_column(table, "ratios", wraps=True)
    add_column(table, "side")
    for ratio, name in columns:
        title = "x limit" if ratio is _over_limit else "ours/its"
        add_column(table, f"{_two_lines(figures.figure(name).label)}\n{title}", right=True)
    add_column(table, "remark", wraps=True)
    for row, size in _with_sizes(row for row in rows if row.over_limit or row.stalecast_over):
        found = [ratio(row).get(name) for ratio, name in columns]
        cells = [NOTHING if value is None else figures.ratio_text(value) for value in found]
        table.add_row(escape(size), escape(row.side), *cells, remark(row), style=_style(row))
    return table


def _over_limit(row: Row) -> Mapping[str, float]:
    return row.over_limit or {}


def _ours_over(row: Row) -> Mapping[str, float]:
    return row.stalecast_over or {}


def _absolute_table(rows: Sequence[Row]) -> Table:
    found = {name for row in rows for name in row.figures}
    names = [name for name in figures.FIGURES if name in found] + sorted(found - set(figures.FIGURES))
    table = new_table()
    add_column(table, "absolute", wraps=True)
    add_column(table, "side")
    for name in names:
        known = figures.figure(name)
        add_column(table, f"{_two_lines(known.label)}\n{known.unit}".strip(), right=True)
    add_column(table, "rounds", right=True)
    for row, size in _with_sizes(rows):
        cells = [
            figures.figure_text(name, row.figures[name]) if name in row.figures else NOTHING for name in names
        ]
        style = "bold" if row.side == STALECAST else ""
        table.add_row(escape(size), escape(row.side), *cells, str(row.rounds), style=style)
    return table


def _two_lines(label: str) -> str:
    """A long heading over short figures would push the rest off the screen."""
    first, _, rest = label.partition(" ")
    return f"{first}\n{rest}" if rest else label


def _print_counts(console: Console, row: Row) -> None:
    console.print(escape(f"{figures.size_words(row.size)}, {row.side}"), style="bold")
    width = max(len(figures.figure(name).label) for name in row.figures)
    for name, value in row.figures.items():
        console.print(escape(f"  {figures.figure(name).label:<{width}}  {figures.with_unit(name, value)}"))


def _with_sizes(rows: Iterable[Row]) -> Iterable[tuple[Row, str]]:
    """Each size once, at its first row."""
    before = None
    for row in rows:
        yield row, NOTHING if row.size == before else figures.size_words(row.size)
        before = row.size


def _style(row: Row) -> str:
    if row.not_ahead or row.far_from_limit:
        return "yellow"
    return "bold" if row.side == STALECAST else ""


# -- several, for the README


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    marked: bool = False  # Stalecast is not ahead of that side, or far from the limit


@dataclass(frozen=True, slots=True)
class Overview:
    """A line for each scenario and size that has ratios, of its first two headline figures."""

    titles: Sequence[str]  # a column of ratios for each side, Stalecast over it, and then Stalecast itself
    lines: Sequence[tuple[str, str, Sequence[Cell]]]  # scenario and figures, size, cells


def overview(results: Mapping[str, Result]) -> Overview:
    found = [(result, figures.summarize(result)) for result in figures.ordered(results)]
    present = {row.side for _, rows in found for row in rows} - {STALECAST}
    sides = [side for side in figures.SIDES if side in present] + sorted(present - set(figures.SIDES))
    lines: list[tuple[str, str, Sequence[Cell]]] = []
    for result, rows in found:
        about = figures.scenario(result.scenario)
        for size in _telling_sizes(result):
            here = {row.side: row for row in rows if row.size == size}
            own = here.get(STALECAST)
            names = [name for name in about.headline[:2] if own is not None and name in own.figures]
            cells = [_ratio_cell(side, here, names) for side in sides] if own is not None else []
            if own is not None and any(cell.text for cell in cells):
                labels = " / ".join(figures.figure(name).label for name in names)
                what = f"{about.title}: {labels}"
                lines.append((what, figures.size_words(size), [*cells, Cell(_own(own, names))]))
    return Overview([*sides, "Stalecast"], lines)


def as_markdown(results: Mapping[str, Result]) -> str:
    """The last column is Stalecast itself, the others are Stalecast over that side: below 1 it is ahead."""
    found = overview(results)
    head = [["Stalecast over", "", *found.titles], ["---", "---", *["---:"] * len(found.titles)]]
    body: list[list[str]] = []
    before = ""
    for what, size, cells in found.lines:
        texts = [NOTHING if what == before else what, size, *(cell.text for cell in cells)]
        body.append([_md(text) for text in texts])
        before = what
    return "".join(f"| {' | '.join(line)} |\n" for line in [*head, *body])


def _ratio_cell(side: str, here: Mapping[str, Row], names: Sequence[str]) -> Cell:
    if side not in here:
        return Cell(NOTHING)
    ratios = _over_limit(here[STALECAST]) if side == LIMIT else _ours_over(here[side])
    far = here[STALECAST].far_from_limit if side == LIMIT else here[side].not_ahead
    return Cell(_joined(ratios, names), any(name in far for name in names))


def _joined(ratios: Mapping[str, float], names: Sequence[str]) -> str:
    """Those that there are none of stay as a dash, unless there are none at all."""
    known = {name: figures.ratio_text(ratios[name]) for name in names if name in ratios}
    return " / ".join(known.get(name, "-") for name in names) if known else NOTHING


def _own(row: Row, names: Sequence[str]) -> str:
    if len({figures.figure(name).unit for name in names}) > 1:
        return " / ".join(figures.with_unit(name, row.figures[name]) for name in names)
    values = " / ".join(figures.figure_text(name, row.figures[name]) for name in names)
    return f"{values} {figures.figure(names[0]).unit}".rstrip()


def _telling_sizes(result: Result) -> list[figures.Size]:
    """Of `scale` only the largest, on one topic and on many: its plot has the rest."""
    sizes = figures.sizes_of(result)
    if result.scenario != "scale":
        return sizes
    return list({size.get("topics") == 1: size for size in sizes}.values())


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- while it runs


class Progress:
    """A bar over legs, with the one that is under way; a line for each where there is no terminal.

    It is drawn between legs only: a thread that redraws would run on the load's core during a measurement.
    """

    def __init__(self, stream: TextIO | None = None, legs: int | None = None) -> None:
        """`legs`: how many there will be; without it, and without `expect`, no remaining time is told."""
        self._stream = stream or sys.stderr
        self._console = Console(file=self._stream, highlight=False)
        self._legs = legs or 0
        self._begun = 0
        self._begin_s = 0.0
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        self._begin_s = time.monotonic()
        if self._console.is_terminal:
            self._bar = Bar(
                BarColumn(24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                auto_refresh=False,
                transient=True,
                speed_estimate_period=24 * 3600,  # all legs so far: they differ much
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._legs or None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, legs: int) -> None:
        """So many more are to come."""
        self._legs += legs
        if self._bar is not None:
            self._bar.update(self._task, total=self._legs, refresh=True)

    def begin(self, text: str) -> None:
        self._begun += 1
        if self._bar is not None:
            self._bar.update(self._task, description=text, refresh=True)
            return
        of = f"/{self._legs}" if self._legs else ""
        elapsed_s = int(time.monotonic() - self._begin_s)
        clock = f"{elapsed_s // S_PER_MINUTE}:{elapsed_s % S_PER_MINUTE:02d}"
        print(f"[{self._begun}{of} {clock}] {text}", file=self._stream, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1, refresh=True)
