"""The client against a server that follows a script: one function a request, in order."""

import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import pytest
from servers import HOST, free_port, make_certificate

from app.client import (
    RETRY_MAX_S,
    RETRY_MIN_S,
    Connected,
    Disconnected,
    InvalidRequest,
    Location,
    NotAnEventStream,
    Received,
    ServerNotTrusted,
    ServerRefused,
    ServerUnreachable,
    endpoint,
    follow,
    one_line,
    publish,
    stream_url,
)
from app.publish import InvalidTopicId
from app.streams.ids import StreamId
from app.streams.sse import position_block

# A script that waits for the client waits no longer than this.
SCRIPT_TIMEOUT_S = 5.0


class Exchange(http.server.BaseHTTPRequestHandler):
    """One request, and the means to answer it as no decent server would."""

    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline()
        if self.raw_requestline and self.parse_request():
            self.arrived_s = time.monotonic()
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.server.answer(self)
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def open(self, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "text/event-stream", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def wait_gone(self) -> bool:
        """Whether the client closed the connection in time."""
        self.connection.settimeout(SCRIPT_TIMEOUT_S)
        try:
            return self.connection.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def log_message(self, format: str, *args: object) -> None:
        pass


class ScriptedServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[Exchange], None]) -> None:
        super().__init__((HOST, 0), Exchange)
        self.answer = answer
        self.url = f"http://{HOST}:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that leave are part of the scripts


