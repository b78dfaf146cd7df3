"""The first promise, tried: rounds of random faults against the real server and a real Redis.

The number of rounds comes from STALECAST_DELIVERY_ROUNDS (about a second each, on two cores). The seeds are
the same in every run; a failure prints the command that repeats its round.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import pytest
import trio

from .chaos import SERVER_ARGV, Round, run_rounds
from .plan import Plan, draw, draw_backfills, draw_heartbeats
from .processes import RedisMissing, redis_binary

ROUNDS = int(os.environ.get("STALECAST_DELIVERY_ROUNDS", "150"))
PLANTED_ROUNDS = 12
SILENT_GAPS = {"gap", "missing_reload"}
UNREADABLE = {"wrong_bytes"}  # to the strictest of clients
BUGS = {
    "no_live_trim_check": SILENT_GAPS,
    "no_replay_trim_check": SILENT_GAPS,
    "no_hand_over": SILENT_GAPS,
    "position_without_data": UNREADABLE,
    "heartbeats_within_a_fan_out": SILENT_GAPS,
    "backfill_of_another_stream": SILENT_GAPS,
}
# What random rounds meet too seldom.
PROVOKED: dict[str, Callable[[int], Plan]] = {
    "heartbeats_within_a_fan_out": draw_heartbeats,
    "backfill_of_another_stream": draw_backfills,
}


@pytest.fixture(scope="module", autouse=True)
def _redis() -> None:
    try:
        redis_binary()
    except RedisMissing as missing:
        pytest.skip(str(missing))


async def test_no_silent_gap_and_no_needless_reload(capsys: pytest.CaptureFixture[str]) -> None:
    report = await run_rounds(range(ROUNDS))
    with capsys.disabled():
        print(f"\n{report}")
    assert not report.failed, f"\n{report}"
    assert len(report.rounds) == ROUNDS


@pytest.mark.parametrize("bug", BUGS)
async def test_a_planted_bug_is_found(bug: str) -> None:
    serve = SERVER_ARGV[SERVER_ARGV.index("serve") :]
    argv = (sys.executable, "-m", "tests.delivery.launch", bug, *serve)
    # No client gets anywhere on what it cannot read, so each round waits for all of them to the end.
    rounds = range(2 if BUGS[bug] is UNREADABLE else PLANTED_ROUNDS)
    found: set[str] = set()

    def note(one: Round) -> None:
        found.update(violation.kind for violation in one.violations)
        if found & BUGS[bug]:
            scope.cancel()

    with trio.CancelScope() as scope:
        drawn = PROVOKED.get(bug, draw)
        await run_rounds(rounds, workers=(1, 1), server_argv=argv, drawn=drawn, on_round=note)
    assert found & BUGS[bug], found
