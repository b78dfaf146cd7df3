"""Who watches which topic, and the fan-out: one event, written to every live subscriber of its topic.

The rule that keeps promise 1: when events arrive, the topic's position, its window and every waiting
subscriber's backlog change together, before anything is awaited; only then the live ones are written to. A
subscriber goes live in one synchronous step, when nothing waits for it and the topic is not behind it. So at
every await each event is either written, or in the window, or in a backlog. Only this file moves a subscriber
between live and waiting.
"""

import math
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Final

import structlog
import trio

from app.contracts import ContractViolation, Registry
from app.logging import LimitedLog, flush_limited_logs
from app.publish import stream_key
from app.redis_connection import Backoff, Client, RedisRefused, RedisUnavailable
from app.settings import Settings
from app.streams.event import Event, from_entry, reload_event
from app.streams.ids import BEGINNING, StreamId, origin
from app.streams.reading import Entry, Page, ReplyLimit, read_newest
from app.streams.resume import Snapshot
from app.streams.sse import HEARTBEAT, chunk
from app.streams.tail import Tails, TailStatistics
from app.streams.window import Budget, Window
from app.streams.wire import SendNowait

if TYPE_CHECKING:
    from app.streams.subscriber import Subscriber

# A write costs about 6 us, nearly all of it the kernel's, and a turn of the other tasks about 150 us: they
# get one after this many writes.
WRITES_BETWEEN_YIELDS: Final = 1024
# Of each kind of work for Redis, how much goes on at the same time. Whoever asks for one waits for others who
# ask for the same kind, and for nobody else: a crowd with invented topics or cursors does not delay a replay.
# All of them go over one connection, so more would not be faster.
OPENINGS_AT_ONCE: Final = 32
LOOKS_AT_ONCE: Final = 32
REPLAYS_AT_ONCE: Final = 64  # each holds a page
# What decides what a compact replay leaves out: each holds one id and one key for every event of the stream.
SURVEYS_AT_ONCE: Final = 8
# Topics without clients that are still read: each costs Redis about 1 us at every read of its group, and
# memory for its window.
LINGERING_LIMIT_TOPICS: Final = 1024
BYTES_PER_MB: Final = 1_000_000
# Of the drain time; the rest is for the last ones to take their goodbye.
DRAIN_SLOTS_SHARE: Final = 0.7
# The heartbeat task looks this often in one interval for whose is due, so a silent stream waits at most 1/15
# longer.
LOOKS_PER_INTERVAL: Final = 15

_HEARTBEAT_CHUNK: Final = chunk(HEARTBEAT)

_log = structlog.get_logger("stalecast.hub")
_limited_log = LimitedLog(_log)


class HubFull(Exception):
    """As many clients as the settings allow are connected; the operator's to raise or to scale."""


@dataclass(frozen=True, slots=True)
class HubStatistics:
    topics: int
    lingering_topics: int
    clients: int
    live_clients: int
    events: int
    deliveries: int
    malformed_entries: int
    overflows: int
    stuck_clients: int
    window_bytes: int
    draining: bool
    tail: TailStatistics


