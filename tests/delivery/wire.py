"""What a client says and reads on its socket, without the socket: TLS or not, HTTP/1.1 or HTTP/2, and the
blocks of an event stream.

Strict where a browser is strict (WHATWG HTML, section 9.2.6: a block counts only once its blank line is
there), and as strict as the strictest of them: an `id:` without data sets no cursor in Firefox, and some
libraries make an empty message of a block without data. Anything the promise does not know raises
`WrongBytes`.
"""

from __future__ import annotations

import json
import ssl
from typing import Protocol
from urllib.parse import urlencode

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from .oracle import Event, Item, Position, Reload, Retry
from .plan import Kind, Transport

LAST_CHUNK_BYTES = 0
POSITION = "position"
EVENT = "argument_updated"
WHOLE_EVENT = "checker.whole"  # no server knows it: nobody but its owner may say that one stands for another
AUTHORITY = "127.0.0.1"
ALPN = {Transport.TLS: "http/1.1", Transport.HTTP2: "h2"}
READ_BYTES = 1 << 16


class WrongBytes(ValueError):
    """The server sent what no event stream may contain."""


def request_target(topic: str, cursor: str | None, kind: Kind) -> str:
    query = {"catchup": "compact"} if kind.compact else {}
    if kind.polls:
        query["live"] = "false"
    if cursor is not None and kind.in_query:
        query["lastEventId"] = cursor
    return f"/v1/sse/{topic}" + ("?" + urlencode(query) if query else "")


def request_fields(cursor: str | None, kind: Kind) -> list[tuple[str, str]]:
    fields = [("accept", "text/event-stream")]
    if cursor is not None and not kind.in_query:
        fields.append(("last-event-id", cursor))
    return fields


def reason(n: int, padding: int) -> str:
    """The `reason` of event n, which tells it from others about the same thing."""
    return f"{n}:" + "x" * padding


def parse_reason(text: str) -> int:
    """Raises ValueError."""
    return int(text.partition(":")[0])


class Exchange:
    """A connection's bytes in, items out.

    `status` is None until the response's head is there; `complete` says that the response has ended as its
    protocol wants it. What `take_output` returns is to be sent, after `begin` and after each `feed`.
    """

    def __init__(
        self, topic: str, cursor: str | None, kind: Kind, transport: Transport, context: ssl.SSLContext | None
    ) -> None:
        self._layer = _Cleartext() if transport is Transport.CLEAR else _Tls(context, ALPN[transport])
        self._http = _Http2() if transport is Transport.HTTP2 else _Http1(asgi=kind.asgi)
        self._blocks = BlockReader()
        self._http.ask(request_target(topic, cursor, kind), request_fields(cursor, kind))

    @property
    def status(self) -> int | None:
        return self._http.status

    @property
    def complete(self) -> bool:
        return self._http.complete

    def take_output(self) -> bytes:
        self._layer.say(self._http.take_output())
        return self._layer.take_output()

    def feed(self, data: bytes, at_s: float) -> list[Item]:
        """Raises WrongBytes."""
        body = self._http.feed(self._layer.feed(data))
        return self._blocks.feed(body, at_s) if self.status == 200 else []


# --- what is around HTTP ---


class _Layer(Protocol):
    def say(self, data: bytes) -> None: ...

    def take_output(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes: ...


class _Cleartext:
    def __init__(self) -> None:
        self._output = b""

    def say(self, data: bytes) -> None:
        self._output += data

    def take_output(self) -> bytes:
        output, self._output = self._output, b""
        return output

    def feed(self, data: bytes) -> bytes:
        return data


class _Tls:
    """Without a socket, so that a client may be cancelled at any moment and loses no byte."""

    def __init__(self, context: ssl.SSLContext | None, alpn: str) -> None:
        assert context is not None, "no certificate was made"
        context.set_alpn_protocols([alpn])
        self._alpn = alpn
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=AUTHORITY)
        self._to_say = b""
        self._shaken = False
        self._shake()

    def say(self, data: bytes) -> None:
        self._to_say += data

    def take_output(self) -> bytes:
        if self._shaken and self._to_say:
            self._tls.write(self._to_say)
            self._to_say = b""
        return self._out.read()

    def feed(self, data: bytes) -> bytes:
        self._in.write(data)
        if not self._shaken:
            self._shake()
        plain = b""
        while self._shaken:
            try:
                more = self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                break  # it said goodbye
            if not more:
                break
            plain += more
        return plain

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._shaken = True
        if self._tls.selected_alpn_protocol() != self._alpn:
            raise WrongBytes(f"{self._tls.selected_alpn_protocol()} was chosen, {self._alpn} was offered")


# --- the two versions of HTTP ---


