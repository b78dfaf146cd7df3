"""Sends events without waiting for answers, so that a schedule can be kept. Each numbers the events of every
topic from 0; only this file writes to a topic."""

from __future__ import annotations

import base64
import os
import re
import socket
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import hiredis

from bench import redis_socket, wire

DEFAULT_REASON = b"created"
CLOSE_TIMEOUT_S = 5


class Publisher(Protocol):
    published: defaultdict[str, int]  # by topic

    def prepare(self, topics: Iterable[str]) -> None:
        """Opens what publishing to these needs, so that no event waits for it."""
        ...

    def publish(self, events: Iterable[tuple[str, int]]) -> None:
        """Sends (topic, published_ns) pairs at once, in order; answers are read later. Raises when an earlier
        event was refused."""
        ...

    def close(self) -> None:
        """Waits for every answer, so that a refused event cannot pass for a lost one."""
        ...


class RedisPublisher:
    """XADD, all of one call as one pipeline."""

    def __init__(self, redis_url: str, reason: bytes = DEFAULT_REASON) -> None:
        self.published: defaultdict[str, int] = defaultdict(int)
        self._reason = reason
        self._sock = redis_socket.open_redis(redis_url)
        self._sock.settimeout(None)  # with a time-out set, Python waits even where MSG_DONTWAIT says not to
        self._reader = hiredis.Reader()
        self._unanswered = 0

    def prepare(self, topics: Iterable[str]) -> None:
        pass  # one connection serves all

    def publish(self, events: Iterable[tuple[str, int]]) -> None:
        """Raises `hiredis.HiredisError` if Redis refused an earlier event."""
        commands: list[bytes] = []
        for topic, published_ns in events:
            seq = self.published[topic]
            self.published[topic] = seq + 1
            key, maxlen = wire.topic_key(topic), wire.STREAM_MAXLEN_EVENTS
            event = wire.payload(seq, published_ns, self._reason)
            commands.append(redis_socket.pack("XADD", key, "MAXLEN", "~", maxlen, "*", "payload", event))
        self._sock.sendall(b"".join(commands))
        self._unanswered += len(commands)
        self._take_replies(socket.MSG_DONTWAIT)

    def close(self) -> None:
        try:
            self._sock.settimeout(CLOSE_TIMEOUT_S)
            while self._unanswered:
                self._take_replies(0)
        finally:
            self._sock.close()

    def _take_replies(self, flags: int) -> None:
        try:
            data = self._sock.recv(redis_socket.READ_BYTES, flags)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("Redis closed the publisher's connection")
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.HiredisError):
                raise reply
            self._unanswered -= 1


class NchanPublisher:
    """To nchan's publisher location: a WebSocket for each of the first topics, POSTs for all others.

    nchan passes the messages of a WebSocket on to Redis without waiting in between, but takes the POSTs of a
    connection one after the other. A WebSocket has one topic, though, and thousands of them would be a load
    of their own. So what follows the first topics goes as pipelined POSTs over a few keep-alive connections,
    each topic always over the same one, which keeps its order.
    """

    WEBSOCKETS = 8
    POST_CONNECTIONS = 8

    def __init__(self, port: int, path_prefix: str, reason: bytes = DEFAULT_REASON) -> None:
        """`path_prefix`: the topic follows."""
        self.published: defaultdict[str, int] = defaultdict(int)
        self._address = ("127.0.0.1", port)
        self._path_prefix = path_prefix
        self._reason = reason
        self._lanes: list[_NchanLane] = []
        self._lane_of: dict[str, _NchanLane] = {}

    def prepare(self, topics: Iterable[str]) -> None:
        for topic in topics:
            if topic not in self._lane_of:
                self._choose_lane(topic)

    def publish(self, events: Iterable[tuple[str, int]]) -> None:
        """Raises `ConnectionError` if nchan refused an earlier event."""
        messages: defaultdict[_NchanLane, list[bytes]] = defaultdict(list)
        for topic, published_ns in events:
            seq = self.published[topic]
            self.published[topic] = seq + 1
            lane = self._lane_of.get(topic) or self._choose_lane(topic)
            event = wire.payload(seq, published_ns, self._reason)
            messages[lane].append(lane.message(self._path_prefix + topic, event))
        for lane, own in messages.items():
            lane.send(own)
        for lane in self._lanes:
            lane.take_answers()

    def close(self) -> None:
        try:
            for lane in self._lanes:
                lane.wait_answered()
        finally:
            for lane in self._lanes:
                lane.close()

    def _choose_lane(self, topic: str) -> _NchanLane:
        index = len(self._lane_of)
        if index < self.WEBSOCKETS:
            self._lanes.append(_WebSocketLane(self._address, self._path_prefix + topic))
        else:
            index = self.WEBSOCKETS + (index - self.WEBSOCKETS) % self.POST_CONNECTIONS
            if index == len(self._lanes):
                self._lanes.append(_PostLane(self._address))
        lane = self._lane_of[topic] = self._lanes[index]
        return lane


