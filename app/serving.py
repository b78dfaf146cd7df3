"""Everything that knows the insides of Hypercorn 0.18 and Quart-Trio 0.12 lives here, in http11.py and in
http2.py, and nowhere else.

Importing this module puts our connection handler, worker context and protocols in the places where Hypercorn
looks them up at run time, so the same remedies hold under `stalecast serve` and under
`hypercorn -k trio app.asgi:app`. tests/test_serving.py has one test for each trap.
"""

# Hypercorn's and Quart's own types leave much unsaid, and what is patched is not meant to be:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateImportUsage=false
import contextlib
import gc
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import hypercorn.protocol
import hypercorn.trio.run
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ConnectionState
from hypercorn.utils import parse_socket_addr
from quart import Quart, Response
from quart.utils import encode_headers  # pyright: ignore[reportUnknownVariableType]
from quart_trio.asgi import TrioASGIHTTPConnection

from app.contain import forget_frames, report
from app.cors import Cors
from app.descriptors import Connections
from app.handler_settings import CLOSE_TIMEOUT_S, CONNECTION_STATE_KEY, HandlerSettings
from app.http2 import Http2
from app.http11 import Http11, StreamAsked
from app.settings import Settings
from app.stream_request import LIMIT_BYTES, NotRead, StreamRequest, read_stream_request
from app.streams.sse import LAST_CHUNK, chunk, unchunk
from app.streams.wire import AsgiWire, ClientGone, ClientStuck, DirectWire, Wire, send_or_gone

if TYPE_CHECKING:
    from app.streams.subscriber import Subscriber

STREAM_ENDPOINT_KEY: Final = "stalecast.streams"
RECEIVE_BYTES: Final = 1 << 14
# How long a client that sends no more may wait for its answer: twice what Redis may take.
HALF_CLOSED_LIMIT_S: Final = 10.0
# Linux: how long sent bytes may stay unacknowledged, or a peer's window closed, before the kernel gives up.
TCP_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)
# The collector walks every live task at each full collection, which is what 10,000 clients are made of, and
# there is next to nothing to find: young collections stay rare, full ones become exceptional.
GC_THRESHOLDS: Final = (50_000, 50, 1_000)


class StreamEndpoint(Protocol):
    """What answers requests for streams, whichever way they come."""

    def fields(self, origin: str | None) -> bytes:
        """The response's header fields that are its own, each with its line end."""
        ...

    def refuse(self, asked: StreamRequest) -> bytes | None:
        """While no stream can be opened: the whole body for who asks. None: `open` it."""
        ...

    async def open(self, asked: StreamRequest, begin: "Begin") -> "Subscriber | None":
        """None when it has answered in full by itself. Raises what `begin` and its wire raise."""
        ...


@dataclass(frozen=True, slots=True)
class _Offer:
    endpoint: StreamEndpoint
    interceptors: int


def offer_streams(app: Quart, endpoint: StreamEndpoint) -> None:
    """To be called when the application is complete: whatever is put in the way of its requests afterwards is
    asked for each of them, streams included."""
    app.extensions[STREAM_ENDPOINT_KEY] = _Offer(endpoint, _interceptors(app))


def _interceptors(app: Quart) -> int:
    hooks = (app.before_request_funcs, app.after_request_funcs, app.url_value_preprocessors)
    replaced = "asgi_app" in vars(app)  # Quart's documented way to add a middleware
    return replaced + sum(len(functions) for by_scope in hooks for functions in by_scope.values())


def configure(settings: Settings, connections_limit: int = HandlerSettings.connections_limit) -> None:
    HandlerSettings.send_timeout_s = settings.stuck_timeout_s
    HandlerSettings.request_head_timeout_s = settings.request_head_timeout_s
    HandlerSettings.cors = Cors(settings.cors_origins)
    HandlerSettings.connections_limit = connections_limit
    HandlerSettings.crowded_connections = min(settings.max_clients, connections_limit)


def hypercorn_config(settings: Settings, bind: list[str]) -> Config:
    """Hypercorn's configuration, with the defaults that would harm long-lived streams replaced."""
    config = Config()
    config.bind = bind
    config.worker_class = "trio"
    config.accesslog = None  # one line at a stream's end, and a copy of os.environ for each: 87 us
    config.errorlog = logging.getLogger("hypercorn.error")  # ours, so its lines are like all others
    config.backlog = (
        settings.backlog_limit_connections
    )  # 100 by default: a deploy brings everyone back at once
    config.keep_alive_timeout = settings.keep_alive_timeout_s
    config.keep_alive_max_requests = 1 << 31  # on HTTP/2 the thousandth would silently stop every stream
    config.read_timeout = None  # a client of an event stream has nothing to say
    config.max_requests = None
    config.graceful_timeout = settings.drain_s
    config.h11_max_incomplete_size = LIMIT_BYTES
    config.include_server_header = False
    config.certfile = settings.tls_certfile
    config.keyfile = settings.tls_keyfile
    return config


