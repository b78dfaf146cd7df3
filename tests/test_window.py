"""The newest events of a topic in memory: whatever it says it covers, it holds whole."""

import gc
import tracemalloc

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.streams import window as window_module
from app.streams.event import Event
from app.streams.ids import BEGINNING, StreamId
from app.streams.sse import unchunk
from app.streams.window import SLICE_BYTES, Budget, Window

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


def pieces_after(kept: Window, cursor: StreamId) -> list[bytes]:
    """As a client takes them, one after another."""
    found = []
    while (piece := kept.piece_after(cursor)) is not None:
        assert piece.upto > cursor
        found.append(piece.frame)
        cursor = piece.upto
        assert piece.is_last == (kept.piece_after(cursor) is None)
    return found


def blocks_after(kept: Window, cursor: StreamId) -> bytes:
    return b"".join(map(unchunk, pieces_after(kept, cursor)))


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
    assert blocks_after(window(5), at(5)) == b""


def test_what_is_behind_a_cursor():
    kept = window(5, 7, 9, 11)

    assert numbers(kept.after(at(5))) == [7, 9, 11]
    assert numbers(kept.after(at(9))) == [11]
    assert numbers(kept.after(at(11))) == []
    assert blocks_after(kept, at(7)) == event(9).block + event(11).block


def test_joined_blocks_follow_every_change():
    kept = window(5, 7)
    assert blocks_after(kept, at(5)) == event(7).block

    kept.append([event(8)])
    assert blocks_after(kept, at(5)) == event(7).block + event(8).block

    kept.backfill([event(4), event(5)], at(3))
    assert blocks_after(kept, at(3)) == b"".join(event(number).block for number in (4, 5, 7, 8))

    kept.reset(at(9))
    assert blocks_after(kept, at(9)) == b""


def test_at_the_limit_the_oldest_go_and_the_base_follows():
    kept = window(0, *range(1, 6), limit_events=3)

    assert numbers(kept.after(kept.base)) == [3, 4, 5]
    assert kept.base == at(2)
    assert not kept.covers(at(1))


def test_without_room_it_still_stands_at_its_base():
    kept = window(0, 1, 2, limit_events=0)

    assert len(kept) == 0
    assert kept.base == at(2)


def cost(*sizes: int) -> int:
    """What one window takes for events of these sizes."""
    budget = Budget(PLENTY)
    Window(BEGINNING, 1000, budget).append([event(number, size) for number, size in enumerate(sizes, 1)])
    return budget.used_bytes


def test_all_windows_together_keep_to_the_budget():
    """The one that had no event for longest gives way, not the one that gets events."""
    budget = Budget(cost(20) * 5)
    quiet, busy = Window(BEGINNING, 100, budget), Window(BEGINNING, 100, budget)

    quiet.append([event(number, size=20) for number in range(1, 4)])
    for number in range(1, 5):
        busy.append([event(number, size=20)])

    assert budget.used_bytes <= budget.limit_bytes
    assert numbers(busy.after(busy.base)) == [1, 2, 3, 4]
    assert numbers(quiet.after(quiet.base)) == [3]
    assert quiet.base == at(2)
    for number in range(5, 9):
        busy.append([event(number, size=20)])
    assert len(quiet) == 0
    assert numbers(busy.after(busy.base)) == [4, 5, 6, 7, 8]


def test_topics_without_clients_give_way_first():
    budget = Budget(cost(20) * 4)
    watched, idle, newest = (Window(BEGINNING, 100, budget) for _ in range(3))
    watched.append([event(1, 20), event(2, 20)])
    idle.append([event(1, 20), event(2, 20)])
    budget.set_idle(idle, idle=True)

    newest.append([event(1, 20)])
    assert (len(watched), len(idle), len(newest)) == (2, 1, 1)

    budget.set_idle(idle, idle=False)  # somebody came
    newest.append([event(2, 20)])
    assert (len(watched), len(idle), len(newest)) == (1, 1, 2)


def test_old_events_that_are_fetched_give_way_before_new_ones():
    budget = Budget(cost(20) * 4)
    busy, asked_for = Window(BEGINNING, 100, budget), Window(at(9), 100, budget)
    busy.append([event(1, 20), event(2, 20)])

    asked_for.backfill([event(number, 20) for number in range(1, 10)], BEGINNING)

    assert len(busy) == 2
    assert numbers(asked_for.after(asked_for.base)) == [8, 9]