class _NchanLane(ABC):
    """A connection to nchan, which answers what is sent over it in order."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._sock = socket.create_connection(address, CLOSE_TIMEOUT_S)
        # Python waits before every read of a socket that has a timeout, MSG_DONTWAIT or not.
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        self._unanswered = 0

    @abstractmethod
    def message(self, path: str, event: bytes) -> bytes: ...

    @abstractmethod
    def _take_answer(self) -> bool:
        """Takes one whole answer off `_unread`; False if there is none. Raises `ConnectionError` if it is a
        refusal."""

    def send(self, messages: Sequence[bytes]) -> None:
        self._sock.sendall(b"".join(messages))
        self._unanswered += len(messages)

    def take_answers(self) -> None:
        """All that have come, without waiting."""
        while self._unanswered and self._read(socket.MSG_DONTWAIT):
            pass

    def wait_answered(self) -> None:
        self._sock.settimeout(CLOSE_TIMEOUT_S)
        while self._unanswered:
            self._read(0)

    def close(self) -> None:
        self._sock.close()

    def _read(self, flags: int) -> bool:
        try:
            data = self._sock.recv(redis_socket.READ_BYTES, flags)
        except BlockingIOError:
            return False
        if not data:
            raise ConnectionError("nchan closed a publisher's connection")
        self._unread += data
        while self._take_answer():
            self._unanswered -= 1
        return True


class _PostLane(_NchanLane):
    """HTTP/1.1 pipelining (RFC 9112, section 9.3.2)."""

    _LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

    def message(self, path: str, event: bytes) -> bytes:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(event)}\r\n\r\n"
        return head.encode() + event

    def _take_answer(self) -> bool:
        head, end, rest = self._unread.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 2"):
            raise ConnectionError(f"nchan refused an event: {head[:200]!r}")
        length = self._LENGTH.search(head)
        body_bytes = int(length[1]) if length else 0
        if len(rest) < body_bytes:
            return False
        self._unread = rest[body_bytes:]
        return True


class _WebSocketLane(_NchanLane):
    """RFC 6455: nchan publishes each text frame and answers with one."""

    _TEXT = 0x81  # the last, and only, frame of a text message
    _MASKED = 0x80
    # Masking guards proxies against hostile pages (section 10.3); there are neither, and a key of zeros
    # leaves the payload as it is.
    _MASKING_KEY = bytes(4)
    _LENGTH_FOLLOWS = 126  # a length from here on is sent in two bytes of its own

    def __init__(self, address: tuple[str, int], path: str) -> None:
        """Raises `ConnectionError` if nchan refuses the handshake."""
        super().__init__(address)
        self._sock.settimeout(CLOSE_TIMEOUT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._sock.sendall(
            (
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
            ).encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._sock.recv(redis_socket.READ_BYTES)
            head += data
            if not data or not head.startswith(b"HTTP/1.1 101"[: len(head)]):
                raise ConnectionError(f"nchan refused a WebSocket: {head[:200]!r}")
        self._sock.settimeout(None)

    def message(self, path: str, event: bytes) -> bytes:
        size = len(event)
        if size < self._LENGTH_FOLLOWS:
            head = bytes((self._TEXT, self._MASKED | size))
        else:
            head = bytes((self._TEXT, self._MASKED | self._LENGTH_FOLLOWS)) + size.to_bytes(2, "big")
        return head + self._MASKING_KEY + event

    def _take_answer(self) -> bool:
        head = self._unread[:2]
        if len(head) < 2:
            return False
        kind, size = head
        begin = len(head)
        if size == self._LENGTH_FOLLOWS:
            begin += 2
            size = int.from_bytes(self._unread[2:begin], "big")
        end = begin + size
        if len(self._unread) < end:
            return False
        payload, self._unread = self._unread[begin:end], self._unread[end:]
        if kind != self._TEXT:
            raise ConnectionError(f"nchan refused an event: {payload[2:]!r}")  # behind a close frame's code
        return True
