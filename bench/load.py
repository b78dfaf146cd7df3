"""The load: SSE subscribers in processes of their own (`load_process.py`), and the schedule that is published
to them from this one.

An event's clock is its place in the plan, not the moment it was really sent: a publisher that is late counts
against the figures and not in their favour (no coordinated omission). All processes of a machine share the
monotonic clock, so a receipt is stamped where it is read.

The load checks itself: `lag_ns` is the longest that a ready socket may have waited for its read, and `busy`
the share of the time under way (while an event has been published and not received by all) that the busiest
process spent reading. Near 1 the load was the limit, and the figures are void.
"""

from __future__ import annotations

import bisect
import multiprocessing
import os
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
from hdrh.histogram import HdrHistogram

from bench import latency, load_process
from bench.load_process import Command, LoadFailed
from bench.processes import LOAD_CPU, SERVER_CPU

if TYPE_CHECKING:
    from bench.peers.side import Dialect
    from bench.publisher import Publisher

__all__ = ["Connected", "Load", "LoadFailed", "Receipts"]

NS_PER_S = 1_000_000_000
CONNECTS_IN_FLIGHT = 500  # well under the server's listen backlog: a dropped SYN would cost a whole second
CONNECT_TIMEOUT_S = 120
LEAD_S = 0.2  # from the start of a run to its first event
SETTLE_S = 0.3  # how long a finished run still listens for duplicates
TICK_S = 0.5
STOP_TIMEOUT_S = 5  # a process that is told to end and does not is killed
SATURATED_BUSY = 0.9
PROCESSES_LIMIT = 4  # no server on one core keeps more of them busy

# Cores beyond the server's, and the one that Redis and the publisher have, are for the load alone. Asked for
# at import: the bench pins itself to one of them later.
_SPARE_CPUS = sorted(os.sched_getaffinity(0) - {SERVER_CPU, LOAD_CPU}) or [LOAD_CPU]

Int64s: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Connected:
    """Seconds from the start."""

    greeted_s: float  # until every one had been greeted
    caught_up_s: float  # and had its backlog


@dataclass(slots=True)
class Receipts:
    """What the subscribers received in one run or, after `add`, in several. `received` and `lost` make up
    `expected`."""

    histogram: HdrHistogram = field(default_factory=latency.new_histogram)  # of latencies, in us
    spans_ns: list[int] = field(default_factory=list[int])  # an event's place in the plan to its last receipt
    expected: int = 0
    received: int = 0  # by each subscriber, each event once
    lost: int = 0
    repeated: int = 0  # duplicates, and events that came after a later one
    reloads: int = 0
    cut: int = 0  # connections that ended
    publish_late_ns: int = 0  # the worst delay of the publisher behind its schedule
    lag_ns: int = 0
    busy: float = 0.0

    def add(self, other: Receipts) -> None:
        self.histogram.add(other.histogram)
        self.spans_ns.extend(other.spans_ns)
        self.add_counts(other)
        self.expected += other.expected
        self.publish_late_ns = max(self.publish_late_ns, other.publish_late_ns)
        self.busy = max(self.busy, other.busy)

    def add_counts(self, other: Receipts | load_process.Counts) -> None:
        self.received += other.received
        self.lost += other.lost
        self.repeated += other.repeated
        self.reloads += other.reloads
        self.cut += other.cut
        self.lag_ns = max(self.lag_ns, other.lag_ns)

    @property
    def saturated(self) -> bool:
        """The load was the limit: the latencies are its own."""
        return self.busy > SATURATED_BUSY


