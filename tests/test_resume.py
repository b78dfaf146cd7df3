"""Every decision about gaps: a table of all branches, and a model of a stream that knows the truth.

What the facts can prove, and so what the model holds the decisions to: appending, trimming, XDEL, flushing
(which takes the epoch with it), losing the epoch, and going back to an earlier state. Two things they cannot
prove, since an untouched stream would show the very same facts: after going back to a state that still has
the cursor's entry, the events that the stream itself has lost; and, for a cursor from before the first entry,
that a stream was removed with DEL, and the events with it. A third one only where no epoch can be kept: a
flush between two reads of the tail.
"""

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.streams.ids import BEGINNING, StreamId, origin
from app.streams.resume import Live, Reload, Replay, Snapshot, absent, continues, decide

EPOCH, OTHER_EPOCH = 11, 22


def at(number: int) -> StreamId:
    return StreamId(number, 0)


def stream(
    first: int | None = 1,
    last: int = 9,
    length: int = 9,
    added: int | None = 9,
    max_deleted: int | None = 0,
    epoch: int | None = EPOCH,
) -> Snapshot:
    """By default: entries 1-0 to 9-0, of which none was ever removed."""
    return Snapshot(
        epoch=epoch,
        length=length,
        first=None if first is None else at(first),
        last_generated=at(last),
        entries_added=added,
        max_deleted=None if max_deleted is None else at(max_deleted),
    )


WHOLE = stream()
TRIMMED = stream(first=4, length=6)
EMPTIED = stream(first=None, length=0)  # everything was trimmed or deleted, and the stream is still there
ABSENT = absent(EPOCH)
CREATED = stream(first=None, last=0, length=0, added=0)  # by XGROUP CREATE MKSTREAM
REFILLED = stream(first=101, last=103, length=3, added=3)  # after a flush
OLD_REDIS = stream(added=None, max_deleted=None)

LIVE, REPLAY, RELOAD = "live", "replay", "reload"


def expected(kind: str, cursor: StreamId | None, position: StreamId) -> Live | Replay | Reload:
    if kind == LIVE:
        return Live(position)
    if kind == REPLAY:
        assert cursor is not None
        return Replay(cursor, position)
    return Reload("trimmed", position)


