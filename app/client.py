"""A server seen from outside: follow a stream, publish, send one request. Synchronous, over `http.client`.

`follow` does what a browser's EventSource does (WHATWG HTML, section 9.2): the last event id survives
connections, a broken or ended one is made anew after `retry:`, and any other answer than an event stream ends
it for good. It differs where a browser is too patient: a silent line is cut. Redirects are reported, not
followed, and the proxies that the environment may name are not used.
"""

import http.client
import json
import ssl
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import quote, urlsplit

from app import __version__
from app.publish import stream_key
from app.settings import HEARTBEAT_INTERVAL_LONGEST_S
from app.streams.sse import Message, Parser

# Heartbeats of the longest interval that a server should have: one may be late. (client/ waits as long.)
SILENCE_TIMEOUT_S: Final = 2 * HEARTBEAT_INTERVAL_LONGEST_S
CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 10.0
# Until a server says `retry:`; browsers wait three to five seconds.
DEFAULT_RETRY_S: Final = 3.0
# A server that says `retry: 0` shall not make this a busy loop, one that says too much not end it.
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 3600.0
READ_BYTES: Final = 1 << 16
# Of an answer that is not a stream. Ours are below a kilobyte; a proxy's error page may be anything.
BODY_LIMIT_BYTES: Final = 1 << 16
DETAIL_LIMIT_CHARS: Final = 300

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# RFC 3986, section 3.3, and the escapes that are there already.
_PATH_SAFE: Final = "/%:@!$&'()*+,;=~"


class InvalidRequest(ValueError):
    """A URL, token or event id that cannot be sent; the caller's fault."""


class ServerUnreachable(Exception):
    """The network, or a server that is away; it may pass."""


class ServerSilent(ServerUnreachable):
    """Nothing arrived for the set time."""


class ServerNotTrusted(Exception):
    """The server's certificate is not accepted: by its operator's fault, or for want of a CA here."""


class ServerRefused(Exception):
    """The server answered with a status that is not what was asked for."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the server answered {_status_text(status)}" + (f": {detail}" if detail else ""))
        self.status = status
        self.detail = detail


class NotAnEventStream(Exception):
    """Something answered 200, but not with an event stream: a wrong URL, or a proxy's doing."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The server answered with a stream. `last_event_id`: where it was asked to resume ("" for nowhere)."""

    last_event_id: str