def create_listener(host: str, port: int, settings: Settings) -> socket.socket:
    """A listening socket whose connections give up on peers that stop reading. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if TCP_USER_TIMEOUT is not None:
            # Inherited by accepted sockets.
            listener.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, int(settings.stuck_timeout_s * 1000))
        listener.bind((host, port))
        listener.listen(settings.backlog_limit_connections)
        listener.setblocking(False)
        listener.set_inheritable(True)
    except BaseException:
        listener.close()
        raise
    return listener


def tune_gc() -> None:
    """Call once everything is set up: what lives now lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


# -- Hypercorn's side


class Context(WorkerContext):
    """Hypercorn's worker context, findable by the application, which has to drain when it says
    `terminated`."""

    current: "Context | None" = None

    def __init__(self, max_requests: int | None) -> None:
        super().__init__(max_requests)
        self.connections: Connections[ConnectionHandler] = Connections(HandlerSettings.connections_limit)
        Context.current = self

    async def wait_terminated(self) -> None:
        """Hypercorn has stopped accepting. Connections that wait for a next request are closed."""
        await self.terminated.wait()
        for handler in list(self.connections):
            handler.close_if_idle()

    def abort_connections(self) -> None:
        """Whoever is still connected when the time to drain is over takes no bytes."""
        for handler in list(self.connections):
            handler.abort()


