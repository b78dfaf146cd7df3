"""What each figure means, and how the legs of a side become one row.

Percentiles come from the merged histograms of all rounds, everything else is the median over the rounds.
Ratios are taken within a round, whose sides met the same machine in the same minute, and then the median
over the rounds: a machine that slows down meanwhile moves the figures and hardly the ratios.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench import latency
from bench.results import Leg, Result

STALECAST = "stalecast"
LIMIT = "limit"
SIDES = (STALECAST, LIMIT, "nchan", "better-sse", "sse-starlette", "quart-trio")

FAR_FROM_LIMIT = 1.15  # from here on Stalecast's own work shows beside the kernel's

Size = Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class Figure:
    name: str  # as a leg has it; the name ends in its unit
    label: str
    unit: str
    compared: bool  # less is better, and twice as much is twice as bad
    # It grows with the slowness of the machine. Such a figure is set beside the limit's; memory is not: the
    # limit is the least time, but it keeps nothing of its clients.
    timed: bool = False
    least: float = 0.0  # what is below this differs by nothing that counts


def _counts(*names: str) -> list[Figure]:
    return [Figure(name, name.replace("_", " "), "", compared=False) for name in names]


_FIGURES = (
    Figure("p50_ms", "p50", "ms", compared=True, timed=True, least=0.01),
    Figure("p90_ms", "p90", "ms", compared=True, timed=True, least=0.01),
    Figure("p99_ms", "p99", "ms", compared=True, timed=True, least=0.01),
    Figure("max_ms", "max", "ms", compared=True, timed=True, least=0.01),
    Figure("span_ms", "span", "ms", compared=True, timed=True, least=0.01),
    Figure("caught_up_s", "caught up", "s", compared=True, timed=True, least=0.01),
    Figure("greeted_s", "greeted", "s", compared=True, timed=True, least=0.01),
    Figure("cpu_us_a_delivery", "CPU a delivery", "µs", compared=True, timed=True, least=0.1),
    Figure("cpu_ms_a_client", "CPU a client", "ms", compared=True, timed=True, least=0.005),
    Figure("cpu_share", "CPU share", "%", compared=True, timed=True, least=0.001),
    Figure("kb_a_client", "memory a client", "kB", compared=True, least=0.1),
    Figure("rss_max_mb", "memory at most", "MB", compared=True, least=1.0),
    Figure("redis_commands_a_client", "Redis commands a client", "", compared=True, least=0.01),
    # How far the load could be trusted; see bench/README.md.
    Figure("late_ms", "late", "ms", compared=False),
    Figure("lag_ms", "lag", "ms", compared=False),
    Figure("busy", "busy", "%", compared=False),
    *_counts("receipts", "heartbeats_a_client", "events", "retry_seen", "clean_end", "resumed"),
    *_counts("cut_early", "refused", "lost", "repeated", "reload_required"),
    Figure("port_free_s", "port free", "s", compared=False),
    Figure("resumed_s", "all resumed", "s", compared=False),
    Figure("gone_s", "old server gone", "s", compared=False),
)
FIGURES: Mapping[str, Figure] = {figure.name: figure for figure in _FIGURES}
PERCENTILES = ("p50_ms", "p90_ms", "p99_ms", "max_ms")


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    about: str  # what happens in it, in a sentence
    # What it is about: ratios are shown of these, and a comparison judges these. No maximum among them: it is
    # one receipt out of a hundred thousand, and no two runs agree on it.
    headline: tuple[str, ...]


_SCENARIOS = (
    Scenario(
        "latency",
        "Latency of one event",
        "Steady events on one topic; each subscriber's wait from publishing to the last byte read.",
        ("p50_ms", "p99_ms", "span_ms"),
    ),
    Scenario(
        "burst",
        "A burst",
        "Many events at one moment; from the first publishing until the last subscriber has the last event.",
        ("span_ms", "p50_ms", "p99_ms"),
    ),
    Scenario(
        "topics",
        "Many topics",
        "A topic for each subscriber, events at random: reading many streams counts, sending hardly does.",
        ("p50_ms", "p99_ms", "cpu_share"),
    ),
    Scenario(
        "connect",
        "Everyone connects",
        "All clients come at once; until the last of them is greeted.",
        ("greeted_s", "cpu_ms_a_client"),
    ),
    Scenario(
        "resume",
        "Everyone comes back after a deploy",
        "All clients return at once to a new server, each with the same missed events to catch up on.",
        ("caught_up_s", "greeted_s", "redis_commands_a_client", "cpu_ms_a_client"),
    ),
    Scenario(
        "slow",
        "Clients that stop reading",
        "What clients that never read a byte cost those that do.",
        ("p50_ms", "p99_ms", "rss_max_mb"),
    ),
    Scenario(
        "memory",
        "Idle clients",
        "Nothing is published: resident memory for each client, and the CPU that heartbeats take.",
        ("kb_a_client", "cpu_share"),
    ),
    Scenario(
        "scale",
        "Growth",
        "The same work at 1, 2, 4 ... times the clients, on one topic and on a topic each.",
        ("cpu_us_a_delivery", "p50_ms", "p99_ms", "kb_a_client"),
    ),
    Scenario(
        "drain",
        "A deploy under load",
        "SIGTERM while events flow, a new server on the same port; everyone must come back and miss nothing.",
        (),
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _SCENARIOS}


@dataclass(frozen=True, slots=True)
class Row:
    """One side at one size, over all rounds."""

    scenario: str
    size: Size
    side: str
    rounds: int  # in which it was measured
    figures: Mapping[str, float]
    # Timed figures, this side over the limit. None for the limit, and where the limit has no part.
    over_limit: Mapping[str, float] | None
    # Stalecast over this side: below 1 Stalecast is ahead. None for itself, the limit, and without Stalecast.
    stalecast_over: Mapping[str, float] | None

    @property
    def not_ahead(self) -> list[str]:
        """The headline figures in which Stalecast is not ahead of this side."""
        ratios = self.stalecast_over or {}
        return [name for name in scenario(self.scenario).headline if ratios.get(name, 0.0) >= 1.0]

    @property
    def far_from_limit(self) -> list[str]:
        """The headline figures in which this side is far from the limit; only Stalecast's are asked for."""
        ratios = self.over_limit or {}
        if self.side != STALECAST:
            return []
        return [name for name in scenario(self.scenario).headline if ratios.get(name, 0.0) > FAR_FROM_LIMIT]