@pytest.mark.parametrize(
    ("cursor", "snapshot", "present", "kind"),
    [
        # no cursor: live from wherever the stream stands
        (None, WHOLE, False, LIVE),
        (None, TRIMMED, False, LIVE),
        (None, EMPTIED, False, LIVE),
        (None, ABSENT, False, LIVE),
        (None, CREATED, False, LIVE),
        (None, OLD_REDIS, False, LIVE),
        (None, absent(None), False, LIVE),
        # caught up: also when the last entry itself is gone
        (at(9), WHOLE, True, LIVE),
        (at(9), TRIMMED, True, LIVE),
        (at(9), EMPTIED, False, LIVE),
        (at(9), OLD_REDIS, True, LIVE),
        (at(9), replace(WHOLE, max_deleted=at(9)), False, LIVE),
        # behind, and the cursor's entry is there: nothing after it can have been trimmed
        (at(1), WHOLE, True, REPLAY),
        (at(5), WHOLE, True, REPLAY),
        (at(4), TRIMMED, True, REPLAY),
        (at(8), TRIMMED, True, REPLAY),
        # behind, and the cursor's entry is gone: that proves nothing
        (at(3), TRIMMED, False, RELOAD),
        (at(5), TRIMMED, False, RELOAD),
        (at(5), EMPTIED, False, RELOAD),
        # gone, though nothing later is (XDEL of exactly that entry): cannot be told from another stream
        (at(5), replace(WHOLE, length=8, max_deleted=at(5)), False, RELOAD),
        # XDEL at or before the cursor did not hurt this client, behind it it did
        (at(5), replace(WHOLE, length=8, max_deleted=at(3)), True, REPLAY),
        (at(5), replace(WHOLE, length=8, max_deleted=at(6)), True, RELOAD),
        (at(5), replace(WHOLE, length=8, max_deleted=StreamId(5, 1)), True, RELOAD),
        # ahead of the stream: it went back
        (at(10), WHOLE, False, RELOAD),
        (StreamId(9, 1), WHOLE, False, RELOAD),
        (at(10), WHOLE, True, RELOAD),  # contradictory facts are no proof
        # the stream vanished
        (at(5), ABSENT, False, RELOAD),
        (at(5), CREATED, False, RELOAD),
        # flushed and filled again: as many added as there are, and still another stream
        (at(5), REFILLED, False, RELOAD),
        (at(102), REFILLED, True, REPLAY),
        # an id between entries was never given to anyone
        (StreamId(5, 5), WHOLE, False, RELOAD),
        # from before the first entry, in this data set
        (origin(EPOCH), ABSENT, False, LIVE),
        (origin(EPOCH), CREATED, False, LIVE),
        (origin(EPOCH), WHOLE, False, REPLAY),
        (origin(EPOCH), TRIMMED, False, RELOAD),
        (origin(EPOCH), EMPTIED, False, RELOAD),
        (origin(EPOCH), replace(WHOLE, length=8, max_deleted=at(5)), False, RELOAD),
        # a removed entry that max-deleted does not tell of, and one that only it tells of
        (origin(EPOCH), stream(added=10), False, RELOAD),
        (origin(EPOCH), replace(WHOLE, max_deleted=at(5)), False, RELOAD),
        # from before the first entry, in another data set: there may have been events
        (origin(OTHER_EPOCH), ABSENT, False, RELOAD),
        (origin(OTHER_EPOCH), CREATED, False, RELOAD),
        (origin(OTHER_EPOCH), WHOLE, False, RELOAD),
        # nothing names the data set
        (origin(None), absent(None), False, RELOAD),
        (origin(None), stream(epoch=None), False, RELOAD),
        (origin(EPOCH), absent(None), False, RELOAD),
        (at(5), stream(epoch=None), True, REPLAY),
        (at(9), stream(epoch=None), True, LIVE),
        # 0-0: everything the stream ever held
        (BEGINNING, ABSENT, False, LIVE),
        (BEGINNING, WHOLE, False, REPLAY),
        (BEGINNING, TRIMMED, False, RELOAD),
        (BEGINNING, EMPTIED, False, RELOAD),
        (BEGINNING, stream(epoch=None), False, REPLAY),
        # Redis before 7 cannot prove that nothing was deleted behind the cursor
        (at(5), OLD_REDIS, True, RELOAD),
        (at(5), OLD_REDIS, False, RELOAD),
        (origin(EPOCH), OLD_REDIS, False, RELOAD),
        (BEGINNING, OLD_REDIS, False, RELOAD),
    ],
)
def test_what_a_cursor_is_owed(cursor, snapshot, present, kind):
    decision = decide(cursor, snapshot, entry_present=present)

    assert decision == expected(kind, cursor, snapshot.position)


@pytest.mark.parametrize(
    ("snapshot", "position"),
    [
        (WHOLE, at(9)),
        (EMPTIED, at(9)),
        (ABSENT, origin(EPOCH)),
        (CREATED, origin(EPOCH)),
        (absent(None), origin(None)),
    ],
)
def test_a_stream_without_entries_stands_at_its_data_sets_origin(snapshot, position):
    assert snapshot.position == position


@pytest.mark.parametrize("cursor", [at(3), at(99), BEGINNING, origin(EPOCH), origin(OTHER_EPOCH)])
@pytest.mark.parametrize("snapshot", [TRIMMED, EMPTIED, ABSENT, CREATED, REFILLED, OLD_REDIS])
def test_a_client_that_was_told_to_reload_is_not_told_again(cursor, snapshot):
    decision = decide(cursor, snapshot, entry_present=False)
    if isinstance(decision, Reload):
        again = decide(decision.position, snapshot, entry_present=snapshot.length > 0)
        assert again == Live(decision.position)


