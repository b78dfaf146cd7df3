"""What one HTTP/1.1 connection may do to the server, on a real process: nothing. An innocent client follows a
stream meanwhile (`unharmed`)."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from raw import Socket, unharmed, wait_log
from servers import AppServer, run_app, run_redis
from structlog.testing import capture_logs

from app import contain
from app.cors import Cors
from app.handler_settings import HandlerSettings
from app.logging import VALUE_LIMIT_CHARS, LimitedLog
from app.serving import HALF_CLOSED_LIMIT_S, ConnectionHandler, Context, hypercorn_config
from app.settings import Settings
from app.web import BODY_LEAST_BYTES_PER_S, BODY_OVERHEAD, Problem

HEAD_TIMEOUT_S = 1.0
MAX_EVENT_BYTES = 256
BODY_TIMEOUT_S = HEAD_TIMEOUT_S + MAX_EVENT_BYTES * BODY_OVERHEAD / BODY_LEAST_BYTES_PER_S
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Connection: upgrade\r\nUpgrade: websocket\r\n"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="module")
def server(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    settings = {
        "STALECAST_REQUEST_HEAD_TIMEOUT_S": str(HEAD_TIMEOUT_S),
        "STALECAST_KEEP_ALIVE_TIMEOUT_S": "1",
        "STALECAST_MAX_EVENT_BYTES": str(MAX_EVENT_BYTES),
        "STALECAST_PUBLISH_TOKEN": "secret",
    }
    with run_app(tmp_path_factory.mktemp("server"), redis_url=redis_url, settings=settings) as server:
        yield server


ODD_FIELDS = {
    "subprotocol-no-ascii": UPGRADE + KEY + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: \xff\r\n",
    "subprotocol-only": UPGRADE + b"Sec-WebSocket-Protocol: \xff\r\n",
    "extension-no-ascii": UPGRADE + KEY + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: \xff\r\n",
    "version-no-ascii": UPGRADE + KEY + b"Sec-WebSocket-Version: \xff\r\n",
    "key-no-ascii": UPGRADE + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \xff\r\n",
    "handshake": UPGRADE + KEY + b"Sec-WebSocket-Version: 13\r\n",
    "connection-no-ascii": b"Connection: \xff\r\n",
    "connection-no-ascii-upgrade": b"Connection: \xff, upgrade\r\nUpgrade: websocket\r\n",
    "upgrade-no-ascii": b"Connection: upgrade\r\nUpgrade: \xff\r\n",
    "upgrade-h2c": b"Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \xff\r\n",
    "host-no-ascii": b"Accept: \xff\r\nX: \xff\r\n",
    "forwarded-no-ascii": b"X-Forwarded-For: \xff\r\nForwarded: \xff\r\nX-Forwarded-Proto: \xff\r\n",
    "cookie-no-ascii": b"Cookie: \xff=\xff; a\r\n",
    "accept-no-ascii": b"Accept-Encoding: \xff\r\nContent-Type: \xff\r\nAuthorization: \xff\r\n",
    "expect-no-ascii": b"Expect: \xff\r\n",
    "range-no-ascii": b"Range: bytes=\xff\r\nIf-None-Match: \xff\r\nIf-Modified-Since: \xff\r\n",
}


@pytest.mark.parametrize("target", [b"/healthz", b"/v1/sse/a", b"/v1/sse/a?x=\xc3\xbc", b"/"])
@pytest.mark.parametrize("name", ODD_FIELDS)
def test_no_field_harms_anybody_else(server: AppServer, redis_url: str, name: str, target: bytes) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + ODD_FIELDS[name] + b"\r\n")
        assert client.read_status() in (200, 400, 404)


@pytest.mark.parametrize("behind", [b"", b"\x00", b"\x81\x05hello", b"GET /"], ids=repr)
def test_a_websocket_handshake_is_answered_as_plain_http(
    server: AppServer, redis_url: str, behind: bytes
) -> None:
    """With bytes behind it, too: Hypercorn's own raised on them (pgjones/hypercorn#225)."""
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + ODD_FIELDS["handshake"] + b"\r\n" + behind)
        assert client.read_status() == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"Sec-WebSocket-Version: 99\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /healthz HTTP/3.7\r\nHost: x\r\n\r\n",
        b"\xff" * 200 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,  # TLS to a port without it
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \xff\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\xff\r\n",
    ],
    ids=range(12),
)
def test_no_connection_stays_open_for_ever(server: AppServer, redis_url: str, head: bytes) -> None:
    """Hypercorn's own kept one whose upgrade it had refused: 100 s were seen."""
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(head)
        client.read_end()


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"?x", 400),
        (b"http://[::1/", 400),
        (b"http://[::1]/healthz", 200),
        (b"http://x:99999999/healthz", 200),  # the path counts
        (b"http://x", 404),
        (b"http://x?y", 404),
        (b"http:///healthz", 400),
        (b"https://user:pw@x/healthz", 200),
        (b"ftp://x/healthz", 400),
        (b"healthz", 400),
        (b"*", 400),
        (b"x:80", 400),
        (b"//[::1/", 404),
        (b"//healthz", 200),
        (b"", 400),
        (b"http:", 400),
        (b"http://", 400),
        (b"http://u@[::1]:80/healthz", 200),
        (b"/%", 404),
        (b"/%zz%", 404),
        (b"/%00", 404),
        (b"/v1/sse/%00", 422),
        (b"/v1/sse/%ff", 422),
        (b"/v1/sse/%2e%2e", 422),
        (b"/v1/sse/a%0d%0ax", 422),
        (b"/" + b"a" * 8000, 404),
        (b"/healthz?" + b"&" * 8000, 200),
        (b"/healthz?%ff=%", 200),
        (b"/healthz#x", 404),
    ],
)
def test_no_target_is_too_odd_for_an_answer(
    server: AppServer, redis_url: str, target: bytes, status: int
) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.read_status() == status