class Topic:
    """One watched topic. The tail sees it as a `Tailed`, subscribers through `position` and `window`."""

    __slots__ = (
        "_hub", "_order", "added_at_position", "epoch", "fanning_out", "is_watched", "key",
        "last_fanout_s", "live", "look", "name", "opened", "position", "refused", "waiting", "window",
    )  # fmt: skip

    def __init__(self, hub: "Hub", name: str, *, is_watched: bool) -> None:
        """`is_watched`: the tail reads it. Otherwise it is how the stream stood when one client asked."""
        self._hub = hub
        self.is_watched = is_watched
        self.name = name
        self.key = stream_key(name)
        self.position = BEGINNING
        self.epoch: int | None = None
        self.added_at_position: int | None = None
        self.opened = False
        self.refused: RedisRefused | None = None
        # Live subscribers with how to write to them, in the order in which each was written to last, fan-outs
        # left aside; all others wait and are served by their own task.
        self.live: dict[Subscriber, SendNowait] = {}
        self.waiting: set[Subscriber] = set()
        # The live ones as two lists, made anew after a change.
        self._order: tuple[list[Subscriber], list[SendNowait]] | None = None
        self.window = Window(BEGINNING, 0, hub.budget)
        self.fanning_out = False
        self.last_fanout_s = 0.0
        self.look: set[Topic] | None = None  # the one that comes to it, where there is a client

    def open(self, page: Page) -> None:
        """Start from where the stream stands."""
        stream = page.stream
        self.position, self.epoch = stream.position, stream.epoch
        self.added_at_position = stream.entries_added
        base = BEGINNING if stream.is_unwritten else stream.position
        self.window = Window(base, self._hub.settings.window_limit_events, self._hub.budget)
        # For one client that would be more than it asks for; and there is nothing from before the beginning.
        self.window.backfilled = not self.is_watched or stream.is_unwritten
        self.opened = True
        for subscriber in self.waiting:
            subscriber.wake()

    def window_point(self, cursor: StreamId, *, proven: bool) -> StreamId | None:
        """The cursor as the window knows it, or None where the window cannot serve it. `proven`: it is known
        to be of the stream as the hub believes it to be, by a look at Redis or because the hub brought it.

        Of one from before every entry nothing else tells that: the key may have been deleted since the last
        entry, and another instance, asked later, gives out the same position again."""
        if cursor.is_origin:
            if self.epoch is None or cursor != origin(self.epoch):
                return None
            cursor = BEGINNING
        if cursor == BEGINNING and not (proven or self.position.is_origin):
            return None
        return cursor if cursor == self.position or self.window.covers(cursor) else None

    def agrees_with(self, stream: Snapshot, known: StreamId) -> bool:
        """Whether a look at the stream fits what the hub believed before it: that the topic stood at `known`.
        If not, the stream went back (flushed, failed over, restored) and the tail has yet to see it."""
        if not self.is_watched:
            return True  # nobody else will be told anything
        if stream.epoch != self.epoch or not (known.is_origin or stream.last_generated >= known):
            return False
        # The look may be ahead of the hub. What the hub has read meanwhile came by where the look found the
        # stream, or the key was deleted and filled again in between. (A window that begins behind that cannot
        # tell: on a busy topic no look would ever be believed.)
        seen = stream.last_generated
        if seen <= known.read_after or self.position <= seen or seen < self.window.base:
            return True
        return self.window.covers(seen)

    # -- the tail's side

    async def deliver(self, entries: list[Entry]) -> float | None:
        unreadable = self._hub.malformed_entries
        events = self._hub.decode(self, entries)
        before = self.position.read_after
        self.position = entries[-1][0]
        self.window.append(events)
        for subscriber in self.waiting:
            proven = subscriber.proven_position
            if before < proven < self.position and all(proven != event_id for event_id, _ in entries):
                # It was ahead of the hub, and the hub does not come by there: it stood in a stream that was
                # deleted and filled again before the hub had read it. Its own position decides.
                subscriber.backlog.replace_by_reload(reload_event(self.position, "trimmed"), forced=False)
                subscriber.wake()
                continue
            for event in events:
                if event.id > proven and subscriber.backlog.add(event):
                    self._hub.overflows += 1
                    _limited_log.warning("client_overflowed", topic=self.name, at=str(event.id))
            subscriber.wake()
        await self._fan_out(events)
        # Whoever writes what cannot be read may write much of it, and each time every client reloads.
        return self._hub.settings.unreadable_gather_s if self._hub.malformed_entries > unreadable else None

    async def lose(self, stream: Snapshot, *, forced: bool) -> None:
        _limited_log.warning(
            "topic_lost_continuity",
            topic=self.name,
            at=str(self.position),
            now=str(stream.position),
            forced=forced,
        )
        self.position, self.epoch = stream.position, stream.epoch
        self.window.reset(BEGINNING if stream.is_unwritten else stream.position)
        event = reload_event(self.position, "trimmed")
        for subscriber in self.waiting:
            subscriber.backlog.replace_by_reload(event, forced=forced)
            subscriber.wake()
        await self._fan_out([event])

    def rewind(self, stream: Snapshot) -> None:
        # The position stays: what tells of the loss stands right behind it.
        _log.warning("topic_rolled_back", topic=self.name, at=str(self.position), now=str(stream.position))
        self.window.reset(self.position)

    async def refuse(self, error: RedisRefused) -> None:
        _log.error("topic_refused", topic=self.name, error=str(error))
        self.refused = error
        for subscriber in [*self.live, *self.waiting]:
            subscriber.end()
        self._hub.forget(self)

    async def _fan_out(self, events: list[Event]) -> None:
        hub, live = self._hub, self.live
        data = chunk(b"".join([event.block for event in events]))
        if self._order is None:
            self._order = (list(live), list(live.values()))
        order = subscribers, sends = self._order
        hub.events += len(events)
        hub.deliveries += len(live) * len(events)
        # Heartbeats stay away meanwhile: a subscriber that has yet to get this chunk must not fall behind
        # over a heartbeat, or its turn would never come.
        self.fanning_out = True
        try:
            for start in range(0, len(sends), WRITES_BETWEEN_YIELDS):
                if start:
                    await trio.lowlevel.checkpoint()
                part = subscribers[start : start + WRITES_BETWEEN_YIELDS]
                if self._order is order:
                    self._write_to(part, sends[start : start + WRITES_BETWEEN_YIELDS], data)
                else:  # some left, or were sent away, while the loop had yielded
                    part = [subscriber for subscriber in part if subscriber in live]
                    self._write_to(part, [live[subscriber] for subscriber in part], data)
        finally:
            self.fanning_out = False
            self.last_fanout_s = trio.current_time()

    def _write_to(self, subscribers: "list[Subscriber]", sends: list[SendNowait], data: bytes) -> None:
        # The loop that everything is about. It touches nothing of a subscriber but its socket: at thousands
        # of them each further object is a cache miss (5.6 us a write at 5000; with the subscribers 6.5; the
        # bare loop 5.4).
        size, remaining = len(data), iter(sends)
        for send_nowait in remaining:
            try:
                sent = send_nowait(data)
                if sent == size:
                    continue
            except BlockingIOError:
                sent = 0
            except OSError:
                sent = None
            subscriber = subscribers[len(sends) - length_hint(remaining) - 1]
            if sent is None:
                subscriber.disconnect()
            else:
                self.fall_behind(subscriber, memoryview(data)[sent:])

    # -- heartbeats

    def write_heartbeat(self, subscriber: "Subscriber") -> None:
        send_nowait = self.live[subscriber] = self.live.pop(subscriber)  # behind all the others
        try:
            sent = send_nowait(_HEARTBEAT_CHUNK)
        except BlockingIOError:
            sent = 0
        except OSError:
            subscriber.disconnect()
            return
        if sent != len(_HEARTBEAT_CHUNK):
            self.fall_behind(subscriber, memoryview(_HEARTBEAT_CHUNK)[sent:])

    # -- the subscribers' side

    def go_live(self, subscriber: "Subscriber", send_nowait: SendNowait) -> bool:
        """Whether it is live now, or was. If not, it is owed a heartbeat first: its next one must not be due
        before those of the others."""
        if subscriber in self.live:
            return True
        if subscriber.last_write_s < self._hub.looked_before_s:
            return False
        self.waiting.discard(subscriber)
        self.live[subscriber] = send_nowait
        self._order = None
        return True

    def leave_live(self, subscriber: "Subscriber") -> None:
        """From here on its own task sends what comes. What was published so far has been written to it,
        unless a fan-out is under way, in which case it is on its way out."""
        if self.drop_live(subscriber):
            self.waiting.add(subscriber)

    def drop_live(self, subscriber: "Subscriber") -> bool:
        """Nothing is written to it any more. Returns whether it was live."""
        if self.live.pop(subscriber, None) is None:
            return False
        self._order = None
        return True

    def fall_behind(self, subscriber: "Subscriber", rest: memoryview) -> None:
        """The kernel takes no more: its own task sends the rest of the chunk, and what comes meanwhile."""
        self.leave_live(subscriber)
        subscriber.rest = rest
        subscriber.position = self.position
        subscriber.wake()


