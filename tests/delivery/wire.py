"""What a client reads off its socket: HTTP/1.1 response, chunks, and the blocks of an event stream.

Strict where a browser is strict (WHATWG HTML, section 9.2.6: a block counts only once its blank line is
there), and as strict as the strictest of them: an `id:` without data sets no cursor in Firefox, and some
libraries make an empty message of a block without data. Anything the promise does not know raises
`WrongBytes`.
"""

from __future__ import annotations

import json
from urllib.parse import urlencode

from .oracle import Event, Item, Position, Reload, Retry
from .plan import Kind

LAST_CHUNK_BYTES = 0
POSITION = "position"


class WrongBytes(ValueError):
    """The server sent what no event stream may contain."""


def request(topic: str, cursor: str | None, kind: Kind) -> bytes:
    query = {"catchup": "compact"} if kind.compact else {}
    if kind.polls:
        query["live"] = "false"
    fields = ["Host: 127.0.0.1", "Accept: text/event-stream"]
    if kind.asgi:
        fields.append("Content-Length: 0")  # a declared body is nothing for the short way
    if cursor is not None and kind.in_query:
        query["lastEventId"] = cursor
    elif cursor is not None:
        fields.append(f"Last-Event-ID: {cursor}")
    target = f"/v1/sse/{topic}" + ("?" + urlencode(query) if query else "")
    return "\r\n".join([f"GET {target} HTTP/1.1", *fields, "", ""]).encode()


def event_id(topic: str, n: int) -> str:
    """The `id` of event n: unique, so that no two events may ever be merged."""
    return f"{topic}.{n}"


class StreamReader:
    """Bytes in, items out.

    `cursor` is what an EventSource would send on reconnecting; `status` is None until the head is complete;
    `complete` says that the last chunk has arrived.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        self.cursor: str | None = None
        self.complete = False
        self._raw = b""
        self._text = b""

    def feed(self, data: bytes, at_s: float) -> list[Item]:
        self._raw += data
        if self.status is None and not self._read_head():
            return []
        if self.status != 200:
            return []
        self._read_chunks()
        *blocks, self._text = self._text.split(b"\n\n")
        return [item for block in blocks for item in self._read_block(block.decode(), at_s)]

    def _read_head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            return False
        self._raw = rest
        self.status = int(head.split(b" ", 2)[1])
        if self.status == 200 and b"transfer-encoding: chunked" not in head.lower():
            raise WrongBytes(f"not chunked: {head!r}")
        return True

    def _read_chunks(self) -> None:
        while not self.complete:
            size, found, rest = self._raw.partition(b"\r\n")
            if not found:
                return
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            if rest[length : length + 2] != b"\r\n":
                raise WrongBytes(f"chunk of {length} bytes does not end with CRLF: {rest[: length + 2]!r}")
            self._text += rest[:length]
            self._raw = rest[length + 2 :]
            self.complete = length == LAST_CHUNK_BYTES
        if self._raw:
            raise WrongBytes(f"bytes after the last chunk: {self._raw!r}")

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
            case "argument_updated":
                return Event(at_s, id_, int(body["id"].split(".")[1]))
            case "reload_required":
                return Reload(at_s, id_, body["reason"])
            case other:
                raise WrongBytes(f"unknown event {other!r}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise WrongBytes(f"no envelope: {data!r}") from error