HOSTS = [
    b".", b"..", b"a..b", b".a", b"a.", b"x" * 64, b"x" * 5000, b"[::1", b"[:1", b"[v1.x]", b"::1", b"\xff",
    b"xn--\xff", b"xn--a-.x", b"a b", b"x:y:z", b"x:-1", b"x:99999999", b"%", b"%ff", b"x/y", b"x?y", b"x@y",
    b"x,y", b"", b"-", b"_",
]  # fmt: skip


@pytest.mark.parametrize(
    "target", [b"/healthz", b"/v1/topics/a/cursor", b"/v1/sse/a?live=true&x=%", b"/none", b"/docs"]
)
def test_no_host_is_too_odd_for_an_answer(server: AppServer, redis_url: str, target: bytes) -> None:
    """Whatever a client calls us: no answer depends on it."""
    with unharmed(server, redis_url):
        for host in HOSTS:
            with Socket.open(server) as client:
                # TE: so that also a stream comes through Quart's route.
                client.send(b"GET %b HTTP/1.1\r\nHost: %b\r\nTE: x\r\n\r\n" % (target, host))
                assert client.read_status() == (404 if target == b"/none" else 200), host


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_head_with_bare_line_feeds_is_answered_at_once(
    server: AppServer, redis_url: str, line_end: bytes
) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(line_end.join([b"GET /v1/sse/a HTTP/1.1", b"Host: x", b"X: y", b"", b""]))
        assert client.read_status() == 200


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 0\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"Content-Length: 3, 4\r\n",
        b"Content-Length: +3\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
    ],
)
def test_a_body_with_two_ends_is_refused_and_nothing_follows(
    server: AppServer, redis_url: str, fields: bytes
) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(b"POST /v1/topics/a/events HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n0\r\n\r\n")
        client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = client.read_end()
    assert answers.split(None, 2)[1] in (b"400", b"501")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_chunks_in_http_1_0_are_refused(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert client.read_status() == 400


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /v1/topics/half/cursor HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /v1/sse/half?live=false HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /v1/sse/half?live=false&lastEventId=1-0 HTTP/1.1\r\nHost: x\r\n\r\n", b"reload_required"),
        (b"GET /v1/sse/half?live=false HTTP/1.0\r\n\r\n", b"200"),
        (
            b"POST /v1/topics/half/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
            b"Content-Length: 64\r\n\r\n"
            + b'{"event":"argument_updated","data":{"id":"1","reason":"edited"}}',
            b" 201",
        ),
    ],
)
def test_who_has_said_everything_gets_its_answer(
    server: AppServer, redis_url: str, request_: bytes, expected: bytes
) -> None:
    """As `nc -N` does. (A stream that goes on may end: who has left looks the same.)"""
    for _ in range(5):
        with unharmed(server, redis_url), Socket.open(server) as client:
            client.send(request_)
            client.shut_down_writing()
            assert expected in client.read_end()


