"""Plots of a folder of results: SVG and PNG, each for a light and for a dark page.

The same run gives the same bytes, so that a plot in the repository changes only with what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bench import figures, latency
from bench.figures import LIMIT, STALECAST, Row
from bench.results import Leg, Result

WIDTH_IN = 8.0
SVG_DPI = 100  # so that WIDTH_IN is 800 px, and a text of 10 points 14 px
PNG_DPI = 200  # twice as many, for screens that have them
FONT_PT = 10
SMALL_PT = 9
HEADING_X = 0.012  # of the width

# Neither the date nor the version of matplotlib.
SAVING: Mapping[str, dict[str, Any]] = {
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "png": {"metadata": {"Software": None}, "dpi": PNG_DPI},
}

STYLE = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib: the same letters on every machine
    "font.size": FONT_PT,
    "svg.hashsalt": "stalecast",
    "svg.fonttype": "path",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """Sides differ for protan, deutan and tritan eyes (Machado et al. 2009; by 0.08 in OKLab at least) and
    from the background by 3:1. Lines differ by their markers as well, and have their names beside them."""

    name: str
    background: str
    text: str
    muted: str
    grid: str
    sides: Mapping[str, str]


SCHEMES = (
    Scheme(
        "light",
        background="#ffffff",
        text="#1c2128",
        muted="#59616a",
        grid="#e3e6ea",
        sides={
            STALECAST: "#0046c7",
            LIMIT: "#69717a",
            "nchan": "#c05000",
            "better-sse": "#00a37a",
            "sse-starlette": "#d24bf0",
            "quart-trio": "#57270f",
        },
    ),
    Scheme(
        "dark",
        background="#0d1117",  # GitHub's
        text="#e6edf3",
        muted="#9aa4af",
        grid="#262c36",
        sides={
            STALECAST: "#4596ff",
            LIMIT: "#8b949e",
            "nchan": "#f0883e",
            "better-sse": "#31f3d1",
            "sse-starlette": "#b45fc9",
            "quart-trio": "#ffe527",
        },
    ),
)
MARKERS = {
    STALECAST: "o",
    LIMIT: "",
    "nchan": "s",
    "better-sse": "^",
    "sse-starlette": "D",
    "quart-trio": "v",
}


@dataclass(frozen=True, slots=True)
class Chart:
    name: str  # of its files
    alt: str  # for those who do not see it
    shows: Mapping[str, str]  # a figure of each scenario; drawn of those that have it
    draw: Callable[[Mapping[str, Result], Scheme], Figure]
    of_histograms: bool = False


def plot_all(results: Mapping[str, Result], folder: Path) -> list[Path]:
    """Every chart that was measured for, as <name>-<scheme>.svg and .png; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for chart in charts_of(results):
        for scheme in SCHEMES:
            for ending, content in render(chart, results, scheme).items():
                paths.append(folder / f"{chart.name}-{scheme.name}.{ending}")
                paths[-1].write_bytes(content)
    return paths


def render(
    chart: Chart, results: Mapping[str, Result], scheme: Scheme, endings: Sequence[str] = ("svg", "png")
) -> dict[str, bytes]:
    """The file's content by its ending."""
    found: dict[str, bytes] = {}
    with mpl.rc_context({**STYLE, **_colours(scheme)}):
        drawn = chart.draw(results, scheme)
        for ending in endings:
            content = BytesIO()
            drawn.savefig(content, format=ending, **SAVING[ending])
            found[ending] = content.getvalue()
    return found


def charts_of(results: Mapping[str, Result]) -> list[Chart]:
    """Those that there is something to draw of."""
    return [chart for chart in CHARTS if shown_in(chart, results)]


def shown_in(chart: Chart, results: Mapping[str, Result]) -> list[str]:
    """The scenarios that the chart is drawn of; a leg that was broken off has no figures."""
    return [
        name
        for name, figure in chart.shows.items()
        if name in results
        and any(
            figure in leg.figures and (leg.histogram is not None or not chart.of_histograms)
            for leg in results[name].legs
        )
    ]


