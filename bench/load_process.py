"""The engine of the load: one process, thousands of SSE subscribers, each a descriptor and the number it
expects next. `load.py` starts it, tells it what to do and publishes; an engine only receives.

It must never be slower than the server's send loop, or the load would measure itself. So the way of a
receipt is short: `os.read`, the clock, and a comparison with a frame that another subscriber has had already.
Only the first to get a frame parses it, and latencies are worked out when the run is over, in the parent.
There is no object for a subscriber, and the garbage collector is off.

It relies on a server that never splits an SSE line over two chunks of the transfer coding; one that did would
show as losses. Chunks are not decoded: a size line is a line without an event, also before one of data, and
a body without chunks is as welcome. Reads may end anywhere.

An engine ends when its control connection does, and so with its parent.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import time
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from bench import wire

if TYPE_CHECKING:  # an engine starts faster without the modules of the sides
    from bench.peers.side import Dialect

NS_PER_S = 1_000_000_000
READ_BYTES = 65536  # a joined burst of 200 events is about 30 kB: one read takes it whole
# Before the greeting mark: a head, perhaps a `retry:`. More than this is an error page.
GREETING_LIMIT_BYTES = 16384
LINE_LIMIT_BYTES = 1_048_576  # far above any line of an event
SHOWN_BYTES = 200  # of an answer that turned a subscriber away
LINE_FEED = 0x0A
HEAD_END = b"\r\n\r\n"
ACCEPTED = b"HTTP/1.1 200"
# After the last line's text. The second is also what a chunk's end looks like right after a line: a block
# that is split there counts as greeted a blank line early.
BLOCK_ENDS = (b"\n\n", b"\n\r\n")
FRAME_KEY_BYTES = 96  # reaches into the first event's id, so that different frames seldom share it
FRAMES_LIMIT = 1024  # what is held for comparison; one that was dropped is parsed again
FOREVER_S = -1  # as epoll has it


class LoadFailed(Exception):
    """The server refused a subscriber, or did not greet it in time, or a load process broke down: there is
    nothing to measure."""


def request_head(dialect: Dialect, topic: str, cursor: str | None = None) -> bytes:
    return _request_head(dialect.path_prefix, topic, cursor)


def _request_head(path_prefix: str, topic: str, cursor: str | None) -> bytes:
    resume = f"Last-Event-ID: {cursor}\r\n" if cursor is not None else ""
    return (
        f"GET {path_prefix}{topic} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{resume}\r\n"
    ).encode()


# -- what the parent says


@dataclass(frozen=True, slots=True)
class Connect:
    """Answered by `Connected`, `NotConnected` or `Refused`."""

    topics: Sequence[str]  # a subscriber for each
    in_flight: int
    deadline_ns: int
    cursor: str | None
    first_seq: int
    backlog_events: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run begins; answered by `Begun` at once, by `Finished` when nothing more can be expected."""

    ends: dict[str, int]  # by topic: the number after the run's last event


@dataclass(frozen=True, slots=True)
class Collect:
    """The run is over; answered by `Collected`."""


@dataclass(frozen=True, slots=True)
class Count:
    """Answered by `Counts`: of all that came outside runs."""


@dataclass(frozen=True, slots=True)
class CountHeartbeats:
    """Answered by a list, in the order of connecting."""


Command: TypeAlias = Connect | Run | Collect | Count | CountHeartbeats

# -- what the engine says


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Connected:
    """When every one had been greeted and had caught up."""

    greeted_ns: int
    caught_up_ns: int


@dataclass(frozen=True, slots=True)
class NotConnected:
    """At the deadline."""

    not_greeted: int
    not_caught_up: int  # of those that were greeted


@dataclass(frozen=True, slots=True)
class Refused:
    why: str


@dataclass(frozen=True, slots=True)
class Begun:
    expected: int  # receipts


@dataclass(frozen=True, slots=True)
class Finished:
    pass


@dataclass(slots=True)
class Counts:
    received: int = 0  # by each subscriber, each event once
    lost: int = 0
    repeated: int = 0  # duplicates, and events that came after a later one
    reloads: int = 0
    cut: int = 0  # connections that ended
    lag_ns: int = 0  # the longest time from an epoll return until all its ready sockets were handled
    handling_ns: int = 0  # the sum of these times


