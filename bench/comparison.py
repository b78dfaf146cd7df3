"""What changed between two runs of the bench, beyond noise: `bench/compare OLD NEW`.

What is compared: the headline figures of a scenario (bench/figures.py), one value for each round. A timed
figure counts as its ratio to the limit in the same round, because machines and days differ; where the limit
has no part it counts as it is, and then only on one machine. Memory and counts of commands always count as
they are.

What is noise: with two or three rounds, ranges that do not overlap prove nothing. Equal code gives them for
one figure in three (two rounds) or in ten (three rounds), and a run has about eighty figures. So a figure
borrows from the others, as limma does for genes (Smyth 2004, doi.org/10.2202/1544-6115.1027), on
logarithms:

- its own spread is the variance within its rounds, of both runs together;
- the usual spread is the median variance of the same figure at the scenario's other sizes and sides, and
  counts as `BORROWED_FREEDOM` degrees of freedom, as many as three rounds in each run have;
- its noise is the weighted mean of both, and never below its own;
- the geometric means differ when Student's t says so, at a level at which all figures of a side together
  raise a false alarm in `FALSE_ALARMS` of the comparisons (Bonferroni), and by `LEAST_CHANGE` at least.

Simulated with equal code (81 figures of Stalecast's; noise of 4 % in the middle, different by a factor of
1.4 to 2 between siblings; normal, heavy-tailed, or with outliers; 150 to 300 comparisons of each kind): 0
to 5 % of the comparisons exit with 1 after three or five rounds, and 0 to 11 % after two, the most where
siblings differ most. What is less than the noise stays unseen: a doubled figure is found in 76 to 97 of 100
after three rounds, in 59 to 92 after two. It is always found, with siblings that are no noisier, while the
rounds stay within 12 % of their middle (three rounds) or 4 % (two).

What this cannot see: whatever differs between two runs and is the same in all rounds of each, as another
kernel, a neighbour on the machine, or where the loader put the code. Compare runs of one session; look
twice.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from statistics import fmean, median

from rich.console import Console
from rich.markup import escape

from bench import figures, results, table
from bench.figures import LIMIT, STALECAST
from bench.results import Leg, Result, UnreadableResult

FALSE_ALARMS = 0.05
LEAST_CHANGE = 1.05  # what is smaller helps nobody, and rounds of one session do not prove it
LEAST_ROUNDS = 2
BORROWED_FREEDOM = 4  # as many degrees of freedom as three rounds in each run have

EXIT_NOT_WORSE = 0
EXIT_WORSE = 1
EXIT_NOT_COMPARABLE = 2


class NotComparable(Exception):
    """The two have nothing that could be set side by side."""


class Verdict(Enum):
    WORSE = "worse"
    BETTER = "better"
    SAME = "no change beyond noise"
    UNKNOWN = "nothing can be told"


@dataclass(frozen=True, slots=True)
class Place:
    """Which figure of whom, where."""

    scenario: str
    size: str
    side: str
    figure: str


@dataclass(frozen=True, slots=True)
class Change:
    place: Place
    over_limit: bool  # the values are ratios to the limit
    old: float  # geometric means over the rounds
    new: float
    rounds: tuple[int, int]
    least_factor: float  # what would have counted: 1.12 is 12 per cent; infinite if nothing would
    verdict: Verdict
    why: str = ""  # nothing can be told

    @property
    def factor(self) -> float:
        return self.new / self.old


@dataclass(slots=True)
class Comparison:
    changes: list[Change] = field(default_factory=list[Change])
    warnings: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])  # in one of the two
    broken: list[str] = field(default_factory=list[str])  # promises that only the new one broke

    def of(self, verdict: Verdict) -> list[Change]:
        return [change for change in self.changes if change.verdict is verdict]

    @property
    def status(self) -> int:
        ours = [change for change in self.changes if change.place.side == STALECAST]
        if self.broken or any(change.verdict is Verdict.WORSE for change in ours):
            return EXIT_WORSE
        if all(change.verdict is Verdict.UNKNOWN for change in ours):
            return EXIT_NOT_COMPARABLE
        return EXIT_NOT_WORSE


# -- what the two have


@dataclass(frozen=True, slots=True)
class Pair:
    """A figure's values, one for each round."""

    place: Place
    over_limit: bool
    old: Sequence[float]
    new: Sequence[float]
    why_unknown: str = ""