def _colours(scheme: Scheme) -> dict[str, Any]:
    line = {"axes.edgecolor": scheme.muted, "xtick.color": scheme.muted, "ytick.color": scheme.muted}
    text = {"text.color": scheme.text, "axes.labelcolor": scheme.text}
    labels = {"xtick.labelcolor": scheme.text, "ytick.labelcolor": scheme.text}
    page = {"figure.facecolor": scheme.background, "axes.facecolor": scheme.background}
    saved = {"savefig.facecolor": scheme.background}
    return {**line, **text, **labels, **page, **saved, "grid.color": scheme.grid, "figure.dpi": SVG_DPI}


# -- what the charts share


def _canvas(height_in: float, title: str, about: str, results: Iterable[Result]) -> tuple[Figure, float]:
    """A figure with its heading, and the height in inches that is taken by it."""
    drawn = Figure(figsize=(WIDTH_IN, height_in))
    if any(result.quick for result in results):
        title += " (--quick: this says nothing about speed)"
    drawn.text(HEADING_X, 1 - 0.1 / height_in, title, va="top", size=13, weight="bold")
    drawn.text(
        HEADING_X, 1 - 0.4 / height_in, about, va="top", size=SMALL_PT, color=mpl.rcParams["xtick.color"]
    )
    return drawn, 0.4 + 0.19 * (about.count("\n") + 1)


def _panels(
    drawn: Figure, rows: int, columns: int, top_in: float, right_in: float, below_in: float
) -> list[list[Axes]]:
    """A grid of axes, each with the same room around it: `right_in` for names, `below_in` for ticks."""
    height_in = drawn.get_figheight()
    left_in, above_in = 0.7, 0.34
    cell_width_in, cell_height_in = WIDTH_IN / columns, (height_in - top_in) / rows
    grid: list[list[Axes]] = []
    for row in range(rows):
        bottom_in = height_in - top_in - (row + 1) * cell_height_in + below_in
        line: list[Axes] = []
        for column in range(columns):
            box_in = (
                column * cell_width_in + left_in,
                bottom_in,
                cell_width_in - left_in - right_in,
                cell_height_in - above_in - below_in,
            )
            scale = (WIDTH_IN, height_in, WIDTH_IN, height_in)
            line.append(drawn.add_axes(tuple(a / b for a, b in zip(box_in, scale, strict=True))))
        grid.append(line)
    return grid


def _line_style(side: str, scheme: Scheme) -> dict[str, Any]:
    style: dict[str, Any] = {
        "color": scheme.sides.get(side, scheme.muted),
        "marker": MARKERS.get(side, "x"),
        "markersize": 4.5,
        "linewidth": 1.5,
        "zorder": 3,
    }
    if side == STALECAST:
        style |= {"linewidth": 3.0, "zorder": 5, "markersize": 6}
    if side == LIMIT:
        style |= {"linestyle": (0, (4, 2)), "zorder": 4}
    return style


def _legend(drawn: Figure, sides: Sequence[str], scheme: Scheme, top_in: float) -> float:
    """Below the heading; the height in inches that is taken then."""
    handles = [Line2D([], [], label=side, **_line_style(side, scheme)) for side in sides]
    drawn.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.004, 1 - top_in / drawn.get_figheight()),
        ncols=len(handles),
        frameon=False,
        handlelength=2.2,
        columnspacing=1.4,
        fontsize=FONT_PT,
    )
    return top_in + 0.38


def _name_lines(axes: Axes, ends: Mapping[str, float], scheme: Scheme) -> None:
    """The side's name beside the end of its line, moved up or down where two would touch."""
    height_px = axes.get_window_extent().height
    gap = SMALL_PT * 1.25 * SVG_DPI / 72 / height_px
    to_axes = axes.transData + axes.transAxes.inverted()
    x_end = axes.get_xlim()[1]
    at = {side: float(to_axes.transform((x_end, value))[1]) for side, value in ends.items()}
    for side, y in zip(sorted(at, key=at.__getitem__), _apart(sorted(at.values()), gap), strict=True):
        ours = side == STALECAST
        axes.annotate(
            side,
            xy=(1.0, at[side]),
            xytext=(1.05, y),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            size=SMALL_PT,
            weight="bold" if ours else "normal",
            color=scheme.sides[side] if ours else scheme.text,
            arrowprops={
                "arrowstyle": "-",
                "color": scheme.sides.get(side, scheme.muted),
                "linewidth": 1.0,
                "shrinkA": 1,
                "shrinkB": 0,
            },
            annotation_clip=False,
        )


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Rising places that are `gap` apart and near to the wanted ones: neighbours that would touch form a
    block around their middle."""
    blocks: list[list[float]] = []
    for place in wanted:
        blocks.append([place])
        while len(blocks) > 1 and _start(blocks[-1], gap) < _start(blocks[-2], gap) + gap * len(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [_start(block, gap) + gap * at for block in blocks for at in range(len(block))]


def _start(block: Sequence[float], gap: float) -> float:
    return sum(block) / len(block) - gap * (len(block) - 1) / 2


# By highest over lowest.
LOG_SUBS = {8: (1, 1.5, 2, 3, 5, 7), 300: (1, 2, 5), 3000: (1, 3), float("inf"): (1,)}


def _plain(value: float, _position: int = 0) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _log_y(axes: Axes) -> None:
    """Ticks at 1, 10, 100, and between them where there is room."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = next(subs for most, subs in LOG_SUBS.items() if high / low < most)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())