def test_windows_of_topics_that_are_gone_are_not_asked_to_give_way():
    budget = Budget(cost(20) * 2)
    gone, other = Window(BEGINNING, 100, budget), Window(BEGINNING, 100, budget)
    gone.append([event(1, 20)])
    gone.reset(BEGINNING)

    other.append([event(1, 20), event(2, 20), event(3, 20)])

    assert budget.used_bytes <= budget.limit_bytes
    assert numbers(other.after(other.base)) == [2, 3]


def made_of(count: int, block_bytes: int) -> list[Event]:
    """As they are decoded from Redis: every part of its own."""
    return [
        Event(
            StreamId(1_763_900_000_000 + number, 300 + number),
            ("".join(["argument_", "updated"]), f"argument-{number:06}"),
            b"x" * (block_bytes - 6) + b"%06d" % number,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("block_bytes", [100, 140, 1000, 4000])
def test_what_is_counted_is_what_python_takes(block_bytes, batch):
    budget = Budget(1 << 30)
    windows = [Window(BEGINNING, 256, budget) for _ in range(40)]
    gc.collect()
    tracemalloc.start()
    try:
        for kept in windows:
            events = made_of(300, block_bytes)
            for begin in range(0, len(events), batch):
                kept.append(events[begin : begin + batch])
        events = []
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert budget.used_bytes == pytest.approx(taken, rel=0.08)


def test_resetting_gives_the_bytes_back():
    budget = Budget(PLENTY)
    kept = Window(BEGINNING, 10, budget)
    kept.append([event(1), event(2)])
    assert budget.used_bytes == cost(10, 10)
    kept.piece_after(BEGINNING)
    assert budget.used_bytes > cost(10, 10), "what is kept for the next asker counts, too"

    kept.reset(at(7))

    assert budget.used_bytes == 0
    assert kept.base == at(7)
    assert len(kept) == 0
    assert not kept.covers(at(2))


def test_clients_share_what_they_are_sent():
    kept = Window(BEGINNING, 1000, Budget(PLENTY))
    kept.append([event(number, 1000) for number in range(1, 101)])

    askers = [pieces_after(kept, at(number)) for number in range(30)]

    own = {id(pieces[0]) for pieces in askers}
    shared = {id(frame) for pieces in askers for frame in pieces[1:]}
    assert len(own) > 20
    assert len(shared) == 100 * 1000 // SLICE_BYTES
    assert all(len(frame) <= SLICE_BYTES + 10 for pieces in askers for frame in pieces)


def test_those_who_resume_from_one_point_share_also_the_first_piece():
    kept = Window(BEGINNING, 1000, Budget(PLENTY))
    kept.append([event(number, 100) for number in range(1, 201)])

    assert kept.piece_after(at(100)) is kept.piece_after(at(100))
    assert len(pieces_after(kept, at(100))) == 1, "what fits into one piece is sent as one"


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
    LIMIT_BYTES = 2500
    SLICE_BYTES = 80

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(window_module, "SLICE_BYTES", self.SLICE_BYTES)
        self.budget = Budget(self.LIMIT_BYTES)
        # Events before the window was opened are there for a backfill.
        self.truth = [[event(number) for number in range(1, 8)] for _ in range(2)]
        self.proven_from = [BEGINNING, BEGINNING]
        self.windows = [Window(at(7), self.LIMIT_EVENTS, self.budget) for _ in range(2)]

    which = st.integers(0, 1)

    def teardown(self) -> None:
        self.patch.undo()

    @rule(which=which, idle=st.booleans())
    def come_or_go(self, which: int, idle: bool) -> None:
        self.budget.set_idle(self.windows[which], idle=idle)

    @rule(which=which, back=st.integers(0, 10))
    def ask(self, which: int, back: int) -> None:
        cursor = self.truth[which][-1 - min(back, len(self.truth[which]) - 1)].id
        if self.windows[which].covers(cursor):
            self.windows[which].piece_after(cursor)

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
                    assert blocks_after(kept, cursor) == b"".join(one.block for one in behind)
                else:
                    assert cursor < kept.base

    @invariant()
    def the_bytes_add_up(self) -> None:
        assert self.budget.used_bytes == sum(kept.taken_bytes for kept in self.windows)
        for kept in self.windows:
            assert (kept.taken_bytes > 0) == (len(kept) > 0)
            kept.append([])

    @invariant()
    def no_window_exceeds_its_limit_by_more_than_a_slice(self) -> None:
        for kept in self.windows:
            blocks = [len(one.block) for one in kept.after(kept.base)]
            assert sum(blocks[: -self.LIMIT_EVENTS]) <= self.SLICE_BYTES


TestAgainstAList = AgainstAList.TestCase
