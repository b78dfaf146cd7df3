"""`python -m bench.against CHECKOUT`: this tree's server beside that of another checkout, in one run.

`bench/compare` sets two runs side by side; a machine that changes its mood between them looks like a change
of the code. Here both servers are visited in turn, and the one that comes first changes from round to round.
What is shown is the ratio of the headline figures, this one over the other, taken within each round: its
geometric mean, and the interval that holds the true one with 90% (Student's t on the logarithms).

The load, the publisher and Redis are this tree's for both. Exit status 1: an interval lies wholly above
`--within`, or a promise was broken.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console

from bench import figures, table
from bench.comparison import student_t
from bench.peers import Side, Stalecast
from bench.processes import pin_load, redis_server
from bench.results import Result
from bench.scenarios import SCENARIOS
from bench.stage import Size, Stage

DEFAULT_SCENARIOS = ("latency", "burst", "connect", "resume", "memory")
DEFAULT_ROUNDS = 8
# Of `latency`: where Python's own part is largest, and where the kernel's is.
DEFAULT_SUBSCRIBERS = (1, 1000, 5000)
DEFAULT_WITHIN = 1.02
OUTSIDE = 0.10  # the share of true ratios that lie outside of the interval
LEAST_ROUNDS = 3


class Other(Stalecast):
    """The server of another checkout: with its own environment where it has one, otherwise with ours."""

    name = "other"

    def __init__(self, checkout: Path) -> None:
        super().__init__()
        self._checkout = checkout.resolve()
        own = self._checkout / ".venv" / "bin" / "python"
        self._python = str(own) if own.exists() else sys.executable

    def _command(self, arguments: Sequence[str]) -> tuple[list[str], Path]:
        return [self._python, "-m", "app", *arguments], self._checkout


@dataclass(slots=True)
class PairedStage(Stage):
    """Two sides, each first in every other round; only the sizes that were asked for."""

    paired = True
    subscribers: frozenset[int] = frozenset(DEFAULT_SUBSCRIBERS)

    def visits(self, sizes: Sequence[Size], sides: Sequence[Side]) -> Iterator[tuple[Size, int, Side]]:
        chosen = [
            size
            for size in sizes
            if set(size) != {"subscribers"} or int(size["subscribers"]) in self.subscribers
        ]
        self.progress.expect(len(chosen) * self.rounds * len(sides))
        for size in chosen:
            for round_ in range(self.rounds):
                for side in sides if round_ % 2 == 0 else list(reversed(sides)):
                    yield size, round_, side


@dataclass(frozen=True, slots=True)
class Ratio:
    """This over the other: the geometric mean over the rounds, and its interval."""

    scenario: str
    size: str
    figure: str
    mean: float
    low: float
    high: float
    rounds: int


def ratios(result: Result) -> list[Ratio]:
    """Of the headline figures; none where fewer than `LEAST_ROUNDS` rounds have both sides."""
    found: list[Ratio] = []
    for size in figures.sizes_of(result):
        legs = [leg for leg in result.legs if leg.size == size]
        ours = [leg for leg in legs if leg.side == Stalecast.name]
        theirs = [leg for leg in legs if leg.side == Other.name]
        for name in figures.scenario(result.scenario).headline:
            values = figures.ratios_by_round(ours, theirs, name)
            if len(values) >= LEAST_ROUNDS and min(values) > 0:
                found.append(
                    Ratio(result.scenario, figures.size_words(size), name, *interval(values), len(values))
                )
    return found


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of the (at least two, positive) values, and the ends of its interval."""
    logs = [math.log(value) for value in values]
    middle = fmean(logs)
    half = student_t(OUTSIDE, len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def show(found: Sequence[Ratio], within: float, console: Console) -> bool:
    """Returns whether every interval reaches down to `within`."""
    shown = table.new_table()
    for at, title in enumerate(("scenario", "size", "figure", "ratio", "90% interval", "rounds")):
        table.add_column(shown, title, right=at > 2, wraps=at <= 2)
    for one in found:
        shown.add_row(
            one.scenario,
            one.size,
            figures.figure(one.figure).label,
            f"{one.mean:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            str(one.rounds),
            style="bold red" if one.low > within else None,
        )
    console.print(shown)
    return all(one.low <= within for one in found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.against", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, help="where the other server's source is")
    parser.add_argument("scenario", nargs="*", help=f"default: {', '.join(DEFAULT_SCENARIOS)}")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument("--subscribers", type=int, nargs="+", default=DEFAULT_SUBSCRIBERS)
    parser.add_argument("--within", type=float, default=DEFAULT_WITHIN)
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where the legs are written as well")
    options = parser.parse_args(arguments)
    if not (options.checkout / "app" / "__main__.py").exists():
        parser.error(f"{options.checkout} is no checkout of Stalecast")
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds: an interval needs {LEAST_ROUNDS} at least")
    if unknown := set(options.scenario) - set(SCENARIOS):
        parser.error(f"no scenario is called {sorted(unknown)[0]!r}: {', '.join(SCENARIOS)}")
    console = table.console_for()
    found: list[Ratio] = []
    broken: list[str] = []
    pin_load()
    with redis_server() as redis_url:
        for name in options.scenario or DEFAULT_SCENARIOS:
            result = Result(scenario=name, quick=False, rounds=options.rounds)
            sides = (Stalecast(), Other(options.checkout))
            with table.Progress() as progress:
                stage = PairedStage(redis_url, False, options.rounds, sides, progress, result)
                stage.subscribers = frozenset(options.subscribers)
                try:
                    SCENARIOS[name](stage)
                finally:
                    stage.forget_topics()
            if options.results:
                result.write(options.results / f"{name}.json")
            found += ratios(result)
            broken += result.violations
            show(ratios(result), options.within, console)
    fast = show(found, options.within, console)
    for text in broken:
        console.print(f"VIOLATION {text}", style="bold red", markup=False)
    return 0 if fast and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
