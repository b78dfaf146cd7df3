"""A deploy under load: SIGTERM, a new server on the same port, and no client may lose or repeat an event.

The clients here are careful where those of load_process.py are fast: they decode the transfer coding, keep
the last event id, obey `retry:` and reconnect, as a browser does.
"""

from __future__ import annotations

import errno
import heapq
import os
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from bench import wire
from bench.load import LoadFailed
from bench.peers import Stalecast
from bench.processes import Server
from bench.publisher import Publisher
from bench.results import Leg
from bench.stage import Stage

MS_PER_S = 1000
READ_BYTES = 65536
HEAD_END = b"\r\n\r\n"
LINE_END = b"\r\n"
BLOCK_END = b"\n\n"
WORKERS = 2
BROWSER_RETRY_MS = 3000  # used where a server sends no `retry:`
REFUSED_RETRY_S = 0.3  # nobody listens for a moment between two servers: ask again soon
CONNECTS_IN_FLIGHT = 500
BIND_RETRY_S = 0.1
START_ATTEMPTS = 20
POLL_S = 0.05
GREET_TIMEOUT_S = 60
RESUME_TIMEOUT_S = 60  # beyond the drain time
AFTERWARDS_S = 1.0  # publishing goes on after the last client has resumed
DELIVER_TIMEOUT_S = 10
SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Size:
    clients: int
    rate_hz: int
    drain_s: int
    before_s: float  # publishing before SIGTERM


FULL = Size(clients=2000, rate_hz=20, drain_s=10, before_s=3)
QUICK = Size(clients=100, rate_hz=20, drain_s=2, before_s=1)


class State(Enum):
    CONNECTING = auto()
    GREETING = auto()  # asked, no `id:` block yet
    STREAMING = auto()
    WAITING = auto()  # for its time to connect, or to connect again
    REFUSED = auto()  # answered with something that is no stream: a browser gives up here


class Decoder:
    """One response: head, then chunks, then the last chunk. `feed` yields the blocks of the event stream."""

    def __init__(self) -> None:
        self.status_line = b""
        self.ended = False  # by the last chunk, as the protocol wants it
        self._in_head = True
        self._raw = bytearray()
        self._text = bytearray()

    @property
    def accepted(self) -> bool:
        return self.status_line.startswith(b"HTTP/1.1 200")

    def feed(self, data: bytes) -> Iterator[bytes]:
        raw = self._raw
        raw += data
        if self._in_head:
            end = raw.find(HEAD_END)
            if end < 0:
                return
            self.status_line = bytes(raw[: raw.find(LINE_END)])
            self._in_head = False
            del raw[: end + len(HEAD_END)]
        if not self.accepted:
            return
        while not self.ended and (line_end := raw.find(LINE_END)) >= 0:
            size = int(raw[:line_end], 16)
            begin = line_end + len(LINE_END)
            end = begin + size
            if len(raw) < end + len(LINE_END):
                break
            self._text += raw[begin:end]
            del raw[: end + len(LINE_END)]
            self.ended = size == 0
        while (end := self._text.find(BLOCK_END)) >= 0:
            block = bytes(self._text[:end])
            del self._text[: end + len(BLOCK_END)]
            yield block


@dataclass(slots=True)
class Client:
    state: State = State.WAITING
    decoder: Decoder = field(default_factory=Decoder)
    last_event_id: str | None = None
    retry_ms: int = BROWSER_RETRY_MS
    next_seq: int = 0
    retry_seen: bool = False  # after SIGTERM
    clean_ends: int = 0
    cuts: int = 0  # also a clean end that nobody asked for
    resumed: bool = False
    lost: int = 0
    repeated: int = 0
    reloads: int = 0


