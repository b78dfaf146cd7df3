"""The load: thousands of SSE subscribers in one process, each a descriptor and the number it expects next.

It shares a core with Redis and must never be slower than the server's send loop, or it would measure itself.
So the way of a receipt is short: `os.read`, the clock, and a comparison with a frame that another subscriber
has had already. Only the first to get a frame parses it, and latencies are worked out when the run is over.
It relies on a server that never splits an SSE line over two chunks of the transfer coding; one that did would
show as losses.

`lag` is the longest time from an epoll return until all its ready sockets were handled. `busy` is the share
of the time under way (from an event's publishing to its last receipt) that was spent so: near 1, the load is
the limit.
"""

from __future__ import annotations

import os
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench import wire
from bench.publisher import Publisher

NS_PER_S = 1_000_000_000
READ_BYTES = 65536  # a joined burst of 200 events is about 30 kB: one read takes it whole
GREETING_LIMIT_BYTES = 16384
LINE_FEED = 0x0A
FRAME_KEY_BYTES = 96  # reaches into the first event's id, so that different frames seldom share it
FRAMES_LIMIT = 1024  # what is held for comparison; one that was dropped is parsed again
CONNECTS_IN_FLIGHT = 500  # well under the server's listen backlog: a dropped SYN would cost a whole second
CONNECT_TIMEOUT_S = 120
LEAD_S = 0.2  # from the start of a run to its first event
SETTLE_S = 0.3  # how long a finished run still listens for duplicates
TICK_S = 0.5
# epoll sleeps whole milliseconds, rounded up; select, to the microsecond, does the rest of a wait.
EPOLL_GRAIN_S = 0.001


class LoadFailed(Exception):
    """The server refused a subscriber, or did not greet it in time: there is nothing to measure."""


class Frame(NamedTuple):
    """What one read brought, up to its last complete line.

    `first_seq` is -1 where it is not plainly a run of events without a gap and nothing else.
    """

    data: bytes
    number: int  # counts the frames that were parsed, from 0
    first_seq: int
    next_seq: int
    events: int


@dataclass(slots=True)
class Receipts:
    """What the subscribers received in one run or, after `add`, in several."""

    latencies_ns: array[int] = field(default_factory=lambda: array("q"))
    spans_ns: list[int] = field(default_factory=list[int])  # an event's publishing to its last receipt
    received: int = 0
    lost: int = 0
    repeated: int = 0  # duplicates, and events that came after a later one
    reloads: int = 0
    cut: int = 0  # connections that ended
    publish_late_ns: int = 0  # the worst delay of the publisher behind its schedule
    lag_ns: int = 0
    handling_ns: int = 0
    elapsed_ns: int = 0

    def add(self, other: Receipts) -> None:
        self.latencies_ns.extend(other.latencies_ns)
        self.spans_ns.extend(other.spans_ns)
        self.received += other.received
        self.lost += other.lost
        self.repeated += other.repeated
        self.reloads += other.reloads
        self.cut += other.cut
        self.publish_late_ns = max(self.publish_late_ns, other.publish_late_ns)
        self.lag_ns = max(self.lag_ns, other.lag_ns)
        self.handling_ns += other.handling_ns
        self.elapsed_ns += other.elapsed_ns

    @property
    def busy(self) -> float:
        under_way_ns = min(self.elapsed_ns, sum(self.spans_ns))
        return self.handling_ns / under_way_ns if under_way_ns else 0.0


