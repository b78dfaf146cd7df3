"""What a compact replay leaves out. Pure.

A survey goes over everything that a client missed and keeps, of each (event, id), which came last; the replay
that follows sends only those. So a client that reads slowly holds 16 bytes for an event, and no event itself.
"""

from array import array
from bisect import bisect_left
from collections.abc import Hashable, Iterable

from app.streams.ids import StreamId


class Survey:
    """`see` every event of a span, oldest first."""

    __slots__ = ("_newest",)

    def __init__(self) -> None:
        self._newest: dict[Hashable, StreamId] = {}

    def __len__(self) -> int:
        return len(self._newest)

    def see(self, events: Iterable[tuple[StreamId, Hashable | None]]) -> None:
        """Ids and conflation keys (None: it counts whatever comes after it)."""
        for event_id, key in events:
            self._newest[event_id if key is None else key] = event_id

    def survivors(self, upto: StreamId) -> "Survivors":
        """`upto`: the end of the span."""
        return Survivors(self._newest.values(), upto)


class Survivors:
    __slots__ = ("_ms", "_seq", "_upto")

    def __init__(self, ids: Iterable[StreamId], upto: StreamId) -> None:
        in_order = sorted(ids)
        self._ms = array("Q", [event_id.ms for event_id in in_order])
        self._seq = array("Q", [event_id.seq for event_id in in_order])
        self._upto = upto

    def wants(self, event_id: StreamId) -> bool:
        """Whether nothing newer stands for it, as far as the survey went."""
        if event_id > self._upto.read_after:
            return True
        index = bisect_left(range(len(self._ms)), event_id, key=self._id_at)
        return index < len(self._ms) and self._id_at(index) == event_id

    def _id_at(self, index: int) -> StreamId:
        return StreamId(self._ms[index], self._seq[index])
