"""Hypercorn's and Quart's traps, one test for each (test_trap_N), and what direct writes must never do.

Servers run in the test's own process, on loopback, so that a test sees both ends; the clients here read and
write bytes, so that nothing on the wire is hidden by a library.
"""

import gc
import json
import os
import re
import select
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.settings
import h11
import hypercorn.config
import pytest
import trio
import trio.testing
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio import serve
from hypercorn.trio.worker_context import EventWrapper
from servers import (
    HOST,
    PROJECT,
    Certificate,
    Process,
    free_port,
    make_certificate,
    redis_client,
    run_app,
    run_redis,
)
from structlog.testing import capture_logs

import app.process
from app.handler_settings import HandlerSettings
from app.http2 import BoundedStreamBuffer
from app.http11 import Http11
from app.process import Supervisor
from app.publish import publish_topic_event_on, publish_topic_event_sync
from app.services import Services
from app.serving import (
    TCP_USER_TIMEOUT,
    Context,
    configure,
    create_listener,
    hypercorn_config,
)
from app.settings import Settings
from app.streams.hub import Hub
from app.streams.ids import StreamId
from app.streams.sse import HEARTBEAT, Message, Parser, position_block
from app.streams.wire import UNASKED_LIMIT_BYTES
from app.web import create_app

# For what happens "at once"; far above the milliseconds it takes, far below what the remedies prevent.
SOON_S = 5.0
# No single read or write in these tests takes this long unless something is broken.
READ_TIMEOUT_S = 10.0
RECEIVE_BYTES = 1 << 16
NEVER_S = 3600.0
KIB = 1 << 10
MIB = 1 << 20


# -- a server in this process


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real server for all: what is served over HTTP does not depend on which."""
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def publish(redis_url: str) -> Iterator[Callable[..., str]]:
    """`publish(topic, id)` appends an event and returns its stream id."""
    with redis_client(redis_url) as client:
        client.flushall()

        def publish_one(topic: str, resource_id: str = "1", reason: str = "edited") -> str:
            return publish_topic_event_sync(
                client, topic, "argument_updated", {"id": resource_id, "reason": reason}
            )

        yield publish_one


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    certificate = make_certificate(tmp_path_factory.mktemp("tls"))
    if certificate is None:
        pytest.skip("openssl is not installed")
    return certificate


@pytest.fixture
def settings(redis_url: str, publish: object) -> Callable[..., Settings]:
    """Settings on an empty Redis, whose heartbeats and time-outs stay away unless a test asks for them."""

    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {
            "redis_url": redis_url,
            "retry_ms": 0,  # drawn from 0 to twice that: the same for every client
            "heartbeat_interval_s": NEVER_S,
            "keep_alive_timeout_s": NEVER_S,
            "request_head_timeout_s": NEVER_S,
            "drain_s": SOON_S,
        }
        return Settings(**(values | changes))

    return make


@pytest.fixture(autouse=True)
def _no_server_left_behind() -> Iterator[None]:
    send_timeout_s, head_timeout_s = HandlerSettings.send_timeout_s, HandlerSettings.request_head_timeout_s
    yield
    Context.current = None
    HandlerSettings.send_timeout_s, HandlerSettings.request_head_timeout_s = send_timeout_s, head_timeout_s


@dataclass
class Server:
    """A running server; `stop()` is its SIGTERM, `ended` is set when it has returned."""

    port: int
    app: Any
    stop: Callable[[], None]
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def services(self) -> Services:
        return self.app.extensions["stalecast"]

    @property
    def hub(self) -> Hub:
        return self.services.hub


async def start_server(nursery: trio.Nursery, settings: Settings, application: Any = None) -> Server:
    """Serve until the nursery is cancelled, Stalecast or another ASGI `application`."""
    configure(settings)
    listener = create_listener(HOST, 0, settings)
    told_to_stop = trio.Event()
    server = Server(
        port=listener.getsockname()[1],
        app=create_app(settings) if application is None else application,
        stop=told_to_stop.set,
    )
    config = hypercorn_config(settings, [f"fd://{listener.detach()}"])

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        await serve(server.app, config, shutdown_trigger=told_to_stop.wait, task_status=task_status)
        server.ended.set()

    await nursery.start(run)
    return server


async def wait_until(condition: Callable[[], bool], timeout_s: float = SOON_S) -> None:
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 the servers under test tell nobody
            await trio.sleep(0.005)


# -- clients


class Connection:
    """HTTP/1.x as bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = b""

    @classmethod
    async def open(cls, server: Server, certificate: Certificate | None = None) -> Self:
        return cls(await open_stream(server, certificate, "http/1.1"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self._stream)

    @property
    def local_port(self) -> int:
        assert isinstance(self._stream, trio.SocketStream)
        return int(self._stream.socket.getsockname()[1])

    async def send(self, data: bytes) -> None:
        with trio.fail_after(READ_TIMEOUT_S):
            await self._stream.send_all(data)

    async def request(self, path: str, *headers: str, method: str = "GET", version: str = "1.1") -> None:
        lines = [f"{method} {path} HTTP/{version}", f"Host: {HOST}", *headers, "", ""]
        await self.send("\r\n".join(lines).encode())

    async def receive(self) -> bytes:
        """What has arrived; empty at the end."""
        if self._buffer:
            received, self._buffer = self._buffer, b""
            return received
        with trio.fail_after(READ_TIMEOUT_S):
            return bytes(await self._stream.receive_some(RECEIVE_BYTES))

    async def read_until(self, marker: bytes) -> bytes:
        """Up to the end of `marker`."""
        data = b""
        while marker not in data:
            received = await self.receive()
            assert received, f"the connection ended instead of bringing {marker!r}: {data!r}"
            data += received
        head, _, self._buffer = data.partition(marker)
        return head + marker

    async def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            received = await self.receive()
            assert received, f"the connection ended after {len(data)} of {size} bytes"
            data += received
        self._buffer = data[size:]
        return data[:size]

    async def read_head(self) -> tuple[int, dict[str, str]]:
        """Status, and headers by their name in lower case."""
        status_line, *lines = (await self.read_until(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(status_line.split()[1]), {name.lower(): value for name, value in headers.items()}

    async def read_response(self) -> tuple[int, bytes]:
        """Of an ordinary request: status and body."""
        status, headers = await self.read_head()
        return status, await self.read_exactly(int(headers["content-length"]))

    async def read_chunk(self) -> bytes:
        """One chunk's data; empty for the last one."""
        size = int(await self.read_until(b"\r\n"), 16)
        data = await self.read_exactly(size + 2)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def read_end(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        data = b""
        try:
            while received := await self.receive():
                data += received
        except trio.BrokenResourceError:
            pass
        return data


class Http2:
    """One HTTP/2 connection over TLS: bodies and ends by stream id."""

    def __init__(self, stream: trio.abc.Stream, window_bytes: int) -> None:
        self._stream = stream
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.local_settings = h2.settings.Settings(
            client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window_bytes}
        )
        self.headers: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.closed = False

    @classmethod
    async def open(cls, server: Server, certificate: Certificate, window_bytes: int = MIB) -> Self:
        client = cls(await open_stream(server, certificate, "h2"), window_bytes)
        client._h2.initiate_connection()
        await client._flush()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self._stream)

    async def request(self, path: str, *headers: tuple[str, str]) -> int:
        stream_id = self._h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.bodies[stream_id] = b""
        self._h2.send_headers(stream_id, [*head, *headers], end_stream=True)
        await self._flush()
        return stream_id

    async def receive_until(self, condition: Callable[[], bool]) -> None:
        """Also returns when the server closes the connection."""
        while not (condition() or self.closed):
            with trio.fail_after(READ_TIMEOUT_S):
                try:
                    data = bytes(await self._stream.receive_some(RECEIVE_BYTES))
                except trio.BrokenResourceError:
                    data = b""
            if not data:
                self.closed = True
                return
            for event in self._h2.receive_data(data):
                self._take(event)
            await self._flush()

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=stream_id, headers=headers):
                self.headers[stream_id] = dict(headers)
            case h2.events.DataReceived(stream_id=stream_id, data=data):
                self.bodies[stream_id] += data
                self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
            case h2.events.StreamEnded(stream_id=stream_id) | h2.events.StreamReset(stream_id=stream_id):
                self.ended.add(stream_id)
            case _:
                pass

    async def _flush(self) -> None:
        if data := self._h2.data_to_send():
            await self._stream.send_all(data)


async def open_stream(server: Server, certificate: Certificate | None, alpn: str) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream(HOST, server.port)
    if certificate is None:
        return stream
    context = certificate.client_context()
    context.set_alpn_protocols([alpn])
    secure = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)
    await secure.do_handshake()
    assert secure.selected_alpn_protocol() == alpn
    return secure


