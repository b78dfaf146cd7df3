"""One client: catching up, then following, each phase in whichever task the server gives it.

A disconnect ends either phase, and with it everything the client held. While it is live the task sleeps and
the hub writes; all it waits for is a wake, and the client's leaving. It wakes to send what the hub could not,
to catch up again, or to go.
"""

import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol, TypeVar, assert_never

import structlog
import trio

from app.logging import LimitedLog
from app.redis_connection import Backoff, RedisRefused, RedisUnavailable
from app.stream_request import Catchup
from app.streams import sse
from app.streams.backlog import Backlog
from app.streams.event import Event
from app.streams.hub import Hub, Topic
from app.streams.ids import BEGINNING, StreamId
from app.streams.reading import Page, read_after, read_at
from app.streams.resume import Live, Reload, Replay, decide
from app.streams.sse import chunk
from app.streams.survey import Survey, Survivors
from app.streams.window import SLICE_BYTES, Piece
from app.streams.wire import ClientGone, ClientStuck, Wire

# What Redis is asked for at once for a client that takes all it gets; another gets a slice at a time.
PAGE_LIMIT_BYTES: Final = 4 * SLICE_BYTES
# Of an event whose size is not known yet, and what its id and names add in the block.
UNKNOWN_ENTRY_BYTES: Final = 512
ENTRY_OVERHEAD_BYTES: Final = 30
# How long a look at the stream may contradict the hub before the look is believed: the tail needs one read,
# after a reconnect if it comes to that.
DISAGREEMENT_LIMIT_S: Final = 30.0
DISAGREEMENT_LOOK_S: Final = 0.02
# A client sent away because its topic cannot be read comes back this much later than usual.
REFUSED_RETRY_FACTOR: Final = 10

_HEARTBEAT_CHUNK: Final = chunk(sse.HEARTBEAT)

_log = structlog.get_logger("stalecast.stream")
_limited_log = LimitedLog(_log)

T = TypeVar("T")


class Begin(Protocol):
    """Sends the response's head with the first blocks of its body, and `then`, a chunk or nothing; says how
    the rest is sent."""

    def __call__(self, first: bytes, then: bytes = b"") -> Awaitable[Wire]: ...


class _SentAway(Exception):
    """It must go before it has caught up."""