def compare(old: Mapping[str, Result], new: Mapping[str, Result]) -> Comparison:
    """By scenario. Raises `NotComparable`."""
    both = [name for name in old if name in new]
    if not both:
        raise NotComparable("they have no scenario in common")
    if quick := [name for name in both if old[name].quick or new[name].quick]:
        raise NotComparable(f"--quick says nothing about speed: {', '.join(quick)}")
    found = Comparison()
    found.missing += [f"{name}: only in the old one" for name in old if name not in new]
    found.missing += [f"{name}: only in the new one" for name in new if name not in old]
    pairs: list[Pair] = []
    for name in both:
        found.warnings += _differences(old[name], new[name])
        pairs += _pairs(old[name], new[name], found.missing)
        found.broken += _newly_broken(old[name], new[name])
    found.warnings = _once(found.warnings)
    found.changes = judge(pairs)
    return found


def _differences(old: Result, new: Result) -> list[str]:
    warnings: list[str] = []
    for title, before, after in (
        ("machine", old.machine, new.machine),
        ("versions", old.versions, new.versions),
    ):
        for name in dict.fromkeys([*before, *after]):
            if before.get(name) != after.get(name):
                warnings.append(f"other {title}: {name} {_known(before, name)}, now {_known(after, name)}")
    return warnings


def _known(found: Mapping[str, object], name: str) -> str:
    return str(found.get(name, "unknown"))


def _once(texts: Iterable[str]) -> list[str]:
    """Every scenario of a run tells the same machine."""
    return list(dict.fromkeys(texts))


def _newly_broken(old: Result, new: Result) -> list[str]:
    """A scenario that was broken before proves nothing new."""
    return [] if _ours(old) else [f"{new.scenario}: {text}" for text in _ours(new)]


def _ours(result: Result) -> list[str]:
    """A peer that breaks is no fault of Stalecast's."""
    peers = tuple(side for side in figures.SIDES if side != STALECAST)
    return [text for text in result.violations if not text.startswith(peers)]


def _pairs(old: Result, new: Result, missing: list[str]) -> list[Pair]:
    """What only one of them has is added to `missing`."""
    pairs: list[Pair] = []
    before, after = _by_place(old), _by_place(new)
    for one, other, which in ((before, after, "old"), (after, before, "new")):
        sizes: dict[str, list[str]] = {}
        for size, side in one:
            if (size, side) not in other:
                sizes.setdefault(side, []).append(size)
        missing += [
            f"{old.scenario}: {side} with {'; '.join(alone)}: only in the {which} one"
            for side, alone in sizes.items()
        ]
    same_machine = dict(old.machine) == dict(new.machine)
    for size, side in before:
        if side == LIMIT or (size, side) not in after:
            continue
        for name in figures.scenario(old.scenario).headline:
            place = Place(old.scenario, size, side, name)
            legs = before[size, side], after[size, side]
            limits = before.get((size, LIMIT), []), after.get((size, LIMIT), [])
            have = [any(name in leg.figures for leg in one) for one in legs]
            if all(have):
                pairs.append(_pair(place, legs, limits, same_machine=same_machine))
            elif any(have):
                label, which = figures.figure(name).label, "old" if have[0] else "new"
                missing.append(f"{old.scenario}: {label} of {side} with {size}: only in the {which} one")
    return pairs


def _by_place(result: Result) -> dict[tuple[str, str], list[Leg]]:
    found: dict[tuple[str, str], list[Leg]] = {}
    for leg in result.legs:
        found.setdefault((figures.size_words(leg.size), leg.side), []).append(leg)
    return found


def _pair(
    place: Place,
    legs: tuple[Sequence[Leg], Sequence[Leg]],
    limits: tuple[Sequence[Leg], Sequence[Leg]],
    *,
    same_machine: bool,
) -> Pair:
    known = figures.figure(place.figure)
    absolute = [
        [figures.at_least(leg, place.figure) for leg in one if place.figure in leg.figures] for one in legs
    ]
    if not known.timed:
        return _checked(Pair(place, False, absolute[0], absolute[1]))
    ratios = [_over_limit(one, limit, place.figure) for one, limit in zip(legs, limits, strict=True)]
    if any(ratios):
        why = "" if all(ratios) else "the limit was not measured beside it in both"
        return _checked(Pair(place, True, ratios[0], ratios[1], why))
    why = "" if same_machine else "times without the limit beside them, from another machine"
    return _checked(Pair(place, False, absolute[0], absolute[1], why))


def _over_limit(legs: Iterable[Leg], limits: Iterable[Leg], name: str) -> list[float]:
    beside = {leg.round: figures.at_least(leg, name) for leg in limits if name in leg.figures}
    both = (leg for leg in legs if name in leg.figures and leg.round in beside)
    return [figures.at_least(leg, name) / beside[leg.round] for leg in both]