class Follower:
    """A client of a stream over HTTP/1.1: `body` is all it got, without the chunks' frames."""

    def __init__(self, connection: Connection, headers: dict[str, str]) -> None:
        self.connection = connection
        self.headers = headers
        self.body = b""
        self.ended = False
        self.parser = Parser()
        self._messages: list[Message] = []

    async def message(self) -> Message | None:
        """The next block that moved the cursor or brought data; None at a clean end."""
        while not self._messages and not self.ended:
            data = await (
                self.connection.read_chunk()
                if "transfer-encoding" in self.headers
                else self.connection.receive()
            )
            self.ended = not data
            self.body += data
            self._messages += self.parser.feed(data)
        return self._messages.pop(0) if self._messages else None

    async def event_id(self) -> str:
        """The id of the next event."""
        while True:
            message = await self.message()
            assert message is not None, "the stream ended"
            if message.data is not None:
                return message.last_event_id

    async def wait_heartbeats(self, count: int) -> None:
        target = self.parser.comments + count
        while self.parser.comments < target:
            data = await self.connection.read_chunk()
            assert data, "the stream ended"
            self.body += data
            self._messages += self.parser.feed(data)

    async def wait_clean_end(self) -> list[Message]:
        """The messages up to it."""
        messages: list[Message] = []
        while (message := await self.message()) is not None:
            messages.append(message)
        return messages


# A request with a declared body has somebody to read it, and so goes through ASGI `send`.
DIRECT: tuple[str, ...] = ()
THROUGH_ASGI: tuple[str, ...] = ("Content-Length: 0",)
both_ways = pytest.mark.parametrize("way", [DIRECT, THROUGH_ASGI], ids=["direct", "asgi"])


@asynccontextmanager
async def follow(
    server: Server,
    topic: str,
    *headers: str,
    certificate: Certificate | None = None,
    version: str = "1.1",
) -> AsyncIterator[Follower]:
    """A follower that has its first block, and is served directly or through ASGI as `headers` say."""
    async with await Connection.open(server, certificate) as connection:
        await connection.request(f"/v1/sse/{topic}", *headers, version=version)
        follower = await begin_following(connection)
        yield follower


async def begin_following(connection: Connection) -> Follower:
    status, headers = await connection.read_head()
    assert status == 200
    follower = Follower(connection, headers)
    position = ""
    while not position:
        message = await follower.message()
        assert message is not None
        assert message.data is None
        position = message.last_event_id
    return follower


def live_clients(server: Server) -> int:
    return server.hub.statistics().live_clients


async def wait_live(server: Server, clients: int = 1) -> None:
    """Until so many clients are written to directly."""
    await wait_until(lambda: live_clients(server) == clients)


async def wait_clients(server: Server, clients: int) -> None:
    await wait_until(lambda: server.hub.clients == clients)


# -- the traps


async def _answer_lifespan(receive: Any, send: Any) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})


async def _endless_body(scope: Any, receive: Any, send: Any, left: trio.Event | None = None) -> None:
    """An ASGI application that sends far more than any kernel buffers for a client."""
    if scope["type"] == "lifespan":
        await _answer_lifespan(receive, send)
        return
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 64 * MIB, "more_body": True})
    finally:
        if left is not None:
            left.set()


