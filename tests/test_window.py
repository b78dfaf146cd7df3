"""The newest events of a topic in memory: whatever it says it covers, it holds whole."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.streams.event import Event
from app.streams.ids import BEGINNING, StreamId
from app.streams.window import Budget, Window

PLENTY = 1 << 20


def at(number: int) -> StreamId:
    return StreamId(number, 0)


def event(number: int, size: int = 10) -> Event:
    return Event(at(number), None, b"%0*d" % (size, number))


def window(base: int, *numbers: int, limit_events: int = 10, limit_bytes: int = PLENTY) -> Window:
    made = Window(at(base), limit_events, Budget(limit_bytes))
    made.append([event(number) for number in numbers])
    return made


def numbers(events) -> list[int]:
    return [one.id.ms for one in events]


@pytest.mark.parametrize(
    ("cursor", "covered"),
    [
        (at(4), False),
        (at(5), True),  # the base
        (at(6), False),  # between: an id from elsewhere proves nothing
        (at(7), True),
        (StreamId(7, 1), False),
        (at(9), True),
        (at(10), False),
        (BEGINNING, False),
    ],
)
def test_it_covers_the_points_that_it_knows(cursor, covered):
    assert window(5, 7, 9).covers(cursor) == covered


def test_an_empty_window_covers_its_base():
    assert window(5).covers(at(5))
    assert list(window(5).after(at(5))) == []
    assert window(5).blocks_after(at(5)) == b""


def test_what_is_behind_a_cursor():
    kept = window(5, 7, 9, 11)

    assert numbers(kept.after(at(5))) == [7, 9, 11]
    assert numbers(kept.after(at(9))) == [11]
    assert numbers(kept.after(at(11))) == []
    assert kept.blocks_after(at(7)) == event(9).block + event(11).block


def test_joined_blocks_follow_every_change():
    kept = window(5, 7)
    assert kept.blocks_after(at(5)) == event(7).block

    kept.append([event(8)])
    assert kept.blocks_after(at(5)) == event(7).block + event(8).block

    kept.backfill([event(4), event(5)], at(3))
    assert kept.blocks_after(at(3)) == b"".join(event(number).block for number in (4, 5, 7, 8))

    kept.reset(at(9))
    assert kept.blocks_after(at(9)) == b""


def test_at_the_limit_the_oldest_go_and_the_base_follows():
    kept = window(0, *range(1, 6), limit_events=3)

    assert numbers(kept.after(kept.base)) == [3, 4, 5]
    assert kept.base == at(2)
    assert not kept.covers(at(1))


def test_without_room_it_still_stands_at_its_base():
    kept = window(0, 1, 2, limit_events=0)

    assert len(kept) == 0
    assert kept.base == at(2)


def test_all_windows_together_keep_to_the_budget():
    budget = Budget(limit_bytes=100)
    one, other = Window(BEGINNING, 100, budget), Window(BEGINNING, 100, budget)

    one.append([event(number, size=20) for number in range(1, 4)])
    other.append([event(number, size=20) for number in range(1, 6)])

    assert budget.used_bytes <= 100
    assert len(one) == 3
    assert numbers(other.after(other.base)) == [4, 5]


def test_resetting_gives_the_bytes_back():
    budget = Budget(PLENTY)
    kept = Window(BEGINNING, 10, budget)
    kept.append([event(1), event(2)])
    assert budget.used_bytes == 20

    kept.reset(at(7))

    assert budget.used_bytes == 0
    assert kept.base == at(7)
    assert len(kept) == 0
    assert not kept.covers(at(2))


def test_backfilling_takes_in_what_lies_before_the_base():
    kept = window(5, 7)
    assert not kept.backfilled

    kept.backfill([event(3), event(4), event(5), event(7)], at(3))

    assert kept.backfilled
    assert kept.base == at(3)
    assert numbers(kept.after(at(3))) == [4, 5, 7]


def test_a_backfill_from_behind_the_base_brings_nothing():
    kept = window(5, 7)

    kept.backfill([event(7)], at(6))

    assert kept.base == at(5)
    assert numbers(kept.after(at(5))) == [7]


def test_a_window_that_was_reset_is_not_backfilled():
    kept = window(5, 7)
    kept.reset(at(9))

    assert kept.backfilled


class AgainstAList(RuleBasedStateMachine):
    """Two windows on one budget; the model of each is the plain list of all its topic's events."""

    LIMIT_EVENTS = 5
    LIMIT_BYTES = 120

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(self.LIMIT_BYTES)
        # Events before the window was opened are there for a backfill.
        self.truth = [[event(number) for number in range(1, 8)] for _ in range(2)]
        self.proven_from = [BEGINNING, BEGINNING]
        self.windows = [Window(at(7), self.LIMIT_EVENTS, self.budget) for _ in range(2)]

    which = st.integers(0, 1)

    @rule(which=which, count=st.integers(1, 8), size=st.integers(1, 60))
    def append(self, which: int, count: int, size: int) -> None:
        start = self.truth[which][-1].id.ms + 1
        added = [event(number, size) for number in range(start, start + count)]
        self.truth[which] += added
        self.windows[which].append(added)

    @precondition(lambda self: not all(window.backfilled for window in self.windows))
    @rule(which=which, back=st.integers(0, 10))
    def backfill(self, which: int, back: int) -> None:
        truth, kept = self.truth[which], self.windows[which]
        if kept.backfilled:
            return
        page = truth[-back:] if back else []
        floor = BEGINNING if len(page) == len(truth) else truth[len(truth) - len(page) - 1].id
        kept.backfill(page, floor)

    @rule(which=which)
    def reset(self, which: int) -> None:
        last = self.truth[which][-1].id.ms
        self.windows[which].reset(at(last + 1))
        self.truth[which].append(event(last + 1))  # lost: nobody was told of it

    @invariant()
    def whatever_is_covered_is_whole(self) -> None:
        for kept, truth in zip(self.windows, self.truth, strict=True):
            assert kept.covers(kept.base)
            for cursor in [BEGINNING, *(one.id for one in truth)]:
                if kept.covers(cursor):
                    behind = [one for one in truth if one.id > cursor]
                    assert list(kept.after(cursor)) == behind
                    assert kept.blocks_after(cursor) == b"".join(one.block for one in behind)
                else:
                    assert cursor < kept.base

    @invariant()
    def the_bytes_add_up(self) -> None:
        held = [sum(len(one.block) for one in kept.after(kept.base)) for kept in self.windows]
        assert self.budget.used_bytes == sum(held) <= self.LIMIT_BYTES

    @invariant()
    def no_window_exceeds_its_limit(self) -> None:
        for kept in self.windows:
            assert len(kept) <= self.LIMIT_EVENTS


TestAgainstAList = AgainstAList.TestCase