def _sides(results: Iterable[Result]) -> list[str]:
    found = {leg.side for result in results for leg in result.legs}
    return [side for side in figures.SIDES if side in found] + sorted(found - set(figures.SIDES))


# -- latency: a panel for each number of subscribers

# HdrHistogram's axis: each step to the right is ten times rarer, so that the tail has as much room as the
# rest.
PERCENTILE_TICKS = {2: "50%", 10: "90%", 100: "99%", 1000: "99.9%", 10_000: "99.99%"}
MEDIAN = 2  # one of two: the faster half would only flatten the rest
RAREST = 10_000  # beyond are single receipts; the maximum is in the table
POINTS = 200


def _draw_latency(results: Mapping[str, Result], scheme: Scheme) -> Figure:
    result = results["latency"]
    sizes = [size for size in figures.sizes_of(result) if any(_histograms(result, size).values())]
    columns = min(2, len(sizes))
    rows = -(-len(sizes) // 2)
    drawn, top_in = _canvas(
        1.1 + 2.75 * max(1, rows),
        "Latency of one event",
        "How long the given share of all receipts took at most, from the median on. Lower is better.",
        [result],
    )
    top_in = _legend(drawn, _sides([result]), scheme, top_in)
    grid = _panels(drawn, rows, columns, top_in, right_in=1.15, below_in=0.36)
    panels = [axes for line in grid for axes in line]
    for axes in panels[len(sizes) :]:
        axes.remove()
    for axes, size in zip(panels, sizes, strict=False):
        _draw_percentiles(axes, _histograms(result, size), scheme)
        axes.set_title(f"{figures.size_words(size)} (ms)", loc="left", size=FONT_PT, weight="bold")
    return drawn


def _histograms(result: Result, size: figures.Size) -> dict[str, list[str]]:
    """Of all rounds, by side."""
    found: dict[str, list[str]] = {}
    for leg in result.legs:
        if leg.size == size and leg.histogram is not None:
            found.setdefault(leg.side, []).append(leg.histogram)
    return {side: found[side] for side in _sides([result]) if side in found}


def _draw_percentiles(axes: Axes, histograms: Mapping[str, Sequence[str]], scheme: Scheme) -> None:
    merged = {side: latency.merge(texts) for side, texts in histograms.items()}
    most = max(histogram.get_total_count() for histogram in merged.values())
    rarest = min(RAREST, max(MEDIAN * 2, most))
    odds = np.geomspace(MEDIAN, rarest, POINTS)
    ends: dict[str, float] = {}
    for side, histogram in merged.items():
        ms, shares = latency.cdf(histogram)
        at = np.searchsorted(np.asarray(shares), 1 - 1 / odds, side="left")
        curve = np.asarray(ms)[np.minimum(at, len(ms) - 1)]
        axes.plot(odds, curve, markevery=(POINTS // 10, POINTS // 5), **_line_style(side, scheme))
        ends[side] = float(curve[-1])
    axes.set_xscale("log")
    axes.set_xlim(MEDIAN, rarest)
    shown = [tick for tick in PERCENTILE_TICKS if tick <= rarest]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda odds, _: PERCENTILE_TICKS[round(odds)]))
    axes.xaxis.set_minor_locator(NullLocator())
    _log_y(axes)
    axes.grid(visible=True)
    axes.axvline(100, color=scheme.muted, linewidth=1.0, zorder=1)  # p99, which everyone asks for
    _name_lines(axes, ends, scheme)


# -- growth: what a delivery costs with more and more clients

BAND_ALPHA = 0.18


def _draw_scale(results: Mapping[str, Result], scheme: Scheme) -> Figure:
    result = results["scale"]
    kinds = {
        title: [leg for leg in result.legs if (leg.size.get("topics") == 1) is one]
        for title, one in (("one topic for all", True), ("a topic each", False))
    }
    kinds = {title: legs for title, legs in kinds.items() if legs}
    names = [
        name for name in ("cpu_us_a_delivery", "p50_ms") if any(name in leg.figures for leg in result.legs)
    ]
    drawn, top_in = _canvas(
        1.1 + 2.7 * max(1, len(names)),
        "Cost against clients",
        "Median over the rounds; the band is from the lowest to the highest round. Lower is better.",
        [result],
    )
    top_in = _legend(drawn, _sides([result]), scheme, top_in)
    grid = _panels(drawn, len(names), len(kinds), top_in, right_in=0.9, below_in=0.5)
    for line, name in zip(grid, names, strict=True):
        known = figures.figure(name)
        for axes, (title, legs) in zip(line, kinds.items(), strict=True):
            ends = _draw_growth(axes, legs, name, scheme)
            if name == "p50_ms":
                _log_y(axes)
            else:
                axes.set_ylim(bottom=0)  # flat is what one hopes for: a cut axis would hide it
                axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10)))
                axes.yaxis.set_major_formatter(FuncFormatter(_plain))
            axes.grid(visible=True, axis="y")
            heading = f"{known.label} ({known.unit}), {title}"
            axes.set_title(heading, loc="left", size=FONT_PT, weight="bold")
            axes.set_xlabel("clients")
            _name_lines(axes, ends, scheme)
    return drawn


