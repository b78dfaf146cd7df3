"""The limit: the least a Python process can do to bring events from Redis to many sockets.

One blocking XREAD on a plain socket, then one `os.write` of the same bytes to every client; all that one
XREAD returned goes out as one write. No framework, no event-loop library, no replay, no heartbeat: a client
that cannot take a whole write is closed, and one that left is noticed at the next event. It serves a single
topic, the first that is asked for.

    python -m bench.peers.limit_server --port 8001 --redis-url redis://127.0.0.1:6379
"""

from __future__ import annotations

import argparse
import os
import select
import socket
from typing import Any

import hiredis

from bench import redis_socket, wire

BACKLOG_CONNECTIONS = 4096  # Linux's usual net.core.somaxconn: more is cut down to it
HEAD_LIMIT_BYTES = 8192
RETRY_MS = 1000
RESPONSE_HEAD = (
    b"HTTP/1.1 200 \r\n"
    b"content-type: text/event-stream\r\n"
    b"cache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Limit:
    def __init__(self, port: int, redis_url: str) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG_CONNECTIONS)
        self.listener.setblocking(False)
        # Linux hands TCP_NODELAY on to accepted sockets: one system call less for each client.
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.redis = redis_socket.open_redis(redis_url)
        self.redis.settimeout(None)
        self.reader = hiredis.Reader()
        self.epoll = select.epoll()
        self.asking: dict[int, bytes] = {}  # clients whose request head is not complete yet
        self.clients: list[int] = []
        self.topic: bytes | None = None
        self.position = b"0-0"

    def serve(self) -> None:
        listener_fd, redis_fd = self.listener.fileno(), self.redis.fileno()
        self.epoll.register(listener_fd, select.EPOLLIN)
        self.epoll.register(redis_fd, select.EPOLLIN)
        while True:
            for fd, _ in self.epoll.poll():
                if fd == redis_fd:
                    self.take_reply()
                elif fd == listener_fd:
                    self.accept_all()
                else:
                    self.take_request(fd)

    def accept_all(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            fd = sock.detach()
            os.set_blocking(fd, False)
            self.asking[fd] = b""
            self.epoll.register(fd, select.EPOLLIN)

    def take_request(self, fd: int) -> None:
        try:
            data = os.read(fd, HEAD_LIMIT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        head = self.asking[fd] + data
        if data and b"\r\n\r\n" not in head and len(head) < HEAD_LIMIT_BYTES:
            self.asking[fd] = head
            return
        # From here on nothing that the client sends is of interest, so its socket leaves the epoll set.
        self.epoll.unregister(fd)
        del self.asking[fd]
        if not data or not self.watch(head):
            os.close(fd)
            return
        first_block = b"retry: %d\n\nid: %b\n\n" % (RETRY_MS, self.position)
        if self.write_all(fd, RESPONSE_HEAD + wire.chunk(first_block)):
            self.clients.append(fd)

    def watch(self, head: bytes) -> bool:
        """Whether the request is for the topic that is served; the first request chooses it."""
        path = head.split(b" ", 2)[1] if head.count(b" ") > 1 else b""
        topic = path.removeprefix(wire.SSE_PATH_PREFIX.encode())
        if self.topic is None and topic != path:
            self.topic = topic
            newest: list[Any] = redis_socket.ask(self.redis, "XREVRANGE", self.key, "+", "-", "COUNT", 1)
            if newest:
                self.position = newest[0][0]
            self.ask_next()
        return topic == self.topic

    @property
    def key(self) -> bytes:
        return wire.TOPIC_KEY_PREFIX.encode() + (self.topic or b"")

    def ask_next(self) -> None:
        self.redis.sendall(redis_socket.pack("XREAD", "BLOCK", 0, "STREAMS", self.key, self.position))

    def take_reply(self) -> None:
        data = self.redis.recv(redis_socket.READ_BYTES)
        if not data:
            raise SystemExit("Redis closed the connection")
        self.reader.feed(data)
        reply: Any = self.reader.gets()
        if reply is False:
            return
        if isinstance(reply, hiredis.HiredisError):
            raise reply
        entries = reply[0][1]
        self.position = entries[-1][0]
        self.ask_next()
        body = b"".join([b"id: %b\ndata: %b\n\n" % (stream_id, fields[1]) for stream_id, fields in entries])
        self.fan_out(wire.chunk(body))

    def fan_out(self, frame: bytes) -> None:
        write, size, failed = os.write, len(frame), False
        for index, fd in enumerate(self.clients):
            try:
                if write(fd, frame) == size:
                    continue
            except OSError:
                pass
            os.close(fd)
            self.clients[index] = -1
            failed = True
        if failed:
            self.clients = [fd for fd in self.clients if fd >= 0]

    def write_all(self, fd: int, data: bytes) -> bool:
        try:
            if os.write(fd, data) == len(data):
                return True
        except OSError:
            pass
        os.close(fd)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description="The bare loop on one topic.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis-url", default="redis://127.0.0.1:6379")
    options = parser.parse_args()
    Limit(options.port, options.redis_url).serve()


if __name__ == "__main__":
    main()