def _checked(pair: Pair) -> Pair:
    if pair.why_unknown or min(len(pair.old), len(pair.new)) >= LEAST_ROUNDS:
        return pair
    rounds = f"{len(pair.old)} and {len(pair.new)} rounds, it needs {LEAST_ROUNDS} of each"
    return Pair(pair.place, pair.over_limit, pair.old, pair.new, rounds)


# -- the judgement


@dataclass(frozen=True, slots=True)
class Spread:
    variance: float  # of logarithms, within each run and not between them
    freedom: int  # degrees of it


def judge(pairs: Sequence[Pair]) -> list[Change]:
    """In the same order. What counts is stated at the top of this file."""
    judged = [pair for pair in pairs if not pair.why_unknown]
    family = Counter(pair.place.side for pair in judged)
    by_kind: dict[tuple[str, str, bool], dict[Place, Spread]] = {}
    for pair in judged:
        by_kind.setdefault(_kind(pair), {})[pair.place] = _spread(pair)
    return [
        _unknown(pair)
        if pair.why_unknown
        else _judge(pair, _noise(pair.place, by_kind[_kind(pair)]), FALSE_ALARMS / family[pair.place.side])
        for pair in pairs
    ]


def _kind(pair: Pair) -> tuple[str, str, bool]:
    return pair.place.scenario, pair.place.figure, pair.over_limit


def _spread(pair: Pair) -> Spread:
    runs = [[math.log(value) for value in values] for values in (pair.old, pair.new)]
    freedom = sum(len(run) - 1 for run in runs)
    squares = sum((value - fmean(run)) ** 2 for run in runs for value in run)
    return Spread(squares / freedom, freedom)


def _noise(place: Place, spreads: Mapping[Place, Spread]) -> Spread:
    own = spreads[place]
    others = [spread for other, spread in spreads.items() if other != place]
    if not others:
        return own
    usual = median(other.variance / _median_share(other.freedom) for other in others)
    borrowed = min(BORROWED_FREEDOM, sum(other.freedom for other in others))
    freedom = own.freedom + borrowed
    mixed = (own.variance * own.freedom + usual * borrowed) / freedom
    return Spread(max(own.variance, mixed), freedom)


def _judge(pair: Pair, noise: Spread, level: float) -> Change:
    old, new = _geometric_mean(pair.old), _geometric_mean(pair.new)
    error = math.sqrt(noise.variance * (1 / len(pair.old) + 1 / len(pair.new)))
    least = max(math.log(LEAST_CHANGE), student_t(level, noise.freedom) * error)
    change = math.log(new / old)
    changed = Verdict.WORSE if change > 0 else Verdict.BETTER
    verdict = changed if abs(change) > least else Verdict.SAME
    rounds = len(pair.old), len(pair.new)
    return Change(pair.place, pair.over_limit, old, new, rounds, math.exp(least), verdict)


def _unknown(pair: Pair) -> Change:
    old, new = (_geometric_mean(values) for values in (pair.old, pair.new))
    rounds = len(pair.old), len(pair.new)
    return Change(pair.place, pair.over_limit, old, new, rounds, math.inf, Verdict.UNKNOWN, pair.why_unknown)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(fmean(map(math.log, values))) if values else math.nan


def _median_share(freedom: int) -> float:
    """The median of a variance that was estimated with so much freedom, as a share of the true one: with
    little freedom most estimates are too small (Wilson and Hilferty)."""
    return (1 - 2 / (9 * freedom)) ** 3


@cache
def student_t(level: float, freedom: int) -> float:
    """The value that |t| exceeds with this probability."""
    low, high = 0.0, 1.0
    while _exceeds(high, freedom) > level:
        low, high = high, high * 2
    for _ in range(60):  # each halves the interval: more than a float can tell
        middle = (low + high) / 2
        low, high = (middle, high) if _exceeds(middle, freedom) > level else (low, middle)
    return high