def test_a_body_that_is_cut_is_not_waited_for(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(b"POST /v1/topics/a/events HTTP/1.1\r\nHost: x\r\nContent-Length: 64\r\n\r\n{")
        client.shut_down_writing()
        began = time.monotonic()
        client.read_end()
        assert time.monotonic() - began < BODY_TIMEOUT_S


def test_a_body_keeps_a_least_pace(server: AppServer, redis_url: str) -> None:
    with unharmed(server, redis_url), Socket.open(server) as client:
        client.send(
            b"POST /v1/topics/a/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
            b"Content-Length: 64\r\n\r\n"
        )
        assert client.read_status() == 408


# -- what none of them should raise is contained all the same


class _Broken:
    """A connection that fails in ways that nobody foresaw."""

    def __init__(self, error: BaseException, closing: Exception | None = None) -> None:
        self._error, self._closing = error, closing

    @property
    def socket(self) -> socket.socket:
        raise self._error

    async def aclose(self) -> None:
        if self._closing is not None:
            raise self._closing


async def _handle(stream: _Broken) -> None:
    config = hypercorn_config(Settings(), ["127.0.0.1:0"])  # pyright: ignore[reportCallIssue]
    await ConnectionHandler(lambda: None, config, Context(None), {}, stream)


@pytest.mark.parametrize("closing", [None, RuntimeError("and it cannot be closed")], ids=["", "closing"])
@pytest.mark.parametrize(
    "error", [ValueError("x" * 5000), ExceptionGroup("two", [KeyError("a"), TypeError("b")])], ids=repr
)
async def test_a_mistake_of_ours_ends_one_connection_in_one_line(
    error: Exception, closing: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contain, "_limited_log", LimitedLog(structlog.get_logger("x")))
    with capture_logs() as logs:
        await _handle(_Broken(error, closing))
    (line,) = logs
    assert line["event"] == "connection_failed"
    assert line["log_level"] == "error"
    assert len(line["detail"]) <= VALUE_LIMIT_CHARS


REFUSED = {
    b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n%b\r\n": 400,
    b"HEAD ftp://x/ HTTP/1.1\r\nHost: x\r\n%b\r\n": 400,
    b"GET / HTTP/1.1\r\n%b\r\n": 400,  # without a Host
    b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n%b\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * (1 << 15) + b"\r\n%b\r\n": 431,
    b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n%b\r\n": 501,
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n%b\r\n": 501,
    b"GET / HTTP/1.2\r\nHost: x\r\n%b\r\n": 505,
}


@pytest.mark.parametrize("allowed", [("*",), ("https://app.example",), ()])
@pytest.mark.parametrize(("head", "status"), REFUSED.items(), ids=range(len(REFUSED)))
async def test_what_is_refused_before_the_application_has_the_form_of_all_errors(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
    status: int,
    allowed: tuple[str, ...],
) -> None:
    monkeypatch.setattr(HandlerSettings, "cors", Cors(allowed))
    client, stream = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    config = hypercorn_config(Settings(_env_file=None), [])
    nursery.start_soon(ConnectionHandler(ASGIWrapper(None), config, Context(None), {}, stream).run)

    await client.send_all(head % b"Origin: https://app.example\r\n")
    answer = b""
    with trio.fail_after(5), suppress(trio.BrokenResourceError):
        async for received in client:
            answer += received
    fields, _, body = answer.partition(b"\r\n\r\n")
    assert fields.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in fields
    is_readable = status not in (431,) and b"\0" not in head and b"Host" in head and b"gzip" not in head
    if "*" in allowed:
        assert b"access-control-allow-origin: *" in fields
    elif allowed and is_readable:  # the origin is known
        assert b"access-control-allow-origin: https://app.example" in fields
    else:
        assert b"access-control-allow-origin" not in fields
    if head.startswith(b"HEAD"):
        assert body == b""
    else:
        assert Problem.model_validate_json(body, strict=True).status == status
        assert b"content-length: %d\r\n" % len(body) in fields
    await client.aclose()


async def test_an_idle_connection_is_kept_for_longer_than_routers_keep_theirs(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Heroku's router keeps its connections 90 s. Were we to close first, a request might be on its way."""
    settings = Settings(_env_file=None)

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    # Not TCP: what is sent has arrived, and the clock does not jump meanwhile.
    client, stream = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in socket.socketpair())
    config = hypercorn_config(settings, [])
    nursery.start_soon(ConnectionHandler(ASGIWrapper(answer), config, Context(None), {}, stream).run)

    for pause_s in (0.0, 91.0, settings.keep_alive_timeout_s - 0.1):
        await trio.sleep(pause_s)
        await client.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 204")
    answered_s = trio.current_time()
    with trio.fail_after(1000):
        assert await client.receive_some() == b""
    assert settings.keep_alive_timeout_s > 90
    assert trio.current_time() - answered_s == pytest.approx(settings.keep_alive_timeout_s, abs=0.1)
    await client.aclose()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
async def test_the_end_of_the_server_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        await _handle(_Broken(error))


def test_a_flood_of_faults_is_a_line_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contain, "_limited_log", LimitedLog(structlog.get_logger("x")))
    with capture_logs() as logs:
        for _ in range(1000):
            contain.report("connection", ValueError("x"))
            contain.report("request", ValueError("x"))
            contain.report("request", KeyError("x"))
            contain.report_refused("http2_resets")
            contain.report_refused("http2_pings")
    assert [(line["event"], line.get("error", line.get("reason"))) for line in logs] == [
        ("connection_failed", "ValueError"),
        ("request_failed", "ValueError"),
        ("request_failed", "KeyError"),
        ("connection_refused", "http2_resets"),
        ("connection_refused", "http2_pings"),
    ]


