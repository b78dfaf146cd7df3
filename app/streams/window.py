"""The newest events of a topic, so that a client that was away for a moment resumes from memory.

Pure. The rule: from `base` (exclusive) to the topic's position the window holds every event; a cursor is
covered only if it is a point that the window knows, since an id from elsewhere proves nothing.

Events lie in slices of about `SLICE_BYTES`, each framed once for the wire. Clients that resume get the slices
themselves, one after another, so a thousand of them that do not read hold a thousand references and not a
thousand copies; each has at most one piece of its own, up to where its slice ends. What windows take is
counted in `Budget`, with everything that Python keeps around an event's bytes.
"""

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from operator import attrgetter
from typing import Final, NamedTuple

from app.streams.event import Event
from app.streams.ids import StreamId
from app.streams.sse import chunk

# What a client that does not read may cost beside its task and its socket; three or four of the largest
# events, 150 ordinary ones.
SLICE_BYTES: Final = 16 << 10

_ID: Final = StreamId(1_763_900_000_000, 1_000)
_SLOT_BYTES: Final = 9  # of a list, with the room that it keeps for more
# An id with its two integers, and the slot that refers to it.
_ID_BYTES: Final = sys.getsizeof(_ID) + sys.getsizeof(_ID.ms) + sys.getsizeof(_ID.seq) + _SLOT_BYTES
_BYTES_OBJECT_BYTES: Final = sys.getsizeof(b"")
_EVENT_BYTES: Final = sys.getsizeof(Event(_ID, None, b"")) + _BYTES_OBJECT_BYTES
_END_BYTES: Final = array("I").itemsize

_id_of = attrgetter("id")
_last_of = attrgetter("last")