def _exceeds(t: float, freedom: int) -> float:
    """P(|T| > t): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    square = math.cos(angle) ** 2
    term, total = (math.cos(angle) if freedom % 2 else 1.0), 0.0
    for step in range(2 + freedom % 2, freedom + 1, 2):
        total += term
        term *= square * (step - 1) / step
    inside = math.sin(angle) * total
    return 1 - (2 / math.pi * (angle + inside) if freedom % 2 else inside)


# -- files in, words out


def load(path: Path) -> dict[str, Result]:
    """A result, or those of a folder, by scenario. Raises `UnreadableResult` or OSError."""
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not paths:
        raise UnreadableResult(f"{path}: no results (*.json) in this folder")
    found = [results.read(one) for one in paths]
    return {result.scenario: result for result in found}


def show(found: Comparison, old: str, new: str, console: Console) -> None:
    """What counts last, where one sees it."""
    console.print(escape(f"old: {old}\nnew: {new}"), soft_wrap=True)
    for warning in found.warnings:
        console.print(escape(f"WARNING {warning}"), style="yellow", soft_wrap=True)
    for gap in found.missing:
        console.print(escape(f"missing: {gap}"), style="dim", soft_wrap=True)
    for why in dict.fromkeys(change.why for change in found.of(Verdict.UNKNOWN)):
        counts = Counter(change.place.scenario for change in found.of(Verdict.UNKNOWN) if change.why == why)
        told = ", ".join(f"{scenario} ({_counted(count)})" for scenario, count in counts.items())
        console.print(escape(f"nothing can be told, {why}: {told}"), soft_wrap=True)
    _show_closest(found, console)
    for verdict, style in ((Verdict.BETTER, "green"), (Verdict.WORSE, "bold red")):
        if changes := found.of(verdict):
            _show_changes(changes, verdict, style, console)
    for text in found.broken:
        console.print(escape(f"VIOLATION {text} (the old run had none)"), style="bold red", soft_wrap=True)
    console.print(escape(_conclusion(found)), style="bold", soft_wrap=True)


def _show_closest(found: Comparison, console: Console) -> None:
    same = found.of(Verdict.SAME)
    if same:
        seen = median(change.least_factor for change in same)
        text = f"no change beyond noise: {_counted(len(same))}"
        text += f"; half of them would have shown one of {_per_cent(seen)}"
        console.print(escape(text), soft_wrap=True)


FIRST_VALUE = 4  # of the columns below: the ones before are names


def _show_changes(changes: Sequence[Change], verdict: Verdict, style: str, console: Console) -> None:
    columns: list[tuple[str, Callable[[Change], str]]] = [
        ("scenario", lambda change: change.place.scenario),
        ("size", lambda change: change.place.size),
        ("side", lambda change: change.place.side),
        ("figure", lambda change: figures.figure(change.place.figure).label),
        ("old", lambda change: _value(change, change.old)),
        ("new", lambda change: _value(change, change.new)),
        ("change", lambda change: _per_cent(change.factor)),
        ("counts from", lambda change: _per_cent(change.least_factor)),
        ("rounds", lambda change: f"{change.rounds[0]}, {change.rounds[1]}"),
    ]
    shown = table.new_table()
    for at, (title, _) in enumerate(columns):
        heading = f"{verdict.value.upper()}\n{title}" if at == 0 else title
        table.add_column(shown, heading, right=at >= FIRST_VALUE, wraps=at < FIRST_VALUE)
    # Ours first, then the greatest change.
    for change in sorted(changes, key=lambda one: (one.place.side != STALECAST, -abs(math.log(one.factor)))):
        ours = change.place.side == STALECAST
        shown.add_row(*(escape(text(change)) for _, text in columns), style=style if ours else "dim")
    console.print(shown)


def _value(change: Change, value: float) -> str:
    if change.over_limit:
        return f"{figures.ratio_text(value)} x limit"
    return figures.with_unit(change.place.figure, value)


def _per_cent(factor: float) -> str:
    """A factor where per cent would mislead: a hundredth is not 99 % better."""
    if factor >= 2:
        return f"x {factor:.3g}"
    return f"{(factor - 1) * 100:+.0f} %" if factor > 0.5 else f"x {factor:.2g}"


def _counted(count: int) -> str:
    return f"{count} figure" + ("" if count == 1 else "s")


def _conclusion(found: Comparison) -> str:
    if found.status == EXIT_NOT_COMPARABLE:
        return "Nothing can be told about Stalecast."
    worse = [change for change in found.of(Verdict.WORSE) if change.place.side == STALECAST]
    if found.status == EXIT_WORSE:
        promises = f"{len(found.broken)} broken promises" if len(found.broken) > 1 else "a broken promise"
        parts = ([_counted(len(worse))] if worse else []) + ([promises] if found.broken else [])
        return f"Stalecast got worse: {' and '.join(parts)}."
    return "Nothing of Stalecast's got worse beyond noise."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="bench/compare",
        description="What changed between two runs of the bench, beyond noise.",
        epilog="Exit status: 0 nothing of Stalecast's got worse, 1 something did, 2 they cannot be compared.",
    )
    parser.add_argument("old", type=Path, help="a result (.json) or a folder of them")
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    try:
        found = compare(load(options.old), load(options.new))
    except (NotComparable, UnreadableResult) as error:
        print(f"not comparable: {error}", file=sys.stderr)
        return EXIT_NOT_COMPARABLE
    except OSError as error:
        print(f"not comparable: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_COMPARABLE
    show(found, str(options.old), str(options.new), table.console_for())
    return found.status