@contextmanager
def run_http(answer: Callable[[Exchange], None]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Script:
    """Answers the n-th request with the n-th step, and keeps the requests."""

    def __init__(self, *steps: Callable[[Exchange], None]) -> None:
        self.steps = steps
        self.exchanges: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.steps[len(self.exchanges) - 1](exchange)

    def sent(self, name: str) -> list[str | None]:
        return [exchange.headers.get(name) for exchange in self.exchanges]


def streaming(*chunks: bytes, headers: dict[str, str] | None = None, ends: bool = True):
    """A step that sends a stream and ends it: cleanly, or by closing the connection inside it."""

    def step(exchange: Exchange) -> None:
        exchange.open(headers)
        for data in chunks:
            exchange.chunk(data)
        if ends:
            exchange.end()

    return step


def staying(*chunks: bytes) -> Callable[[Exchange], None]:
    """A step that sends and then says nothing more, until the client leaves."""

    def step(exchange: Exchange) -> None:
        streaming(*chunks, ends=False)(exchange)
        exchange.left = exchange.wait_gone()

    return step


def take(
    script: Script, count: int, last_event_id: str | None = None, silence_timeout_s: float = SCRIPT_TIMEOUT_S
) -> list[object]:
    with (
        run_http(script) as server,
        closing(follow(server.url, last_event_id, silence_timeout_s=silence_timeout_s)) as items,
    ):
        return list(islice(items, count))


# -- following


def test_it_resumes_from_the_last_id_after_a_clean_end_and_after_a_cut() -> None:
    script = Script(
        streaming(b"retry: 60\n\nid: 1-0\ndata: one\n\n"),
        streaming(b"id: 2-0\ndata: two\n\n", ends=False),
        staying(b"id: 3-0\ndata: three\n\n"),
    )

    items = take(script, 8)

    assert items == [
        Connected(""),
        Received("1-0", "one"),
        Disconnected("the server ended the stream", 0.06),
        Connected("1-0"),
        Received("2-0", "two"),
        Disconnected("the connection broke: cut inside the answer", 0.06),
        Connected("2-0"),
        Received("3-0", "three"),
    ]
    assert script.sent("Last-Event-ID") == [None, "1-0", "2-0"]


def test_a_block_with_only_an_id_moves_the_cursor_and_shows_nothing() -> None:
    script = Script(streaming(b"retry: 60\n\nid: 7-0\n\n"), staying())

    items = take(script, 3)

    assert items == [Connected(""), Disconnected("the server ended the stream", 0.06), Connected("7-0")]
    assert script.sent("Last-Event-ID") == [None, "7-0"]


def test_an_event_without_an_id_keeps_the_cursor_of_earlier_connections() -> None:
    script = Script(streaming(b"retry: 60\n\nid: 7-0\n\n"), streaming(b"data: x\n\n"), staying())

    assert Received("7-0", "x") in take(script, 6)
    assert script.sent("Last-Event-ID") == [None, "7-0", "7-0"]


def test_an_id_in_a_block_that_was_cut_does_not_count() -> None:
    script = Script(streaming(b"retry: 60\n\nid: 1-0\n\nid: 2-0\ndata: half\n", ends=False), staying())

    take(script, 3)

    assert script.sent("Last-Event-ID") == [None, "1-0"]


def test_the_given_id_is_sent_with_the_first_request_in_utf8() -> None:
    script = Script(staying())

    assert take(script, 1, "5-1") == [Connected("5-1")]
    assert script.sent("Last-Event-ID") == ["5-1"]
    assert script.sent("Accept") == ["text/event-stream"]

    script = Script(staying())
    take(script, 1, "ü")
    assert script.sent("Last-Event-ID") == ["ü".encode().decode("latin-1")]


def test_it_waits_as_long_as_the_server_said() -> None:
    script = Script(streaming(b"retry: 200\n\n"), staying())

    take(script, 3)

    waited_s = script.exchanges[1].arrived_s - script.exchanges[0].arrived_s
    assert 0.2 <= waited_s < 1


@pytest.mark.parametrize(
    ("retry", "delay_s"), [(b"0", RETRY_MIN_S), (b"99999999999", RETRY_MAX_S), (b"soon", 3.0), (b"1500", 1.5)]
)
def test_retry_is_kept_within_bounds(retry: bytes, delay_s: float) -> None:
    items = take(Script(streaming(b"retry: " + retry + b"\n\n")), 2)

    assert items[1] == Disconnected("the server ended the stream", delay_s)


def test_bytes_may_be_split_anywhere() -> None:
    blocks = (
        "\ufeffretry: 60\r\n\r\n: heartbeat\r\nid: 1-0\r\ndata: grün\r\n\r\ndata: a\ndata: b\n\n".encode()
    )

    items = take(Script(staying(*(bytes([byte]) for byte in blocks))), 3)

    assert items == [Connected(""), Received("1-0", "grün"), Received("1-0", "a\nb")]


@pytest.mark.parametrize("farewell", [position_block(None, 60), b""], ids=["sent-away", "cut"])
def test_a_position_is_told_to_nobody_and_resumed_from(farewell: bytes) -> None:
    script = Script(
        streaming(position_block(StreamId(1, 0), 60) + b":\n" + farewell), staying(b"id: 2-0\ndata: back\n\n")
    )

    items = take(script, 4)

    assert items[0] == Connected("")
    assert items[2:] == [Connected("1-0"), Received("2-0", "back")]
    assert script.sent("Last-Event-ID") == [None, "1-0"]


@pytest.mark.parametrize("first", [position_block(StreamId(1, 0), 60), b"retry: 60\n\nid: 1-0\n\n"])
def test_a_silent_line_is_cut_and_made_anew(first: bytes) -> None:
    script = Script(staying(first), staying(b"id: 2-0\ndata: back\n\n"))
    started_s = time.monotonic()

    items = take(script, 4, silence_timeout_s=0.2)

    assert items[1:] == [
        Disconnected("the connection broke: nothing for 0.2 s", 0.06),
        Connected("1-0"),
        Received("2-0", "back"),
    ]
    assert 0.25 < time.monotonic() - started_s < 2
    assert script.exchanges[0].left


def test_heartbeats_keep_a_silent_line() -> None:
    def beat(exchange: Exchange) -> None:
        exchange.open()
        for _ in range(8):
            time.sleep(0.05)
            exchange.chunk(b":\n\n")
        exchange.chunk(b"data: still there\n\n")
        exchange.wait_gone()

    items = take(Script(beat), 2, silence_timeout_s=0.2)

    assert items == [Connected(""), Received("", "still there")]


def test_a_server_that_never_answers_is_silent_too() -> None:
    script = Script(lambda exchange: bool(exchange.wait_gone()))

    (item,) = take(script, 1, silence_timeout_s=0.1)

    assert isinstance(item, Disconnected)
    assert "no answer: nothing for 0.1 s" in item.reason


def test_a_refused_connection_and_a_server_of_another_protocol_are_tried_again() -> None:
    with closing(follow(f"http://{HOST}:{free_port()}/")) as items:
        (item,) = islice(items, 1)
    assert isinstance(item, Disconnected)
    assert "refused" in item.reason

    script = Script(lambda exchange: exchange.wfile.write(b"220 mail ready\r\n"))
    (item,) = take(script, 1)
    assert isinstance(item, Disconnected)


def test_closing_the_generator_closes_the_connection() -> None:
    script = Script(staying(b"data: x\n\n"))

    with run_http(script) as server:
        items = follow(server.url)
        assert next(items) == Connected("")
        exchange = script.exchanges[0]
        items.close()
        deadline_s = time.monotonic() + SCRIPT_TIMEOUT_S
        while not hasattr(exchange, "left"):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    assert exchange.left


# -- what ends it for good


@pytest.mark.parametrize("status", [204, 301, 404, 429, 500, 503])
def test_another_status_than_200_ends_it(status: int) -> None:
    script = Script(lambda exchange: exchange.answer(status))

    with pytest.raises(ServerRefused, match=f"answered {status}") as caught:
        take(script, 1)

    assert caught.value.status == status
    assert len(script.exchanges) == 1


def test_a_refusal_says_what_the_server_says() -> None:
    def refuse(exchange: Exchange) -> None:
        headers = {"Content-Type": "application/problem+json"}
        exchange.answer(422, headers, b'{"detail": "topic id: \\u001b[31m use letters\\n"}')

    # The phrase is Python's: "Entity" before 3.13, "Content" since.
    with pytest.raises(ServerRefused, match=r"422 Unprocessable \w+: topic id: \[31m use letters$"):
        take(Script(refuse), 1)

    def redirect(exchange: Exchange) -> None:
        exchange.answer(301, {"Location": "https://other.example/"})

    with pytest.raises(ServerRefused, match=r"use https://other\.example/"):
        take(Script(redirect), 1)


def test_a_refusal_at_a_reconnect_ends_it_too() -> None:
    script = Script(streaming(b"retry: 60\n\n"), lambda exchange: exchange.answer(403))

    with pytest.raises(ServerRefused, match="403"):
        take(script, 3)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Content-Type": "text/html"}, "'text/html'"),
        ({"Content-Type": "text/event-stream-not"}, "not text/event-stream"),
        ({"Content-Type": ""}, "'untyped'"),
        ({"Content-Encoding": "gzip"}, "'gzip'"),
    ],
)
def test_what_is_no_event_stream_ends_it(headers: dict[str, str], words: str) -> None:
    with pytest.raises(NotAnEventStream, match=words):
        take(Script(streaming(b"data: x\n\n", headers=headers)), 1)