@dataclass(frozen=True, slots=True)
class Collected:
    """The receipts of one run. A read is one entry of `read_at_ns` and `read_frame`; a frame has as many
    events as its entry in `frame_events` says, and theirs are the next so many entries of `published_ns`."""

    counts: Counts
    read_at_ns: array[int]
    read_frame: array[int]
    frame_events: array[int]
    published_ns: array[int]


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine's own error, as a traceback; it has ended."""

    text: str


Reply: TypeAlias = (
    Ready | Connected | NotConnected | Refused | Begun | Finished | Collected | Counts | list[int] | Broken
)


# -- the engine


class Frame(NamedTuple):
    """What one read brought, up to its last complete line.

    `first_seq` is -1 where it is not plainly a run of events without a gap and nothing else.
    """

    data: bytes
    number: int  # counts the frames of a run
    first_seq: int
    next_seq: int
    events: int


@dataclass(slots=True)
class Connecting:
    """A `Connect` under way."""

    command: Connect
    waiting: deque[str]  # topics of those that have not begun
    # What came before the end of the greeting; None: the request is not sent yet.
    greetings: dict[int, bytes | None] = field(default_factory=dict[int, bytes | None])
    behind: set[int] = field(default_factory=set[int])  # greeted, and still catching up
    greeted_ns: int = 0  # 0: not all of them yet