class _Http(Protocol):
    status: int | None
    complete: bool

    def ask(self, target: str, fields: list[tuple[str, str]]) -> None: ...

    def take_output(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes:
        """The response's body. Raises WrongBytes."""
        ...


class _Http1:
    def __init__(self, *, asgi: bool = False) -> None:
        self.status: int | None = None
        self.complete = False
        self._asgi = asgi
        self._output = b""
        self._raw = b""

    def ask(self, target: str, fields: list[tuple[str, str]]) -> None:
        lines = [
            f"GET {target} HTTP/1.1",
            f"host: {AUTHORITY}",
            *(f"{name}: {text}" for name, text in fields),
        ]
        if self._asgi:
            lines.append("content-length: 0")  # a declared body is nothing for the short way
        self._output = "\r\n".join([*lines, "", ""]).encode()

    def take_output(self) -> bytes:
        output, self._output = self._output, b""
        return output

    def feed(self, data: bytes) -> bytes:
        self._raw += data
        if self.status is None and not self._read_head():
            return b""
        return self._read_chunks() if self.status == 200 else b""

    def _read_head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        self._raw = rest
        self.status = int(head.split(b" ", 2)[1])
        if self.status == 200 and b"transfer-encoding: chunked" not in head.lower():
            raise WrongBytes(f"not chunked: {head!r}")
        return True

    def _read_chunks(self) -> bytes:
        body = b""
        while not self.complete:
            size, found, rest = self._raw.partition(b"\r\n")
            if not found:
                return body
            length = int(size, 16)
            if len(rest) < length + 2:
                return body
            if rest[length : length + 2] != b"\r\n":
                raise WrongBytes(f"chunk of {length} bytes does not end with CRLF: {rest[: length + 2]!r}")
            body += rest[:length]
            self._raw = rest[length + 2 :]
            self.complete = length == LAST_CHUNK_BYTES
        if self._raw:
            raise WrongBytes(f"bytes after the last chunk: {self._raw!r}")
        return body


class _Http2:
    def __init__(self) -> None:
        self.status: int | None = None
        self.complete = False
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))

    def ask(self, target: str, fields: list[tuple[str, str]]) -> None:
        self._h2.initiate_connection()
        pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", AUTHORITY), (":path", target)]
        self._h2.send_headers(self._h2.get_next_available_stream_id(), [*pseudo, *fields], end_stream=True)

    def take_output(self) -> bytes:
        return self._h2.data_to_send()

    def feed(self, data: bytes) -> bytes:
        body = b""
        try:
            happened = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise WrongBytes(f"not HTTP/2: {error!r}") from error
        for one in happened:
            match one:
                case h2.events.ResponseReceived():
                    self.status = int(dict(one.headers)[b":status"])
                case h2.events.DataReceived():
                    if self.complete:
                        raise WrongBytes(f"bytes after the end of the stream: {one.data!r}")
                    body += one.data
                    # What was read may be sent again: a client that stalls does so by not reading.
                    if one.flow_controlled_length:
                        self._h2.acknowledge_received_data(one.flow_controlled_length, one.stream_id)
                case h2.events.StreamEnded():
                    self.complete = True
                case h2.events.StreamReset():
                    raise ConnectionResetError(f"the stream was reset: {one.error_code}")
                case _:
                    pass
        return body


# --- the blocks of an event stream ---


class BlockReader:
    """`cursor` is what an EventSource would send on reconnecting."""

    def __init__(self) -> None:
        self.cursor: str | None = None
        self._text = b""

    def feed(self, data: bytes, at_s: float) -> list[Item]:
        *blocks, self._text = (self._text + data).split(b"\n\n")
        return [item for block in blocks for item in self._read_block(block.decode(), at_s)]

    def _read_block(self, block: str, at_s: float) -> list[Item]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if line and name:  # no name: a comment
                if name in fields:
                    raise WrongBytes(f"field {name} twice in {block!r}")
                fields[name] = value.removeprefix(" ")
        if "data" not in fields:
            raise WrongBytes(f"a block without data: {block!r}")
        items: list[Item] = []
        if "retry" in fields:
            items.append(Retry(at_s))
        if "id" in fields:
            self.cursor = fields["id"]
            items.append(_item(self.cursor, fields.get("event"), fields["data"], at_s))
        elif fields.get("event") != POSITION:
            raise WrongBytes(f"data without an id: {block!r}")
        return items


def _item(id_: str, name: str | None, data: str, at_s: float) -> Position | Event | Reload:
    try:
        envelope = json.loads(data)
        body = envelope["data"]
        if name not in (None, POSITION) or (name == POSITION) != (envelope["event"] == POSITION):
            raise WrongBytes(f"event {name!r} with {data!r}")
        match envelope["event"]:
            case "position" if not body:
                return Position(at_s, id_)
            case "argument_updated" | "checker.whole":
                return Event(at_s, id_, parse_reason(body["reason"]))
            case "reload_required":
                return Reload(at_s, id_, body["reason"])
            case other:
                raise WrongBytes(f"unknown event {other!r}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise WrongBytes(f"no envelope: {data!r}") from error