def test_parameters_and_case_of_the_type_do_not_matter() -> None:
    headers = {"Content-Type": "Text/Event-Stream;charset=UTF-8", "Content-Encoding": "identity"}

    assert take(Script(streaming(headers=headers)), 1) == [Connected("")]


def test_an_endless_line_ends_it() -> None:
    with pytest.raises(NotAnEventStream, match="exceeds"):
        take(Script(streaming(*[b"x" * (1 << 18)] * 5)), 2)


def test_a_certificate_counts_only_with_its_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("the openssl command is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)
    script = Script(staying(b"id: 1-0\ndata: secret\n\n"))
    with run_http(script) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        with pytest.raises(ServerNotTrusted, match="SSL_CERT_FILE"):
            next(follow(url))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certfile))
        with closing(follow(url)) as items:
            assert list(islice(items, 2)) == [Connected(""), Received("1-0", "secret")]


# -- URLs


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "ftp://example.com", "http://", "http://:80", "http://host:port", "http://host:99999",
        "http://[::1", "http://a..b/", f"http://{'a' * 64}.example/", "http://user:pass@host/",
    ],
)  # fmt: skip
def test_a_url_that_leads_nowhere_is_the_callers_fault(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        next(follow(url))
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("value", ["a\nb", "a\r\nX: y", "\0", "\ud800"])
def test_an_id_that_no_header_can_carry_is_the_callers_fault(value: str) -> None:
    with pytest.raises(InvalidRequest, match="header"):
        next(follow("http://127.0.0.1:1", value))


def test_locations() -> None:
    assert Location.parse("http://host") == Location(False, "host", 80, "/")
    assert Location.parse("https://HOST:8443/a b/%2F?x=1 2#f") == Location(
        True, "host", 8443, "/a%20b/%2F?x=1%202"
    )
    assert Location.parse("http://[::1]:80/").host == "::1"
    assert Location.parse("http://bücher.example/").host == "xn--bcher-kva.example"
    assert stream_url("http://host/prefix/", "a:b~c") == "http://host/prefix/v1/sse/a:b~c"
    with pytest.raises(InvalidRequest, match="without a query"):
        endpoint("http://host/?x", "/healthz")
    with pytest.raises(InvalidTopicId):
        stream_url("http://host", "a/b")


def test_one_line() -> None:
    assert one_line("a\n\tb\x1b[31m\u202ec") == "a b [31m c"
    assert len(one_line("x" * 10_000)) < 1000


# -- publishing


def test_publishing() -> None:
    script = Script(lambda exchange: exchange.answer(201, body=b'{"id": "9-0"}'))

    with run_http(script) as server:
        event_id = publish(server.url + "/", "t", "argument_updated", {"id": "42", "reason": "r"}, "secret")

    assert event_id == "9-0"
    (exchange,) = script.exchanges
    assert (exchange.command, exchange.path) == ("POST", "/v1/topics/t/events")
    assert exchange.body == b'{"event": "argument_updated", "data": {"id": "42", "reason": "r"}}'
    assert script.sent("Authorization") == ["Bearer secret"]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"detail": "no token"}', "401 Unauthorized: no token"),
        (200, b"<html>", "200 OK"),
        (201, b"[]", "names no id"),
    ],
)
def test_publishing_refused(status: int, body: bytes, words: str) -> None:
    def refuse(exchange: Exchange) -> None:
        exchange.answer(status, {"Content-Type": "application/problem+json"}, body)

    with run_http(Script(refuse)) as server, pytest.raises(ServerRefused, match=words):
        publish(server.url, "t", "argument_updated", {}, None)


def test_publishing_to_nobody() -> None:
    with pytest.raises(ServerUnreachable, match="refused"):
        publish(f"http://{HOST}:{free_port()}", "t", "argument_updated", {}, None)


def test_an_answer_that_never_ends_is_read_up_to_a_limit() -> None:
    def flood(exchange: Exchange) -> None:
        exchange.open({"Content-Type": "application/json"})
        while True:
            exchange.chunk(b"x" * 65536)

    with run_http(Script(flood)) as server, pytest.raises(ServerRefused, match="200 OK"):
        publish(server.url, "t", "argument_updated", {}, None)
