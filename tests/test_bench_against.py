"""The ratio of two checkouts and its interval, against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("hdrh", reason="the bench's packages are not installed")
pytest.importorskip("rich")
pytest.importorskip("numpy")

from bench import against
from bench.results import Leg, Result
from bench.table import console_for


def _result(ours: list[float], theirs: list[float]) -> Result:
    result = Result(scenario="connect", quick=False, rounds=len(ours))
    for side, values in (("stalecast", ours), ("other", theirs)):
        result.legs += [
            Leg({"clients": 10}, side, round_, {"greeted_s": value}) for round_, value in enumerate(values)
        ]
    return result


def test_the_interval_is_students() -> None:
    # Logarithms -1, 0 and 1: mean 0, deviation 1, and t(0.10, 2) = 2.920.
    mean, low, high = against.interval([math.exp(-1), 1.0, math.e])
    assert mean == pytest.approx(1.0)
    assert math.log(high) == pytest.approx(2.920 / math.sqrt(3), abs=1e-3)
    assert math.log(low) == pytest.approx(-math.log(high))


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is ten times slower in the second round, for both.
    (found,) = against.ratios(_result([1.1, 11.0, 1.1], [1.0, 10.0, 1.0]))
    assert (found.figure, found.rounds) == ("greeted_s", 3)
    assert found.low == pytest.approx(1.1)
    assert found.high == pytest.approx(1.1)


def test_two_rounds_say_nothing() -> None:
    assert against.ratios(_result([1.0, 1.0], [1.0, 1.0])) == []


@pytest.mark.parametrize(("ours", "fast"), [([1.0, 1.1, 1.05], True), ([1.1, 1.11, 1.12], False)])
def test_only_an_interval_wholly_above_counts(ours: list[float], fast: bool) -> None:
    found = against.ratios(_result(ours, [1.0] * 3))
    assert against.show(found, 1.02, console_for()) is fast


def test_what_counts_for_nothing_makes_no_ratio() -> None:
    """A ping and a look more, over 5000 clients."""
    result = _result([0.0038] * 3, [0.0028] * 3)
    result.scenario = "resume"
    for leg in result.legs:
        leg.figures["redis_commands_a_client"] = leg.figures.pop("greeted_s")
    (found,) = against.ratios(result)
    assert (found.figure, found.high) == ("redis_commands_a_client", pytest.approx(1.0))