class Hub:
    """All topics of this process. Started with `await nursery.start(hub.run)`."""

    def __init__(self, settings: Settings, registry: Registry, client: Client, tails: Tails) -> None:
        self.settings = settings
        self.client = client
        self.tails = tails
        self.budget = Budget(settings.windows_limit_mb * BYTES_PER_MB)
        self.openings = trio.CapacityLimiter(OPENINGS_AT_ONCE)
        self.looks = trio.CapacityLimiter(LOOKS_AT_ONCE)
        self.replays = trio.CapacityLimiter(REPLAYS_AT_ONCE)
        self.surveys = trio.CapacityLimiter(SURVEYS_AT_ONCE)
        self.draining = False
        # When it was looked last for whose heartbeat is due, and the last time but one.
        self._looked_s = self.looked_before_s = 0.0
        # The topics to be looked at then, from the next look on.
        self._looks_ahead: deque[set[Topic]] = deque(set() for _ in range(LOOKS_PER_INTERVAL + 1))
        self.clients = 0
        self.events = 0
        self.deliveries = 0
        self.malformed_entries = 0
        self.overflows = 0
        self.stuck_clients = 0
        self.reply_limit = ReplyLimit()
        self._registry = registry
        self._topics: dict[str, Topic] = {}
        # Each as one client who wanted no more than an answer has found it: gone with that client.
        self._asked_for: set[Topic] = set()
        # Topics without clients, by when the last one left: still read, so that whoever comes back finds the
        # window, and so that a rollback is noticed.
        self._lingering: dict[Topic, float] = {}
        self._nursery: trio.Nursery | None = None
        self._looks: dict[tuple[Topic, StreamId], trio.Event] = {}
        self._backfills: dict[Topic, trio.Event] = {}

    def statistics(self) -> HubStatistics:
        return HubStatistics(
            topics=len(self._topics) + len(self._asked_for),
            lingering_topics=len(self._lingering),
            clients=self.clients,
            live_clients=sum(len(topic.live) for topic in self._topics.values()),
            events=self.events,
            deliveries=self.deliveries,
            malformed_entries=self.malformed_entries,
            overflows=self.overflows,
            stuck_clients=self.stuck_clients,
            window_bytes=self.budget.used_bytes,
            draining=self.draining,
            tail=self.tails.statistics(),
        )

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._looked_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.tails.run)
            nursery.start_soon(self._beat)
            task_status.started()

    # -- joining and leaving

    def join(self, topic_id: str, subscriber: "Subscriber", *, live: bool) -> Topic:
        """Register first, ask questions later: from now on nothing that is read passes the subscriber by.
        `live`: it will follow. Raises HubFull or InvalidTopicId."""
        if self.is_full:
            raise HubFull(f"{self.clients} clients are connected (STALECAST_MAX_CLIENTS)")
        topic = self._topics.get(topic_id)
        if topic is None:
            assert self._nursery is not None, "Hub.run has not started"
            topic = Topic(self, topic_id, is_watched=live)
            if live:
                self._topics[topic_id] = topic
            else:
                self._asked_for.add(topic)
            self._nursery.start_soon(self._open, topic)
        elif self._lingering.pop(topic, None) is not None:
            self.budget.set_idle(topic.window, idle=False)
        topic.waiting.add(subscriber)
        if topic.look is None:
            self._look_after(topic, subscriber.last_write_s)
        self.clients += 1
        return topic

    @property
    def is_full(self) -> bool:
        return self.clients >= self.settings.max_clients

    def leave(self, topic: Topic, subscriber: "Subscriber") -> None:
        self.clients -= 1
        topic.drop_live(subscriber)
        topic.waiting.discard(subscriber)
        if topic.live or topic.waiting or not topic.opened or topic.refused is not None:
            return  # one that is being opened is looked at when it is open
        if not topic.is_watched or topic.position.is_origin:
            # Anybody can name topics that nobody has ever written to.
            self.forget(topic)
            return
        self._lingering[topic] = trio.current_time()
        self.budget.set_idle(topic.window, idle=True)
        if len(self._lingering) > LINGERING_LIMIT_TOPICS:
            self.forget(next(iter(self._lingering)))

    def forget(self, topic: Topic) -> None:
        if self._topics.get(topic.name) is topic:
            del self._topics[topic.name]
        self._asked_for.discard(topic)
        self._lingering.pop(topic, None)
        if topic.look is not None:
            topic.look.discard(topic)
        topic.window.reset(BEGINNING)
        if topic.is_watched:
            self.tails.unwatch(topic)

    def _all_topics(self) -> list[Topic]:
        return [*self._topics.values(), *self._asked_for]

    async def _open(self, topic: Topic) -> None:
        backoff = Backoff()
        while topic.waiting:
            try:
                async with self.openings:
                    page = await read_newest(self.client, topic.key, 0)
            except RedisUnavailable:
                await trio.sleep(backoff.next_s())
            except RedisRefused as error:
                await topic.refuse(error)
                return
            else:
                if not topic.waiting:
                    break
                topic.open(page)
                if topic.is_watched:
                    self.tails.watch(topic)
                return
        self.forget(topic)

    @contextmanager
    def looking(self, topic: Topic, cursor: StreamId) -> Generator[None]:
        """Around a look at whether `cursor` is in the stream, and what follows from it for the window."""
        key = (topic, cursor)
        if key in self._looks:
            yield
            return
        done = self._looks[key] = trio.Event()
        try:
            yield
        finally:
            del self._looks[key]
            done.set()

    async def wait_looked(self, topic: Topic, cursor: StreamId) -> None:
        """If somebody looks for the same cursor just now, wait until that is over: nobody else need look
        then, unless the window still does not know the cursor."""
        if (under_way := self._looks.get((topic, cursor))) is not None:
            await under_way.wait()

    async def wait_backfilled(self, topic: Topic) -> None:
        """Fetch what Redis holds from before the window, once for all who ask at the same time.
        Raises RedisUnavailable or RedisRefused to the one who fetched; the others find the window as it
        is."""
        if topic.window.backfilled:
            return
        under_way = self._backfills.get(topic)
        if under_way is not None:
            await under_way.wait()
            return
        done = self._backfills[topic] = trio.Event()
        try:
            page = await self.reply_limit.read(
                self.settings.window_limit_events, partial(read_newest, self.client, topic.key)
            )
            if not topic.window.backfilled:
                floor = _floor(page, topic.window.base)
                if floor is not None:
                    topic.window.backfill(self.decode(topic, page.entries), floor)
                else:
                    topic.window.backfilled = True  # there is nothing to take in, nor will there be
        finally:
            del self._backfills[topic]
            done.set()

    # -- decoding

    def decode(self, topic: Topic, entries: list[Entry]) -> list[Event]:
        """What they mean for clients. An entry that cannot be read (a foreign writer's) may stand for
        anything, so it is a reload at its id, which also covers everything before it."""
        events: list[Event] = []
        unreadable = 0
        for event_id, fields in entries:
            try:
                events.append(from_entry(event_id, fields, self._registry, self.settings.max_event_bytes))
            except ContractViolation as violation:
                unreadable += 1
                events = [reload_event(event_id, "unreadable")]
                _limited_log.warning(
                    "unreadable_entry", topic=topic.name, id=str(event_id), error=str(violation)
                )
        self.malformed_entries += unreadable
        return events

    # -- heartbeats

    def _look_after(self, topic: Topic, silent_since_s: float) -> None:
        """Look at the topic as soon as who has been silent since then is owed a heartbeat."""
        wait_s = silent_since_s + self.settings.heartbeat_interval_s - self._looked_s
        looks = math.ceil(wait_s * LOOKS_PER_INTERVAL / self.settings.heartbeat_interval_s)
        topic.look = self._looks_ahead[min(max(looks, 1), len(self._looks_ahead)) - 1]
        topic.look.add(topic)

    async def _beat(self) -> None:
        interval_s = self.settings.heartbeat_interval_s
        while True:
            await trio.sleep(interval_s / LOOKS_PER_INTERVAL)
            self.looked_before_s, self._looked_s = self._looked_s, trio.current_time()
            flush_limited_logs()
            self._forget_lingering()
            self._looks_ahead.append(set())
            until_yield = WRITES_BETWEEN_YIELDS
            for topic in list(self._looks_ahead.popleft()):
                for subscriber in self._take_due(topic, self._looked_s - interval_s):
                    if subscriber not in topic.live:
                        continue
                    if topic.fanning_out:
                        break
                    subscriber.last_write_s = trio.current_time()
                    topic.write_heartbeat(subscriber)
                    until_yield -= 1
                    if until_yield <= 0:
                        until_yield = WRITES_BETWEEN_YIELDS
                        await trio.lowlevel.checkpoint()
                until_yield -= 1
            await trio.lowlevel.checkpoint()

    def _take_due(self, topic: Topic, before_s: float) -> "list[Subscriber]":
        """Who is live, and was last written to before that; who waits is told. The next look at the topic is
        when it is the next one's turn."""
        topic.look = None
        if not (topic.live or topic.waiting):
            return []
        silent_since_s = self._looked_s  # as of those whose heartbeat goes out now
        for subscriber in topic.waiting:
            if subscriber.last_write_s <= before_s:
                subscriber.owes_heartbeat = True
                subscriber.wake()
            else:
                silent_since_s = min(silent_since_s, subscriber.last_write_s)
        due: list[Subscriber] = []
        if topic.last_fanout_s > before_s:
            silent_since_s = min(silent_since_s, topic.last_fanout_s)
        else:
            # No others are looked at: at thousands of them each is a cache miss.
            for subscriber in topic.live:
                if subscriber.last_write_s > before_s:
                    silent_since_s = min(silent_since_s, subscriber.last_write_s)
                    break
                due.append(subscriber)
        self._look_after(topic, before_s if topic.fanning_out else silent_since_s)
        return due

    def _forget_lingering(self) -> None:
        left_before_s = trio.current_time() - self.settings.topic_linger_s
        while self._lingering:
            topic, left_s = next(iter(self._lingering.items()))
            if left_s >= left_before_s:
                return
            self.forget(topic)

    # -- draining

    async def drain(self, drain_s: float) -> None:
        """Send every client away in its own slot, within a share of `drain_s`; new ones are
        sent away at once. Returns when the last was told, not when the last is gone."""
        self.draining = True
        subscribers = [
            subscriber for topic in self._all_topics() for subscriber in [*topic.live, *topic.waiting]
        ]
        rate = max(self.settings.drain_rate_clients_per_s, len(subscribers) / (DRAIN_SLOTS_SHARE * drain_s))
        started_s = trio.current_time()
        _log.info("drain_started", clients=len(subscribers), over_s=round(len(subscribers) / rate, 1))
        for index, subscriber in enumerate(subscribers):
            await trio.sleep_until(started_s + index / rate)
            subscriber.end()


def _floor(page: Page, base: StreamId) -> StreamId | None:
    """From where (exclusive) the page's entries are everything up to the stream's end. None where they do not
    reach back to `base`: then it may be another stream (one that was deleted and filled again may well be
    further on), or there is nothing in it from before the window."""
    stream = page.stream
    if stream.max_deleted is None or all(event_id != base for event_id, _ in page.entries):
        return None
    if stream.is_complete and len(page.entries) == stream.length:
        return BEGINNING
    return max(page.entries[0][0], stream.max_deleted)