class ConnectionHandler(hypercorn.trio.run.TCPServer):
    """One accepted connection.

    Against Hypercorn's own: the idle time-out is a deadline, not a task that is started and cancelled for
    each request; a send has a deadline, after which the connection is aborted (theirs is shielded without
    one, so a client that stops reading pins it for ever).

    And where a client asks for a stream in the ordinary way, in cleartext, the connection leaves Hypercorn
    for good: this task answers the request, becomes the subscriber and ends with it. No parser, no second
    task and no ASGI is set up for it, or kept: a third of the time to connect, 8 KB a client instead of 23.
    """

    _rest_due_s: float | None = None  # until when a head that was begun is to be whole

    def __init__(  # pyright: ignore[reportMissingSuperCall] theirs would make a task handle we do not use
        self,
        app: Any,
        config: Config,
        context: Any,
        state: ConnectionState,
        stream: Any,
    ) -> None:
        self.app = app
        self.config = config
        self.context = context
        self.stream = stream
        self.state = state
        # Until its first request arrives the connection has this long; afterwards the keep-alive time.
        self._reading = trio.CancelScope(
            deadline=trio.current_time() + HandlerSettings.request_head_timeout_s
        )
        self._idle = True
        self.follows = False
        connections = getattr(context, "connections", None)
        self._connections: Connections[ConnectionHandler] = (
            Connections(HandlerSettings.connections_limit) if connections is None else connections
        )

    def __await__(self) -> Generator[Any, Any, None]:
        is_admitted = self._connections.admit(self)
        if is_admitted and len(self._connections) < HandlerSettings.crowded_connections:
            return self.run().__await__()
        return self._run_crowded(is_admitted=is_admitted).__await__()

    async def _run_crowded(self, *, is_admitted: bool) -> None:
        """There may be no room for another stream: who asks for one is told so before anything is set up.
        `is_admitted`: there is room for the connection."""
        is_served = False
        try:
            if not self._turn_away_nowait() and is_admitted:
                if self.stream_endpoint is not None:
                    deadline = self._reading.deadline
                    with self._reading:
                        await trio.lowlevel.wait_readable(self.stream.socket)
                    self._reading = trio.CancelScope(deadline=deadline)
                is_served = not self._turn_away_nowait()
        except (OSError, trio.ClosedResourceError):
            pass  # it has left, or had to make room
        except Exception as error:  # noqa: BLE001 as in `run`
            report("connection", error)
        finally:
            if not is_served:
                self._connections.discard(self)
                self._part_from_stream()
        if is_served:
            await self.run()

    @property
    def is_idle(self) -> bool:
        return self._idle

    def _turn_away_nowait(self) -> bool:
        """When there is no room: answers a request for a stream that is here already, before anything is set
        up for it, so that refusing costs far less than serving. Returns whether it has answered."""
        endpoint = self.stream_endpoint
        if endpoint is None:
            return False
        sock: socket.socket = self.stream.socket._sock
        try:
            data = sock.recv(LIMIT_BYTES, socket.MSG_PEEK)
            asked = read_stream_request(data)
            body = endpoint.refuse(asked) if isinstance(asked, StreamRequest) else None
            if body is None or not isinstance(asked, StreamRequest):
                return False
            sock.recv(len(data))
            sock.send(_response_head(endpoint.fields(asked.origin)) + chunk(body) + LAST_CHUNK)
            sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return False
        except OSError:
            pass  # it has left
        return True

    async def run(self) -> None:
        """Nothing that this connection does, and no mistake of ours in it, gets further than this: an
        exception that left here would end the server with everybody on it. What is about the server itself
        (Cancelled, KeyboardInterrupt) passes."""
        try:
            # All in this one frame: it is there as long as the stream.
            try:
                alpn_protocol, transport, is_tls = await self._shake_hands()
                asked: StreamRequest | bytes | None = b""
                if self.stream_endpoint is not None:
                    asked = None
                    with self._reading:
                        asked = await self._read_request()
                if isinstance(asked, bytes):
                    asked = await self._answer_requests(asked, alpn_protocol, transport, is_tls=is_tls)
                if asked is not None:
                    del transport
                    await self._serve_stream(asked)
            finally:
                self._connections.discard(self)
                await self._close()
                self._part_from_stream()
        except* trio.TooSlowError:
            pass  # the handshake
        except* Exception as error:  # noqa: BLE001 the one boundary
            report("connection", error)

    def _part_from_stream(self) -> None:
        """So that OpenSSL's part of a connection, tens of kilobytes, goes with it and not when the collector
        comes: trio's stream refers to itself by this, and a request that failed to us by its traceback."""
        vars(self.__dict__.pop("stream")).pop("_handshook", None)

    async def _read_request(self) -> "StreamRequest | bytes | None":
        """The first request if it is for a stream; otherwise what is here of it, for Hypercorn. None: the
        client has left."""
        data = b""
        while True:
            try:
                received = await self.stream.receive_some(RECEIVE_BYTES)
            except (trio.ClosedResourceError, trio.BrokenResourceError):
                return None
            if not received:
                return data or None
            data += bytes(received)
            match read_stream_request(data):
                case StreamRequest() as asked:
                    return asked
                case NotRead.UNUSUAL:
                    return data
                case NotRead.INCOMPLETE:
                    pass

    @property
    def stream_endpoint(self) -> "StreamEndpoint | None":
        """Where streams are opened past Hypercorn: cleartext only, and only while the application is ours as
        it was made, without a middleware or a hook that would want to see each request."""
        app: Any = getattr(self.app, "app", None)
        if not isinstance(self.stream, trio.SocketStream) or not isinstance(app, Quart):
            return None
        offer = app.extensions.get(STREAM_ENDPOINT_KEY)
        return offer.endpoint if offer is not None and offer.interceptors == _interceptors(app) else None

    async def _serve_stream(self, asked: "StreamRequest") -> None:
        endpoint = self.stream_endpoint
        assert endpoint is not None
        self._idle = False
        wire = DirectWire(self.stream, HandlerSettings.send_timeout_s)
        head = _response_head(endpoint.fields(asked.origin))

        async def begin(first: bytes, then: bytes = b"") -> Wire:
            await wire.write(head + chunk(first), then)
            return wire

        with contextlib.suppress(ClientGone, ClientStuck):
            subscriber = await endpoint.open(asked, begin)
            if subscriber is None:
                return
            try:
                if await self._catch_up(subscriber, wire, live=asked.live):
                    del begin, head
                    await subscriber.follow()
            finally:
                subscriber.close()

    async def _catch_up(self, subscriber: "Subscriber", wire: DirectWire, *, live: bool) -> bool:
        if subscriber.is_prompt:
            return await subscriber.catch_up()

        async def watch() -> None:
            try:
                while True:
                    await wire.wait_input()
            except ClientGone:
                # Nobody can tell who has left from who has only said all that it has to say. A stream that
                # goes on would keep whoever has left; an answer is soon over, and is given.
                if live:
                    subscriber.disconnect()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            caught_up = await subscriber.catch_up()
            nursery.cancel_scope.cancel()
        return caught_up

    async def _answer_requests(
        self, data: bytes, alpn_protocol: str, transport: Any, *, is_tls: bool
    ) -> "StreamRequest | None":
        """By Hypercorn, until the connection ends or a stream is asked for."""
        client = parse_socket_addr(transport.family, transport.getpeername())
        server = parse_socket_addr(transport.family, transport.getsockname())
        deadline = self._reading.deadline
        self._reading = trio.CancelScope(deadline=deadline)
        self.send_lock = trio.Lock()
        self._changed = trio.Event()  # when a request was answered, or became a stream that goes on
        asked: StreamRequest | None = None
        try:
            async with Requests() as task_group:
                self._task_group = task_group
                self.protocol = ProtocolWrapper(
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState({**self.state, CONNECTION_STATE_KEY: self}),
                    is_tls,
                    client,
                    server,
                    self.protocol_send,
                    alpn_protocol,
                )
                await self.protocol.initiate()
                with self._reading:
                    asked = await self._feed(data)
                if asked is None:
                    await self.protocol.handle(Closed())
        finally:
            self._part_from_requests()
        return asked

    def _part_from_requests(self) -> None:
        """Whatever answered them goes now, and not when the collector comes, which for what has lived long is
        next to never: all of it refers to itself in circles, and to this connection."""
        wrapper: ProtocolWrapper | None = self.__dict__.pop("protocol", None)
        for name in ("send_lock", "_changed", "_task_group"):
            self.__dict__.pop(name, None)
        if wrapper is not None:
            wrapper.state.clear()
            for owner in (wrapper.protocol.connection, wrapper.protocol, wrapper):
                vars(owner).clear()

    async def _feed(self, data: bytes) -> "StreamRequest | None":
        """`data`: what has arrived already."""
        while True:
            try:
                if not data:
                    data = bytes(await self.stream.receive_some(RECEIVE_BYTES))
                await self.protocol.handle(RawData(data))
            except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
                forget_frames(error)
                return None
            except StreamAsked as asked:
                return asked.request
            if not data:
                await self._wait_answered()
                return None
            data = b""

    async def _wait_answered(self) -> None:
        """The client has said all that it has to say, and may still wait for its answer."""
        with trio.move_on_after(HALF_CLOSED_LIMIT_S):
            while not (self._idle or self.follows):
                self._changed = trio.Event()
                await self._changed.wait()

    async def _shake_hands(self) -> tuple[str, Any, bool]:
        if not isinstance(self.stream, trio.SSLStream):
            return "http/1.1", self.stream.socket, False
        with trio.fail_at(self._reading.deadline):  # the request's head has what is left of it
            await self.stream.do_handshake()
        return self.stream.selected_alpn_protocol() or "http/1.1", self.stream.transport_stream.socket, True

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            data = event.data
            if data:
                await self._send_bounded(data)
        elif isinstance(event, Closed):
            self._idle = True
            self._changed.set()
            # Quart cancels the request's task as soon as it is told of the end, and it is this very task that
            # has yet to close the connection.
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await self._close()
                await self.protocol.handle(Closed())
        elif isinstance(event, Updated):
            self._idle = event.idle
            self._changed.set()
            if event.idle:
                self._reading.deadline = trio.current_time() + self.config.keep_alive_timeout
                if self.context.terminated.is_set():
                    self._reading.cancel()
            else:
                self._reading.deadline = math.inf if self._rest_due_s is None else self._rest_due_s

    async def _send_bounded(self, data: bytes) -> None:
        try:
            # Shielded, because half a frame would corrupt what follows; bounded, because the peer may never
            # read.
            with trio.move_on_after(HandlerSettings.send_timeout_s, shield=True) as bound:
                async with self.send_lock:
                    await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError) as error:
            forget_frames(error)
            # Busy: sends wait for each other, so it is another task of ours that closes the connection.
            await self._note_unreachable()
        else:
            if bound.cancelled_caught:
                self.abort()
                await self._note_unreachable()

    async def _note_unreachable(self) -> None:
        """Nothing reaches the client any more, so that it waits for no answer either."""
        self._idle = True
        self._changed.set()
        await self.protocol.handle(Closed())

    def expect_rest(self, *, is_owed: bool) -> None:
        """`is_owed`: the client has begun the head of a further request, beside those that are answered. It
        has as long for it as for its first."""
        if is_owed and self._rest_due_s is None:
            self._rest_due_s = trio.current_time() + HandlerSettings.request_head_timeout_s
            self._reading.deadline = min(self._reading.deadline, self._rest_due_s)
        elif not is_owed and self._rest_due_s is not None:
            self._rest_due_s = None
            if not self._idle:
                self._reading.deadline = math.inf

    def begin_following(self) -> None:
        """What is being answered is a stream that goes on: it ends with what its client sends."""
        self.follows = True
        self._changed.set()

    # -- the worker's side

    def close_if_idle(self) -> None:
        if self._idle:
            self._reading.cancel()

    def abort(self) -> None:
        transport = (
            self.stream if isinstance(self.stream, trio.SocketStream) else self.stream.transport_stream
        )
        DirectWire(transport, 0).abort()