def _draw_growth(axes: Axes, legs: Sequence[Leg], name: str, scheme: Scheme) -> dict[str, float]:
    """The last value of each side."""
    ends: dict[str, float] = {}
    counts: set[int] = set()
    for side in dict.fromkeys(leg.side for leg in legs):
        by_clients: dict[int, list[float]] = {}
        for leg in legs:
            if leg.side == side and name in leg.figures:
                by_clients.setdefault(int(leg.size["clients"]), []).append(leg.figures[name])
        clients = sorted(by_clients)
        counts.update(clients)
        if clients:
            style = _line_style(side, scheme)
            middle = [median(by_clients[count]) for count in clients]
            low, high = ([pick(by_clients[count]) for count in clients] for pick in (min, max))
            axes.plot(clients, middle, **style)
            axes.fill_between(
                clients, low, high, color=style["color"], alpha=BAND_ALPHA, linewidth=0, zorder=2
            )
            ends[side] = middle[-1]
    if not counts:
        return ends
    axes.set_xscale("log", base=2)
    axes.set_xlim(right=max(counts) * 1.08)  # the names stand close to the ends
    axes.xaxis.set_major_locator(FixedLocator(sorted(counts)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _short(round(count))))
    axes.xaxis.set_minor_locator(NullLocator())
    return ends


def _short(count: int) -> str:
    thousand = 1000
    return f"{count / thousand:g}k" if count >= thousand else str(count)


# -- bars: one figure of every side

BAR_IN = 0.36  # with the space to the next
PANEL_HEADING_IN = 0.45
LEAST_SPREAD = 0.01  # of the longest bar: less is a dot


@dataclass(frozen=True, slots=True)
class Bars:
    title: str
    scenario: str
    name: str
    rows: Sequence[Row]
    legs: Sequence[Leg]


def _draw_memory(results: Mapping[str, Result], scheme: Scheme) -> Figure:
    about = "Resident memory for each idle client, without the kernel's. Shorter is better."
    return _draw_bars("Memory", about, _bars(MEMORY, results), results, scheme)


def _draw_arrival(results: Mapping[str, Result], scheme: Scheme) -> Figure:
    about = (
        "Median over the rounds; the thin line is from the lowest to the highest round. Shorter is better."
    )
    return _draw_bars("Everyone at once", about, _bars(ARRIVAL, results), results, scheme)


