"""One careful, slow subscriber, to learn the event ids of a side: what the load's subscribers resume from."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from bench import wire
from bench.load_process import ACCEPTED, HEAD_END, SHOWN_BYTES, LoadFailed, request_head

if TYPE_CHECKING:
    from bench.peers.side import Dialect

GREET_TIMEOUT_S = 30
READ_BYTES = 65536
CRLF = b"\r\n"
CHUNKED = b"\r\ntransfer-encoding: chunked"


class Decoder:
    """Bytes of one HTTP/1.1 response in, lines of its body out. No I/O.

    Takes the chunked transfer coding (RFC 9112, section 7.1) and a body that ends with the connection.
    """

    def __init__(self) -> None:
        self.head = b""  # complete with its status line, once it is there
        self._chunked = False
        self._chunk_left = 0  # of its body and the line end behind it
        self._ended = False  # by the last chunk
        self._coded = bytearray()
        self._line = bytearray()  # the body's last line, if its end is still to come

    @property
    def accepted(self) -> bool:
        return self.head.startswith(ACCEPTED)

    def feed(self, data: bytes) -> list[bytes]:
        """Complete lines without their end, which is a line feed or carriage return and line feed. Raises
        ValueError where a chunk's size is none."""
        self._coded += data
        if not self.head:
            head, end, rest = self._coded.partition(HEAD_END)
            if not end:
                return []
            self.head = bytes(head)
            self._chunked = CHUNKED in self.head.lower()
            self._coded = rest
        if not self._chunked:
            self._line += self._coded
            self._coded.clear()
        while self._chunked and not self._ended and self._coded:
            if not self._chunk_left:
                size, end, rest = self._coded.partition(CRLF)
                if not end:
                    break
                length = int(size.partition(b";")[0], 16)
                self._coded = rest
                self._ended = length == 0
                self._chunk_left = length + len(CRLF)
            body_left = self._chunk_left - len(CRLF)
            self._line += self._coded[: max(0, body_left)]
            taken = min(self._chunk_left, len(self._coded))
            del self._coded[:taken]
            self._chunk_left -= taken
        *lines, self._line = self._line.split(b"\n")
        return [bytes(line.removesuffix(b"\r")) for line in lines]


class Seen(NamedTuple):
    event_id: str
    seq: int


class EventReader:
    """Lines of an event stream in, the bench's events out (WHATWG HTML, section 9.2.6). No I/O.

    A lone carriage return is no line end here: no side sends any.
    """

    def __init__(self) -> None:
        self._last_event_id = ""
        self._data: list[bytes] = []

    def feed(self, line: bytes) -> Seen | None:
        """The event that `line` completes, if it carries the bench's token."""
        if line:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"id" and b"\0" not in value:
                self._last_event_id = value.decode(errors="replace")
            elif name == b"data":
                self._data.append(value)
            return None
        token = wire.TOKEN_PATTERN.search(b"\n".join(self._data))
        self._data.clear()
        return Seen(self._last_event_id, int(token[1])) if token else None


class Probe:
    """A subscriber of `topic` from now on."""

    def __init__(self, port: int, dialect: Dialect, topic: str) -> None:
        """Returns when it has been greeted. Raises `LoadFailed`."""
        self._decoder, self._reader = Decoder(), EventReader()
        self._mark = dialect.greeting_mark.lstrip(b"\n")  # a line begins so
        self._greeted = self._marked = False
        self._seen: list[tuple[str, int]] = []
        try:
            self._sock = socket.create_connection(("127.0.0.1", port), GREET_TIMEOUT_S)
        except OSError as error:
            raise LoadFailed(f"the probe could not connect: {error}") from error
        try:
            self._sock.sendall(request_head(dialect, topic))
            deadline = time.monotonic() + GREET_TIMEOUT_S
            while not self._greeted:
                self._read(deadline, "was not greeted")
        except BaseException:
            self.close()
            raise

    def wait_events(self, count: int, timeout_s: float) -> list[tuple[str, int]]:
        """The first `count` events since it connected: (event id, number). Raises `LoadFailed`."""
        deadline = time.monotonic() + timeout_s
        while len(self._seen) < count:
            self._read(deadline, f"has {len(self._seen)} of {count} events")
        return self._seen[:count]

    def close(self) -> None:
        self._sock.close()

    def _read(self, deadline: float, otherwise: str) -> None:
        try:
            self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
            data = self._sock.recv(READ_BYTES)
        except TimeoutError:
            raise LoadFailed(f"the probe {otherwise} in time") from None
        except OSError as error:
            raise LoadFailed(f"the probe {otherwise}: {error}") from error
        if not data:
            raise LoadFailed(f"the probe {otherwise}: the server closed the connection")
        for line in self._decoder.feed(data):
            self._marked = self._marked or line.startswith(self._mark)
            self._greeted = self._greeted or (self._marked and not line)
            seen = self._reader.feed(line)
            if seen is not None:
                self._seen.append((seen.event_id, seen.seq))
        if self._decoder.head and not self._decoder.accepted:
            raise LoadFailed(f"the probe was turned away: {self._decoder.head[:SHOWN_BYTES]!r}")