@pytest.mark.parametrize(
    ("last", "added_at_last", "read", "snapshot", "proven"),
    [
        # the counters prove it, whatever was removed of it meanwhile
        (7, 7, [8, 9], WHOLE, True),
        (7, 7, [8, 9], TRIMMED, True),
        (7, 7, [8, 9], EMPTIED, True),
        # one more was added than was read
        (7, 6, [8, 9], stream(first=9, length=1), False),
        (7, 7, [9], stream(first=9, length=1), False),
        # behind the read the stream went on: the counters prove nothing, but what is still there does
        (5, 5, [6, 7], WHOLE, True),
        (5, None, [6, 7], WHOLE, True),
        (5, None, [6, 7], stream(first=5, length=5), True),
        (5, None, [6, 7], stream(first=6, length=4), False),
        (5, None, [7], stream(first=7, length=3), False),
        # XDEL: at or before the last position it does not matter, behind it the read may have missed it
        (5, None, [6, 7], replace(WHOLE, length=8, max_deleted=at(5)), True),
        (5, None, [7], replace(WHOLE, length=8, max_deleted=at(6)), False),
        (5, 5, [7, 8, 9], replace(WHOLE, length=8, max_deleted=at(6)), False),
        # nothing is left of the stream, or it is another one
        (5, 5, [6], ABSENT, False),
        (5, 5, [6], REFILLED, False),
        # Redis before 7: an entry still there from before the read is all there is to know
        (5, None, [6, 7], OLD_REDIS, True),
        (5, None, [6, 7], stream(first=6, added=None, max_deleted=None), False),
    ],
)
def test_whether_a_read_is_everything_that_was_added(last, added_at_last, read, snapshot, proven):
    assert continues(at(last), added_at_last, [at(number) for number in read], snapshot) == proven


@pytest.mark.parametrize(
    ("last", "added_at_last", "snapshot", "proven"),
    [
        (origin(EPOCH), None, WHOLE, True),
        (origin(EPOCH), 0, WHOLE, True),
        (origin(EPOCH), None, TRIMMED, False),
        (origin(EPOCH), None, replace(WHOLE, length=8, max_deleted=at(2)), False),
        (origin(EPOCH), None, OLD_REDIS, False),
        (origin(OTHER_EPOCH), None, WHOLE, False),
        (origin(None), None, stream(epoch=None), False),
        # read in full: the counters alone prove it
        (origin(EPOCH), 0, stream(first=9, length=1), True),
    ],
)
def test_whether_a_first_read_is_everything(last, added_at_last, snapshot, proven):
    read = [at(number) for number in range(1, 10)]

    assert continues(last, added_at_last, read, snapshot) == proven


# -- against the truth


@dataclass(frozen=True)
class State:
    """Everything that Redis persists: going back restores all of it."""

    epoch: int
    exists: bool = False
    entries: tuple[StreamId, ...] = ()
    last_generated: StreamId = BEGINNING
    added: int = 0
    max_deleted: StreamId = BEGINNING


@dataclass(frozen=True)
class Held:
    """Where somebody stands, how many events had been appended by then, and in which state the stream was."""

    position: StreamId
    serial: int
    epoch: int
    added: int | None


