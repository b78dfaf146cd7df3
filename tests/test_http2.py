"""What one HTTP/2 connection may do to the server, on a real process: nothing. An innocent client follows a
stream meanwhile (`unharmed`)."""

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from typing import Any

import priority
import pytest
import trio
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from raw import (
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    PREFACE,
    Field,
    Http2Socket,
    Socket,
    frame,
    header_block,
    log_events,
    request,
    request_fields,
    reset,
    setting,
    unharmed,
    window_update,
)
from servers import HOST, AppServer, make_certificate, run_app, run_redis, wait_until

from app.http2 import DISCARD_LIMIT_BYTES, RoundRobin
from app.http2_limits import BURST, FRAME_LIMIT_BYTES, HEADER_BLOCK_LIMIT_BYTES, RESET_COST, Frame

STUCK_TIMEOUT_S = 0.5
HEAD_TIMEOUT_S = 2.0
PROTOCOL_ERROR = 1
STREAM_PATH = b"/v1/sse/a"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    folder = tmp_path_factory.mktemp("server")
    certificate = make_certificate(folder)
    if certificate is None:
        pytest.skip("openssl is not installed")
    settings = {
        "STALECAST_TLS_CERTFILE": str(certificate.certfile),
        "STALECAST_TLS_KEYFILE": str(certificate.keyfile),
        "STALECAST_PUBLISH_TOKEN": "secret",
        "STALECAST_STUCK_TIMEOUT_S": str(STUCK_TIMEOUT_S),
        "STALECAST_REQUEST_HEAD_TIMEOUT_S": str(HEAD_TIMEOUT_S),
        "STALECAST_MAX_EVENT_BYTES": "100",
    }
    with run_app(folder, redis_url=redis_url, settings=settings) as server:
        yield server


# -- the peer's mistakes


@pytest.mark.parametrize("size", [200_000, DISCARD_LIMIT_BYTES + 300_000], ids=["some", "much"])
def test_a_body_behind_the_responses_end_is_thrown_away(server: AppServer, redis_url: str, size: int) -> None:
    """As curl sends it when the token is wrong. The window is given back, so that it can go on."""
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        fields = request_fields(b"POST", b"/v1/topics/a/events", (b"content-length", str(size).encode()))
        client.send(request(1, fields, ended=False))
        assert client.wait_response(1)[b":status"] == b"401"
        window, sent, asked_to_stop = 65_535, 0, False
        while sent < size and not asked_to_stop:
            piece = min(window, 1 << 14, size - sent)
            if piece:
                sent, window = sent + piece, window - piece
                client.send(frame(Frame.DATA, END_STREAM if sent == size else 0, 1, b"x" * piece))
            else:
                one = client.next_frame()
                assert one is not None
                if one.kind == Frame.WINDOW_UPDATE and one.stream_id == 1:
                    window += struct.unpack(">L", one.payload)[0]
                if one.kind == Frame.RST_STREAM:
                    assert one.payload == bytes(4), "NO_ERROR"
                    asked_to_stop = True
        assert asked_to_stop == (size > DISCARD_LIMIT_BYTES)
        client.send(request(3))
        assert client.wait_response(3)[b":status"] == b"200"


def test_a_body_keeps_a_least_pace(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        token = (b"authorization", b"Bearer secret")
        fields = request_fields(b"POST", b"/v1/topics/a/events", (b"content-length", b"64"), token)
        client.send(request(1, fields, ended=False) + frame(Frame.DATA, 0, 1, b"{"))
        assert client.wait_response(1)[b":status"] == b"408"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (request_fields(path=b"/v1/sse/\xff"), b"400"),
        (request_fields(path=b"/v1/sse/a b"), b"400"),
        (request_fields(path=b"healthz"), b"400"),
        (request_fields(path=b"*"), b"400"),
        (request_fields(path=b"?x"), b"400"),
        (request_fields(method=b"G\xc3\x8bT"), b"400"),
        (request_fields(method=b"GE T"), b"400"),
        (request_fields(method=b""), b"400"),
        ([*request_fields()[:3], (b":authority", b"\xff")], b"400"),
        ([(b":method", b"CONNECT"), (b":authority", b"localhost:1")], b"501"),
        (request_fields(b"GET", b"/healthz", (b"x", b"\xff\xfe"), (b"user-agent", b"\x01\x7f\xff")), b"200"),
    ],
)  # fmt: skip
def test_an_odd_request_is_answered(
    server: AppServer, redis_url: str, fields: list[Field], status: bytes
) -> None:
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(request(1, fields))
        assert client.wait_response(1)[b":status"] == status
        client.send(request(3))
        assert client.wait_response(3)[b":status"] == b"200", "and the connection goes on"