BARS_TITLES = {"connect": ", until all are greeted", "resume": ", until all caught up"}


def _bars(chart: Chart, results: Mapping[str, Result]) -> list[Bars]:
    """A panel for each scenario, of its only size."""
    panels: list[Bars] = []
    for scenario in shown_in(chart, results):
        result, name = results[scenario], chart.shows[scenario]
        rows = [row for row in figures.summarize(result) if name in row.figures]
        rows = [row for row in rows if row.size == rows[0].size]
        legs = [leg for leg in result.legs if leg.size == rows[0].size and name in leg.figures]
        title = figures.size_words(rows[0].size) + BARS_TITLES.get(scenario, "")
        panels.append(Bars(title, scenario, name, rows, legs))
    return panels


def _draw_bars(
    title: str, about: str, panels: Sequence[Bars], results: Mapping[str, Result], scheme: Scheme
) -> Figure:
    """The panels one below the other: their names and figures need the width."""
    bars_in = sum(len(bars.rows) * BAR_IN + PANEL_HEADING_IN for bars in panels)
    drawn, top_in = _canvas(bars_in + 0.85, title, about, (results[bars.scenario] for bars in panels))
    height_in = drawn.get_figheight()
    for bars in panels:
        own_in = len(bars.rows) * BAR_IN
        top_in += PANEL_HEADING_IN + own_in
        left, width = 1.35 / WIDTH_IN, (WIDTH_IN - 2.45) / WIDTH_IN
        box = (left, 1 - top_in / height_in, width, own_in / height_in)
        axes = drawn.add_axes(box)
        _draw_one_bars(axes, bars, scheme)
        drawn.text(HEADING_X, box[1] + box[3] + 0.08 / height_in, bars.title, weight="bold")
    return drawn


def _draw_one_bars(axes: Axes, bars: Bars, scheme: Scheme) -> None:
    highest = max(leg.figures[bars.name] for leg in bars.legs)
    for at, row in enumerate(bars.rows):
        value = row.figures[bars.name]
        rounds = [leg.figures[bars.name] for leg in bars.legs if leg.side == row.side]
        ours = row.side == STALECAST
        colour = scheme.sides.get(row.side, scheme.muted)
        axes.barh(at, value, height=0.68, color=colour, zorder=3)
        if max(rounds) - min(rounds) > highest * LEAST_SPREAD:
            _draw_spread(axes, at, rounds, scheme)
        axes.annotate(
            figures.with_unit(bars.name, value),
            xy=(max(value, *rounds), at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center_baseline",
            weight="bold" if ours else "normal",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(bars.rows)), [row.side for row in bars.rows])
    for label, row in zip(axes.get_yticklabels(), bars.rows, strict=True):
        label.set_fontweight("bold" if row.side == STALECAST else "normal")
    axes.set_ylim(len(bars.rows) - 0.5, -0.5)
    axes.set_xlim(0, highest or 1)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)  # each bar has its figure
    axes.spines["bottom"].set_visible(False)


def _draw_spread(axes: Axes, at: int, rounds: Sequence[float], scheme: Scheme) -> None:
    axes.plot(
        [min(rounds), max(rounds)],
        [at, at],
        color=scheme.text,
        linewidth=1.2,
        solid_capstyle="butt",
        zorder=4,
        path_effects=[withStroke(linewidth=3, foreground=scheme.background)],  # to be seen on any bar
    )


LATENCY = Chart(
    "latency",
    "Percentiles of the latency of one event for each side, one panel for each number of subscribers",
    {"latency": "p50_ms"},
    _draw_latency,
    of_histograms=True,
)
SCALE = Chart(
    "scale",
    "Processor time for a delivery and median latency of each side, against the number of clients",
    {"scale": "cpu_us_a_delivery"},
    _draw_scale,
)
ARRIVAL = Chart(
    "arrival",
    "Seconds of each side until all clients that came at once were greeted or had caught up",
    {"connect": "greeted_s", "resume": "caught_up_s"},
    _draw_arrival,
)
MEMORY = Chart("memory", "Memory of each side for one idle client", {"memory": "kb_a_client"}, _draw_memory)
CHARTS = (LATENCY, SCALE, ARRIVAL, MEMORY)
