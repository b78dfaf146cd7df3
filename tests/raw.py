"""Clients that send bytes as they like: HTTP/1.1 and HTTP/2 without a library that would correct them."""

import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import hpack
import redis
from servers import HOST, AppServer, redis_client, wait_until

from app.http2_limits import Frame
from app.publish import publish_topic_event_sync

TIMEOUT_S = 10.0
RECEIVE_BYTES = 1 << 16
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
ENHANCE_YOUR_CALM = 0xB
# SO_LINGER with 0 s: close() sends RST, and no port is left in TIME_WAIT.
_ABORT = struct.pack("ii", 1, 0)

Field = tuple[bytes, bytes]


def linger_none(sock: Any) -> None:
    """Its close sends RST."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)


def frame(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBL", kind, flags, stream_id) + payload


def setting(code: int, value: int) -> bytes:
    return struct.pack(">HL", code, value)


def reset(stream_id: int, code: int = 8) -> bytes:
    return frame(Frame.RST_STREAM, 0, stream_id, struct.pack(">L", code))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(Frame.WINDOW_UPDATE, 0, stream_id, struct.pack(">L", increment))


def request_fields(method: bytes = b"GET", path: bytes = b"/healthz", *more: Field) -> list[Field]:
    return [
        (b":method", method), (b":path", path), (b":scheme", b"https"), (b":authority", b"localhost"), *more,
    ]  # fmt: skip


def header_block(fields: Sequence[Field]) -> bytes:
    """Without the table that a connection shares: the same bytes mean the same on each."""
    return b"".join(
        b"\x00" + _string(name) + _string(value)  # literal, not indexed (RFC 7541, section 6.2.2)
        for name, value in fields
    )


def _string(text: bytes) -> bytes:
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    length, encoded = length - 127, bytearray([127])
    while length >= 128:
        encoded.append(length % 128 + 128)
        length //= 128
    return bytes([*encoded, length]) + text


def request(stream_id: int, fields: Sequence[Field] = (), *, ended: bool = True) -> bytes:
    flags = END_HEADERS | (END_STREAM if ended else 0)
    return frame(Frame.HEADERS, flags, stream_id, header_block(fields or request_fields()))


@dataclass(frozen=True, slots=True)
class Received:
    kind: int
    flags: int
    stream_id: int
    payload: bytes


class Socket:
    """A connection as bytes, in cleartext or over TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.received = b""

    @classmethod
    def open(cls, server: AppServer, alpn: str = "http/1.1", receive_buffer_bytes: int = 0) -> Self:
        sock = socket.socket()
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(TIMEOUT_S)
        sock.connect((HOST, server.port))
        if server.certificate:
            context = ssl.create_default_context(cafile=server.certificate)
            context.set_alpn_protocols([alpn])
            sock = context.wrap_socket(sock, server_hostname="localhost")
        return cls(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        linger_none(self._sock)
        self._sock.close()

    def send(self, data: bytes) -> bool:
        """Whether the server took it; it may have closed the connection. Raises TimeoutError."""
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise
        except OSError:
            return False
        return True

    def shut_down_writing(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes:
        """Empty at the end, however the connection ended. Raises TimeoutError."""
        try:
            data = self._sock.recv(RECEIVE_BYTES)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        self.received += data
        return data

    def read_until(self, marker: bytes) -> bytes:
        while marker not in self.received:
            assert self.receive(), f"the connection ended instead of bringing {marker!r}: {self.received!r}"
        before, _, self.received = self.received.partition(marker)
        return before + marker

    def read_end(self) -> bytes:
        """Everything up to the end of the connection. Raises TimeoutError."""
        while self.receive():
            pass
        return self.received

    def read_status(self) -> int:
        """Of an HTTP/1.1 response; its head is gone then."""
        return int(self.read_until(b"\r\n\r\n").split(None, 2)[1])


class Http2Socket(Socket):
    """HTTP/2 as frames. Settings are exchanged when it is made."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._decoder = hpack.Decoder()
        self._decoder.max_allowed_table_size = 1 << 32
        self.frames: list[Received] = []

    @classmethod
    def begin(cls, server: AppServer, settings: bytes = b"") -> Self:
        client = cls.open(server, "h2")
        client.send(PREFACE + frame(Frame.SETTINGS, 0, 0, settings))
        return client

    def next_frame(self) -> Received | None:
        """None at the end of the connection."""
        while len(self.received) < 9 or len(self.received) < 9 + int.from_bytes(self.received[:3], "big"):
            if not self.receive():
                return None
        length = int.from_bytes(self.received[:3], "big")
        kind, flags, stream_id = struct.unpack(">BBL", self.received[3:9])
        one = Received(kind, flags, stream_id, self.received[9 : 9 + length])
        self.received = self.received[9 + length :]
        self.frames.append(one)
        return one

    def wait_frame(self, kind: int, stream_id: int = 0) -> Received:
        while one := self.next_frame():
            if (one.kind, one.stream_id) == (kind, stream_id):
                return one
        raise AssertionError(f"no {Frame(kind).name} on {stream_id}, but {self.frames[-5:]}")

    def wait_response(self, stream_id: int) -> dict[bytes, bytes]:
        """The fields of its head."""
        while one := self.next_frame():
            if one.kind == Frame.HEADERS:
                fields = {
                    bytes(name): bytes(value) for name, value in self._decoder.decode(one.payload, raw=True)
                }
                if one.stream_id == stream_id:
                    return fields
            assert (one.kind, one.stream_id) != (Frame.RST_STREAM, stream_id), "reset"
        raise AssertionError(f"no response on {stream_id}, but {self.frames[-5:]}")

    def wait_goaway(self) -> int:
        """Its error code; the connection has ended then."""
        code = None
        while one := self.next_frame():
            if one.kind == Frame.GOAWAY:
                code = struct.unpack(">L", one.payload[4:8])[0]
        assert code is not None, f"closed without a GOAWAY, after {self.frames[-5:]}"
        return code


class Neighbour:
    """An innocent client of topic `neighbour`, on another connection."""

    def __init__(self, server: AppServer, writer: redis.Redis) -> None:
        self._socket = Socket.open(server)
        self._writer = writer
        self._heard = 0
        self._socket.send(b"GET /v1/sse/neighbour HTTP/1.1\r\nHost: x\r\n\r\n")
        self._socket.read_until(b"id: ")

    def check_hears(self) -> None:
        """Publish an event, and wait for it."""
        self._heard += 1
        data = {"id": str(self._heard), "reason": "heard"}
        publish_topic_event_sync(self._writer, "neighbour", "argument_updated", data)
        self._socket.read_until(b'"id":"%d"' % self._heard)

    def close(self) -> None:
        self._socket.__exit__()


@contextmanager
def unharmed(server: AppServer, redis_url: str) -> Iterator[Neighbour]:
    """Whatever is done inside, the process lives, a neighbour hears its events, and no exception is told."""
    pid, before = server.pid, len(server.output())
    with redis_client(redis_url) as writer:
        neighbour = Neighbour(server, writer)
        try:
            yield neighbour
            neighbour.check_hears()
        finally:
            neighbour.close()
    assert server.is_running
    assert server.pid == pid
    log = server.output()[before:]
    faults = [line for line in log.splitlines() if "_failed" in line or "Traceback" in line]
    assert not faults, faults


def log_events(server: AppServer, event: str) -> int:
    return server.output().count(f'"event": "{event}"')


def wait_log(server: AppServer, text: str) -> None:
    wait_until(lambda: text in server.output(), text, TIMEOUT_S)
