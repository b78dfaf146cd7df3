"""One client: catching up, then following, each phase in whichever task the server gives it.

A disconnect ends either phase, and with it everything the client held. While it is live the task sleeps and
the hub writes; all it waits for is a wake, and the client's leaving. It wakes to send what the hub could not,
to catch up again, or to go.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar, assert_never

import structlog
import trio

from app.redis_connection import Backoff, RedisRefused, RedisUnavailable
from app.stream_request import Catchup
from app.streams import sse
from app.streams.backlog import Backlog
from app.streams.event import Event
from app.streams.hub import Hub, Topic
from app.streams.ids import StreamId
from app.streams.reading import Page, read_after
from app.streams.resume import Live, Reload, Replay, decide
from app.streams.wire import ClientGone, ClientStuck, Wire

# What a client's own task sends at once: bounds the memory of a slow one.
WRITE_LIMIT_BYTES: Final = 1 << 16
# How long a look at the stream may contradict the hub before the look is believed: the tail needs one read,
# after a reconnect if it comes to that.
DISAGREEMENT_LIMIT_S: Final = 30.0
DISAGREEMENT_LOOK_S: Final = 0.02
# A client sent away because its topic cannot be read comes back this much later than usual.
REFUSED_RETRY_FACTOR: Final = 10

_log = structlog.get_logger("stalecast.stream")

T = TypeVar("T")
# Sends the response's head with the first bytes of its body, and says how the rest is sent.
Begin = Callable[[bytes], Awaitable[Wire]]


class _SentAway(Exception):
    """It must go before it has caught up."""


class Subscriber:
    __slots__ = (
        "_arriving", "_begin", "_catchup", "_closed", "_cursor", "_cursor_unreadable", "_ending", "_gone",
        "_hub", "_live", "_opened_s", "_parked", "_topic", "_wire", "backlog", "last_write_s",
        "owes_heartbeat", "position", "rest",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        topic_id: str,
        cursor: str | None,
        begin: Begin,
        catchup: Catchup = "all",
        *,
        live: bool = True,
    ) -> None:
        """`cursor`: what the client sent, unparsed. `live`: whether it follows once it has caught up; if not,
        the response ends there. Raises HubFull or InvalidTopicId."""
        self._hub = hub
        # Where it stands, by its own word or by what its first block says; None as long as neither is known.
        self._cursor = StreamId.readable(cursor)
        self._cursor_unreadable = cursor is not None and self._cursor is None
        self._catchup: Catchup = catchup
        self._live = live
        self._begin: Begin | None = begin  # until it was used: it holds the whole request
        self._wire: Wire | None = None
        self._arriving: trio.CancelScope | None = None  # around the first phase
        self._parked: trio.CancelScope | None = None  # around the wait for a wake
        self._ending = hub.draining
        self._gone = False
        self._closed = False
        self.backlog = Backlog(hub.settings.backlog_limit_events)
        self.rest: memoryview | None = None  # of a chunk that the hub could write only in part
        self.owes_heartbeat = False
        self.last_write_s = self._opened_s = trio.current_time()
        self.position = StreamId(0, 0)
        self._topic: Topic = hub.join(topic_id, self)

    # -- called by the hub and by the server, never waiting

    def wake(self) -> None:
        """Without meaning while its task is awake: that looks at everything before it parks."""
        if self._parked is not None:
            self._parked.cancel()

    def end(self) -> None:
        """Send it away with a `retry:` and a clean end, as soon as its task gets to it."""
        self._ending = True
        self._topic.leave_live(self)
        self.wake()

    def disconnect(self) -> None:
        """The client is gone: ends whichever phase it is in."""
        self._gone = True
        self._topic.drop_live(self)
        if self._arriving is not None:
            self._arriving.cancel()
        self.wake()

    # -- its own task

    @property
    def is_prompt(self) -> bool:
        """Whether `catch_up` has all it needs, and will wait for nobody but the client."""
        if not self._topic.opened or self._must_go():
            return self._must_go()
        return self._cursor is None or self._topic.window_point(self._cursor) is not None

    async def catch_up(self) -> bool:
        """Serve the client until it has what it missed. Returns whether `follow` is to be called; if not, it
        wanted no more, is gone or was sent away, and everything it held is free.

        Nothing is raised for what clients do. If cancelled, the connection may stand inside a chunk.
        """
        outcome = "gone"
        with trio.CancelScope() as self._arriving:
            outcome = await self._phase(self._arrive)
        self._arriving = None
        return outcome == "caught_up"

    async def follow(self) -> None:
        """Serve a client that has caught up until it is gone or sent away; otherwise as `catch_up`."""
        await self._phase(self._stay)

    def close(self, outcome: str = "gone") -> None:
        """Free what the client held. Each phase does so if it is the last one; this is for a stop between
        them, or before them."""
        if self._closed:
            return
        self._closed = True
        self._hub.overflows += self.backlog.collapsed
        self._hub.leave(self._topic, self)
        if self._wire is None:
            return  # it left before its first byte, and nobody was told that it had come
        log = _log.info if self._live else _log.debug  # who polls asks every few seconds
        log(
            "stream_closed", topic=self._topic.name, outcome=outcome,
            seconds=round(trio.current_time() - self._opened_s, 3),
        )  # fmt: skip

    async def _phase(self, phase: Callable[[], Awaitable[str]]) -> str:
        outcome = "gone"
        try:
            outcome = await phase()
        except ClientGone:
            pass
        except ClientStuck:
            outcome = "stuck"
            self._hub.stuck_clients += 1
            if self._wire is not None:
                self._wire.abort()
        finally:
            if outcome != "caught_up":
                self.close(outcome)
        return outcome

    async def _arrive(self) -> str:
        try:
            if await self._wait_open():
                await self._take_up()
                # Who does not go live leaves behind what came meanwhile: when it asks again, it is judged
                # from the last id that it was sent.
                return "caught_up" if self._live else await self._end("answered")
        except _SentAway:
            pass
        except RedisRefused as error:
            await self._topic.refuse(error)
        return await self._say_farewell()

    async def _stay(self) -> str:
        try:
            await self._follow()
        except _SentAway:
            pass
        except RedisRefused as error:
            await self._topic.refuse(error)
        return await self._say_farewell()

    async def _say_farewell(self) -> str:
        # Without a position: who was taken out of a fan-out that is under way has yet to get what the others
        # have. The first write brings a `retry:` of its own, and the client's own cursor.
        await self._write(b"" if self._wire is None else sse.position_block(None, self._retry_ms()))
        return await self._end("sent_away" if self._topic.refused is None else "refused")

    async def _end(self, outcome: str) -> str:
        assert self._wire is not None
        await self._wire.end()
        return outcome

    async def _wait_open(self) -> bool:
        topic = self._topic
        if topic.opened and not self._must_go():
            return True  # as nearly everyone: a scope with a deadline is 4% of what connecting costs
        with trio.move_on_after(self._hub.settings.first_bytes_timeout_s):
            while not (topic.opened or self._must_go()):
                await self._wait_woken()
        while not (topic.opened or self._must_go()):
            # Redis is away: the client is told at once that the stream stands, and where, later.
            if self._wire is None or self.owes_heartbeat:
                await self._write(b"" if self._wire is None else sse.HEARTBEAT)
            else:
                await self._wait_woken()
        return topic.opened

    def _must_go(self) -> bool:
        return self._ending or self._topic.refused is not None

    async def _take_up(self) -> None:
        """Begin where the client's cursor is, or without one where the hub stands."""
        if self._cursor is not None:
            await self._catch_up(self._cursor)
            return
        self.position = self._topic.position
        self.backlog.clear()
        if self._cursor_unreadable:
            await self._write(sse.reload_block(self.position, "invalid_id"))
        elif self._wire is None:
            self._cursor = self.position
            await self._write(b"")
        else:
            await self._write(sse.position_block(self.position))

    async def _catch_up(self, cursor: StreamId) -> None:
        """Bring the client from its cursor to where the hub stands, or tell it to reload."""
        topic = self._topic
        self.position = cursor
        if topic.window_point(cursor) is None and not topic.window.backfilled:
            await self._patiently(lambda: self._hub.wait_backfilled(topic))
        # Compact: all pages are gathered, and only the newest of each (event, id) is sent.
        gathered = Backlog(self._hub.settings.stream_maxlen) if self._catchup == "compact" else None
        gathered_after = cursor
        while (point := topic.window_point(cursor)) is None:
            page = await self._read_page(cursor)
            whole = True
            match decide(cursor, page.stream, entry_present=page.entry_present):
                case Live(after):
                    cursor = after
                case Replay(_, upto):
                    events = self._hub.decode(topic, page.entries)
                    whole = len(page.entries) < self._hub.settings.replay_page_events
                    cursor = upto if whole else page.entries[-1][0]
                    if gathered is None:
                        await self._write_events(events)
                    else:
                        for event in events:
                            gathered.add(event)
                case Reload(reason, position):
                    cursor, gathered = position, None
                    self.backlog.forget_reload_at(position)
                    await self._write(sse.reload_block(position, reason))
                case _ as other:  # pyright: ignore[reportUnnecessaryComparison] a new decision fails here
                    assert_never(other)
            self.position = cursor
            # More came meanwhile than may wait: it is still in the stream, so the replay goes on.
            if whole and not (self.backlog.overflowed or self.backlog.in_doubt):
                break
        else:
            # From memory, in one synchronous step with the position it reaches.
            self.backlog.clear()
            cursor = topic.position
            if gathered is not None:
                for event in topic.window.after(point):
                    gathered.add(event)
            elif blocks := topic.window.blocks_after(point):
                await self._write(blocks)
        if gathered is not None:
            await self._write_events(gathered.take(gathered_after))
        if self._wire is None:
            await self._write(b"")  # nothing was missed
        self.position = cursor

    async def _read_page(self, cursor: StreamId) -> Page:
        """A page behind `cursor` that agrees with what the hub believes, or that has disagreed for long."""
        topic, limit_events = self._topic, self._hub.settings.replay_page_events
        give_up_at_s = trio.current_time() + DISAGREEMENT_LIMIT_S
        while True:
            known, epoch = topic.position, topic.epoch
            page = await self._patiently(
                lambda: read_after(self._hub.client, topic.key, cursor, limit_events)
            )
            if topic.agrees_with(page.stream, known) or trio.current_time() > give_up_at_s:
                if topic.epoch != epoch:
                    # The tail saw another data set while this read was under way, which has seen it, too.
                    self.backlog.unforce()
                return page
            # The stream went back and the tail has not seen it yet. Answering now would have the hub tell
            # this client once more what it has just been told.
            self._hub.tails.recheck(topic)
            await self._pause(DISAGREEMENT_LOOK_S)

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Repeat a read until Redis answers it. Raises RedisRefused, ClientGone, ClientStuck or _SentAway."""
        backoff = Backoff()
        while True:
            try:
                async with self._hub.replays:
                    # What the hub has queued so far was in the stream before this read, so the read tells it.
                    self.backlog.clear()
                    return await read()
            except RedisUnavailable:
                await self._pause(backoff.next_s())

    async def _pause(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if self._must_go():
            raise _SentAway
        waited_s = trio.current_time() - self._opened_s
        if self._wire is None and waited_s > self._hub.settings.first_bytes_timeout_s:
            await self._write(b"")
        elif self.owes_heartbeat:
            await self._write(sse.HEARTBEAT)

    async def _follow(self) -> None:
        """Send what comes: by itself while anything waits, through the hub while nothing does."""
        topic = self._topic
        while not self._gone:
            if self.rest is not None:
                rest, self.rest = self.rest, None
                await self._write(b"", rest)
            elif self.backlog.overflowed and (point := topic.window_point(self.position)) is not None:
                # A burst, rather than a slow client: the window still has all of it.
                self.backlog.clear()
                self.position = topic.position
                await self._write(topic.window.blocks_after(point))
            elif self.backlog.in_doubt:
                # The hub lost events; whether this client did, its own position tells.
                await self._catch_up(self.position)
            elif events := self.backlog.take(self.position):
                self.position = events[-1].id
                await self._write_events(events)
            elif self._must_go():
                return
            elif self.owes_heartbeat:
                await self._write(sse.HEARTBEAT)
            else:
                assert self._wire is not None
                send_nowait = self._wire.send_nowait
                # `>=`: a client may be ahead of the hub, if it comes from an instance that reads faster.
                if send_nowait is not None and topic.position >= self.position:
                    topic.go_live(
                        self, send_nowait
                    )  # or still is: it was the client that had something to say
                await self._wait_woken()
        raise ClientGone("disconnected")

    async def _wait_woken(self) -> None:
        with trio.CancelScope() as self._parked:
            if self._wire is None or self._arriving is not None:
                await trio.sleep_forever()  # whoever serves it watches the connection meanwhile
            else:
                await self._wire.wait_input()
        self._parked = None

    # -- writing

    async def _write_events(self, events: Sequence[Event]) -> None:
        """In slices, so that a slow client holds little beyond references to shared events."""
        slice_: list[bytes] = []
        size = 0
        for event in events:
            slice_.append(event.block)
            size += len(event.block)
            if size >= WRITE_LIMIT_BYTES:
                await self._write(b"".join(slice_))
                slice_, size = [], 0
        if size:
            await self._write(b"".join(slice_))

    async def _write(self, data: bytes, rest: memoryview | None = None) -> None:
        self.owes_heartbeat = False
        if self._wire is None:
            assert self._begin is not None
            # A client that brought its cursor in the query has no last event id yet: if the line is cut
            # before the first event, what its first block says is what it resumes from.
            self._wire = await self._begin(sse.position_block(self._cursor, self._retry_ms()) + data)
            self._begin = None
        else:
            await self._wire.write(data, rest)
        self.last_write_s = trio.current_time()

    def _retry_ms(self) -> int:
        """Browsers reconnect after exactly this long: without a draw of its own for each, all at once."""
        least_ms = self._hub.settings.retry_ms
        if self._topic.refused is not None:
            least_ms *= REFUSED_RETRY_FACTOR
        return least_ms + random.randrange(least_ms + 1)  # noqa: S311 jitter, not a secret