class Load:
    def __init__(self, port: int) -> None:
        self._address = ("127.0.0.1", port)
        self._epoll = select.epoll()
        self._topic_of: dict[int, str] = {}
        # What came before the first `id:` block has ended; None: not connected yet.
        self._greetings: dict[int, bytes | None] = {}
        self._next_seq: dict[int, int] = {}
        self._partial: dict[int, bytes] = {}  # the start of a line whose end has not come yet
        self.receipts = Receipts()
        self.heartbeats: dict[int, int] = {}
        # Every subscriber of a topic gets the same bytes: the newest frames by how they begin.
        self._frames: dict[bytes, Frame] = {}
        self._tokens: list[list[tuple[int, int]]] = []  # (seq, published_ns) by a frame's number
        self._read_at_ns = array("q")
        self._read_frame = array("q")
        self._absorb = self._make_absorb()

    def connect(
        self, topics: Iterable[str], in_flight: int = CONNECTS_IN_FLIGHT, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> float:
        """Connects one subscriber for each entry of `topics`; seconds until all have their first `id:` block.

        At most `in_flight` of them are on their way at a time. Subscribers that are connected already go on
        receiving. Raises `LoadFailed`.
        """
        waiting = deque(topics)
        begin = time.monotonic()
        while waiting or self._greetings:
            while waiting and len(self._greetings) < in_flight:
                self._open(waiting.popleft())
            self.poll_once(TICK_S)
            if time.monotonic() - begin > timeout_s:
                missing = len(self._greetings) + len(waiting)
                raise LoadFailed(f"{missing} clients not greeted after {timeout_s} s")
        return time.monotonic() - begin

    def run(
        self,
        publisher: Publisher,
        plan: Sequence[tuple[float, str]],
        wait_s: float,
        on_tick: Callable[[], None] | None = None,
    ) -> Receipts:
        """Publishes `plan`, (seconds from the start, topic) in order, and receives it.

        An event's clock is its place in the plan, not the moment it was really sent, so a late publisher
        counts against the figures and not in their favour. Ends when every subscriber has everything, or
        `wait_s` after the last event; what is missing then is lost. Subscribers must have connected before
        `publisher`'s first event.
        """
        receipts = self.receipts = Receipts()
        self._frames, self._tokens = {}, []
        self._read_at_ns, self._read_frame = array("q"), array("q")
        self._absorb = self._make_absorb()
        watchers: dict[str, int] = {}
        for topic in self._topic_of.values():
            watchers[topic] = watchers.get(topic, 0) + 1
        expected = sum(watchers.get(topic, 0) for _, topic in plan)

        clock = time.monotonic_ns
        begin = clock() + int(LEAD_S * NS_PER_S)
        due_ns = [begin + int(offset_s * NS_PER_S) for offset_s, _ in plan]
        run_begin = clock()
        give_up = (due_ns[-1] if plan else begin) + int(wait_s * NS_PER_S)
        next_tick = run_begin
        sent = 0
        while (now := clock()) < give_up:
            if on_tick is not None and now >= next_tick:
                next_tick = now + int(TICK_S * NS_PER_S)
                on_tick()
            if sent < len(plan):
                if due_ns[sent] <= now:
                    batch_begin = sent
                    while sent < len(plan) and due_ns[sent] <= now:
                        sent += 1
                    receipts.publish_late_ns = max(receipts.publish_late_ns, now - due_ns[batch_begin])
                    publisher.publish((plan[at][1], due_ns[at]) for at in range(batch_begin, sent))
            elif receipts.received >= expected:
                break
            until_ns = due_ns[sent] if sent < len(plan) else give_up
            self.poll_once(min(TICK_S, max(0, until_ns - clock()) / NS_PER_S))
        receipts.elapsed_ns = clock() - run_begin
        self.listen(SETTLE_S)

        last_ns: dict[int, int] = {}
        for read_at_ns, number in zip(self._read_at_ns, self._read_frame, strict=True):
            for _, published_ns in self._tokens[number]:
                receipts.latencies_ns.append(read_at_ns - published_ns)
                last_ns[published_ns] = read_at_ns
        receipts.spans_ns = [last - published for published, last in last_ns.items()]
        for fd, topic in self._topic_of.items():
            total = publisher.published[topic]
            receipts.lost += max(0, total - self._next_seq[fd])
            self._next_seq[fd] = total
        return receipts

    def listen(self, seconds: float) -> None:
        """Receives without publishing."""
        end = time.monotonic() + seconds
        while (left_s := end - time.monotonic()) > 0:
            self.poll_once(min(TICK_S, left_s))

    def poll_once(self, timeout_s: float) -> None:
        if timeout_s >= 2 * EPOLL_GRAIN_S:
            timeout_s -= EPOLL_GRAIN_S
        elif timeout_s > 0:
            select.select((self._epoll,), (), (), timeout_s)
            timeout_s = 0
        ready = self._epoll.poll(timeout_s, max(1, len(self._topic_of)))
        woke = time.monotonic_ns()
        if self._greetings:
            ready = [event for event in ready if not self._greet(event[0])]
        self._receive(ready)
        lag_ns = time.monotonic_ns() - woke
        self.receipts.handling_ns += lag_ns
        self.receipts.lag_ns = max(self.receipts.lag_ns, lag_ns)

    def close(self) -> None:
        for fd in self._topic_of:
            os.close(fd)
        self._topic_of.clear()
        self._greetings.clear()
        self._epoll.close()

    def _open(self, topic: str) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self._address)  # a refusal shows at the first write
        fd = sock.detach()
        self._topic_of[fd] = topic
        self._greetings[fd] = None
        self._epoll.register(fd, select.EPOLLOUT)

    def _greet(self, fd: int) -> bool:
        """Takes a subscriber one step towards its first `id:` block; False if it has had that already."""
        if fd not in self._greetings:
            return False
        seen = self._greetings[fd]
        try:
            if seen is None:
                os.write(fd, wire.request_head(self._topic_of[fd]))
                self._greetings[fd] = b""
                self._epoll.modify(fd, select.EPOLLIN)
                return True
            data = os.read(fd, READ_BYTES)
        except OSError as error:
            raise LoadFailed(f"a subscriber could not connect: {error}") from error
        seen += data
        if not data or len(seen) > GREETING_LIMIT_BYTES:
            raise LoadFailed(f"a subscriber was turned away: {seen[:200]!r}")
        self._greetings[fd] = seen
        head_end = seen.find(b"\r\n\r\n")
        if head_end < 0:
            return True
        head = seen[:head_end].lower()
        if not head.startswith(b"http/1.1 200") or b"\r\ntransfer-encoding: chunked" not in head:
            raise LoadFailed(f"a subscriber was turned away: {seen[:200]!r}")
        id_line = seen.find(b"\nid:", head_end)
        block_end = seen.find(b"\n\n", id_line) if id_line >= 0 else -1
        if block_end >= 0:
            del self._greetings[fd]
            self._next_seq[fd] = self.heartbeats[fd] = 0
            self._absorb(fd, seen[block_end:], time.monotonic_ns())
        return True

    def _receive(self, ready: Sequence[tuple[int, int]]) -> None:
        read, clock, absorb = os.read, time.monotonic_ns, self._absorb
        for fd, _ in ready:
            try:
                data = read(fd, READ_BYTES)
            except BlockingIOError:
                continue
            except ConnectionError:
                data = b""
            now = clock()
            if data:
                absorb(fd, data, now)
            else:
                self.receipts.cut += 1
                # The descriptor stays open until `close`: its number must not come again in this run.
                self._epoll.unregister(fd)

    def _make_absorb(self) -> Callable[[int, bytes, int], None]:
        """The hot function, with all it touches bound as locals."""
        receipts, next_seq, partial, frames = self.receipts, self._next_seq, self._partial, self._frames
        add_time, add_frame = self._read_at_ns.append, self._read_frame.append
        whole_lines, parse, take_apart = self._whole_lines, self._parse, self._take_apart
        line_feed, key_bytes = LINE_FEED, FRAME_KEY_BYTES

        def absorb(fd: int, data: bytes, now: int) -> None:
            if data[-1] != line_feed or fd in partial:
                data = whole_lines(fd, data)
            frame = frames.get(data[:key_bytes])
            if frame is None or frame.data != data:
                frame = parse(data)
            if frame.first_seq == next_seq[fd]:
                next_seq[fd] = frame.next_seq
            else:
                take_apart(fd, frame)
            receipts.received += frame.events
            add_time(now)
            add_frame(frame.number)

        return absorb

    def _whole_lines(self, fd: int, data: bytes) -> bytes:
        """`data` up to its last line's end; what follows waits for the next read."""
        data = self._partial.pop(fd, b"") + data
        line_end = data.rfind(b"\n") + 1
        if line_end < len(data):
            self._partial[fd] = data[line_end:]
        return data[:line_end]

    def _parse(self, data: bytes) -> Frame:
        tokens = [(int(seq), int(published_ns)) for seq, published_ns in wire.TOKEN_PATTERN.findall(data)]
        first_seq = tokens[0][0] if tokens else 0
        plain = all(seq == at for at, (seq, _) in enumerate(tokens, first_seq))
        if not tokens or not plain or wire.RELOAD_MARK in data or wire.count_comments(data):
            first_seq = -1
        if len(self._frames) >= FRAMES_LIMIT:
            self._frames.clear()
        frame = Frame(data, len(self._tokens), first_seq, first_seq + len(tokens), len(tokens))
        self._frames[data[:FRAME_KEY_BYTES]] = frame
        self._tokens.append(tokens)
        return frame

    def _take_apart(self, fd: int, frame: Frame) -> None:
        """A frame that this subscriber did not expect, or that is more than events."""
        self.heartbeats[fd] += wire.count_comments(frame.data)
        self.receipts.reloads += frame.data.count(wire.RELOAD_MARK)
        for seq, _ in self._tokens[frame.number]:
            if seq < self._next_seq[fd]:
                self.receipts.repeated += 1
            else:
                self.receipts.lost += seq - self._next_seq[fd]
                self._next_seq[fd] = seq + 1
