"""What a position in a stream still proves. Pure: every decision about gaps is made in this file.

The facts come from one MULTI (see reading.py): what XINFO STREAM says, whether the entry at the cursor is
still there, and the data set's epoch. Redis trims a stream only from its front, so as long as the entry at
the cursor is still there, everything after it is too, save what XDEL took; `max-deleted-entry-id` tells that.
An entry that is gone proves nothing: it may have been trimmed, or it may belong to a stream of the same name
that was flushed, rolled back or replaced. Sources: https://redis.io/docs/latest/commands/xinfo-stream/ and
src/t_stream.c (streamTrim moves only `first-entry`; XDEL moves `max-deleted-entry-id`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.streams.ids import BEGINNING, StreamId, origin

ReloadReason = Literal["trimmed", "overflow", "invalid_id", "unreadable"]
# "undecided": what the stream holds from the last position on decides it.
Continuity = Literal["proven", "broken", "undecided"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stream at one moment. `entries_added` and `max_deleted` are None on Redis before 7; `epoch` is None
    where the server may not keep one (a read-only user)."""

    epoch: int | None
    length: int
    first: StreamId | None
    last_generated: StreamId
    entries_added: int | None
    max_deleted: StreamId | None

    @property
    def is_unwritten(self) -> bool:
        """No entry was ever added as far as the stream knows: it does not exist, or was only created."""
        return self.last_generated == BEGINNING

    @property
    def position(self) -> StreamId:
        """Where a client that has everything stands."""
        return origin(self.epoch) if self.is_unwritten else self.last_generated

    @property
    def is_complete(self) -> bool:
        """Nothing was ever removed."""
        return self.entries_added == self.length and self.max_deleted == BEGINNING


def absent(epoch: int | None) -> Snapshot:
    return Snapshot(epoch, 0, None, BEGINNING, 0, BEGINNING)


@dataclass(frozen=True, slots=True)
class Live:
    """Nothing is missing: go on from `after`."""

    after: StreamId


@dataclass(frozen=True, slots=True)
class Replay:
    """Everything in (`after`, `upto`] is still there."""

    after: StreamId
    upto: StreamId


@dataclass(frozen=True, slots=True)
class Reload:
    """Completeness cannot be proven. `position` is where the client stands once it has reloaded."""

    reason: ReloadReason
    position: StreamId


Decision = Live | Replay | Reload


def decide(cursor: StreamId | None, stream: Snapshot, *, entry_present: bool) -> Decision:
    """What a client at `cursor` (None: it never had one) is owed. `entry_present`: the stream holds an entry
    with exactly the cursor's id."""
    position = stream.position
    if cursor is None:
        return Live(position)
    if cursor.is_origin and stream.epoch is None:
        return Reload("trimmed", position)  # nothing names the data set: it may have been wiped since
    if cursor == position:
        return Live(position)
    if cursor == BEGINNING or (cursor.is_origin and cursor == origin(stream.epoch)):
        # The cursor stands before every entry, in this data set: fine while none was removed.
        if stream.is_unwritten:
            return Live(position)
        return Replay(cursor, position) if stream.is_complete else Reload("trimmed", position)
    if (
        entry_present
        and cursor < stream.last_generated
        and stream.max_deleted is not None
        and stream.max_deleted <= cursor
    ):
        return Replay(cursor, position)
    return Reload("trimmed", position)


def was_rolled_back(position: StreamId, stream: Snapshot) -> bool:
    """Whether the stream went back to an earlier state of itself, given that `position` was once in it and is
    not provable now: a crash or a failover lost what was appended last. Cursors from before that are still in
    the stream, so nothing but somebody who knew `position` can tell that they miss something."""
    if stream.first is None:
        # Nothing is in it, and yet whoever stands at its end is believed.
        return not stream.is_unwritten and stream.last_generated < position
    return stream.first <= position and stream.max_deleted is not None and stream.max_deleted < position


def continues(
    last: StreamId,
    added_at_last: int | None,
    read: Sequence[StreamId],
    stream: Snapshot,
    *,
    held: Sequence[StreamId] | None = None,
) -> Continuity:
    """Whether `read` (not empty, ascending) is everything that was added after `last`, as `stream`, taken
    after the read, proves. `added_at_last`: the stream's entries-added when it stood at `last`.
    `held`: what the stream held, when `stream` was taken, from `last` to the end of `read`, both included;
    None: it was not asked. It decides what the counters leave undecided.

    What was removed behind `last` and read by nobody may hide where the stream does not reach back to `last`:
    one that was deleted and filled again has counters of its own, and they may come out even.
    """
    if last.is_origin and stream.epoch is None:
        return "broken"  # nothing names the data set: it may have been wiped since
    if stream.last_generated < read[-1]:
        return "broken"  # it went back after the read: an older state of it proves nothing of what was read
    at_end = stream.last_generated == read[-1]
    expected = None if added_at_last is None else added_at_last + len(read)
    if (
        expected is not None
        and stream.entries_added is not None
        and (stream.entries_added < expected or (at_end and stream.entries_added != expected))
    ):
        return "broken"  # less was ever added than we hold, or something that we do not hold
    exact = expected is not None and at_end and stream.entries_added == expected
    if last == BEGINNING or last.is_origin:
        # Before every entry: nothing can have been lost in front of it.
        in_this_data = last == origin(stream.epoch)
        return "proven" if in_this_data and (exact or stream.is_complete) else "broken"
    if stream.first is None or stream.first > last:
        return "broken"
    # (max_deleted is None before Redis 7: an XDEL cannot be seen there.)
    if stream.max_deleted is not None and stream.max_deleted > last:
        return "broken"
    if exact:
        return "proven"
    if held is None:
        return "undecided"
    # Trimming comes from the front: with the entry itself, everything behind it is there. All of it must be
    # what was read, since the stream may have gone back meanwhile to a state that still has what was missed.
    return "proven" if held == [last, *read] else "broken"
