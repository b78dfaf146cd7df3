"""Appends events with XADD and does not wait: the load's own loop must get back to its sockets."""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable

import hiredis

from bench import redis_socket, wire

DEFAULT_REASON = b"created"
CLOSE_TIMEOUT_S = 5


class Publisher:
    """Numbers the events of each topic from 0. Only this file writes to a topic's stream."""

    def __init__(self, redis_url: str, reason: bytes = DEFAULT_REASON) -> None:
        self.published: defaultdict[str, int] = defaultdict(int)
        self._reason = reason
        self._sock = redis_socket.open_redis(redis_url)
        self._reader = hiredis.Reader()
        self._unanswered = 0

    def publish(self, events: Iterable[tuple[str, int]]) -> None:
        """Sends (topic, published_ns) pairs as one pipeline; replies are read later.

        Raises `hiredis.HiredisError` if Redis refused an earlier event.
        """
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
        """Waits for every reply, so that a refused event cannot pass for a lost one."""
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