@dataclass(frozen=True, slots=True)
class Received:
    """What a browser would dispatch as a message."""

    last_event_id: str
    data: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The line broke, or could not be made; the next try follows after `retry_in_s`."""

    reason: str
    retry_in_s: float


def follow(
    url: str,
    last_event_id: str | None = None,
    *,
    silence_timeout_s: float = SILENCE_TIMEOUT_S,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
) -> Iterator[Connected | Received | Disconnected]:
    """Follow the stream at `url` for ever; closing the generator closes the connection.

    `silence_timeout_s`: a line without any byte, heartbeats included, for this long is cut and made anew.
    Raises InvalidRequest at the first step; ServerRefused, NotAnEventStream or ServerNotTrusted where a
    browser would give up, at the first connect or at a later one.
    """
    last_event_id = last_event_id or ""
    retry_s = DEFAULT_RETRY_S
    while True:
        parser = Parser(last_event_id)  # what was cut inside a block is not carried over
        try:
            with open_stream(
                url, last_event_id, connect_timeout_s=connect_timeout_s, answer_timeout_s=silence_timeout_s
            ) as response:
                require_event_stream(response)
                yield Connected(last_event_id)
                while received := response.read_some(silence_timeout_s):
                    for message in feed(parser, received):
                        last_event_id = message.last_event_id
                        if message.retry_ms is not None:
                            retry_s = min(max(message.retry_ms / 1000, RETRY_MIN_S), RETRY_MAX_S)
                        if message.data is not None:
                            yield Received(last_event_id, message.data)
            reason = "the server ended the stream"
        except ServerUnreachable as error:
            reason = str(error)
        yield Disconnected(reason, retry_s)
        time.sleep(retry_s)


def publish(url: str, topic_id: str, event: str, data: Mapping[str, Any], token: str | None) -> str:
    """Append an event through the server at `url`; returns its stream id.

    Raises InvalidTopicId, InvalidRequest, ServerUnreachable (the event may have been appended; appending it
    again is harmless), ServerNotTrusted or ServerRefused.
    """
    stream_key(topic_id)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    body = json.dumps({"event": event, "data": dict(data)}).encode()
    with send("POST", endpoint(url, f"/v1/topics/{topic_id}/events"), headers, body) as response:
        answer = response.read_all()
        if response.status != HTTPStatus.CREATED:
            raise ServerRefused(response.status, _detail(response, answer))
        event_id = json_object(answer).get("id")
        if not isinstance(event_id, str):
            raise ServerRefused(response.status, "the answer names no id: is this the right URL?")
        return event_id


def open_stream(
    url: str,
    last_event_id: str = "",
    headers: Mapping[str, str] | None = None,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> "Response":
    """Ask for a stream as a browser does. `headers` are added, or replace. Raises like `send`."""
    asked = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    if last_event_id:
        asked["Last-Event-ID"] = last_event_id
    return send(
        "GET",
        url,
        {**asked, **(headers or {})},
        connect_timeout_s=connect_timeout_s,
        answer_timeout_s=answer_timeout_s,
    )


def require_event_stream(response: "Response") -> None:
    """Raises ServerRefused or NotAnEventStream where a browser's EventSource would give up."""
    if response.status != HTTPStatus.OK:
        raise ServerRefused(response.status, _detail(response, response.read_all()))
    content_type = response.header("Content-Type")
    if media_type(content_type) != "text/event-stream":
        raise NotAnEventStream(f"the answer is {content_type or 'untyped'!r}, not text/event-stream")
    coding = response.header("Content-Encoding")
    if coding.lower() not in ("", "identity"):
        raise NotAnEventStream(f"the stream arrives as {coding!r}, although that was not asked for")


def feed(parser: Parser, received: bytes) -> list[Message]:
    """Raises NotAnEventStream where the parser cannot go on."""
    try:
        return list(parser.feed(received))
    except ValueError as error:
        raise NotAnEventStream(str(error)) from error