@dataclass(frozen=True, slots=True)
class _Engine:
    """The parent's end of one load process."""

    process: SpawnProcess
    control: Connection

    def tell(self, command: Command) -> None:
        try:
            self.control.send(command)
        except OSError as error:
            raise self._failed() from error

    def hear(self) -> load_process.Reply:
        """Waits for the next reply. Raises `LoadFailed` if the process has ended."""
        try:
            reply = self.control.recv()
        except (EOFError, OSError) as error:
            raise self._failed() from error
        if isinstance(reply, load_process.Broken):
            raise LoadFailed(f"a load process broke down:\n{reply.text}")
        return reply

    def ask(self, command: Command, answer: type[Answer]) -> Answer:
        self.tell(command)
        return self.expect(answer)

    def expect(self, answer: type[Answer]) -> Answer:
        reply = self.hear()
        assert isinstance(reply, answer), reply
        return reply

    def stop(self) -> None:
        self.control.close()
        self.process.join(STOP_TIMEOUT_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.process.close()

    def _failed(self) -> LoadFailed:
        self.process.join(STOP_TIMEOUT_S)
        return LoadFailed(f"a load process ended on its own with exit code {self.process.exitcode}")


class Load:
    """Subscribers of a server on this machine. A context manager: its processes begin and end with the block.

    They receive all the time, also between the calls. After a `LoadFailed` there is nothing to do but to
    leave the block.
    """

    def __init__(self, port: int, dialect: Dialect, processes: int | None = None) -> None:
        """Without `processes`: one for each core that neither the server nor Redis and the publisher have, at
        least one, at most `PROCESSES_LIMIT`."""
        self._port, self._dialect = port, dialect
        self._processes = processes or min(len(_SPARE_CPUS), PROCESSES_LIMIT)
        self._engines: list[_Engine] = []
        self._next_engine = 0  # gets the next subscriber

    def __enter__(self) -> Load:
        try:
            for index in range(self._processes):
                self._engines.append(self._start(_SPARE_CPUS[index % len(_SPARE_CPUS)]))
            for engine in self._engines:
                engine.expect(load_process.Ready)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self._engines:
            self._engines.pop().stop()

    def connect(
        self,
        topics: Sequence[str],
        *,
        in_flight: int = CONNECTS_IN_FLIGHT,
        timeout_s: float = CONNECT_TIMEOUT_S,
        cursor: str | None = None,
        first_seq: int = 0,
        backlog_events: int = 0,
    ) -> Connected:
        """One subscriber for each entry of `topics`, at most `in_flight` on their way at a time.

        With a `cursor` they ask for what came after it: events from number `first_seq` on, of which
        `backlog_events` have been published. A subscriber that is cut meanwhile has caught up as far as it
        ever will: see `receipts`. Raises `LoadFailed`.
        """
        count = len(self._engines)
        in_flight_each = max(1, in_flight // count)
        begin_ns = time.monotonic_ns()
        deadline_ns = begin_ns + int(timeout_s * NS_PER_S)
        for index, engine in enumerate(self._engines):
            share = topics[(index - self._next_engine) % count :: count]
            engine.tell(
                load_process.Connect(share, in_flight_each, deadline_ns, cursor, first_seq, backlog_events)
            )
        self._next_engine = (self._next_engine + len(topics)) % count

        greeted_ns = caught_up_ns = begin_ns
        not_greeted = not_caught_up = 0
        for engine in self._as_they_answer():
            reply = engine.hear()
            match reply:
                case load_process.Connected():
                    greeted_ns = max(greeted_ns, reply.greeted_ns)
                    caught_up_ns = max(caught_up_ns, reply.caught_up_ns)
                case load_process.NotConnected():
                    not_greeted += reply.not_greeted
                    not_caught_up += reply.not_caught_up
                case load_process.Refused():
                    raise LoadFailed(reply.why)
                case _:
                    raise AssertionError(reply)
        if not_greeted or not_caught_up:
            missing = f"{not_greeted} of {len(topics)} subscribers not greeted after {timeout_s} s"
            if not_caught_up:
                missing += f", {not_caught_up} without their whole backlog"
            raise LoadFailed(missing)
        return Connected((greeted_ns - begin_ns) / NS_PER_S, (caught_up_ns - begin_ns) / NS_PER_S)

    def run(
        self,
        publisher: Publisher,
        plan: Sequence[tuple[float, str]],
        wait_s: float,
        on_tick: Callable[[], None] | None = None,
    ) -> Receipts:
        """Publishes `plan`, (seconds from the start, topic) in order, and receives it; calls `on_tick` about
        every `TICK_S`.

        Ends when every subscriber has everything that it can still get, or `wait_s` after the last event;
        what is missing then is lost. Subscribers must have connected before `publisher`'s first event to
        their topic, or know by `first_seq` where it is. Raises `LoadFailed`.
        """
        ends = {
            topic: publisher.published[topic] + events
            for topic, events in Counter(topic for _, topic in plan).items()
        }
        receipts = Receipts()
        publisher.prepare(ends)
        for engine in self._engines:
            engine.tell(load_process.Run(ends))
        receipts.expected = sum(engine.expect(load_process.Begun).expected for engine in self._engines)
        due_ns = _schedule(plan)
        receipts.publish_late_ns = self._publish(publisher, plan, due_ns, wait_s, on_tick)
        time.sleep(SETTLE_S)
        for engine in self._engines:
            engine.tell(load_process.Collect())
        _work_out(receipts, [_collected(engine) for engine in self._engines], due_ns)
        return receipts

    def listen(self, seconds: float) -> None:
        """Receives without publishing."""
        time.sleep(seconds)

    def receipts(self) -> Receipts:
        """What has come outside runs so far; counts only."""
        receipts = Receipts()
        for engine in self._engines:
            receipts.add_counts(engine.ask(load_process.Count(), load_process.Counts))
        receipts.expected = receipts.received + receipts.lost
        return receipts

    def heartbeats(self) -> list[int]:
        """How many each subscriber has had so far; in one order as long as nobody connects."""
        return [
            count for engine in self._engines for count in engine.ask(load_process.CountHeartbeats(), list)
        ]

    def _start(self, cpu: int) -> _Engine:
        context = multiprocessing.get_context("spawn")  # a fork would take this process's sockets along
        ours, theirs = context.Pipe()
        arguments = (theirs, cpu, self._port, self._dialect.path_prefix, self._dialect.greeting_mark)
        process = context.Process(target=load_process.main, args=arguments, name="load", daemon=True)
        try:
            process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return _Engine(process, ours)

    def _as_they_answer(self) -> Iterator[_Engine]:
        engines = {engine.control: engine for engine in self._engines}
        while engines:
            for control in wait(list(engines)):
                yield engines.pop(cast(Connection, control))

    def _publish(
        self,
        publisher: Publisher,
        plan: Sequence[tuple[float, str]],
        due_ns: Sequence[int],
        wait_s: float,
        on_tick: Callable[[], None] | None,
    ) -> int:
        """Publishes, then waits for the processes; returns the publisher's worst delay."""
        clock = time.monotonic_ns
        unfinished = {engine.control: engine for engine in self._engines}
        sent = late_ns = 0
        now = next_tick_ns = clock()
        give_up_ns = now + int(wait_s * NS_PER_S)
        while sent < len(plan) or (unfinished and now < give_up_ns):
            if on_tick is not None and now >= next_tick_ns:
                next_tick_ns = now + int(TICK_S * NS_PER_S)
                on_tick()
            elif sent < len(plan) and due_ns[sent] <= now:
                late_ns = max(late_ns, now - due_ns[sent])
                end = bisect.bisect_right(due_ns, now, sent)
                publisher.publish([(plan[at][1], due_ns[at]) for at in range(sent, end)])
                sent, give_up_ns = end, now + int(wait_s * NS_PER_S)
            else:
                until_ns = due_ns[sent] if sent < len(plan) else give_up_ns
                if on_tick is not None:
                    until_ns = min(until_ns, next_tick_ns)
                left_s = max(0, until_ns - clock()) / NS_PER_S
                if sent < len(plan):
                    time.sleep(left_s)  # to some 60 us; a wait for file descriptors has a grain of 1 ms
                else:
                    for control in wait(list(unfinished), left_s):
                        unfinished.pop(cast(Connection, control)).expect(load_process.Finished)
            now = clock()
        return late_ns


def _schedule(plan: Sequence[tuple[float, str]]) -> list[int]:
    """When each event is due; no two at the same nanosecond, so that the time alone tells events apart."""
    begin_ns = time.monotonic_ns() + int(LEAD_S * NS_PER_S)
    due_ns: list[int] = []
    for offset_s, _ in plan:
        planned_ns = begin_ns + int(offset_s * NS_PER_S)
        due_ns.append(max(planned_ns, due_ns[-1] + 1) if due_ns else planned_ns)
    return due_ns


def _collected(engine: _Engine) -> load_process.Collected:
    reply = engine.hear()
    if isinstance(reply, load_process.Finished):  # just too late for `wait_s`
        return engine.expect(load_process.Collected)
    assert isinstance(reply, load_process.Collected), reply
    return reply


def _work_out(receipts: Receipts, collected: Sequence[load_process.Collected], due_ns: Sequence[int]) -> None:
    """Adds what the processes received. Raises `LoadFailed` for a latency that cannot be."""
    due = np.array(due_ns, np.int64)
    last_of_all = np.zeros(len(due), np.int64)
    for each in collected:
        receipts.add_counts(each.counts)
        read_at, published = _samples(each)
        event = np.searchsorted(due, published)
        planned = np.flatnonzero(due[np.minimum(event, len(due) - 1)] == published) if len(due) else event[:0]
        read_at, event = read_at[planned], event[planned]
        try:
            latency.record_ns(receipts.histogram, read_at - due[event])
        except ValueError as error:
            raise LoadFailed(str(error)) from error
        last = np.zeros(len(due), np.int64)
        np.maximum.at(last, event, read_at)
        receipts.busy = max(receipts.busy, busy_share(each.counts.handling_ns, due, last))
        np.maximum(last_of_all, last, out=last_of_all)
    receipts.spans_ns = (last_of_all - due)[last_of_all > 0].tolist()


def _samples(collected: load_process.Collected) -> tuple[Int64s, Int64s]:
    """For each receipt when it was read and when it was published."""
    frame_events = _int64s(collected.frame_events)
    first_event = np.cumsum(frame_events) - frame_events  # of a frame, in `published_ns`
    frame = _int64s(collected.read_frame)
    events = frame_events[frame]  # of each read
    first_sample = np.cumsum(events) - events
    at = np.repeat(first_event[frame] - first_sample, events) + np.arange(events.sum())
    return np.repeat(_int64s(collected.read_at_ns), events), _int64s(collected.published_ns)[at]


def _int64s(values: array[int]) -> Int64s:
    return np.frombuffer(values, np.int64)


def busy_share(handling_ns: int, due: Int64s, last: Int64s) -> float:
    """The share of the time under way, from any event's place in the plan to its last receipt."""
    latest = np.maximum.accumulate(last)
    open_until = np.concatenate(([0], latest[:-1]))  # by the events before
    under_way_ns = int(np.maximum(last - np.maximum(due, open_until), 0).sum())
    return min(1.0, handling_ns / under_way_ns) if under_way_ns else 0.0