@pytest.mark.parametrize("secure", [False, True], ids=["cleartext", "tls"])
async def test_trap_1_a_send_to_a_stuck_client_is_bounded(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    certificate: Certificate,
    secure: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = trio.Event()
    tls = {"tls_certfile": str(certificate.certfile), "tls_keyfile": str(certificate.keyfile)}
    server = await start_server(
        nursery, settings(**(tls if secure else {})), partial(_endless_body, left=left)
    )
    # Not through the settings: those would also set the kernel's own bound.
    monkeypatch.setattr(HandlerSettings, "send_timeout_s", 0.2)
    async with await Connection.open(server, certificate if secure else None) as stuck:
        await stuck.request("/")
        with trio.fail_after(SOON_S):
            await left.wait()
        server.stop()
        with trio.fail_after(SOON_S):
            await server.ended.wait()


@pytest.mark.skipif(TCP_USER_TIMEOUT is None, reason="Linux only")
async def test_trap_1_accepted_sockets_inherit_the_kernels_bound(settings: Callable[..., Settings]) -> None:
    with (
        create_listener(HOST, 0, settings(stuck_timeout_s=12.5)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        await trio.lowlevel.wait_readable(listener)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == 12_500
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


async def test_trap_2_a_shut_window_stops_the_buffer_from_growing(nursery: trio.Nursery) -> None:
    buffer = BoundedStreamBuffer(EventWrapper)
    pushed = 0

    async def push_for_ever() -> None:
        nonlocal pushed
        while True:
            await buffer.push(b"x" * KIB)
            pushed += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(push_for_ever)
    for _ in range(1000):
        assert await buffer.pop(0) == b""  # the sending task's turn, with a window of zero
        await trio.lowlevel.checkpoint()
    assert len(buffer.buffer) == BUFFER_HIGH_WATER

    # The window opens: what was pushed comes in order, and pushing goes on.
    before = pushed
    while pushed < before + 100:
        await buffer.pop(4 * KIB)
        await trio.lowlevel.checkpoint()
    assert len(buffer.buffer) <= BUFFER_HIGH_WATER


async def test_trap_2_a_closed_buffer_lets_its_writer_go(nursery: trio.Nursery) -> None:
    buffer = BoundedStreamBuffer(EventWrapper)
    pushed = trio.Event()

    async def push() -> None:
        await buffer.push(b"x" * BUFFER_HIGH_WATER)
        pushed.set()

    nursery.start_soon(push)
    await trio.testing.wait_all_tasks_blocked()
    assert not pushed.is_set()
    await buffer.close()
    with trio.fail_after(SOON_S):
        await pushed.wait()


async def test_trap_2_a_window_0_client_holds_little_memory(
    nursery: trio.Nursery, settings: Callable[..., Settings], certificate: Certificate
) -> None:
    sent_bytes = 0

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent_bytes
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while sent_bytes < 8 * MIB:
            await send({"type": "http.response.body", "body": b"x" * KIB, "more_body": True})
            sent_bytes += KIB

    server = await start_server(
        nursery,
        settings(tls_certfile=str(certificate.certfile), tls_keyfile=str(certificate.keyfile)),
        application,
    )
    async with await Http2.open(server, certificate, window_bytes=0) as client:
        stream_id = await client.request("/")
        await client.receive_until(lambda: stream_id in client.headers)
        await wait_until(lambda: sent_bytes > 0)
        await trio.testing.wait_all_tasks_blocked(cushion=0.05)
        assert sent_bytes <= 2 * BUFFER_HIGH_WATER


async def test_trap_2_a_window_0_stream_is_cut_when_it_is_stuck(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    certificate: Certificate,
    publish: Callable[..., str],
) -> None:
    server = await start_server(
        nursery,
        settings(
            tls_certfile=str(certificate.certfile),
            tls_keyfile=str(certificate.keyfile),
            stuck_timeout_s=0.3,
        ),
    )
    async with await Http2.open(server, certificate, window_bytes=0) as client:
        stream_id = await client.request("/v1/sse/a")
        await client.receive_until(lambda: stream_id in client.headers)
        for number in range(200):  # together more than the stream's buffer takes
            publish("a", str(number), "r" * 256)
        await wait_until(lambda: server.hub.stuck_clients == 1)
        await wait_clients(server, 0)
        await client.receive_until(lambda: False)
        assert client.closed


async def test_trap_3_cleartext_http2_is_answered_505_and_closed(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        await connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        status, problem = await connection.read_response()
        assert status == json.loads(problem)["status"] == 505
        assert await connection.read_end() == b""


async def test_trap_3_an_upgrade_to_h2c_is_answered_in_http_1(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        await connection.request(
            "/healthz", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"
        )
        assert await connection.read_response() == (200, b'{"status":"ok"}\n')


async def test_trap_4_a_stream_outlives_a_thousand_requests_on_its_connection(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    certificate: Certificate,
    publish: Callable[..., str],
) -> None:
    server = await start_server(
        nursery, settings(tls_certfile=str(certificate.certfile), tls_keyfile=str(certificate.keyfile))
    )
    async with await Http2.open(server, certificate) as client:
        followed = await client.request("/v1/sse/a")
        await client.receive_until(lambda: b"id: " in client.bodies[followed])
        for _ in range(21):
            batch = {await client.request("/healthz") for _ in range(50)}
            await client.receive_until(lambda batch=batch: batch <= client.ended)
            assert not client.closed
            assert {client.headers[stream_id][":status"] for stream_id in batch} == {"200"}
        event_id = publish("a")
        await client.receive_until(lambda: f"id: {event_id}\n".encode() in client.bodies[followed])
        assert not client.closed
        assert followed not in client.ended


# A worker as far as the supervisor is concerned: it tells that it is there, and ends when it is told to.
_WORKER = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
while True:
    signal.pause()
"""


async def test_trap_5_a_worker_that_exits_is_replaced_and_does_not_end_the_others(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app.process, "Backoff", partial(_quick_backoff, app.process.Backoff))
    pids: Callable[[], set[int]] = lambda: {int(path.name) for path in tmp_path.iterdir()}  # noqa: E731
    status: list[int] = []
    with create_listener(HOST, 0, settings()) as listener:
        supervisor = Supervisor(
            2, [sys.executable, "-I", "-S", "-c", _WORKER, str(tmp_path)], listener, drain_s=SOON_S
        )
        ended = trio.Event()

        async def run() -> None:
            status.append(await supervisor.run())
            ended.set()

        nursery.start_soon(run)
        await wait_until(lambda: len(pids()) == 2)
        exiting, crashing = pids()
        os.kill(exiting, signal.SIGTERM)
        await wait_until(lambda: len(pids()) == 3)
        assert is_process(crashing), "the other one goes on"
        os.kill(crashing, signal.SIGKILL)
        await wait_until(lambda: len(pids()) == 4)
        replacements = pids() - {exiting, crashing}
        assert all(map(is_process, replacements))
        os.kill(os.getpid(), signal.SIGTERM)
        with trio.fail_after(SOON_S):
            await ended.wait()
    assert status == [0]
    assert not any(map(is_process, replacements))


def _quick_backoff(backoff: Any, **_: float) -> Any:
    return backoff(first_s=0.01, limit_s=0.01)


def is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_trap_6_a_signal_drains_and_ends_the_server(
    redis_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    with run_app(tmp_path, redis_url=redis_url) as server:
        connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
        connection.request("GET", "/v1/sse/a")
        response = connection.getresponse()
        assert response.readline().startswith(b"retry: ")
        while response.readline() != b"\n":
            pass
        server.signal(number)
        assert b"retry: " in response.read(), "up to the last chunk; http.client raises without one"
        assert server.wait_ended(SOON_S) == 0
        connection.close()
    assert f'"signal": "{number.name}"' in server.output()


@both_ways
async def test_trap_7_clients_are_sent_away_before_the_lifespan_ends(
    nursery: trio.Nursery, settings: Callable[..., Settings], way: tuple[str, ...]
) -> None:
    server = await start_server(nursery, settings(drain_s=NEVER_S))
    async with follow(server, "a", *way) as follower:
        server.stop()
        messages = await follower.wait_clean_end()
        assert [message.retry_ms for message in messages] == [0]
        assert await follower.connection.receive() == b"", "the connection is closed too"
    with trio.fail_after(SOON_S):
        await server.ended.wait()


async def test_trap_7_an_idle_connection_does_not_hold_up_the_end(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings(drain_s=NEVER_S))
    async with await Connection.open(server) as used, await Connection.open(server) as unused:
        await used.request("/healthz")
        await used.read_response()
        server.stop()
        assert await used.receive() == b""
        assert await unused.receive() == b""
    with trio.fail_after(SOON_S):
        await server.ended.wait()


async def test_trap_7_no_connection_is_accepted_while_the_server_drains(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings(drain_s=SOON_S, drain_rate_clients_per_s=2))
    async with follow(server, "a") as first, follow(server, "a") as second:
        server.stop()
        await first.wait_clean_end()
        with pytest.raises(OSError, match="all attempts to connect"):
            await Connection.open(server)
        await second.wait_clean_end()


@both_ways
async def test_trap_7_a_stuck_client_does_not_hold_up_the_end(
    nursery: trio.Nursery, settings: Callable[..., Settings], redis_url: str, way: tuple[str, ...]
) -> None:
    drain_s = 1.0
    server = await start_server(
        nursery, settings(drain_s=drain_s, stuck_timeout_s=NEVER_S, backlog_limit_events=100_000)
    )
    async with follow(server, "a", *way):
        await fill_kernel_buffers(redis_url)
        server.stop()
        with trio.fail_after(drain_s + SOON_S):
            await server.ended.wait()
        assert server.hub.clients == 0


async def fill_kernel_buffers(redis_url: str) -> None:
    """Publish to topic `a` until the one client, which does not read, can be sent no more."""
    sock = only_server_side_stream().socket
    with redis_client(redis_url) as redis, trio.fail_after(READ_TIMEOUT_S):
        while select.select([], [sock], [], 0)[1]:
            pipeline = redis.pipeline(transaction=False)
            for number in range(500):
                data = {"id": str(number), "reason": "r" * 256}
                publish_topic_event_on(pipeline, "a", "argument_updated", data)
            pipeline.execute()
            await trio.sleep(0.02)


@both_ways
async def test_trap_8_a_stream_outlives_quarts_response_timeout(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    publish: Callable[..., str],
    way: tuple[str, ...],
) -> None:
    server = await start_server(nursery, settings(heartbeat_interval_s=0.1))
    server.app.config["RESPONSE_TIMEOUT"] = 0.05
    async with follow(server, "a", *way) as follower:
        await follower.wait_heartbeats(3)  # more than 0.2 s
        event_id = publish("a")
        assert await follower.event_id() == event_id


@both_ways
async def test_trap_9_a_client_that_leaves_is_noticed_at_once(
    nursery: trio.Nursery, settings: Callable[..., Settings], way: tuple[str, ...]
) -> None:
    server = await start_server(nursery, settings())
    async with follow(server, "a", *way):
        await wait_clients(server, 1)
    await wait_clients(server, 0)


async def test_trap_9_a_client_that_leaves_over_tls_is_noticed_at_once(
    nursery: trio.Nursery, settings: Callable[..., Settings], certificate: Certificate
) -> None:
    server = await start_server(
        nursery, settings(tls_certfile=str(certificate.certfile), tls_keyfile=str(certificate.keyfile))
    )
    async with follow(server, "a", certificate=certificate):
        await wait_clients(server, 1)
    await wait_clients(server, 0)
    async with await Http2.open(server, certificate) as client:
        stream_id = await client.request("/v1/sse/a")
        await client.receive_until(lambda: stream_id in client.headers)
        await wait_clients(server, 1)
    await wait_clients(server, 0)


async def test_trap_9_a_client_that_pipelined_bytes_is_noticed_at_once(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings())
    async with follow(server, "a") as follower:
        await wait_live(server)
        await follower.connection.request("/healthz")
        await trio.testing.wait_all_tasks_blocked()
        assert live_clients(server) == 1
    await wait_clients(server, 0)


async def test_trap_9_a_client_that_pipelined_bytes_is_noticed_by_a_heartbeat(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    """Through ASGI unread bytes park Hypercorn's reader, so the client's end goes unread as well."""
    server = await start_server(nursery, settings(heartbeat_interval_s=0.1))
    async with follow(server, "a", *THROUGH_ASGI) as follower:
        await follower.connection.request("/healthz")
        await follower.wait_heartbeats(1)
        assert server.hub.clients == 1
    await wait_clients(server, 0)


async def test_trap_9_a_request_pipelined_behind_a_stream_gets_no_byte_into_it(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str]
) -> None:
    server = await start_server(nursery, settings())
    async with follow(server, "a") as follower:
        await follower.connection.request("/healthz")
        await wait_live(server)
        event_id = publish("a")
        assert await follower.event_id() == event_id
        server.stop()
        assert [message.data for message in await follower.wait_clean_end()] == [None]
        assert await follower.connection.read_end() == b""


async def test_a_client_that_talks_without_end_is_cut(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings())
    async with follow(server, "a") as follower:
        await wait_live(server)
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 the kernel takes the first ones
            for _ in range(1000):
                await follower.connection.send(b"x" * UNASKED_LIMIT_BYTES)
        await wait_clients(server, 0)


async def test_a_client_that_has_caught_up_is_all_that_is_left_of_its_request(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str]
) -> None:
    """What parsed and answered the request is most of the memory that a client would cost."""
    server = await start_server(nursery, settings())
    async with follow(server, "a") as follower:
        await wait_live(server)
        gc.collect()
        left = [type(one) for one in gc.get_objects() if type(one) in (h11.Connection, HTTPStream, Http11)]
        assert left == []
        assert Context.current is not None
        assert len(Context.current.connections) == 1
        event_id = publish("a")
        assert await follower.event_id() == event_id


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_connection_is_gone_when_it_ends_and_not_when_the_collector_comes(
    nursery: trio.Nursery, settings: Callable[..., Settings], certificate: Certificate
) -> None:
    """With our thresholds it may come after hours, and OpenSSL alone keeps tens of kilobytes for each."""
    tls = {"tls_certfile": str(certificate.certfile), "tls_keyfile": str(certificate.keyfile)}
    clear = await start_server(nursery, settings())
    secure = await start_server(nursery, settings(max_clients=2, **tls))
    async with (
        follow(clear, "a"),
        follow(clear, "a", *THROUGH_ASGI),
        follow(secure, "a", certificate=certificate),
        await Http2.open(secure, certificate) as http2,
        await Connection.open(clear) as garbage,
    ):
        for path in ("/v1/sse/a", "/nowhere"):
            stream_id = await http2.request(path)
            await http2.receive_until(lambda stream_id=stream_id: stream_id in http2.headers)
        await garbage.send(b"\xff\r\n\r\n")
        async with await Connection.open(secure, certificate) as turned_away:
            await turned_away.request("/v1/sse/a")
            await turned_away.read_until(b"retry:")
        async with await Connection.open(secure, certificate) as failing:
            await failing.request("/nowhere")
            assert (await failing.read_head())[0] == 404
        assert Context.current is not None
        connections = Context.current.connections
        await wait_until(lambda: len(connections) == 2)
        connections.limit = 2
        async with await trio.open_tcp_stream(HOST, secure.port) as no_room:
            assert await no_room.receive_some() == b""
    for server in (clear, secure):  # what accepts holds on to the last that it has accepted
        server.stop()
        await server.ended.wait()
    left = [
        one
        for one in gc.get_objects()
        if (isinstance(one, ssl.SSLObject) and one.server_side)
        or (isinstance(one, h2.connection.H2Connection) and not one.config.client_side)
    ]
    assert left == []


def test_trap_10_hypercorns_defaults_that_harm_streams_are_replaced() -> None:
    config = hypercorn_config(Settings(redis_url="redis://localhost"), ["127.0.0.1:0"])
    assert config.read_timeout is None
    assert config.backlog == 4096
    assert config.max_requests is None
    assert config.keep_alive_max_requests > 1_000_000
    assert config.graceful_timeout == 25
    assert config.worker_class == "trio"
    assert hypercorn.config.Config().backlog != config.backlog, "there is something to replace"


def test_trap_10_the_listener_is_as_patient(settings: Callable[..., Settings]) -> None:
    """Linux tells the backlog of a listener as the send queue's limit (ss -l); here: what fits unaccepted."""
    waiting: list[socket.socket] = []
    with create_listener(HOST, 0, settings(backlog_limit_connections=4096)) as listener:
        try:
            for _ in range(200):  # twice Hypercorn's default
                client = socket.socket()
                waiting.append(client)
                client.settimeout(SOON_S)
                client.connect(listener.getsockname())
        finally:
            for client in waiting:
                client.close()


@pytest.mark.parametrize("secure", [False, True], ids=["cleartext", "tls"])
async def test_trap_11_head_is_answered_at_once(
    nursery: trio.Nursery, settings: Callable[..., Settings], certificate: Certificate, secure: bool
) -> None:
    tls = {"tls_certfile": str(certificate.certfile), "tls_keyfile": str(certificate.keyfile)}
    server = await start_server(nursery, settings(**(tls if secure else {})))
    async with await Connection.open(server, certificate if secure else None) as connection:
        await connection.request("/v1/sse/a", method="HEAD")
        status, headers = await connection.read_head()
        assert status == 200
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert server.hub.clients == 0
        # Nothing followed the head, and the connection is free for the next request.
        await connection.request("/healthz")
        assert (await connection.read_response())[0] == 200


async def test_trap_12_a_stream_is_logged_when_it_opens_and_when_it_closes(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    publish: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert hypercorn_config(settings(), ["127.0.0.1:0"]).log.access_logger is None
    server = await start_server(nursery, settings())
    cursor = publish("a")
    with capture_logs() as lines:
        async with follow(server, "a", "User-Agent: a browser", f"Last-Event-ID: {cursor}"):
            pass
        await wait_clients(server, 0)
    about_streams = [line for line in lines if line["event"].startswith("stream_")]
    opened, closed = about_streams
    assert opened == {
        "event": "stream_opened", "log_level": "info",
        "topic": "a", "cursor": cursor, "user_agent": "a browser",
    }  # fmt: skip
    assert (closed["event"], closed["topic"], closed["outcome"]) == ("stream_closed", "a", "gone")
    assert closed["seconds"] >= 0
    assert "/v1/sse/" not in "".join(capfd.readouterr()), "no line of an access log"


# -- direct writes


async def test_an_event_never_reaches_the_next_owner_of_a_descriptor(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str]
) -> None:
    server = await start_server(nursery, settings())
    async with follow(server, "first"):
        await wait_live(server)
        # From here on nobody else opens a connection that could get the number.
        await wait_until(lambda: server.services.tails.statistics().connected_groups == 1)
        number = only_server_side_stream().socket.fileno()
    await wait_clients(server, 0)
    async with follow(server, "second") as second:
        await wait_live(server)
        assert only_server_side_stream().socket.fileno() == number, "the lowest free number is given out"
        publish("first")
        event_id = publish("second")
        assert await second.event_id() == event_id
        assert second.body.count(b'"argument_updated"') == 1


async def test_a_closed_socket_is_not_written_to_before_its_subscriber_has_cleaned_up(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    """The server may close a socket, and the kernel give its number away, all in one step of the loop."""
    server = await start_server(nursery, settings())
    async with follow(server, "first"):
        await wait_live(server)
        topic = server.hub._topics["first"]
        closing = only_server_side_stream().socket
        number = closing.fileno()
        closing.close()
        reused, reader = socket.socketpair()
        with reused, reader:
            assert reused.fileno() == number, "the kernel gives out the lowest free number"
            payload = b'{"event":"argument_updated","data":{"id":"1","reason":"edited"}}'
            # No task switch between the close and the fan-out: so few writes take no checkpoint.
            assert live_clients(server) == 1
            await topic.deliver([(StreamId(topic.position.ms + 1, 0), [b"payload", payload])])
            reader.setblocking(False)
            with pytest.raises(BlockingIOError):
                reader.recv(1)
    await wait_clients(server, 0)


def only_server_side_stream() -> trio.SocketStream:
    """The server's end of the one connection there is."""
    assert Context.current is not None
    (handler,) = Context.current.connections
    assert isinstance(handler.stream, trio.SocketStream)
    return handler.stream


async def test_every_way_carries_the_same_bytes(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    certificate: Certificate,
    publish: Callable[..., str],
) -> None:
    tls = {"tls_certfile": str(certificate.certfile), "tls_keyfile": str(certificate.keyfile)}
    clear = await start_server(nursery, settings())
    secure = await start_server(nursery, settings(**tls))
    cursor = publish("a", "0")
    publish("a", "missed")
    resume = f"Last-Event-ID: {cursor}"
    async with (
        follow(clear, "a", resume) as direct,
        follow(clear, "a", resume, *THROUGH_ASGI) as through_asgi,
        follow(clear, "a", resume, version="1.0") as unchunked,
        follow(secure, "a", resume, certificate=certificate) as tls_1,
        await Http2.open(secure, certificate) as tls_2,
    ):
        stream_id = await tls_2.request("/v1/sse/a", ("last-event-id", cursor))
        await tls_2.receive_until(lambda: b"missed" in tls_2.bodies[stream_id])
        await wait_clients(clear, 3)
        await wait_live(clear)
        last = [publish("a", f"live {number}") for number in range(3)][-1].encode()
        followers = [direct, through_asgi, unchunked, tls_1]
        for follower in followers:
            while last not in follower.body:
                await follower.event_id()
        await tls_2.receive_until(lambda: last in tls_2.bodies[stream_id])
        bodies = [*(follower.body for follower in followers), tls_2.bodies[stream_id]]
        assert set(bodies) == {direct.body}
        assert direct.body.startswith(position_block(StreamId.parse(cursor), 0))
        assert direct.body.count(b'"argument_updated"') == 4
        for name in ("content-type", "cache-control", "x-accel-buffering"):
            headers = [*(follower.headers for follower in followers), tls_2.headers[stream_id]]
            assert len({header[name] for header in headers}) == 1
        assert direct.headers.get("transfer-encoding") == "chunked"
        assert "transfer-encoding" not in unchunked.headers
        assert "content-length" not in unchunked.headers


async def test_every_way_ends_cleanly(
    nursery: trio.Nursery, settings: Callable[..., Settings], certificate: Certificate
) -> None:
    tls = {"tls_certfile": str(certificate.certfile), "tls_keyfile": str(certificate.keyfile)}
    secure = await start_server(nursery, settings(drain_s=NEVER_S, **tls))
    async with (
        follow(secure, "a", certificate=certificate) as tls_1,
        await Http2.open(secure, certificate) as tls_2,
    ):
        stream_id = await tls_2.request("/v1/sse/a")
        await tls_2.receive_until(lambda: b"id: " in tls_2.bodies[stream_id])
        secure.stop()
        assert [message.retry_ms for message in await tls_1.wait_clean_end()] == [0]
        await tls_2.receive_until(lambda: stream_id in tls_2.ended)
        assert stream_id in tls_2.ended
        assert tls_2.bodies[stream_id].endswith(position_block(None, 0))
        await tls_2.receive_until(lambda: tls_2.closed)
        assert await tls_1.connection.receive() == b""
    with trio.fail_after(SOON_S):
        await secure.ended.wait()


async def test_an_http_1_0_client_gets_an_unchunked_stream(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str]
) -> None:
    server = await start_server(nursery, settings(heartbeat_interval_s=0.1))
    async with follow(server, "a", version="1.0") as follower:
        event_id = publish("a")
        assert await follower.event_id() == event_id
        with trio.fail_after(SOON_S):
            while not follower.body.endswith(HEARTBEAT * 2):
                received = await follower.connection.receive()
                assert received, "the stream ended"
                follower.body += received
        assert re.fullmatch(
            rb"retry: 0\nevent: position\nid: [\d-]+\ndata: {.*}\n\n(:\n)*id: [\d-]+\ndata: {.*}\n\n(:\n)+",
            follower.body,
        )
        server.stop()
        assert await follower.connection.read_end() == position_block(None, 0)


@pytest.mark.parametrize(
    ("header", "body"),
    [
        (f"Content-Length: {MIB}", b"x" * MIB),
        ("Transfer-Encoding: chunked", b"1\r\nx\r\n" * 100 + b"0\r\n\r\n"),
    ],
    ids=["content-length", "chunked"],
)
async def test_a_request_with_a_body_gets_its_stream(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    publish: Callable[..., str],
    header: str,
    body: bytes,
) -> None:
    """Somebody reads the body, so that it neither stops the reader nor hides the client's end."""
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        await connection.request("/v1/sse/a", header)
        await connection.send(body)
        follower = await begin_following(connection)
        event_id = publish("a")
        assert await follower.event_id() == event_id
    await wait_clients(server, 0)


async def test_a_stream_follows_an_ordinary_request_on_the_same_connection(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str]
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        for _ in range(3):
            await connection.request("/healthz")
            assert (await connection.read_response())[0] == 200
        await connection.request("/v1/sse/a")
        follower = await begin_following(connection)
        await wait_live(server)
        event_id = publish("a")
        assert await follower.event_id() == event_id


@pytest.mark.parametrize(
    ("version", "header"),
    [("1.0", "X: y"), ("1.1", "Connection: close")],
    ids=["http-1.0", "connection-close"],
)
@pytest.mark.parametrize("path", ["/healthz", "/docs"])
async def test_a_connection_that_is_not_kept_alive_is_closed_after_its_response(
    nursery: trio.Nursery, settings: Callable[..., Settings], path: str, version: str, header: str
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        await connection.request(path, header, version=version)
        assert (await connection.read_response())[0] == 200
        assert await connection.receive() == b""


async def test_an_idle_deadline_does_not_reach_into_a_stream(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(
        nursery,
        settings(keep_alive_timeout_s=0.2, request_head_timeout_s=0.2, heartbeat_interval_s=0.1),
    )
    async with await Connection.open(server) as connection:
        await connection.request("/healthz")
        await connection.read_response()
        await connection.request("/v1/sse/a")
        follower = await begin_following(connection)
        await follower.wait_heartbeats(4)


async def test_an_idle_connection_is_closed_after_the_keep_alive_time(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings(keep_alive_timeout_s=0.2))
    async with await Connection.open(server) as connection:
        await connection.request("/healthz")
        await connection.read_response()
        started_s = trio.current_time()
        assert await connection.receive() == b""
        assert 0.1 < trio.current_time() - started_s < SOON_S


@pytest.mark.parametrize("step", [b"", b"X"], ids=["silent", "slow"])
async def test_a_request_head_must_arrive_in_time(
    nursery: trio.Nursery, settings: Callable[..., Settings], step: bytes
) -> None:
    """Also when bytes keep coming one by one."""
    server = await start_server(nursery, settings(request_head_timeout_s=0.3))
    async with await Connection.open(server) as connection:
        await connection.send(b"GET /healthz HTTP/1.1\r\nA: " if step else b"")

        async def trickle() -> None:
            while step:
                await connection.send(step)
                await trio.sleep(0.02)

        with trio.fail_after(SOON_S):
            try:
                async with trio.open_nursery() as trickling:
                    trickling.start_soon(trickle)
                    assert await connection.receive() == b""
                    trickling.cancel_scope.cancel()
            except* trio.BrokenResourceError:
                pass  # sent into a closed connection


async def test_a_request_head_is_bounded_in_size(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        await connection.request("/healthz", "Large: " + "x" * 32 * KIB)
        assert (await connection.read_head())[0] == 431


async def test_a_failed_handshake_costs_only_its_connection(
    nursery: trio.Nursery, settings: Callable[..., Settings], certificate: Certificate
) -> None:
    server = await start_server(
        nursery, settings(tls_certfile=str(certificate.certfile), tls_keyfile=str(certificate.keyfile))
    )
    async with await Connection.open(server) as connection:  # cleartext, to a TLS port
        await connection.request("/healthz")
        await connection.read_end()
    async with await Connection.open(server):
        pass  # leaves before the handshake
    async with await trio.open_tcp_stream(HOST, server.port) as transport:
        distrusting = trio.SSLStream(transport, ssl.create_default_context(), server_hostname="localhost")
        with pytest.raises(trio.BrokenResourceError):
            await distrusting.do_handshake()
    async with await Connection.open(server, certificate) as connection:
        await connection.request("/healthz")
        assert (await connection.read_response())[0] == 200


# -- Hypercorn's own command line


class _HypercornCli(Process):
    def __init__(self, folder: Path, redis_url: str) -> None:
        self.port = free_port()
        # The application as it is, and a look inside: only direct writes have live clients.
        (folder / "probe.py").write_text(
            "from app.asgi import app\n"
            "@app.get('/live')\n"
            "async def live():\n"
            "    return {'live': app.extensions['stalecast'].hub.statistics().live_clients}\n"
        )
        super().__init__(
            "hypercorn",
            folder,
            [sys.executable, "-m", "hypercorn", "-k", "trio", "-b", f"{HOST}:{self.port}", "probe:app"],
            {
                **os.environ,
                "REDIS_URL": redis_url,
                "STALECAST_RETRY_MS": "0",
                "PYTHONPATH": f"{folder}:{PROJECT}",
            },
        )

    def get(self, path: str) -> tuple[int, bytes]:
        connection = HTTPConnection(HOST, self.port, timeout=SOON_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200


async def test_direct_writes_work_under_hypercorns_own_command_line(
    redis_url: str, publish: Callable[..., str], tmp_path: Path
) -> None:
    process = _HypercornCli(tmp_path, redis_url)
    try:
        await trio.to_thread.run_sync(process.start)
        server = Server(process.port, None, process.terminate)
        async with follow(server, "a") as follower:
            get_live = partial(process.get, "/live")
            with trio.fail_after(SOON_S):
                while await trio.to_thread.run_sync(get_live) != (200, b'{"live":1}\n'):
                    pass
            event_id = publish("a")
            assert await follower.event_id() == event_id
            server.stop()
            assert [message.retry_ms for message in await follower.wait_clean_end()] == [0]
        assert await trio.to_thread.run_sync(process.wait_ended, SOON_S) == 0
    finally:
        process.kill()


# -- requests for streams that are answered past Hypercorn


STREAM_HEAD = b"GET /v1/sse/a HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n"


async def test_a_stream_is_asked_for_byte_by_byte(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str]
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        for at in range(len(STREAM_HEAD)):
            await connection.send(STREAM_HEAD[at : at + 1])
            await trio.testing.wait_all_tasks_blocked()
        follower = await begin_following(connection)
        await wait_live(server)
        event_id = publish("a")
        assert await follower.event_id() == event_id


@pytest.mark.parametrize("path", ["/healthz", "/nowhere"])
async def test_a_stream_is_asked_for_behind_another_request_in_one_write(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str], path: str
) -> None:
    server = await start_server(nursery, settings())
    async with await Connection.open(server) as connection:
        await connection.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() + STREAM_HEAD)
        status, _ = await connection.read_response()
        assert status == (200 if path == "/healthz" else 404)
        follower = await begin_following(connection)
        await wait_live(server)
        event_id = publish("a")
        assert await follower.event_id() == event_id
    await wait_clients(server, 0)


@pytest.mark.parametrize("step", [b"", b"X"], ids=["silent", "slow"])
async def test_the_head_of_a_request_for_a_stream_must_arrive_in_time(
    nursery: trio.Nursery, settings: Callable[..., Settings], step: bytes
) -> None:
    server = await start_server(nursery, settings(request_head_timeout_s=0.3))
    async with await Connection.open(server) as connection:
        started_s = trio.current_time()
        await connection.send(STREAM_HEAD[:-4])
        ended_s = started_s
        with trio.fail_after(SOON_S):
            try:
                while not ended_s > started_s:
                    with trio.move_on_after(0.02):
                        assert await connection.receive() == b""
                        ended_s = trio.current_time()
                    await connection.send(step)
            except trio.BrokenResourceError:
                ended_s = trio.current_time()
        assert ended_s - started_s > 0.2
        assert server.hub.clients == 0


async def test_a_request_for_a_stream_that_comes_in_two_parts_has_one_deadline(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    """Hypercorn gets what has come so far, and what is left of the time."""
    server = await start_server(nursery, settings(request_head_timeout_s=0.4))
    async with await Connection.open(server) as connection:
        started_s = trio.current_time()
        await connection.send(b"GET /v1/sse")
        await trio.sleep(0.3)
        await connection.send(b"?")  # now it can be none for a stream
        assert await connection.receive() == b""
        assert trio.current_time() - started_s < 0.65


async def test_a_client_that_leaves_within_its_request_costs_nothing(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    server = await start_server(nursery, settings())
    for part in (b"", STREAM_HEAD[:5], STREAM_HEAD[:-1]):
        async with await Connection.open(server) as connection:
            await wait_until(lambda: _connections() == 1)
            await connection.send(part)
        await wait_until(lambda: _connections() == 0)
    assert server.hub.clients == 0


def _connections() -> int:
    assert Context.current is not None
    return len(Context.current.connections)


async def test_a_client_that_leaves_before_its_topic_is_open_is_noticed_at_once(
    nursery: trio.Nursery, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with run_redis(tmp_path) as redis:
        server = await start_server(nursery, settings(redis_url=redis.url, first_bytes_timeout_s=NEVER_S))
        with redis.paused():
            async with await Connection.open(server) as connection:
                await connection.send(STREAM_HEAD)
                await wait_clients(server, 1)
                await trio.testing.wait_all_tasks_blocked()
            await wait_clients(server, 0)
            await wait_until(lambda: _connections() == 0)


async def test_a_client_that_was_told_to_wait_for_its_topic_is_noticed_at_once_when_it_leaves(
    nursery: trio.Nursery, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """It has its response's head and no position yet, because Redis hangs."""
    with run_redis(tmp_path) as redis:
        server = await start_server(nursery, settings(redis_url=redis.url, first_bytes_timeout_s=0.05))
        with redis.paused():
            async with await Connection.open(server) as connection:
                await connection.send(STREAM_HEAD)
                assert (await connection.read_head())[0] == 200
                assert await connection.read_chunk() == position_block(None, 0)
                await trio.testing.wait_all_tasks_blocked()
                assert server.hub.clients == 1
            await wait_clients(server, 0)
            await wait_until(lambda: _connections() == 0)


async def test_a_client_that_was_told_to_wait_for_its_topic_gets_its_stream(
    nursery: trio.Nursery, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with run_redis(tmp_path) as redis:
        server = await start_server(nursery, settings(redis_url=redis.url, first_bytes_timeout_s=0.05))
        with redis.paused():
            connection = await Connection.open(server)
            await connection.send(STREAM_HEAD)
            status, headers = await connection.read_head()
            assert status == 200
            follower = Follower(connection, headers)
            waiting = await follower.message()
            assert waiting is not None
            assert (waiting.retry_ms, waiting.last_event_id) == (0, "")
        async with connection:
            positioned = await follower.message()
            assert positioned is not None
            assert positioned.last_event_id
            await wait_live(server)


async def test_a_client_that_leaves_while_its_replay_hangs_is_noticed_at_once(
    nursery: trio.Nursery, settings: Callable[..., Settings], tmp_path: Path
) -> None:
    with run_redis(tmp_path) as redis:
        server = await start_server(nursery, settings(redis_url=redis.url, first_bytes_timeout_s=NEVER_S))
        async with follow(server, "a"):
            await wait_live(server)
            with redis.paused():
                # A cursor that memory knows nothing about.
                async with await Connection.open(server) as connection:
                    await connection.request("/v1/sse/a", "Last-Event-ID: 1-1")
                    await wait_clients(server, 2)
                    await trio.testing.wait_all_tasks_blocked()
                    assert live_clients(server) == 1
                await wait_clients(server, 1)
                await wait_until(lambda: _connections() == 1)


EXPOSED = {"access-control-expose-headers": "Retry-After"}


@pytest.mark.parametrize(
    ("allowed", "origin", "expected"),
    [
        ("*", None, {"access-control-allow-origin": "*", **EXPOSED}),
        ("*", "https://app.example", {"access-control-allow-origin": "*", **EXPOSED}),
        (
            "https://app.example,https://other.example",
            "https://app.example",
            {
                "access-control-allow-origin": "https://app.example",
                "access-control-allow-credentials": "true",
                "vary": "Origin",
                **EXPOSED,
            },
        ),
        ("https://app.example", "https://evil.example", {"vary": "Origin"}),
        ("https://app.example", "", {"vary": "Origin"}),
        ("https://app.example", None, {"vary": "Origin"}),
    ],
    ids=["all", "all-with-origin", "allowed", "foreign", "empty", "none"],
)
async def test_both_ways_answer_with_the_same_fields(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    allowed: str,
    origin: str | None,
    expected: dict[str, str],
) -> None:
    server = await start_server(nursery, settings(cors_allow_origins=allowed))
    headers = [] if origin is None else [f"Origin: {origin}"]
    answers: list[tuple[str, list[str]]] = []
    async with await Connection.open(server) as direct, await Connection.open(server) as through_asgi:
        for connection, way in ((direct, DIRECT), (through_asgi, THROUGH_ASGI)):
            await connection.request("/v1/sse/a", *headers, *way)
            status_line, *fields = (await connection.read_until(b"\r\n\r\n")).decode()[:-4].split("\r\n")
            assert any(re.fullmatch(r"date: \w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", field) for field in fields)
            parts = (field.partition(": ") for field in fields)
            answers.append(
                (status_line.rstrip(), sorted(f"{name.lower()}: {value}" for name, _, value in parts))
            )
        await wait_live(server)
        assert server.hub.clients == 2, "and only one of them directly"
    (direct_status, direct_fields), (asgi_status, asgi_fields) = (
        (status_line, [field for field in fields if not field.startswith(("date: ", "connection: "))])
        for status_line, fields in answers
    )
    assert direct_fields == asgi_fields
    assert direct_status.split()[:2] == asgi_status.split()[:2] == ["HTTP/1.1", "200"]
    values = dict(field.split(": ", 1) for field in direct_fields)
    assert {name: values[name] for name in values if name == "vary" or name.startswith("access-")} == expected


class _Middleware:
    """In the style of every ASGI middleware: another application around one."""

    def __init__(self, application: Any) -> None:
        self.seen: list[str] = []
        self._application = application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append(scope["path"])
        await self._application(scope, receive, send)


@pytest.mark.parametrize("inside", [False, True], ids=["around-the-application", "around-its-asgi_app"])
async def test_a_middleware_sees_requests_for_streams(
    nursery: trio.Nursery, settings: Callable[..., Settings], publish: Callable[..., str], inside: bool
) -> None:
    application = create_app(settings())
    if inside:  # as Quart's documentation has it
        middleware = application.asgi_app = _Middleware(application.asgi_app)  # type: ignore[method-assign]
        server = await start_server(nursery, settings(), application)
    else:
        middleware = _Middleware(application)
        server = await start_server(nursery, settings(), middleware)
        server.app = application  # for a look inside
    async with follow(server, "a") as follower:
        event_id = publish("a")
        assert await follower.event_id() == event_id
        assert middleware.seen == ["/v1/sse/a"]
        assert live_clients(server) == 0
    await wait_clients(server, 0)


async def test_a_hook_sees_requests_for_streams(
    nursery: trio.Nursery, settings: Callable[..., Settings]
) -> None:
    """Somebody's authentication, perhaps."""
    application = create_app(settings())

    @application.before_request
    async def refuse() -> tuple[str, int]:
        return "not for you", 401

    server = await start_server(nursery, settings(), application)
    async with await Connection.open(server) as connection:
        await connection.request("/v1/sse/a")
        assert (await connection.read_head())[0] == 401
    assert server.hub.clients == 0


# -- an answer instead of a stream


@both_ways
@pytest.mark.parametrize(
    ("query", "blocks"),
    [
        ("", "{at_newest}"),
        ("&lastEventId={newest}", "{at_newest}"),
        ("&lastEventId={first}", "{at_first}{a}{b}{again}"),
        ("&lastEventId={first}&catchup=compact", "{at_first}{b}{again}"),
        ("&lastEventId=1-1", "{at_nothing_left}{trimmed}"),
        ("&lastEventId=nonsense", "{nowhere}{invalid_id}"),
    ],
    ids=["no-cursor", "nothing-missed", "replay", "compact", "trimmed", "invalid-id"],
)
async def test_an_answer_ends_once_it_has_caught_up(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    publish: Callable[..., str],
    way: tuple[str, ...],
    query: str,
    blocks: str,
) -> None:
    ids = {name: publish("a", name[0]) for name in ("first", "a", "b", "again")}
    positions = {"at_first": ids["first"], "at_newest": ids["again"], "at_nothing_left": "1-1", "nowhere": ""}
    values = {"first": ids["first"], "newest": ids["again"]}
    values |= {name: position_block(StreamId.readable(at), 0).decode() for name, at in positions.items()}
    for name in ("a", "b", "again"):
        payload = f'{{"event":"argument_updated","data":{{"id":"{name[0]}","reason":"edited"}}}}'
        values[name] = f"id: {ids[name]}\ndata: {payload}\n\n"
    for reason in ("trimmed", "invalid_id"):
        payload = f'{{"event":"reload_required","data":{{"reason":"{reason}"}}}}'
        values[reason] = f"id: {ids['again']}\ndata: {payload}\n\n"
    server = await start_server(nursery, settings())
    for _ in range(2):  # the second time the topic is open
        async with await Connection.open(server) as connection:
            await connection.request(f"/v1/sse/a?live=false{query.format(**values)}", *way)
            status, headers = await connection.read_head()
            assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            answer = Follower(connection, headers)
            await answer.wait_clean_end()
            assert answer.body.decode() == blocks.format(**values)
            await wait_clients(server, 0)
            if way == DIRECT:
                assert await connection.receive() == b"", "closed, as its head has said"
            else:
                await connection.request("/healthz")
                assert (await connection.read_response())[0] == 200
    await wait_until(lambda: _connections() == 0)


@both_ways
async def test_a_draining_server_answers_of_topics_that_it_knows(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    publish: Callable[..., str],
    way: tuple[str, ...],
) -> None:
    cursor, newest = publish("a", "0"), publish("a", "1")
    server = await start_server(nursery, settings())
    async with follow(server, "a"):
        await server.hub.drain(SOON_S)
    for topic, ids in (("a", [newest]), ("b", [])):
        async with await Connection.open(server) as connection:
            await connection.request(f"/v1/sse/{topic}?live=false&lastEventId={cursor}", *way)
            answer = Follower(connection, (await connection.read_head())[1])
            first, *messages = await answer.wait_clean_end()
            assert (first.retry_ms, first.last_event_id) == (0, cursor)
            assert [message.last_event_id for message in messages] == ids
    await wait_clients(server, 0)


@both_ways
async def test_an_answer_waits_for_redis_with_its_head_sent(
    nursery: trio.Nursery, settings: Callable[..., Settings], tmp_path: Path, way: tuple[str, ...]
) -> None:
    with run_redis(tmp_path) as redis:
        server = await start_server(nursery, settings(redis_url=redis.url, first_bytes_timeout_s=0.05))
        connection = await Connection.open(server)
        with redis.paused():
            await connection.request("/v1/sse/a?live=false", *way)
            status, headers = await connection.read_head()
            assert status == 200
            assert await connection.read_chunk() == position_block(None, 0)
        async with connection:
            (position,) = await Follower(connection, headers).wait_clean_end()
            assert position.last_event_id
        await wait_clients(server, 0)


@both_ways
async def test_an_answer_is_logged_as_answered(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    publish: Callable[..., str],
    way: tuple[str, ...],
) -> None:
    publish("a")
    server = await start_server(nursery, settings())
    with capture_logs() as lines:
        async with await Connection.open(server) as connection:
            await connection.request("/v1/sse/a?live=false", *way)
            await Follower(connection, (await connection.read_head())[1]).wait_clean_end()
        await wait_clients(server, 0)
    about_streams = [line for line in lines if line["event"].startswith("stream_")]
    assert [line["event"] for line in about_streams] == ["stream_opened", "stream_closed"]
    assert about_streams[-1]["outcome"] == "answered"
    # A browser that polls asks every few seconds: that is no news.
    assert {line["log_level"] for line in about_streams} == {"debug"}


async def test_every_way_brings_the_same_answer(
    nursery: trio.Nursery,
    settings: Callable[..., Settings],
    certificate: Certificate,
    publish: Callable[..., str],
) -> None:
    tls = {"tls_certfile": str(certificate.certfile), "tls_keyfile": str(certificate.keyfile)}
    clear = await start_server(nursery, settings())
    secure = await start_server(nursery, settings(**tls))
    cursor = publish("a", "0")
    publish("a", "missed")
    path = f"/v1/sse/a?live=false&lastEventId={cursor}"
    bodies: list[bytes] = []
    for server, authority, version, way in (
        (clear, None, "1.1", DIRECT),
        (clear, None, "1.1", THROUGH_ASGI),
        (clear, None, "1.0", DIRECT),
        (secure, certificate, "1.1", DIRECT),
    ):
        async with await Connection.open(server, authority) as connection:
            await connection.request(path, *way, version=version)
            answer = Follower(connection, (await connection.read_head())[1])
            await answer.wait_clean_end()
            bodies.append(answer.body)
    async with await Http2.open(secure, certificate) as client:
        for _ in range(2):  # one connection brings as many as are asked for
            stream_id = await client.request(path)
            await client.receive_until(lambda stream_id=stream_id: stream_id in client.ended)
            assert not client.closed
            bodies.append(client.bodies[stream_id])
    assert b"missed" in bodies[0]
    assert set(bodies) == {bodies[0]}
    for server in (clear, secure):
        await wait_clients(server, 0)
