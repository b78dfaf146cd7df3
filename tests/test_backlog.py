"""What waits for a client that is behind: newest per key, bounded, and never a silent gap."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from app.streams.backlog import Backlog
from app.streams.event import Event, reload_event
from app.streams.ids import BEGINNING, StreamId, origin


def at(number: int) -> StreamId:
    return StreamId(number, 0)


def event(number: int, key: str | None = None) -> Event:
    return Event(at(number), key, b"block %d" % number)


def filled(*events: Event, limit_events: int = 10) -> Backlog:
    backlog = Backlog(limit_events)
    for one in events:
        backlog.add(one)
    return backlog


def is_reload(taken: Event) -> bool:
    return b"reload_required" in taken.block


# -- conflation


@pytest.mark.parametrize(
    ("added", "taken"),
    [
        ([event(1, "a"), event(2, "b")], [1, 2]),
        ([event(1, "a"), event(2, "a")], [2]),
        ([event(1, "a"), event(2, "b"), event(3, "a")], [2, 3]),
        ([event(1), event(2), event(3)], [1, 2, 3]),
        ([event(1, "a"), event(2), event(3, "a"), event(4)], [2, 3, 4]),
        ([event(1, "a"), event(2, "b"), event(3, "a"), event(4, "b"), event(5, "a")], [4, 5]),
    ],
)
def test_of_equal_keys_the_newest_stays_at_its_own_place(added, taken):
    assert [one.id.ms for one in filled(*added).take(BEGINNING)] == taken


def test_taking_empties_it():
    backlog = filled(event(1), event(2))
    assert len(backlog) == 2

    assert len(backlog.take(BEGINNING)) == 2
    assert len(backlog) == 0
    assert backlog.take(BEGINNING) == []


@pytest.mark.parametrize(
    ("after", "taken"),
    [
        (BEGINNING, [1, 2, 3]),
        (at(1), [2, 3]),
        (StreamId(1, 1), [2, 3]),
        (at(3), []),
        (at(9), []),
        (origin(7), [1, 2, 3]),  # before every entry, although its number is large
    ],
)
def test_only_what_is_newer_is_taken(after, taken):
    assert [one.id.ms for one in filled(event(1), event(2), event(3)).take(after)] == taken


def test_a_topics_very_first_ids_follow_an_origin():
    backlog = filled(Event(StreamId(0, 1), None, b""), Event(StreamId(0, 2), None, b""))

    assert [one.id.seq for one in backlog.take(origin(7))] == [1, 2]


# -- the limit


def test_up_to_the_limit_everything_stays():
    backlog = filled(event(1), event(2), event(3), limit_events=3)

    assert [one.id.ms for one in backlog.take(BEGINNING)] == [1, 2, 3]


def test_past_the_limit_it_collapses_to_one_reload_at_the_newest_id():
    backlog = Backlog(3)

    assert [backlog.add(event(number)) for number in range(1, 5)] == [False, False, False, True]
    assert backlog.take(BEGINNING) == [reload_event(at(4), "overflow")]


def test_what_comes_after_a_collapse_follows_the_reload():
    backlog = filled(*(event(number) for number in range(1, 7)), limit_events=3)

    taken = backlog.take(BEGINNING)

    assert taken[0] == reload_event(at(4), "overflow")
    assert taken[1:] == [event(5), event(6)]


def test_equal_keys_never_overflow():
    backlog = filled(*(event(number, "a") for number in range(1, 1000)), limit_events=1)

    assert [one.id.ms for one in backlog.take(BEGINNING)] == [999]


def test_it_never_holds_more_than_the_limit_and_a_reload():
    backlog = Backlog(5)
    overflows = 0
    for number in range(1, 10_000):
        overflows += backlog.add(event(number))
        assert len(backlog) <= 6
    assert overflows == 1, "it is the same one until the backlog is taken"


# -- reloads


def test_a_loss_covers_what_waited_before_it():
    backlog = filled(event(1), event(2))
    backlog.replace_by_reload(reload_event(at(5), "trimmed"), forced=False)
    backlog.add(event(6))

    assert backlog.take(at(0)) == [reload_event(at(5), "trimmed"), event(6)]


def test_a_loss_that_the_client_is_already_beyond_is_not_told():
    backlog = filled()
    backlog.replace_by_reload(reload_event(at(5), "trimmed"), forced=False)
    backlog.add(event(6))
    backlog.add(event(9))

    assert backlog.take(at(7)) == [event(9)]


def test_a_stream_that_went_back_is_told_to_everyone():
    backlog = filled(event(7))
    backlog.replace_by_reload(reload_event(at(3), "trimmed"), forced=True)
    backlog.add(event(4))

    # The ids of before say nothing: 4 is newer than 7 now.
    assert backlog.take(at(7)) == [reload_event(at(3), "trimmed"), event(4)]


def test_being_forced_ends_with_being_taken():
    backlog = filled()
    backlog.replace_by_reload(reload_event(at(3), "trimmed"), forced=True)
    backlog.take(at(7))
    backlog.replace_by_reload(reload_event(at(5), "trimmed"), forced=False)

    assert backlog.take(at(7)) == []


@pytest.mark.parametrize("then", ["trimmed", "overflow"])
def test_a_second_loss_does_not_hide_that_the_stream_went_back(then):
    """Else a client at 100 takes nothing, and waits at 100 for what is numbered from 5 on."""
    backlog = Backlog(1)
    backlog.replace_by_reload(reload_event(at(3), "trimmed"), forced=True)
    if then == "trimmed":
        backlog.replace_by_reload(reload_event(at(6), "trimmed"), forced=False)
    else:
        backlog.add(event(5))
        backlog.add(event(6))

    assert backlog.take(at(100)) == [reload_event(at(6), then)]


def test_the_same_reload_is_not_told_twice():
    backlog = filled()
    backlog.replace_by_reload(reload_event(at(5), "trimmed"), forced=True)
    backlog.add(event(6))

    backlog.forget_reload_at(at(5))

    assert backlog.take(at(5)) == [event(6)]


def test_another_reload_is_still_told():
    backlog = filled()
    backlog.replace_by_reload(reload_event(at(5), "trimmed"), forced=False)

    backlog.forget_reload_at(at(4))

    assert backlog.take(at(4)) == [reload_event(at(5), "trimmed")]


def test_clearing_forgets_everything():
    backlog = filled(event(1))
    backlog.replace_by_reload(reload_event(at(5), "trimmed"), forced=True)
    backlog.add(event(6))

    backlog.clear()

    assert len(backlog) == 0
    assert backlog.take(BEGINNING) == []


class WhatAClientKnows(RuleBasedStateMachine):
    """A topic, a client, and between them a backlog. The client applies what it takes. The law: for each
    event since its position it then knows a newer one of the same key, or it was told to reload after it."""

    LIMIT_EVENTS = 4

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog(self.LIMIT_EVENTS)
        self.newest = 100  # of the topic
        self.position = at(100)  # of the client
        self.owed: list[Event] = []  # since its position, as far as no reload covers it
        self.must_reload = False

    @rule(key=st.sampled_from([None, "a", "b", "c", "d"]), step=st.integers(1, 3))
    def add(self, key: str | None, step: int) -> None:
        self.newest += step
        added = event(self.newest, key)
        self.backlog.add(added)
        self.owed.append(added)

    @rule(step=st.integers(1, 3))
    def lose_to_trimming(self, step: int) -> None:
        self.newest += step
        self.backlog.replace_by_reload(reload_event(at(self.newest), "trimmed"), forced=False)
        self.owed.clear()
        self.must_reload = True

    @rule(newest=st.integers(1, 150))
    def lose_by_going_back(self, newest: int) -> None:
        self.newest = newest
        self.backlog.replace_by_reload(reload_event(at(newest), "trimmed"), forced=True)
        self.owed.clear()
        self.must_reload = True

    @rule()
    def read_it_from_redis_instead(self) -> None:
        """A replay up to the newest tells of everything that waits."""
        self.backlog.clear()
        self.position = at(self.newest)
        self.owed.clear()
        self.must_reload = False

    @rule()
    def reload_by_its_own_reading(self) -> None:
        self.backlog.forget_reload_at(at(self.newest))
        self.position = at(self.newest)
        # The hub may still have said it of an earlier position: saying it twice is allowed.
        self.owed = [one for one in self.owed if one.id > self.position]
        self.must_reload = False

    @rule()
    def take(self) -> None:
        taken = self.backlog.take(self.position)
        reloads = [index for index, one in enumerate(taken) if is_reload(one)]

        assert reloads in ([], [0])
        if self.must_reload:
            assert reloads == [0]
        numbers = [one.id for one in taken]
        assert numbers == sorted(set(numbers))
        for owed in self.owed:
            assert any(
                (is_reload(one) and one.id >= owed.id)
                or one == owed
                or (
                    (owed.conflation_key is not None and one.conflation_key == owed.conflation_key)
                    and one.id > owed.id
                )
                for one in taken
            ), owed
        if taken:
            self.position = taken[-1].id
        assert self.position == at(self.newest)
        self.owed.clear()
        self.must_reload = False

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.backlog) <= self.LIMIT_EVENTS + 1


TestWhatAClientKnows = WhatAClientKnows.TestCase