class StreamAndItsReaders(RuleBasedStateMachine):
    """The law: whoever is told `Live` or `Replay` gets every event that was appended since it was given its
    cursor; whoever trusts `continues` has read every one. An event that Redis itself lost by going back is
    owed only to those whose cursor is from what it lost."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = 1
        self.state = State(epoch=1)
        self.saved: list[tuple[State, int]] = []
        self.appended: list[StreamId] = []  # ever, in order
        self.unprovable: set[StreamId] = set()
        self.held: set[Held] = set()
        self.reads: list[tuple[Held, list[StreamId]]] = []  # whose proof is taken later

    @initialize(has_counters=st.booleans(), keeps_epoch=st.booleans())
    def begin(self, has_counters: bool, keeps_epoch: bool) -> None:
        self.has_counters, self.keeps_epoch = has_counters, keeps_epoch
        self.take_a_position()

    def snapshot(self) -> Snapshot:
        state, epoch = self.state, self.state.epoch if self.keeps_epoch else None
        if not state.exists:
            return absent(epoch)
        return Snapshot(
            epoch=epoch,
            length=len(state.entries),
            first=state.entries[0] if state.entries else None,
            last_generated=state.last_generated,
            entries_added=state.added if self.has_counters else None,
            max_deleted=state.max_deleted if self.has_counters else None,
        )

    def behind(self, cursor: StreamId) -> list[StreamId]:
        return [entry for entry in self.state.entries if entry > cursor.read_after]

    # -- what happens to the stream

    @rule(step=st.integers(1, 3), trim_to=st.one_of(st.none(), st.integers(0, 4)))
    def append(self, step: int, trim_to: int | None) -> None:
        """XADD, with MAXLEN in the same command. No two entries ever have one id."""
        new = at(self.state.last_generated.ms + step)
        while new in self.appended:
            new = at(new.ms + 1)
        entries = (*self.state.entries, new)
        self.appended.append(new)
        self.state = replace(
            self.state,
            exists=True,
            entries=entries if trim_to is None else entries[len(entries) - min(trim_to, len(entries)) :],
            last_generated=new,
            added=self.state.added + 1,
        )

    @precondition(lambda self: self.state.entries)
    @rule(count=st.integers(1, 5))
    def trim(self, count: int) -> None:
        self.state = replace(self.state, entries=self.state.entries[count:])

    @precondition(lambda self: self.state.entries)
    @rule(data=st.data())
    def xdel(self, data: st.DataObject) -> None:
        deleted = data.draw(st.sampled_from(self.state.entries))
        self.state = replace(
            self.state,
            entries=tuple(entry for entry in self.state.entries if entry != deleted),
            max_deleted=max(self.state.max_deleted, deleted),
        )

    @rule()
    def flush(self) -> None:
        """FLUSHALL, or a restart without persistence: new ids may be lower than old ones."""
        self.epochs += 1
        self.state = State(epoch=self.epochs)

    @rule()
    def lose_the_epoch(self) -> None:
        self.epochs += 1
        self.state = replace(self.state, epoch=self.epochs)

    @rule()
    def save(self) -> None:
        self.saved.append((self.state, len(self.appended)))

    @precondition(lambda self: self.saved)
    @rule(data=st.data())
    def go_back(self, data: st.DataObject) -> None:
        """A crash or a failover that loses the newest writes."""
        index = data.draw(st.integers(0, len(self.saved) - 1))
        self.state, serial = self.saved[index]
        del self.saved[index + 1 :]
        self.unprovable |= set(self.appended[serial:])
        self.reads.clear()  # connections break, so nobody goes on from a read of before
        self.held = {replace(one, added=None) for one in self.held}

    # -- those who read it

    @rule()
    def take_a_position(self) -> None:
        stream = self.snapshot()
        self.held.add(Held(stream.position, len(self.appended), self.state.epoch, stream.entries_added))

    @rule(count=st.integers(1, 3))
    def read(self, count: int) -> None:
        """XREAD COUNT by everybody. The proof is taken after it, when more may have happened."""
        for one in self.held:
            if read := self.behind(one.position)[:count]:
                self.reads.append((one, read))
        del self.reads[:-50]

    @invariant()
    def no_decision_hides_a_gap(self) -> None:
        stream = self.snapshot() if hasattr(self, "keeps_epoch") else absent(None)
        for one in self.held:
            cursor = one.position
            decision = decide(cursor, stream, entry_present=cursor in self.state.entries)
            match decision:
                case Live(after):
                    assert after == stream.position
                    sent: list[StreamId] = []
                case Replay(after, upto):
                    assert (after, upto) == (cursor, stream.position)
                    sent = self.behind(after)
                case Reload():
                    continue
            missing = set(self.appended[one.serial :]) - set(sent)
            assert missing <= self.unprovable, (one, decision)
            # What the stream itself lost may be missed only by those who stand on what it kept.
            assert not missing or cursor.is_origin or cursor in {*self.state.entries, stream.position}

    @invariant()
    def no_proof_hides_a_gap(self) -> None:
        stream = self.snapshot() if hasattr(self, "keeps_epoch") else absent(None)
        for one, read in self.reads:
            # The tail compares the epochs itself.
            if one.epoch == self.state.epoch and continues(one.position, one.added, read, stream):
                upto = self.appended.index(read[-1]) + 1
                missing = set(self.appended[one.serial : upto]) - set(read)
                assert missing <= self.unprovable, (one, read)


TestStreamAndItsReaders = StreamAndItsReaders.TestCase
TestStreamAndItsReaders.settings = settings(max_examples=500, stateful_step_count=40)