class Crowd:
    """All clients, their sockets and their times to reconnect."""

    def __init__(self, port: int, topic: str, count: int) -> None:
        self.clients = [Client() for _ in range(count)]
        self.terminated = False  # set with the SIGTERM
        self.topic = topic
        self._address = ("127.0.0.1", port)
        self._epoll = select.epoll()
        self._by_fd: dict[int, Client] = {}
        self._sockets: dict[int, socket.socket] = {}
        # (due, a number that decides between equals, client)
        self._due: list[tuple[float, int, Client]] = [
            (0.0, at, client) for at, client in enumerate(self.clients)
        ]
        self._ticket = count

    def count(self, *states: State) -> int:
        return sum(client.state in states for client in self.clients)

    def settled(self) -> bool:
        """Everyone streams from its second connection, or was turned away for good."""
        return all(
            client.state is State.REFUSED or (client.resumed and client.state is State.STREAMING)
            for client in self.clients
        )

    def wait_streaming(self, timeout_s: float) -> None:
        """Raises `LoadFailed`."""
        deadline = time.monotonic() + timeout_s
        while (streaming := self.count(State.STREAMING)) < len(self.clients):
            if time.monotonic() > deadline or self.count(State.REFUSED):
                raise LoadFailed(f"{streaming} of {len(self.clients)} clients greeted")
            self.step(POLL_S)

    def step(self, timeout_s: float) -> None:
        in_flight = self.count(State.CONNECTING, State.GREETING) if self._due else 0
        now = time.monotonic()
        while self._due and self._due[0][0] <= now and in_flight < CONNECTS_IN_FLIGHT:
            self._open(heapq.heappop(self._due)[2])
            in_flight += 1
        for fd, _ in self._epoll.poll(timeout_s):
            client = self._by_fd[fd]
            if client.state is State.CONNECTING:
                self._ask(fd, client)
            else:
                self._read(fd, client)

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._epoll.close()

    def _open(self, client: Client) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self._address)  # a refusal shows at the first write
        fd = sock.fileno()
        client.state, client.decoder = State.CONNECTING, Decoder()
        self._by_fd[fd], self._sockets[fd] = client, sock
        self._epoll.register(fd, select.EPOLLOUT)

    def _ask(self, fd: int, client: Client) -> None:
        try:
            os.write(fd, wire.request_head(self.topic, client.last_event_id))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
                raise
            self._again(fd, client, REFUSED_RETRY_S)
            return
        client.state = State.GREETING
        self._epoll.modify(fd, select.EPOLLIN)

    def _read(self, fd: int, client: Client) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        for block in client.decoder.feed(data):
            self._take_block(client, block)
        if client.decoder.status_line and not client.decoder.accepted:
            self._leave(fd)
            client.state = State.REFUSED
        elif client.decoder.ended and self.terminated and not client.resumed:
            client.clean_ends += 1
            self._again(fd, client, client.retry_ms / MS_PER_S)
        elif not data and not client.decoder.status_line:
            # Accepted by a server about to go, never answered: to a browser a network error, so it retries.
            self._again(fd, client, REFUSED_RETRY_S)
        elif client.decoder.ended or not data:
            client.cuts += 1
            self._again(fd, client, client.retry_ms / MS_PER_S)

    def _leave(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._by_fd[fd]
        self._sockets.pop(fd).close()

    def _again(self, fd: int, client: Client, after_s: float) -> None:
        self._leave(fd)
        client.state = State.WAITING
        self._ticket += 1
        heapq.heappush(self._due, (time.monotonic() + after_s, self._ticket, client))

    def _take_block(self, client: Client, block: bytes) -> None:
        event_id: str | None = None
        has_data = False
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            if name == b"retry":
                client.retry_ms = int(value)
                # The new server's greeting has one as well; what counts is the old one's farewell.
                if self.terminated and client.state is State.STREAMING and not client.resumed:
                    client.retry_seen = True
            elif name == b"id":
                event_id = value.strip().decode()
            elif name == b"data":
                has_data = True
        if event_id is not None:
            client.last_event_id = event_id
            if client.state is State.GREETING:
                client.state = State.STREAMING
                client.resumed = self.terminated
        if has_data:
            self._take_event(client, block)

    def _take_event(self, client: Client, block: bytes) -> None:
        token = wire.TOKEN_PATTERN.search(block)
        if token is None:
            client.reloads += wire.RELOAD_MARK in block
            return
        seq = int(token[1])
        if seq < client.next_seq:
            client.repeated += 1
            return
        client.lost += seq - client.next_seq
        client.next_seq = seq + 1


class Successor:
    """Starts the new server as soon as the port can be bound, and again if it ends at once."""

    def __init__(self, redis_url: str, side: Stalecast, port: int) -> None:
        self._redis_url, self._side, self._port = redis_url, side, port
        self._begin = time.monotonic()
        self._next_try = self._begin
        self._attempts = 0
        self.server: Server | None = None
        self.bindable_after_s: float | None = None

    def tick(self) -> None:
        """Raises `ServerFailed` when it has ended too often."""
        now = time.monotonic()
        if now < self._next_try:
            return
        self._next_try = now + BIND_RETRY_S
        if self.bindable_after_s is None:
            if not can_bind(self._port):
                return
            self.bindable_after_s = now - self._begin
        if self.server is None or self.server.process.poll() is not None:
            if self.server is not None and self._attempts >= START_ATTEMPTS:
                self.server.check_alive()
            self._attempts += 1
            self.server = self._side.start(self._redis_url, Path(), port=self._port, workers=WORKERS)


def can_bind(port: int) -> bool:
    with socket.socket() as sock:
        # Connections of the old server may still be open on the port; only a listener is in the way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError:
            return False
        return True


class Deploy:
    """SIGTERM to the old server, a new one on its port, and events all the while."""

    def __init__(self, stage: Stage, side: Stalecast, size: Size, old: Server, crowd: Crowd) -> None:
        self._stage, self._side, self._size, self._old, self._crowd = stage, side, size, old, crowd
        self._terminated_at = 0.0
        self.successor: Successor | None = None
        self.exited_after_s: float | None = None
        self.resumed_after_s: float | None = None

    def run(self) -> int:
        """How many events were published; every client has had time to receive them all."""
        size, crowd = self._size, self._crowd
        with self._stage.publisher(self._side, self._old) as publisher:
            for _ in self._publishing(publisher, size.before_s):
                pass
            self._old.process.terminate()
            self._terminated_at = time.monotonic()
            crowd.terminated = True
            self.successor = Successor(self._stage.redis_url, self._side, self._old.port)
            for now in self._publishing(publisher, size.drain_s + RESUME_TIMEOUT_S):
                self.successor.tick()
                if self.exited_after_s is None and self._old.process.poll() is not None:
                    self.exited_after_s = now - self._terminated_at
                if crowd.settled():
                    self.resumed_after_s = now - self._terminated_at
                    break
            for _ in self._publishing(publisher, AFTERWARDS_S):
                pass
            published = publisher.published[crowd.topic]
        deadline = time.monotonic() + DELIVER_TIMEOUT_S
        while time.monotonic() < deadline and any(client.next_seq < published for client in crowd.clients):
            crowd.step(POLL_S)
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline:
            crowd.step(POLL_S)
        return published

    def _publishing(self, publisher: Publisher, seconds: float) -> Iterator[float]:
        """Publishes and receives for a time; yields the clock after each step."""
        next_event = begin = time.monotonic()
        while (now := time.monotonic()) < begin + seconds:
            if now >= next_event:
                publisher.publish([(self._crowd.topic, time.monotonic_ns())])
                next_event += 1 / self._size.rate_hz
            self._crowd.step(min(POLL_S, max(0.0, next_event - time.monotonic())))
            yield time.monotonic()


def drain(stage: Stage) -> None:
    """Both servers have two workers; each client keeps its own account of what it has seen."""
    size = QUICK if stage.quick else FULL
    side = Stalecast({"STALECAST_DRAIN_S": str(size.drain_s)})
    old = side.start(stage.redis_url, Path(), workers=WORKERS)
    crowd = Crowd(old.port, stage.new_topic(), size.clients)
    deploy = Deploy(stage, side, size, old, crowd)
    try:
        old.wait_ready()
        crowd.wait_streaming(GREET_TIMEOUT_S)
        published = deploy.run()
        _report(stage, size, crowd, deploy, published)
    finally:
        crowd.close()
        old.kill()
        if deploy.successor is not None and deploy.successor.server is not None:
            deploy.successor.server.stop()


def _report(stage: Stage, size: Size, crowd: Crowd, deploy: Deploy, published: int) -> None:
    clients = crowd.clients
    good = {
        "retry_seen": sum(client.retry_seen for client in clients),
        "clean_end": sum(client.clean_ends > 0 for client in clients),
        "resumed": sum(client.resumed for client in clients),
    }
    bad = {
        "cut_early": sum(client.cuts for client in clients),
        "refused": crowd.count(State.REFUSED),
        "lost": sum(client.lost + max(0, published - client.next_seq) for client in clients),
        "repeated": sum(client.repeated for client in clients),
        "reload_required": sum(client.reloads for client in clients),
    }
    times = {
        "port_free_s": deploy.successor.bindable_after_s if deploy.successor else None,
        "resumed_s": deploy.resumed_after_s,
        "gone_s": deploy.exited_after_s,
    }
    figures = {name: float(count) for name, count in {"events": published, **good, **bad}.items()}
    for name, at in times.items():
        if at is not None:
            figures[name] = at
    stage.result.legs.append(Leg({"clients": size.clients}, Stalecast.name, 0, figures))
    stage.result.violations += [
        f"{name}: {count} of {size.clients}" for name, count in good.items() if count < size.clients
    ]
    stage.result.violations += [f"{name}: {count}" for name, count in bad.items() if count]
    stage.result.notes.append(
        f"drain time {size.drain_s} s; from SIGTERM on: the port free, the old server gone, everyone resumed"
    )