class Requests(TaskGroup):
    """The tasks of one connection. A request that fails costs its own answer, and is logged in one line."""

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        to_app, from_client = trio.open_memory_channel[Any](config.max_app_queue_size)

        async def put(message: Any) -> None:
            # Nobody takes what comes when the application has ended. (Hypercorn would wait for ever.)
            with contextlib.suppress(trio.BrokenResourceError):
                await to_app.send(message)

        assert self._nursery is not None
        self._nursery.start_soon(self._run_app, app, scope, from_client, send)
        return put

    async def _run_app(
        self, app: Any, scope: Any, from_client: trio.MemoryReceiveChannel[Any], send: Any
    ) -> None:
        async with from_client:
            try:
                await app(scope, from_client.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
            except* Exception as error:  # noqa: BLE001 the request's boundary
                report("request", error, method=scope.get("method", ""), path=scope.get("path", ""))
        await send(None)


def _replace(module: Any, name: str, ours: Any) -> None:
    assert isinstance(getattr(module, name, None), type), f"{module.__name__} has no {name} any more"
    setattr(module, name, ours)


# Each of these is looked up at run time. Upstream (pgjones/hypercorn) issues: #225 and #329 (an exception of
# one connection ends the process); test_serving.py has a test for each trap that fails once it is mended.
_replace(hypercorn.trio.run, "TCPServer", ConnectionHandler)
_replace(hypercorn.trio.run, "WorkerContext", Context)
_replace(hypercorn.protocol, "H11Protocol", Http11)
_replace(hypercorn.protocol, "H2Protocol", Http2)


def _response_head(fields: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ndate: %b\r\n%btransfer-encoding: chunked\r\nconnection: close\r\n\r\n" % (
        _http_date(int(time.time())),
        fields,
    )


@lru_cache(maxsize=1)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


# -- Quart's side


class Begin(Protocol):
    """Sends the response's head with the first blocks of its body, and `then`, a chunk as `sse.chunk` makes
    it; says how the rest is sent."""

    def __call__(self, first: bytes, then: bytes = b"") -> Awaitable[Wire]: ...


Open = Callable[[Begin], Awaitable["Subscriber | None"]]


class EventStream(Response):
    """A response whose body a subscriber sends: no async generator, so no nursery around a `yield`.

    `open(begin)` returns it, or None when it has answered in full by itself; `begin(first bytes)` sends the
    head and returns the wire."""

    def __init__(self, open_: Open, headers: dict[str, str], *, live: bool) -> None:
        """`live`: whether it goes on until its client leaves."""
        super().__init__(b"", headers=headers)
        self.live = live
        self.timeout = None  # Quart's 60 s would cut the body without a final chunk
        self.headers.pop("content-length", None)
        self.open = open_


class StreamConnection(TrioASGIHTTPConnection):
    """Sends an `EventStream` through ASGI: `QuartTrio.asgi_http_class`."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._server_send: Any = send
        await super().__call__(receive, send)

    async def _send_response(self, send: ASGISendCallable, response: Any) -> None:
        # The server's own `send`: Quart 0.23 has a function around it that raises an error of Quart's when
        # the client has left.
        sending = self._server_send
        if not isinstance(response, EventStream):
            with contextlib.suppress(ClientGone):
                await super()._send_response(partial(send_or_gone, sending), response)
            return
        handler: object = self.scope.get("state", {}).get(CONNECTION_STATE_KEY)
        abort = _nothing
        if isinstance(handler, ConnectionHandler):
            abort = handler.abort
            if response.live:
                handler.begin_following()
        start: dict[str, Any] = {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": encode_headers(response.headers),
        }

        async def begin(first: bytes, then: bytes = b"") -> Wire:
            await send_or_gone(sending, start)
            body = first + unchunk(then) if then else first
            await send_or_gone(sending, {"type": "http.response.body", "body": body, "more_body": True})
            # Hypercorn says nothing when the client has left meanwhile.
            sender: object = getattr(sending, "__self__", None)
            if isinstance(sender, HTTPStream) and sender.closed:
                raise ClientGone("closed")
            return AsgiWire(sending, abort, HandlerSettings.send_timeout_s)

        with contextlib.suppress(ClientGone, ClientStuck):
            subscriber = await response.open(begin)
            if subscriber is not None and await subscriber.catch_up():
                await subscriber.follow()


def _nothing() -> None:
    """Another server's connection: all that can be done is to stop sending."""