@pytest.mark.parametrize("text", ["\xff" * 10_000, "\n" * 500, "\x1b[2J", "\U0001f600" * 300])
def test_what_is_logged_of_a_peer_is_short_and_plain(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(contain, "_limited_log", LimitedLog(structlog.get_logger("x")))
    with capture_logs() as logs:
        contain.report("request", ValueError(text), path=text)
    for shown in (logs[0]["detail"], logs[0]["path"]):
        assert len(shown) <= VALUE_LIMIT_CHARS
        assert shown.isascii()
        assert shown.isprintable()


def test_a_peer_that_left_is_no_news() -> None:
    with capture_logs() as logs:
        contain.report("connection", ExceptionGroup("", [OSError(), trio.BrokenResourceError()]))
    assert logs == []


def test_the_log_is_in_place(server: AppServer, redis_url: str) -> None:
    """The checks above look for `_failed` in the log: streams are told there."""
    with unharmed(server, redis_url):
        wait_log(server, "stream_opened")


async def test_who_has_left_is_not_answered_for_long(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody can tell from the end of its bytes; but then what is sent does not reach it."""

    async def answer(scope: Any, receive: Any, send: Any, *_: Any) -> None:
        await trio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    near, far = (trio.SocketStream(sock) for sock in trio.socket.socketpair())
    await far.send_all(b"GET /v1/sse/half?live=false HTTP/1.1\r\nHost: x\r\n\r\n")
    await far.aclose()
    began_s = trio.current_time()
    config = hypercorn_config(Settings(), ["127.0.0.1:0"])  # pyright: ignore[reportCallIssue]
    await ConnectionHandler(answer, config, Context(None), {}, near)
    assert trio.current_time() - began_s < HALF_CLOSED_LIMIT_S / 2


def test_what_an_exception_held_is_let_go_of_but_nothing_that_waits_is_ended() -> None:
    caught: list[BaseException] = []

    def fail(held: list[int]) -> None:
        raise ValueError(len(held))

    def wait() -> Iterator[str]:
        try:
            fail([1, 2, 3])
        except ValueError as error:
            caught.append(error)
        yield "waits"
        yield "goes on"

    waiting = wait()
    assert next(waiting) == "waits"
    contain.forget_frames(caught[0])
    assert next(waiting) == "goes on"
    traceback = caught[0].__traceback__
    assert traceback is not None
    assert traceback.tb_next is not None
    assert traceback.tb_next.tb_frame.f_locals == {}
