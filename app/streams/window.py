"""The newest events of a topic, so that a client that was away for a moment resumes from memory.

Pure. The rule: from `base` (exclusive) to the topic's position the window holds every event; a cursor is
covered only if it is a point that the window knows, since an id from elsewhere proves nothing.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from app.streams.event import Event
from app.streams.ids import StreamId

_id_of = attrgetter("id")


@dataclass(slots=True)
class Budget:
    """Bytes that all windows of a process may hold together."""

    limit_bytes: int
    used_bytes: int = 0


class Window:
    __slots__ = ("_budget", "_events", "_joined", "_limit", "backfilled", "base")

    def __init__(self, base: StreamId, limit_events: int, budget: Budget) -> None:
        self.base = base
        self.backfilled = False  # whether what Redis still holds from before `base` was already fetched
        self._events: list[Event] = []
        self._limit = limit_events
        self._budget = budget
        self._joined: tuple[StreamId, bytes] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def covers(self, cursor: StreamId) -> bool:
        if cursor == self.base:
            return True
        index = bisect_right(self._events, cursor, key=_id_of)
        return index > 0 and self._events[index - 1].id == cursor

    def after(self, cursor: StreamId) -> Sequence[Event]:
        """The events behind a covered cursor."""
        return self._events[bisect_right(self._events, cursor, key=_id_of) :]

    def blocks_after(self, cursor: StreamId) -> bytes:
        """The same, joined for the wire. Kept for the next asker: after a deploy thousands resume at once,
        most of them from the same id."""
        if self._joined is None or self._joined[0] != cursor:
            self._joined = (cursor, b"".join([event.block for event in self.after(cursor)]))
        return self._joined[1]

    def append(self, events: Sequence[Event]) -> None:
        self._events.extend(events)
        self._budget.used_bytes += sum(len(event.block) for event in events)
        self._shrink()

    def backfill(self, older: Sequence[Event], floor: StreamId) -> None:
        """Take in `older`, which is everything in (`floor`, base]; `floor` becomes the base."""
        self.backfilled = True
        if floor >= self.base:
            return
        kept = [event for event in older if floor < event.id <= self.base]
        self.base = floor
        self._events[:0] = kept
        self._budget.used_bytes += sum(len(event.block) for event in kept)
        self._shrink()

    def reset(self, base: StreamId) -> None:
        """The topic lost events: nothing from before `base` can be proven complete."""
        self._budget.used_bytes -= sum(len(event.block) for event in self._events)
        self._events.clear()
        self._joined = None
        self.base = base
        self.backfilled = True

    def _shrink(self) -> None:
        self._joined = None
        excess, over_bytes = (
            len(self._events) - self._limit,
            self._budget.used_bytes - self._budget.limit_bytes,
        )
        dropped = 0
        while dropped < len(self._events) and (dropped < excess or over_bytes > 0):
            size = len(self._events[dropped].block)
            over_bytes -= size
            self._budget.used_bytes -= size
            dropped += 1
        if dropped:
            self.base = self._events[dropped - 1].id
            del self._events[:dropped]