def test_websockets_are_not_offered(server: AppServer, redis_url: str) -> None:
    """RFC 8441: a server that wants them says ENABLE_CONNECT_PROTOCOL = 1."""
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        settings = client.wait_frame(Frame.SETTINGS).payload
        offered = dict(struct.iter_unpack(">HL", settings))
        assert offered.get(8, 0) == 0
        client.send(request(1, [*request_fields(b"CONNECT"), (b":protocol", b"websocket")], ended=False))
        assert client.wait_response(1)[b":status"] == b"501"
        client.send(request(3))
        assert client.wait_response(3)[b":status"] == b"200"


def test_priorities_are_ignored(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        for number in range(900):
            client.send(frame(Frame.PRIORITY, 0, 2 * number + 1, struct.pack(">LB", 2 * number + 3, 200)))
        client.send(request(4001))
        assert client.wait_response(4001)[b":status"] == b"200"


def test_bytes_that_are_no_http2_close_the_connection(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Socket.open(server, "h2") as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(range(256)))
        client.read_end()


# -- floods


FLOODS: dict[str, bytes] = {
    "pings": frame(Frame.PING, 0, 0, bytes(8)),
    "ping-answers": frame(Frame.PING, 1, 0, bytes(8)),
    "settings": frame(Frame.SETTINGS, 0, 0, setting(4, 70_000)),
    "empty-settings": frame(Frame.SETTINGS),
    "settings-acks": frame(Frame.SETTINGS, 1),
    "priorities": frame(Frame.PRIORITY, 0, 5, bytes(4) + b"\x10"),
    "windows": window_update(0, 1),
    "windows-of-a-stream": window_update(1, 1),
    "empty-data": frame(Frame.DATA, 0, 1),
    "small-data": frame(Frame.DATA, 0, 1, b"x"),
    "padding": frame(Frame.DATA, 8, 1, b"\x20" + bytes(32)),
    "unknown-frames": frame(0xAB, 0, 1, b"hello"),
    "resets-of-nothing": reset(1),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_ends_its_connection(server: AppServer, redis_url: str, name: str) -> None:
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(request(1, request_fields(b"POST", b"/v1/topics/a/events"), ended=False))
        for _ in range(40):
            if not client.send(FLOODS[name] * 100):
                break
        assert client.wait_goaway() == ENHANCE_YOUR_CALM


@pytest.mark.parametrize("name", FLOODS)
def test_what_clients_do_is_no_flood(server: AppServer, redis_url: str, name: str) -> None:
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(request(1, request_fields(b"POST", b"/v1/topics/a/events"), ended=False))
        client.wait_response(1)
        client.send(FLOODS[name] * 100)
        client.send(request(3))
        assert client.wait_response(3)[b":status"] == b"200"


@pytest.mark.parametrize("apart", [False, True], ids=["in-one-write", "one-by-one"])
@pytest.mark.parametrize("path", [b"/healthz", STREAM_PATH])
def test_rapid_resets_end_their_connection(
    server: AppServer, redis_url: str, path: bytes, apart: bool
) -> None:
    """CVE-2023-44487. And nobody writes about streams that were never followed."""
    # Clients of earlier tests may yet be noticed to have left.
    wait_until(lambda: log_events(server, "stream_closed") == log_events(server, "stream_opened"), "calm")
    opened, closed = log_events(server, "stream_opened"), log_events(server, "stream_closed")
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        for number in range(3 * BURST):
            stream_id = 2 * number + 1
            parts = (request(stream_id, request_fields(path=path)), reset(stream_id))
            if not all(map(client.send, parts) if apart else [client.send(b"".join(parts))]):
                break
        client.read_end()  # the sockets' buffers may hold all of it, but not for ever
    # The neighbour's, and what was answered before its reset came.
    assert log_events(server, "stream_opened") - opened <= 1 + (apart and path == STREAM_PATH) * 3 * BURST
    if not apart:
        assert log_events(server, "stream_closed") - closed <= 1


def test_streams_that_were_followed_may_be_left(server: AppServer, redis_url: str) -> None:
    """It is how every event stream ends, and a proxy may carry those of many clients."""
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        for number in range(3 * BURST // RESET_COST):
            stream_id = 2 * number + 1
            client.send(request(stream_id, request_fields(path=STREAM_PATH)))
            assert client.wait_response(stream_id)[b":status"] == b"200"
            client.send(reset(stream_id))
        client.send(request(100_001))
        assert client.wait_response(100_001)[b":status"] == b"200"


def test_resets_that_the_client_has_us_send_end_its_connection(server: AppServer, redis_url: str) -> None:
    """CVE-2025-8671: a window update too many is an error of its stream alone."""
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        for number in range(3 * BURST):
            stream_id = 2 * number + 1
            if not client.send(request(stream_id, ended=False) + window_update(stream_id, 2**31 - 1)):
                break
        client.read_end()
    # HEADERS on a stream that was reset is answered with another reset.
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(request(1, ended=False) + reset(1))
        for _ in range(3 * BURST):
            if not client.send(request(1)):
                break
        client.read_end()


def test_a_header_block_is_bounded(server: AppServer, redis_url: str) -> None:
    piece = b"x" * (FRAME_LIMIT_BYTES - 100)
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(frame(Frame.HEADERS, END_STREAM, 1, header_block(request_fields())))
        for _ in range(HEADER_BLOCK_LIMIT_BYTES // len(piece) + 2):
            client.send(frame(Frame.CONTINUATION, 0, 1, piece))
        assert client.wait_goaway() == ENHANCE_YOUR_CALM
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(frame(Frame.HEADERS, END_STREAM, 1, header_block(request_fields())))
        for _ in range(20):
            client.send(frame(Frame.CONTINUATION, 0, 1) * 100)
        assert client.wait_goaway() in (ENHANCE_YOUR_CALM, PROTOCOL_ERROR)


def test_a_header_block_has_a_deadline(server: AppServer, redis_url: str) -> None:
    """Also beside a stream that is followed, which has none itself; one that ends in time has no more."""
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(request(1, request_fields(path=STREAM_PATH)))
        client.wait_response(1)
        block = header_block(request_fields())
        client.send(frame(Frame.HEADERS, END_STREAM, 3, block[:10]))
        client.send(frame(Frame.CONTINUATION, END_HEADERS, 3, block[10:]))
        assert client.wait_response(3)[b":status"] == b"200"
        time.sleep(HEAD_TIMEOUT_S + 0.5)
        started_s = time.monotonic()
        client.send(frame(Frame.HEADERS, END_STREAM, 5, block[:10]))
        client.read_end()
        assert HEAD_TIMEOUT_S - 0.5 < time.monotonic() - started_s < HEAD_TIMEOUT_S + 5


def test_a_handshake_counts_within_the_heads_time(server: AppServer, redis_url: str) -> None:
    """Also when its bytes keep coming."""
    context, incoming, outgoing = ssl.create_default_context(), ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello = outgoing.read()
    with unharmed(server, redis_url), socket.create_connection((HOST, server.port)) as client:
        started_s = time.monotonic()
        with pytest.raises(OSError, match=r"pipe|reset"):  # noqa: PT012 some of them are taken
            for byte in hello:
                client.sendall(bytes([byte]))
                time.sleep(HEAD_TIMEOUT_S / 20)
        assert HEAD_TIMEOUT_S - 0.5 < time.monotonic() - started_s < HEAD_TIMEOUT_S + 5


def test_a_large_frame_is_refused_at_its_head(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Http2Socket.begin(server) as client:
        client.send(b"\xff\xff\xff" + struct.pack(">BBL", Frame.DATA, 0, 1))
        assert client.wait_goaway() == ENHANCE_YOUR_CALM


def test_an_answer_that_is_never_taken_is_given_up(server: AppServer, redis_url: str) -> None:
    """A window of zero on an ordinary response: its stream is reset, and the place is free."""
    with unharmed(server, redis_url), Http2Socket.begin(server, setting(4, 0)) as client:
        client.send(request(1))
        assert client.wait_response(1)[b":status"] == b"200"
        client.wait_frame(Frame.RST_STREAM, 1)


def test_a_table_of_headers_is_no_larger_than_ours(server: AppServer, redis_url: str) -> None:
    """Whatever a client allows us: each field of an answer would be kept, and searched for."""
    with unharmed(server, redis_url), Http2Socket.begin(server, setting(1, 2**32 - 1)) as client:
        for stream_id in (1, 3):
            client.send(request(stream_id))
            assert client.wait_response(stream_id)[b":status"] == b"200"
        sizes = [one.payload[:12] for one in client.frames if one.kind == Frame.HEADERS]
        assert b"\x3f\xe1\x1f" in sizes[0], "4096, as an update of the table's size (RFC 7541, section 6.3)"


# -- turns


def test_streams_take_turns() -> None:
    turns = RoundRobin()
    for stream_id in (1, 3, 5):
        turns.insert_stream(stream_id)
    with pytest.raises(priority.DeadlockError):
        next(turns)
    for stream_id in (5, 1, 7):
        turns.unblock(stream_id)
    assert [next(turns) for _ in range(4)] == [5, 1, 5, 1]
    turns.unblock(3)
    turns.block(5)
    assert [next(turns) for _ in range(4)] == [1, 3, 1, 3]
    turns.remove_stream(1)
    turns.remove_stream(1)
    assert [next(turns) for _ in range(2)] == [3, 3]


# -- what is to be taken away when Hypercorn mends it


async def _upstream(*sent: bytes) -> None:
    """Hypercorn's own protocol, fed with what a client sends."""

    async def ignore(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def answer(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with TaskGroup() as group:
        protocol = H2Protocol(
            answer, Config(), WorkerContext(None), group, {}, True, None, None, ignore  # type: ignore[arg-type]
        )  # fmt: skip
        await protocol.initiate()
        await protocol.handle(RawData(PREFACE + frame(Frame.SETTINGS)))
        for data in sent:
            await protocol.handle(RawData(data))
            await trio.testing.wait_all_tasks_blocked()
        group._nursery.cancel_scope.cancel()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ((request(1, ended=False), frame(Frame.DATA, 0, 1, b"x")), KeyError),  # pgjones/hypercorn#329
        ((request(1, request_fields(path=b"/\xff")),), UnicodeDecodeError),
        ((request(1, request_fields(method=b"\xff")),), UnicodeDecodeError),
        ((request(1, [(b":method", b"CONNECT"), (b":authority", b"x")]),), UnboundLocalError),
        (
            tuple(frame(Frame.PRIORITY, 0, 2 * n + 1, bytes(4) + b"\x10") for n in range(1001)),
            priority.TooManyStreamsError,
        ),
    ],
    ids=["data-behind-the-end", "path", "method", "connect", "priorities"],
)
async def test_hypercorns_own_protocol_still_raises(sent: tuple[bytes, ...], error: type[Exception]) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        await _upstream(*sent)
    assert raised.group_contains(error)