def scenario(name: str) -> Scenario:
    """Also of one that is not known here: then it has no headline."""
    return SCENARIOS.get(name) or Scenario(name, name, "", ())


def figure(name: str) -> Figure:
    """Also of one that is not known here: then it is shown and never compared."""
    return FIGURES.get(name) or Figure(name, name.replace("_", " "), "", compared=False)


def ordered(results: Mapping[str, Result]) -> list[Result]:
    """As `SCENARIOS` has them, the unknown ones last."""
    known = [results[name] for name in SCENARIOS if name in results]
    return known + [result for name, result in results.items() if name not in SCENARIOS]


def summarize(result: Result) -> list[Row]:
    """One for each size and side that was measured, in the order of the run."""
    rows: list[Row] = []
    for size in sizes_of(result):
        legs = [leg for leg in result.legs if leg.size == size]
        for side in dict.fromkeys(leg.side for leg in legs):
            own = [leg for leg in legs if leg.side == side]
            rows.append(
                Row(
                    result.scenario,
                    size,
                    side,
                    len({leg.round for leg in own}),
                    _merged(own),
                    None if side == LIMIT else _median_ratios(own, _of(legs, LIMIT), timed_only=True),
                    None if side in (STALECAST, LIMIT) else _median_ratios(_of(legs, STALECAST), own),
                )
            )
    return rows


def sizes_of(result: Result) -> list[Size]:
    sizes: list[Size] = []
    for leg in result.legs:
        if leg.size not in sizes:
            sizes.append(leg.size)
    return sizes


def at_least(leg: Leg, name: str) -> float:
    """The figure, or below what counts, that: a handful of commands for 5000 clients is none for one."""
    return max(leg.figures[name], figure(name).least)


def ratios_by_round(over: Iterable[Leg], under: Iterable[Leg], name: str) -> list[float]:
    """One for each round in which both sides have the figure and the lower one is not zero."""
    values = {leg.round: at_least(leg, name) for leg in under if leg.figures.get(name, 0.0) > 0}
    return [
        at_least(leg, name) / values[leg.round]
        for leg in over
        if leg.round in values and leg.figures.get(name) is not None
    ]


def _of(legs: Sequence[Leg], side: str) -> list[Leg]:
    return [leg for leg in legs if leg.side == side]


def _median_ratios(
    over: Sequence[Leg], under: Sequence[Leg], *, timed_only: bool = False
) -> dict[str, float] | None:
    found: dict[str, float] = {}
    for known in _FIGURES:
        if known.compared and (known.timed or not timed_only):
            ratios = ratios_by_round(over, under, known.name)
            if ratios:
                found[known.name] = median(ratios)
    return found or None


def _merged(legs: Sequence[Leg]) -> dict[str, float]:
    names = dict.fromkeys(name for leg in legs for name in leg.figures)
    values = {name: median(leg.figures[name] for leg in legs if name in leg.figures) for name in names}
    encoded = [leg.histogram for leg in legs if leg.histogram is not None]
    if encoded:
        found = latency.percentiles(latency.merge(encoded))
        values |= {name: found[name] for name in PERCENTILES if name in values}
    known = [name for name in FIGURES if name in values]
    return {name: values[name] for name in [*known, *(name for name in values if name not in FIGURES)]}


# -- in words


def size_words(size: Size) -> str:
    return ", ".join(_counted(value, name) for name, value in size.items())


def _counted(value: int | str, name: str) -> str:
    if isinstance(value, str):
        return f"{value} {name}"
    return f"{value:,} {name.removesuffix('s') if value == 1 else name}"


def figure_text(name: str, value: float) -> str:
    """Without its unit: three digits, a share as per cent."""
    if figure(name).unit == "%":
        value *= 100
    if value == 0 or (not figure(name).unit and value == int(value)):
        return f"{value:,.0f}"
    return _three_digits(value)


def with_unit(name: str, value: float) -> str:
    return f"{figure_text(name, value)} {figure(name).unit}".strip()


def ratio_text(ratio: float) -> str:
    if ratio == 0:
        return "0"
    if ratio < 0.1:
        return f"{ratio:#.2g}" if ratio >= 0.001 else "<0.001"
    return f"{ratio:.2f}" if ratio < 10 else _three_digits(ratio)


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.0995 else f"{value:#.2g}" if size >= 0.0001 else "<0.0001"