class Engine:
    def __init__(self, control: Connection, port: int, path_prefix: str, greeting_mark: bytes) -> None:
        self._control = control
        self._commanded = False  # the control connection has something to read
        self._address = ("127.0.0.1", port)
        self._path_prefix, self._greeting_mark = path_prefix, greeting_mark
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._connecting: Connecting | None = None
        self._topic_of: dict[int, str] = {}
        self._next_seq: dict[int, int] = {}
        # Where `_next_seq` stands when nothing more is under way: what is missing then is lost.
        self._goal: dict[int, int] = {}
        self._cut: set[int] = set()
        self._heartbeats: dict[int, int] = {}
        self._partial: dict[int, bytes] = {}  # the start of a line whose end has not come yet
        self._outside = Counts()
        self._counts = self._outside  # of the run, while there is one
        self._expected = -1  # receipts in the run under way; -1: none, or it is finished
        # Every subscriber of a topic gets the same bytes: the newest frames by how they begin.
        self._frames: dict[bytes, Frame] = {}
        self._tokens: list[list[tuple[int, int]]] = []  # (seq, published_ns) by a frame's number
        self._read_at_ns = array("q")
        self._read_frame = array("q")
        self._receive, self._absorb = self._make_hot()

    def serve(self) -> None:
        """Until the parent hangs up."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._control.send(Ready())
        while True:
            self._poll_once()
            if self._connecting is not None:
                self._connect_on(self._connecting)
            if self._commanded:
                self._commanded = False
                try:
                    self._obey(self._control.recv())
                except (EOFError, ConnectionError):
                    return

    def close(self) -> None:
        for fd in self._topic_of:
            os.close(fd)
        self._epoll.close()

    def _obey(self, command: Command) -> None:
        match command:
            case Connect():
                self._connecting = Connecting(command, deque(command.topics))
                self._connect_on(self._connecting)
            case Run():
                self._begin(command)
            case Collect():
                self._control.send(self._collect())
            case Count():
                self._control.send(self._outside)
            case CountHeartbeats():
                self._control.send(list(self._heartbeats.values()))

    def _poll_once(self) -> None:
        timeout_s = FOREVER_S
        if self._connecting is not None:
            left_ns = self._connecting.command.deadline_ns - time.monotonic_ns()
            timeout_s = max(0, left_ns / NS_PER_S)
        ready = self._epoll.poll(timeout_s, len(self._topic_of) + 1)
        woke = time.monotonic_ns()
        if self._connecting is not None:
            self._take_steps(self._connecting, ready)
        else:
            self._receive(ready)
        counts = self._counts
        lag_ns = time.monotonic_ns() - woke
        counts.handling_ns += lag_ns
        counts.lag_ns = max(counts.lag_ns, lag_ns)
        self._check_finished()
        if counts is self._outside:
            del self._read_at_ns[:], self._read_frame[:]  # nobody asks for them

    # -- connecting

    def _connect_on(self, connecting: Connecting) -> None:
        """Opens what may be opened, and answers when that is all."""
        command, greetings = connecting.command, connecting.greetings
        while connecting.waiting and len(greetings) < command.in_flight:
            fd = self._open(connecting.waiting.popleft())
            greetings[fd] = None
        now = time.monotonic_ns()
        if not greetings and not connecting.greeted_ns:
            connecting.greeted_ns = now
        if not greetings and not connecting.behind:
            self._connecting = None
            self._control.send(Connected(connecting.greeted_ns, now))
        elif now >= command.deadline_ns:
            missing = len(greetings) + len(connecting.waiting)
            self._fail(connecting, NotConnected(missing, len(connecting.behind)))

    def _fail(self, connecting: Connecting, reply: NotConnected | Refused) -> None:
        """From now on the load is good for nothing but closing."""
        for fd in connecting.greetings:
            self._epoll.unregister(fd)
        self._connecting = None
        self._control.send(reply)

    def _open(self, topic: str) -> int:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self._address)  # a refusal shows at the first write
        fd = sock.detach()
        self._topic_of[fd] = topic
        self._next_seq[fd] = self._goal[fd] = self._heartbeats[fd] = 0
        self._epoll.register(fd, select.EPOLLOUT)
        return fd

    def _take_steps(self, connecting: Connecting, ready: Sequence[tuple[int, int]]) -> None:
        try:
            self._receive([event for event in ready if not self._greet(connecting, event[0])])
        except LoadFailed as error:
            self._fail(connecting, Refused(str(error)))
            return
        for fd, _ in ready:
            if fd in connecting.behind and self._next_seq[fd] >= self._goal[fd]:
                connecting.behind.remove(fd)

    def _greet(self, connecting: Connecting, fd: int) -> bool:
        """Takes a subscriber one step towards the end of its greeting; False if it has had that already.

        Raises `LoadFailed`.
        """
        if fd not in connecting.greetings:
            return False
        command, seen = connecting.command, connecting.greetings[fd]
        try:
            if seen is None:
                os.write(fd, _request_head(self._path_prefix, self._topic_of[fd], command.cursor))
                connecting.greetings[fd] = b""
                self._epoll.modify(fd, select.EPOLLIN)
                return True
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            raise LoadFailed(f"a subscriber could not connect: {error}") from error
        now = time.monotonic_ns()
        seen += data
        connecting.greetings[fd] = seen
        rest = self._after_greeting(seen)
        if rest is None:
            if not data:
                raise LoadFailed(f"a subscriber was turned away: {seen[:SHOWN_BYTES]!r}")
            return True
        del connecting.greetings[fd]
        self._next_seq[fd] = command.first_seq
        self._goal[fd] = command.first_seq + command.backlog_events
        if command.backlog_events:
            connecting.behind.add(fd)
        if rest:
            self._absorb(fd, rest, now)
        return True

    def _after_greeting(self, seen: bytes) -> bytes | None:
        """What follows the block with the mark, from the start of a line on; None: it is not complete yet.

        Raises `LoadFailed`.
        """
        head_end = seen.find(HEAD_END)
        refused = head_end >= 0 and not seen.startswith(ACCEPTED)
        # From the head's last line feed on: the body may begin with the mark's line.
        mark = seen.find(self._greeting_mark, head_end) if head_end >= 0 and not refused else -1
        if refused or (mark < 0 and len(seen) > GREETING_LIMIT_BYTES):
            raise LoadFailed(f"a subscriber was turned away: {seen[:SHOWN_BYTES]!r}")
        if mark < 0:
            return None
        ends = [at + len(end) for end in BLOCK_ENDS if (at := seen.find(end, mark + 1)) >= 0]
        if not ends:
            return None
        # A block that is an event already, where a side begins a resumed stream so, must be counted.
        if wire.TOKEN_PATTERN.search(seen, mark, min(ends)):
            return seen[mark + 1 :]
        return seen[min(ends) :]

    # -- runs

    def _begin(self, command: Run) -> None:
        self._counts = Counts()
        self._frames.clear()
        self._tokens.clear()
        self._expected = 0
        for fd, topic in self._topic_of.items():
            goal = self._goal[fd] = max(self._next_seq[fd], command.ends.get(topic, 0))
            self._expected += goal - self._next_seq[fd]
        self._control.send(Begun(self._expected))
        for fd in self._cut:
            self._give_up(fd)
        self._check_finished()

    def _check_finished(self) -> None:
        if 0 <= self._expected <= self._counts.received + self._counts.lost:
            self._expected = -1
            self._control.send(Finished())

    def _collect(self) -> Collected:
        for fd in self._topic_of:
            self._give_up(fd)
        counts = self._counts
        self._counts, self._expected = self._outside, -1
        return Collected(
            counts,
            self._read_at_ns,
            self._read_frame,
            array("q", map(len, self._tokens)),
            array("q", [published_ns for tokens in self._tokens for _, published_ns in tokens]),
        )

    def _give_up(self, fd: int) -> None:
        missing = self._goal[fd] - self._next_seq[fd]
        if missing > 0:
            self._counts.lost += missing
            self._next_seq[fd] = self._goal[fd]

    # -- receiving

    def _make_hot(
        self,
    ) -> tuple[Callable[[Sequence[tuple[int, int]]], None], Callable[[int, bytes, int], None]]:
        """The hot functions, with all they touch bound: what is a container here is never replaced."""
        next_seq, partial, frames = self._next_seq, self._partial, self._frames
        add_time, add_frame = self._read_at_ns.append, self._read_frame.append
        whole_lines, parse, take_apart = self._whole_lines, self._parse, self._take_apart
        read, clock, control = os.read, time.monotonic_ns, self._control.fileno()
        read_bytes, line_feed, key_bytes = READ_BYTES, LINE_FEED, FRAME_KEY_BYTES

        def absorb(fd: int, data: bytes, now: int) -> None:
            if data[-1] != line_feed or fd in partial:
                data = whole_lines(fd, data)
            frame = frames.get(data[:key_bytes])
            if frame is None or frame.data != data:
                frame = parse(data)
            if frame.first_seq == next_seq[fd]:
                next_seq[fd] = frame.next_seq
                self._counts.received += frame.events
                add_time(now)
                add_frame(frame.number)
            else:
                take_apart(fd, frame, now)

        def receive(ready: Sequence[tuple[int, int]]) -> None:
            for fd, _ in ready:
                if fd == control:
                    self._commanded = True
                    continue
                try:
                    data = read(fd, read_bytes)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                now = clock()
                if data:
                    absorb(fd, data, now)
                else:
                    self._end(fd)

        return receive, absorb

    def _end(self, fd: int) -> None:
        """The descriptor stays open until `close`: its number must not come again."""
        self._counts.cut += 1
        self._cut.add(fd)
        self._epoll.unregister(fd)
        self._give_up(fd)

    def _whole_lines(self, fd: int, data: bytes) -> bytes:
        """`data` up to its last line's end; what follows waits for the next read."""
        data = self._partial.pop(fd, b"") + data
        line_end = data.rfind(b"\n") + 1
        if line_end < len(data):
            if len(data) - line_end > LINE_LIMIT_BYTES:
                raise LoadFailed(f"a line of more than {LINE_LIMIT_BYTES} bytes: {data[:SHOWN_BYTES]!r}")
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
            if self._counts is self._outside:
                self._tokens.clear()
        frame = Frame(data, len(self._tokens), first_seq, first_seq + len(tokens), len(tokens))
        self._frames[data[:FRAME_KEY_BYTES]] = frame
        self._tokens.append(tokens)
        return frame

    def _take_apart(self, fd: int, frame: Frame, now: int) -> None:
        """A frame that this subscriber did not expect, or that is more than events."""
        counts = self._counts
        self._heartbeats[fd] += wire.count_comments(frame.data)
        counts.reloads += frame.data.count(wire.RELOAD_MARK)
        tokens = self._tokens[frame.number]
        fresh: list[tuple[int, int]] = []
        for seq, published_ns in tokens:
            if seq < self._next_seq[fd]:
                counts.repeated += 1
            else:
                counts.lost += seq - self._next_seq[fd]
                self._next_seq[fd] = seq + 1
                fresh.append((seq, published_ns))
        if fresh:
            number = frame.number
            if len(fresh) < len(tokens):
                number = len(self._tokens)
                self._tokens.append(fresh)
            counts.received += len(fresh)
            self._read_at_ns.append(now)
            self._read_frame.append(number)


def main(control: Connection, cpu: int, port: int, path_prefix: str, greeting_mark: bytes) -> None:
    """The whole life of an engine, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent hangs up
    os.sched_setaffinity(0, {cpu})
    engine = Engine(control, port, path_prefix, greeting_mark)
    try:
        engine.serve()
    except BrokenPipeError:
        pass  # the parent is gone
    except Exception:  # noqa: BLE001 the parent raises it
        control.send(Broken(traceback.format_exc()))
    finally:
        engine.close()
        control.close()