def send(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None = None,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> "Response":
    """Send one request on a connection of its own and wait for the head of the answer.

    Raises InvalidRequest, ServerUnreachable, ServerSilent or ServerNotTrusted.
    """
    location = Location.parse(url)
    try:
        encoded = {name: value.encode() for name, value in headers.items()}
        encoded.setdefault("User-Agent", f"stalecast/{__version__}".encode())
    except UnicodeEncodeError:
        raise InvalidRequest("a header's value is not text") from None
    if any(byte < 0x20 or byte == 0x7F for value in encoded.values() for byte in value):
        raise InvalidRequest("a header's value must not hold control characters")
    connection = location.connection(connect_timeout_s)
    try:
        with _network_errors(f"{location}: no connection", connect_timeout_s):
            connection.connect()
        with _network_errors(f"{location}: no answer", answer_timeout_s):
            connection.sock.settimeout(answer_timeout_s)
            return Response(connection, method, location.target, body, encoded)
    except BaseException:
        connection.close()
        raise


class Response:
    """An answer whose head has arrived; its body is read piece by piece. A context manager."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, bytes],
    ) -> None:
        self._connection = connection
        # The connection gives its socket away when the answer says `Connection: close`.
        self._socket = connection.sock
        connection.request(method, target, body, dict(headers))
        self._response = connection.getresponse()
        self.status = self._response.status

    def header(self, name: str) -> str:
        """Its value, or "" without one; more than one are joined by commas, as RFC 9110 (5.2) says."""
        return ", ".join(self._response.headers.get_all(name, []))

    def read_some(self, timeout_s: float) -> bytes:
        """What has arrived, after waiting for at least one byte; b"" at the end of a complete answer.

        Raises ServerSilent, after which nothing more can be read, or ServerUnreachable.
        """
        with _network_errors("the connection broke", timeout_s):
            # Zero would not mean "at once" but "non-blocking".
            self._socket.settimeout(max(timeout_s, 0.001))
            return self._response.read1(READ_BYTES)

    def read_all(self, timeout_s: float = ANSWER_TIMEOUT_S) -> bytes:
        """The body, cut at BODY_LIMIT_BYTES. Raises like `read_some`."""
        deadline_s = time.monotonic() + timeout_s
        body = b""
        while len(body) < BODY_LIMIT_BYTES and (some := self.read_some(deadline_s - time.monotonic())):
            body += some
        return body[:BODY_LIMIT_BYTES]

    def close(self) -> None:
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Location:
    """Where a URL leads: the connection to make, and the target to ask it for."""

    is_secure: bool
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises InvalidRequest, whose text does not hold a password."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            if host is not None and ":" not in host:
                host = host.encode("idna").decode()  # refuses empty and overlong labels, too
        except ValueError as error:
            raise InvalidRequest(f"the URL cannot be used: {error}") from None
        if parts.username is not None:
            raise InvalidRequest("the URL must not hold a user name or password: they would not be sent")
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise InvalidRequest(f"{url!r} is no URL of a server: write http://host:port or https://host")
        target = quote(parts.path or "/", safe=_PATH_SAFE)
        if parts.query:
            target += "?" + quote(parts.query, safe=_PATH_SAFE + "?")
        return cls(parts.scheme == "https", host, port or _DEFAULT_PORTS[parts.scheme], target)

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if not self.is_secure:
            return http.client.HTTPConnection(self.host, self.port, timeout_s)
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=context)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoint(server_url: str, path: str) -> str:
    """The URL of a route of the server that stands at `server_url`, which may have a path of its own.
    Raises InvalidRequest."""
    if "?" in server_url or "#" in server_url:
        raise InvalidRequest(f"{server_url!r}: give the server's URL, without a query")
    return server_url.rstrip("/") + path


def stream_url(server_url: str, topic_id: str) -> str:
    """Raises InvalidTopicId or InvalidRequest."""
    stream_key(topic_id)
    return endpoint(server_url, f"/v1/sse/{topic_id}")


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that an answer holds; empty where it holds something else."""
    try:
        decoded: Any = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], decoded) if isinstance(decoded, dict) else {}


def one_line(text: str) -> str:
    """A stranger's text, fit for a terminal: no control characters, one line, bounded."""
    printable = "".join(char if char.isprintable() else " " for char in text[: DETAIL_LIMIT_CHARS * 2])
    return " ".join(printable.split())[:DETAIL_LIMIT_CHARS]


@contextmanager
def _network_errors(what: str, timeout_s: float) -> Generator[None]:
    """The one place where what `http.client`, `ssl` and the sockets raise becomes ours."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise ServerNotTrusted(
            f"{what}: the certificate is not accepted ({error.verify_message}); "
            "a CA of your own is named with SSL_CERT_FILE"
        ) from error
    except TimeoutError as error:
        raise ServerSilent(f"{what}: nothing for {timeout_s:.3g} s") from error
    except http.client.IncompleteRead as error:
        raise ServerUnreachable(f"{what}: cut inside the answer") from error
    except (OSError, http.client.HTTPException) as error:
        raise ServerUnreachable(f"{what}: {one_line(str(error)) or type(error).__name__}") from error


def _detail(response: Response, body: bytes) -> str:
    """What the answer says itself: where it redirects to, or a problem's detail (RFC 9457)."""
    if location := response.header("Location"):
        return f"use {one_line(location)}"
    if media_type(response.header("Content-Type")) == "application/problem+json":
        return one_line(str(json_object(body).get("detail", "")))
    return ""


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