class Budget:
    """Bytes that all windows of a process may take together.

    At the limit the windows of topics without clients go first, then those that had no event for longest:
    never simply the one that happens to get an event.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        # Windows that hold something, the one whose last event is oldest first.
        self._idle: OrderedDict[Window, None] = OrderedDict()
        self._watched: OrderedDict[Window, None] = OrderedDict()

    def change(self, window: "Window", by_bytes: int, *, newest: bool = False) -> None:
        """`newest`: it is the window that had an event last."""
        self.used_bytes += by_bytes
        order = self._idle if window.idle else self._watched
        if not window.taken_bytes:
            order.pop(window, None)
        elif newest:
            order[window] = None
            order.move_to_end(window)
        elif window not in order:
            order[window] = None
            order.move_to_end(window, last=False)

    def set_idle(self, window: "Window", *, idle: bool) -> None:
        if window.idle == idle:
            return
        was, becomes = (self._watched, self._idle) if idle else (self._idle, self._watched)
        window.idle = idle
        if window in was:
            del was[window]
            becomes[window] = None

    def make_room(self) -> None:
        while self.used_bytes > self.limit_bytes and (order := self._idle or self._watched):
            next(iter(order)).drop_oldest(self.used_bytes - self.limit_bytes)


class Piece(NamedTuple):
    """What comes next for a cursor: one chunk, shared wherever that is possible; `upto` is where the client
    stands when it has it. `is_last`: nothing is behind it now."""

    frame: bytes
    upto: StreamId
    is_last: bool


class _Slice:
    """Events that were joined into one frame. They exist as such no more: only what tells them apart does."""

    __slots__ = ("_body_at", "ends", "frame", "ids", "keys", "last", "taken_bytes")

    def __init__(self, events: Sequence[Event]) -> None:
        self.frame = chunk(b"".join([event.block for event in events]))
        self._body_at = self.frame.index(b"\n") + 1
        self.ids = [event.id for event in events]
        self.keys = [event.conflation_key for event in events]
        self.ends = array("I", _ends(events))
        self.last = self.ids[-1]
        beside = sum(_key_bytes(event) + _ID_BYTES + _SLOT_BYTES + _END_BYTES for event in events)
        self.taken_bytes = beside + _BYTES_OBJECT_BYTES + len(self.frame)

    def events_from(self, index: int) -> Iterator[Event]:
        begin = self._body_at + self.begin_of(index)
        for id_, key, end in islice(zip(self.ids, self.keys, self.ends, strict=True), index, None):
            yield Event(id_, key, self.frame[begin : self._body_at + end])
            begin = self._body_at + end

    def blocks_from(self, index: int) -> bytes:
        begin = self._body_at + self.begin_of(index)
        return self.frame[begin : self._body_at + self.ends[-1]]

    def begin_of(self, index: int) -> int:
        return self.ends[index - 1] if index else 0


def _ends(events: Sequence[Event]) -> Iterator[int]:
    return accumulate(len(event.block) for event in events)


def _key_bytes(event: Event) -> int:
    key = event.conflation_key
    if not isinstance(key, tuple):
        return 0
    return sys.getsizeof(key) + sum(map(sys.getsizeof, key))  # pyright: ignore[reportUnknownArgumentType]


def _event_bytes(event: Event) -> int:
    return _EVENT_BYTES + _ID_BYTES + len(event.block) + _key_bytes(event)


class Window:
    __slots__ = (
        "_budget", "_count", "_limit", "_next", "_open", "_open_block_bytes", "_slices", "_tail",
        "backfilled", "base", "idle", "taken_bytes",
    )  # fmt: skip

    def __init__(self, base: StreamId, limit_events: int, budget: Budget) -> None:
        """Of more than `limit_events` the oldest slices go, so that at least so many are kept."""
        self.base = base
        self.backfilled = False  # whether what Redis still holds from before `base` was already fetched
        self.idle = False  # the topic has no clients
        self.taken_bytes = 0
        self._slices: list[_Slice] = []
        self._open: list[Event] = []  # behind the last slice, and less than one
        self._open_block_bytes = 0
        self._count = 0
        self._limit = limit_events
        self._budget = budget
        # What was asked for last, by its cursor: after a deploy thousands resume from the same one. And what
        # all others come to in the end.
        self._next: tuple[StreamId, Piece] | None = None
        self._tail: Piece | None = None

    def __len__(self) -> int:
        return self._count

    def covers(self, cursor: StreamId) -> bool:
        if cursor == self.base:
            return True
        slice_ = self._slice_with(cursor)
        if slice_ is not None:
            index = bisect_right(slice_.ids, cursor)
            return index > 0 and slice_.ids[index - 1] == cursor
        index = bisect_right(self._open, cursor, key=_id_of)
        return index > 0 and self._open[index - 1].id == cursor

    def after(self, cursor: StreamId) -> Iterator[Event]:
        """The events behind a covered cursor; to be used before the window changes."""
        first = bisect_right(self._slices, cursor, key=_last_of)
        for slice_ in self._slices[first:]:
            yield from slice_.events_from(bisect_right(slice_.ids, cursor))
        yield from self._open[bisect_right(self._open, cursor, key=_id_of) :]

    def keys_after(self, cursor: StreamId) -> Iterator[tuple[StreamId, object]]:
        """Ids and conflation keys of the same."""
        first = bisect_right(self._slices, cursor, key=_last_of)
        for slice_ in self._slices[first:]:
            begin = bisect_right(slice_.ids, cursor)
            yield from zip(slice_.ids[begin:], slice_.keys[begin:], strict=True)
        for event in self._open[bisect_right(self._open, cursor, key=_id_of) :]:
            yield event.id, event.conflation_key

    def piece_after(self, cursor: StreamId) -> Piece | None:
        """What to send next to a client at a covered cursor; None when it has everything."""
        if self._next is not None and self._next[0] == cursor:
            return self._next[1]
        index = bisect_right(self._slices, cursor, key=_last_of)
        if index == len(self._slices):
            at = bisect_right(self._open, cursor, key=_id_of)
            if at == 0 and self._tail is not None:
                return self._tail
            if at == len(self._open):
                return None
            blocks = [event.block for event in self._open[at:]]
            piece = Piece(chunk(b"".join(blocks)), self._open[-1].id, is_last=True)
            if at == 0:
                self._tail = piece
                self._change(len(piece.frame))
                return piece
        else:
            slice_ = self._slices[index]
            begin = bisect_right(slice_.ids, cursor)
            is_last = index == len(self._slices) - 1
            if not begin:
                return Piece(slice_.frame, slice_.last, is_last and not self._open)
            own_bytes = slice_.ends[-1] - slice_.begin_of(begin)
            if is_last and own_bytes + self._open_block_bytes <= SLICE_BYTES:
                blocks = [slice_.blocks_from(begin), *(event.block for event in self._open)]
                upto = self._open[-1].id if self._open else slice_.last
                piece = Piece(chunk(b"".join(blocks)), upto, is_last=True)
            else:
                piece = Piece(chunk(slice_.blocks_from(begin)), slice_.last, is_last and not self._open)
        if self._next is not None:
            self._change(-len(self._next[1].frame))
        self._next = (cursor, piece)
        self._change(len(piece.frame))
        return piece

    def append(self, events: Sequence[Event]) -> None:
        if not events:
            return
        self._forget_pieces()
        self._add(events)
        self._budget.change(self, 0, newest=True)
        self._keep_limit()
        self._budget.make_room()

    def backfill(self, older: Sequence[Event], floor: StreamId) -> None:
        """Take in `older`, which is everything in (`floor`, base]; `floor` becomes the base."""
        self.backfilled = True
        if floor >= self.base:
            return
        events = [event for event in older if floor < event.id <= self.base]
        had_events = bool(self._count)
        events += self.after(self.base)
        self._clear()
        self.base = floor
        self._add(events)
        self._budget.change(self, 0, newest=had_events)
        self._keep_limit()
        self._budget.make_room()

    def reset(self, base: StreamId) -> None:
        """The topic lost events: nothing from before `base` can be proven complete."""
        self._clear()
        self.base = base
        self.backfilled = True

    def drop_oldest(self, at_least_bytes: int) -> None:
        """For the budget: gives back so much, or everything."""
        self._forget_pieces()
        until_bytes = max(0, self.taken_bytes - at_least_bytes)
        while self._slices and self.taken_bytes > until_bytes:
            self._drop_slice()
        dropped, left_bytes = 0, self.taken_bytes
        while dropped < len(self._open) and left_bytes > until_bytes:
            left_bytes -= _event_bytes(self._open[dropped])
            dropped += 1
        self._drop_open(dropped)

    def _add(self, events: Sequence[Event]) -> None:
        self._open.extend(events)
        self._count += len(events)
        self._open_block_bytes += sum([len(event.block) for event in events])
        self._change(sum(map(_event_bytes, events)))
        if self._open_block_bytes <= SLICE_BYTES:
            return
        begin, begin_bytes = 0, 0
        for index, end_bytes in enumerate(list(_ends(self._open))):
            if end_bytes - begin_bytes > SLICE_BYTES and index > begin:
                self._seal(self._open[begin:index])
                begin, begin_bytes = index, end_bytes - len(self._open[index].block)
        del self._open[:begin]
        self._open_block_bytes -= begin_bytes

    def _seal(self, events: Sequence[Event]) -> None:
        slice_ = _Slice(events)
        self._slices.append(slice_)
        self._change(slice_.taken_bytes - sum(map(_event_bytes, events)))

    def _keep_limit(self) -> None:
        while self._slices and self._count - len(self._slices[0].ids) >= self._limit:
            self._drop_slice()
        if not self._slices and self._count > self._limit:
            self._drop_open(self._count - self._limit)

    def _drop_slice(self) -> None:
        slice_ = self._slices.pop(0)
        self.base = slice_.last
        self._count -= len(slice_.ids)
        self._change(-slice_.taken_bytes)

    def _drop_open(self, count: int) -> None:
        if not count:
            return
        dropped = self._open[:count]
        del self._open[:count]
        self.base = dropped[-1].id
        self._count -= count
        self._open_block_bytes -= sum(len(event.block) for event in dropped)
        self._change(-sum(map(_event_bytes, dropped)))

    def _clear(self) -> None:
        self._slices.clear()
        self._open.clear()
        self._next = self._tail = None
        self._open_block_bytes = self._count = 0
        self._change(-self.taken_bytes)

    def _forget_pieces(self) -> None:
        if self._next is not None:
            self._change(-len(self._next[1].frame))
            self._next = None
        if self._tail is not None:
            self._change(-len(self._tail.frame))
            self._tail = None

    def _change(self, by_bytes: int) -> None:
        self.taken_bytes += by_bytes
        self._budget.change(self, by_bytes)

    def _slice_with(self, cursor: StreamId) -> _Slice | None:
        """The slice that holds `cursor`, if any does."""
        index = bisect_left(self._slices, cursor, key=_last_of)
        return self._slices[index] if index < len(self._slices) else None