class Subscriber:
    __slots__ = (
        "_arriving", "_begin", "_catchup", "_caught_up", "_closed", "_cursor", "_cursor_unreadable",
        "_ending", "_gone", "_hub", "_live", "_opened_s", "_parked", "_topic", "_wire", "backlog",
        "last_write_s", "owes_heartbeat", "position", "rest",
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
        self._caught_up = False
        self.backlog = Backlog(hub.settings.backlog_limit_events)
        self.rest: memoryview | None = None  # of a chunk that the hub could write only in part
        self.owes_heartbeat = False
        self.last_write_s = self._opened_s = trio.current_time()
        self.position = StreamId(0, 0)
        self._topic: Topic = hub.join(topic_id, self, live=live)

    # -- called by the hub and by the server, never waiting

    def wake(self) -> None:
        """Without meaning while its task is awake: that looks at everything before it parks."""
        if self._parked is not None:
            self._parked.cancel()

    @property
    def proven_position(self) -> StreamId:
        """Up to where it has everything, in the data set that the hub reads; that may be ahead of the hub, if
        it comes from an instance that reads faster. A cursor that was not judged yet proves nothing, nor does
        one from before the stream went back."""
        proven = self._caught_up and not self.backlog.went_back
        return self.position.read_after if proven else BEGINNING

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
        return self._cursor is None or self._topic.window_point(self._cursor, proven=False) is not None

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
            _limited_log.warning("client_stuck", topic=self._topic.name)
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
        await self._write(b"" if self._wire is None else chunk(sse.position_block(None, self._retry_ms())))
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
                await self._write(b"" if self._wire is None else _HEARTBEAT_CHUNK)
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
        self.position, self._caught_up = self._topic.position, True
        self.backlog.clear()
        if self._cursor_unreadable:
            await self._write(chunk(sse.reload_block(self.position, "invalid_id")))
        elif self._wire is None:
            self._cursor = self.position
            await self._write()
        else:
            await self._write(chunk(sse.position_block(self.position)))

    async def _catch_up(self, cursor: StreamId) -> None:
        """Bring the client from its cursor to where the hub stands, or tell it to reload.

        From memory wherever the window knows where the client stands; otherwise from Redis, page by page, as
        soon as the cursor is known to be in the stream. What the client does not take at once is dropped, but
        for the chunk that was begun, and read again from the position it has by then.
        """
        topic, hub = self._topic, self._hub
        proven = self._caught_up
        self.position, self._caught_up = cursor, False
        pages: _Pages | None = None  # as soon as the cursor is known to be worth one
        wants_survey = self._catchup == "compact"
        survivors: Survivors | None = None
        if topic.window_point(cursor, proven=True) is None:
            await hub.wait_looked(topic, cursor)  # with many others, after a deploy
        while True:
            if (point := topic.window_point(self.position, proven=proven)) is not None:
                if wants_survey:
                    wants_survey, survey = False, Survey()
                    survey.see(topic.window.keys_after(point))
                    survivors = survey.survivors(topic.position)
                # In one synchronous step with the position that it reaches.
                self.backlog.clear()
                piece = self._piece(point, survivors)
                whole = piece is None or piece.is_last
                reached = topic.position if piece is None or piece.is_last else piece.upto
                if piece is not None:
                    await self._write(piece.frame)
                self.position = reached
                if whole:
                    break
            elif pages is not None and wants_survey:
                wants_survey = False
                async with hub.surveys:
                    survivors = await self._survey(pages)
            else:
                limit_events = pages.limit_events if pages is not None else 0
                page = await (
                    self._read_page(self.position, limit_events) if pages is not None else self._look()
                )
                whole = proven = True
                match decide(self.position, page.stream, entry_present=page.entry_present):
                    case Live(after):
                        self.position = after
                    case Replay(_, upto):
                        if pages is None:
                            pages = _Pages(hub.settings.replay_page_events, page)
                            continue
                        whole = page.is_whole
                        reached = upto if whole else page.entries[-1][0]
                        pages.learn(page)
                        events = self._wanted(page, survivors)
                        del page  # nothing of it waits for the client
                        if await self._write_events(events):
                            self.position = reached
                            if self._is_direct:
                                pages.grow()
                        else:
                            whole = False
                            pages.shrink()
                    case Reload(reason, position):
                        survivors = pages = None
                        self.backlog.forget_reload_at(position)
                        await self._write(chunk(sse.reload_block(position, reason)))
                        self.position = position
                    case _ as other:  # pyright: ignore[reportUnnecessaryComparison] a new decision fails here
                        assert_never(other)
                # More came meanwhile than may wait: it is still in the stream, so the replay goes on.
                if whole and not (self.backlog.overflowed or self.backlog.in_doubt):
                    break
            if self.backlog.went_back:
                break  # behind its back: what waits tells so, and goes on from there
        self._caught_up = True
        if self._wire is None:
            await self._write()  # nothing was missed

    async def _look(self) -> Page:
        """Whether the client's cursor is in the stream. If so, the window takes in what Redis still has, and
        may reach the cursor then; if not, that is all that it costs."""
        topic, hub, cursor = self._topic, self._hub, self.position
        with hub.looking(topic, cursor):
            page = await self._read_page(cursor, 0)
            decision = decide(cursor, page.stream, entry_present=page.entry_present)
            if isinstance(decision, Replay) and not topic.window.backfilled:
                await self._patiently(lambda: hub.wait_backfilled(topic), hub.replays)
        return page

    async def _survey(self, pages: "_Pages") -> Survivors | None:
        """What of the span behind the client is the newest of its kind. None: all of it is to be sent, since
        the replay itself will meet what is wrong; or the client was told to reload."""
        topic, hub = self._topic, self._hub
        survey, at = Survey(), self.position
        while (point := topic.window_point(at, proven=True)) is None:
            limit_events = pages.limit_events
            page = await self._read_page(at, limit_events)
            match decide(at, page.stream, entry_present=page.entry_present):
                case Live(after):
                    return survey.survivors(after)
                case Reload():
                    return None
                case Replay(_, upto):
                    survey.see((event.id, event.conflation_key) for event in hub.decode(topic, page.entries))
                    whole = page.is_whole
                    at = upto if whole else page.entries[-1][0]
                    if len(survey) > hub.settings.stream_maxlen:
                        await self._write(chunk(sse.reload_block(at, "overflow")))
                        self.position = at
                        return None
                    if whole:
                        return survey.survivors(at)
                    pages.learn(page)
                    pages.grow()
                case _ as other:  # pyright: ignore[reportUnnecessaryComparison] a new decision fails here
                    assert_never(other)
        survey.see(topic.window.keys_after(point))
        return survey.survivors(topic.position)

    def _piece(self, point: StreamId, survivors: Survivors | None) -> Piece | None:
        window = self._topic.window
        if survivors is None:
            return window.piece_after(point)
        wanted = deque(event for event in window.after(point) if survivors.wants(event.id))
        if not wanted:
            return None
        frame, upto = _pack(wanted)
        return Piece(frame, upto, is_last=not wanted)

    def _wanted(self, page: Page, survivors: Survivors | None) -> deque[Event]:
        events = self._hub.decode(self._topic, page.entries)
        return deque(event for event in events if survivors is None or survivors.wants(event.id))

    async def _read_page(self, cursor: StreamId, limit_events: int) -> Page:
        """A page behind `cursor` (limit 0: only whether there is such an entry) that agrees with what the hub
        believes, or that has disagreed for long."""
        topic, hub = self._topic, self._hub
        read = partial(read_after, hub.client, topic.key, cursor)
        give_up_at_s = trio.current_time() + DISAGREEMENT_LIMIT_S
        while True:
            known, epoch = topic.position, topic.epoch
            if limit_events:
                page = await self._patiently(lambda: hub.reply_limit.read(limit_events, read), hub.replays)
            else:
                page = await self._patiently(lambda: read_at(hub.client, topic.key, cursor), hub.looks)
            if topic.agrees_with(page.stream, known) or trio.current_time() > give_up_at_s:
                if topic.epoch != epoch:
                    # The tail saw another data set while this read was under way, which has seen it, too.
                    self.backlog.unforce()
                return page
            # The stream went back and the tail has not seen it yet. Answering now would have the hub tell
            # this client once more what it has just been told.
            hub.tails.recheck(topic)
            await self._pause(DISAGREEMENT_LOOK_S)

    async def _patiently(self, read: Callable[[], Awaitable[T]], limiter: trio.CapacityLimiter) -> T:
        """Repeat a read until Redis answers it. Raises RedisRefused, ClientGone, ClientStuck or _SentAway."""
        backoff = Backoff()
        while True:
            try:
                async with limiter:
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
            await self._write()
        elif self.owes_heartbeat:
            await self._write(_HEARTBEAT_CHUNK)

    async def _follow(self) -> None:
        """Send what comes: by itself while anything waits, through the hub while nothing does."""
        topic = self._topic
        while not self._gone:
            if self.rest is not None:
                rest, self.rest = self.rest, None
                await self._write(rest)
            elif self.backlog.in_doubt or (
                self.backlog.overflowed and topic.window_point(self.position, proven=True) is not None
            ):
                # In doubt: the hub lost events, and whether this client did, its own position tells.
                # Overflowed: a burst rather than a slow client, if the window still has all of it.
                await self._catch_up(self.position)
            elif events := self.backlog.take(self.position):
                waiting = deque(events)
                del events
                if not await self._write_events(waiting):
                    await self._catch_up(self.position)  # what waited was dropped
            elif self._must_go():
                return
            elif self.owes_heartbeat:
                await self._write(_HEARTBEAT_CHUNK)
            else:
                assert self._wire is not None
                send_nowait = self._wire.send_nowait
                # Not while it is ahead of the hub, as who comes from an instance that reads faster. It may be
                # live still: it was the client that had something to say.
                is_ahead = topic.position < self.position
                if send_nowait is None or is_ahead or topic.go_live(self, send_nowait):
                    await self._wait_woken()
                else:
                    self.owes_heartbeat = True
        raise ClientGone("disconnected")

    async def _wait_woken(self) -> None:
        with trio.CancelScope() as self._parked:
            if self._wire is None or self._arriving is not None:
                await trio.sleep_forever()  # whoever serves it watches the connection meanwhile
            else:
                await self._wire.wait_input()
        self._parked = None

    # -- writing

    @property
    def _is_direct(self) -> bool:
        return self._wire is not None and self._wire.send_nowait is not None

    async def _write_events(self, events: deque[Event]) -> bool:
        """Sends `events`, in chunks, and moves the position with them. Returns False if the client did not
        take one at once: what was behind that is dropped then, so that it holds nothing while it waits."""
        while events:
            frame, upto = _pack(events)
            is_last = not events
            await self._write(frame, events)
            self.position = upto
            if not (is_last or events):
                return False
        return True

    async def _write(self, frame: bytes | memoryview = b"", behind: deque[Event] | None = None) -> None:
        """`frame`: one chunk, or what is left of one; nothing only before the first write. `behind`: what is
        to be written next; emptied if the client has to be waited for."""
        self.owes_heartbeat = False
        if self._wire is None:
            assert self._begin is not None
            # A client that brought its cursor in the query has no last event id yet: if the line is cut
            # before the first event, what its first block says is what it resumes from.
            first = sse.position_block(self._cursor, self._retry_ms())
            self._wire = await self._begin(first, bytes(frame))
            self._begin = None
        else:
            send_nowait, sent = self._wire.send_nowait, 0
            if send_nowait is not None:
                try:
                    sent = send_nowait(frame)
                except BlockingIOError:
                    pass
                except OSError as error:
                    raise ClientGone("closed") from error
                if sent < len(frame) and behind is not None:
                    behind.clear()
            if sent < len(frame):
                await self._wire.write(memoryview(frame)[sent:] if sent else frame)
        self.last_write_s = trio.current_time()

    def _retry_ms(self) -> int:
        """Browsers reconnect after exactly this long: without a draw of its own for each, all at once."""
        least_ms = self._hub.settings.retry_ms
        if self._topic.refused is not None:
            least_ms *= REFUSED_RETRY_FACTOR
        return least_ms + random.randrange(least_ms + 1)  # noqa: S311 jitter, not a secret


class _Pages:
    """How much to ask Redis for at a time: as many events as fit into what may be held for a client, and more
    of them for one that takes what it gets."""

    __slots__ = ("_entry_bytes", "_limit_events", "_page_bytes")

    def __init__(self, limit_events: int, found: Page) -> None:
        """`found`: the entry at the cursor, if there is one; those behind it are likely as large."""
        self._limit_events = limit_events
        self._page_bytes = SLICE_BYTES
        self._entry_bytes = UNKNOWN_ENTRY_BYTES
        self.learn(found)

    @property
    def limit_events(self) -> int:
        return max(1, min(self._limit_events, self._page_bytes // self._entry_bytes))

    def learn(self, page: Page) -> None:
        if page.entries:
            total = sum(len(part) for _, fields in page.entries for part in fields)
            self._entry_bytes = ENTRY_OVERHEAD_BYTES + total // len(page.entries)

    def grow(self) -> None:
        self._page_bytes = min(2 * self._page_bytes, PAGE_LIMIT_BYTES)

    def shrink(self) -> None:
        self._page_bytes = SLICE_BYTES


def _pack(events: deque[Event]) -> tuple[bytes, StreamId]:
    """Takes as many of `events` (not empty) as fit into one chunk; the chunk, and the last one's id."""
    event = events.popleft()
    blocks, size = [event.block], len(event.block)
    while events and size + len(events[0].block) <= SLICE_BYTES:
        event = events.popleft()
        blocks.append(event.block)
        size += len(event.block)
    return chunk(b"".join(blocks)), event.id
