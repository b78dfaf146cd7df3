"""The wire format of Server-Sent Events. Pure: every byte a stream sends is shaped here, and read back here.

Source: WHATWG HTML, section 9.2 (server-sent events); RFC 9112, section 7.1 (chunked transfer coding).
"""

import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from app.contracts import POSITION
from app.streams.ids import StreamId

# A comment is the smallest thing that proves a connection alive in both directions. No empty line follows it:
# the blank line ends a block, and libraries that dispatch a block without data make an empty message of it.
HEARTBEAT = b":\n"

# An event name, so that `onmessage` does not hear of it; and data, because Firefox, WebKit and half of all
# libraries pass over the `id:` of a block that has none.
_POSITION_EVENT: Final = f"event: {POSITION}\n".encode()
_POSITION_DATA: Final = f'data: {{"event":"{POSITION}","data":{{}}}}\n\n'.encode()


def event_block(event_id: StreamId, payload: bytes) -> bytes:
    """One event. `payload` is JSON on one line. No `event:` field: `onmessage` shall see every event."""
    return b"id: %d-%d\ndata: %b\n\n" % (event_id.ms, event_id.seq, payload)


def position_block(position: StreamId | None, retry_ms: int | None = None) -> bytes:
    """Where the client stands, which `onmessage` is not told, and when to come back if the line is cut.

    With None, whatever cursor the client has stays as it is. Nothing of a stream is sent as a block without
    data, not even a `retry:` alone: some libraries dispatch that as an empty message.
    """
    retry = b"" if retry_ms is None else b"retry: %d\n" % retry_ms
    if position is None:
        return retry + _POSITION_EVENT + _POSITION_DATA
    return b"%b%bid: %d-%d\n%b" % (retry, _POSITION_EVENT, *position, _POSITION_DATA)


def reload_block(position: StreamId, reason: str) -> bytes:
    """`reload_required`, with the position that the client may resume from once it has reloaded."""
    payload = {"event": "reload_required", "data": {"reason": reason}}
    return event_block(position, json.dumps(payload, separators=(",", ":")).encode())


def chunk(data: bytes) -> bytes:
    """`data` (not empty: an empty chunk would end the stream) as one chunk of HTTP/1.1."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def unchunk(frame: bytes) -> bytes:
    """What `chunk` has framed, for whom something else frames it."""
    return frame[frame.index(b"\n") + 1 : -2]


LAST_CHUNK: Final = b"0\r\n\r\n"

# Beyond any patience, and below where int() refuses.
_RETRY_LIMIT_DIGITS: Final = 15
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class Message(NamedTuple):
    """What a block did. `data`: what `onmessage` is told; None for a block that only moved the cursor or set
    `retry`, and for one with an event name of its own."""

    last_event_id: str
    data: str | None
    retry_ms: int | None


class Parser:
    """The client's half: feed it bytes in any split, and it yields a `Message` for each block.

    `last_event_id` survives blocks, as the standard says. Comments are counted in `comments`.
    """

    def __init__(self, last_event_id: str = "", block_limit_bytes: int = 1 << 20) -> None:
        self.last_event_id = last_event_id
        self.comments = 0
        self._buffer = b""
        self._searched = 0
        self._first = True
        self._data: list[str] = []
        self._data_chars = 0
        self._id: str | None = None
        self._event = ""
        self._retry_ms: int | None = None
        self._limit = block_limit_bytes

    def feed(self, received: bytes) -> Iterator[Message]:
        """Raises ValueError when a line or a block exceeds the limit: the peer is not an event stream."""
        self._buffer += received
        if self._first:
            bom = b"\xef\xbb\xbf"
            if bom.startswith(self._buffer[:3]) and len(self._buffer) < len(bom):
                return
            self._buffer = self._buffer.removeprefix(bom)
            self._first = False
        while (line := self._next_line()) is not None:
            if line == b"":
                if (message := self._end_of_block()) is not None:
                    yield message
            else:
                self._field(line)
            if self._data_chars > self._limit:
                break
        if max(len(self._buffer), self._data_chars) > self._limit:
            raise ValueError(f"a block of an event stream exceeds {self._limit} bytes")

    def _next_line(self) -> bytes | None:
        # From where the last search ended: a long line in small pieces must not be searched again and again.
        match = _LINE_END.search(self._buffer, self._searched)
        if match is None or (match[0] == b"\r" and match.end() == len(self._buffer)):
            # The byte behind a CR decides whether it is CR or CR LF.
            self._searched = match.start() if match is not None else len(self._buffer)
            return None
        line, self._buffer, self._searched = self._buffer[: match.start()], self._buffer[match.end() :], 0
        return line

    def _field(self, line: bytes) -> None:
        if line.startswith(b":"):
            self.comments += 1
            return
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._data_chars += len(value) + 1  # the line's end counts: empty lines must not be free
            case "id" if "\0" not in value:
                self._id = value
            case "event":
                self._event = value
            case "retry" if value.isascii() and value.isdigit():
                self._retry_ms = int(value[:_RETRY_LIMIT_DIGITS])
            case _:
                pass  # unknown

    def _end_of_block(self) -> Message | None:
        moved, retry_ms = self._id is not None, self._retry_ms
        if self._id is not None:
            self.last_event_id = self._id
        data = "\n".join(self._data) if self._data and self._event in ("", "message") else None
        self._data, self._data_chars, self._id, self._event, self._retry_ms = [], 0, None, "", None
        if data is None and not moved and retry_ms is None:
            return None
        return Message(self.last_event_id, data, retry_ms)
