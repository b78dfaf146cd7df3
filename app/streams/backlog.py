"""What a subscriber that is not live still has to be sent. Pure: this file holds the policy at the limit.

Events are kept in order; of conflatable events with the same key only the newest stays, because invalidations
of one thing are idempotent. Past the limit everything collapses to one `reload_required`.
"""

from app.streams.event import Event, reload_event
from app.streams.ids import StreamId


class Backlog:
    """Bounded by `limit_events`; never refuses."""

    __slots__ = ("_events", "_in_doubt", "_limit", "_overflowed", "_reload", "_reload_forced")

    def __init__(self, limit_events: int) -> None:
        self._limit = limit_events
        # Keyed by the conflation key, or by the event's own id where every event counts.
        self._events: dict[object, Event] | None = None  # made on first use: most clients never need one
        self._reload: Event | None = None
        self._reload_forced = False
        self._overflowed = False
        self._in_doubt = False

    def __len__(self) -> int:
        return len(self._events or ()) + (self._reload is not None)

    @property
    def overflowed(self) -> bool:
        """Only more events than the limit is what stands between the subscriber and completeness."""
        return self._overflowed

    @property
    def in_doubt(self) -> bool:
        """The hub lost events, but the subscriber may stand past the gap: its own position decides."""
        return self._in_doubt

    @property
    def went_back(self) -> bool:
        """The stream itself went back, and the reload that tells so waits here."""
        return self._reload is not None and self._reload_forced

    def add(self, event: Event) -> bool:
        """Returns whether it overflows with this one."""
        if self._events is None:
            self._events = {}
        key = event.id if event.conflation_key is None else event.conflation_key
        self._events.pop(key, None)  # re-inserted at the end: order is by the newest id
        self._events[key] = event
        if len(self._events) <= self._limit:
            return False
        self._events = None
        was_complete = self._reload is None
        self._overflowed |= was_complete
        self._reload = reload_event(event.id, "overflow")
        return was_complete

    def replace_by_reload(self, event: Event, *, forced: bool) -> None:
        """The topic lost events: whatever waits here is covered by reloading.

        `forced`: the stream itself went back (flushed, failed over), so ids from before it say nothing and
        the reload is due even to a subscriber that seems to be further on.
        """
        self._events = None
        self._overflowed = False
        self._in_doubt = not forced and not self._reload_forced
        self._reload = event
        self._reload_forced |= forced  # a second loss does not hide that the stream went back

    def clear(self) -> None:
        self._events = self._reload = None
        self._reload_forced = self._overflowed = self._in_doubt = False

    def unforce(self) -> None:
        """The subscriber's position was proven in the data set that forced the reload: ids compare again."""
        self._reload_forced = False

    def forget_reload_at(self, position: StreamId) -> None:
        """The subscriber was just told to reload at `position`: the same word from the hub says it twice."""
        if self._reload is not None and self._reload.id == position:
            self._reload = None
            self._reload_forced = self._overflowed = self._in_doubt = False

    def take(self, after: StreamId) -> list[Event]:
        """Everything that waits and is newer than `after`, oldest first; the backlog is empty then."""
        events, reload, forced = self._events, self._reload, self._reload_forced
        self.clear()
        taken: list[Event] = []
        if reload is not None and (forced or reload.id > after):
            taken.append(reload)
            after = reload.id
        if events:
            after = after.read_after
            taken.extend(event for event in events.values() if event.id > after)
        return taken
