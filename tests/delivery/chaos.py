"""Rounds of random faults against a running server.

A lane is one Redis with two servers on it, one for cleartext and one for TLS, and does one round after
another, each on new topics; so a round may stop or wipe any of them. Lanes run side by side. A round: its
clients follow their plans while one task does the steps; then the faults stop, markers are appended to each
topic, and the clients reach them, or cease to get on for `SETTLE_LIMIT_S`; then the oracle judges every
client's history.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import assert_never

import trio

from . import plan as steps
from .client import Client
from .oracle import Event, Reload, Violation, check
from .plan import Plan, Step, draw
from .processes import Pair, RedisLink, ServerProcess
from .writer import TopicWriter, flush_all, has_epoch

SERVER_ARGV = (
    *(sys.executable, "-m", "tests.delivery.launch", "serve"),
    *("--host", "127.0.0.1", "--port", "{port}", "--workers", "{workers}"),
)
DRAIN_S = 0.6  # with less, whoever has to wait for a busy machine is cut before its goodbye
BACKLOG_LIMIT_EVENTS = 40
# Small limits, so that a round of a second meets them: replay goes to Redis page by page, a flood leaves the
# window, a stalled client overflows or gets stuck.
SETTINGS = {
    "STALECAST_HEARTBEAT_INTERVAL_S": str(steps.HEARTBEAT_INTERVAL_S),
    "STALECAST_REDIS_TIMEOUT_S": str(steps.REDIS_TIMEOUT_S),
    "STALECAST_UNREADABLE_GATHER_S": "0.05",
    "STALECAST_STUCK_TIMEOUT_S": "0.8",
    "STALECAST_DRAIN_S": str(DRAIN_S),
    "STALECAST_RETRY_MS": "20",
    "STALECAST_WINDOW_LIMIT_EVENTS": "16",
    "STALECAST_REPLAY_PAGE_EVENTS": "10",
    "STALECAST_BACKLOG_LIMIT_EVENTS": str(BACKLOG_LIMIT_EVENTS),
    "STALECAST_TAIL_GROUP_LIMIT_TOPICS": "2",
    "STALECAST_TAIL_READ_LIMIT_EVENTS": "50",
    "STALECAST_TOPIC_LINGER_S": "0.1",
}
SLOWNESS_S = 0.1  # each way, at most
# How long nothing may come to anybody, and how long all of it may take: a busy machine is slow.
SETTLE_LIMIT_S = 10
SETTLE_LIMIT_WHOLE_S = 60
SETTLE_LOOK_S = 0.25
MARKER_PAUSE_S = 0.005
LEFT_OVER_LIMIT_S = 5  # stuck clients are cut, topics linger, connections to Redis are made anew
AFTERMATH_S = 0.01  # for what must not come after the marker


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one round. `counts`: how often what was exercised."""

    seed: int
    workers: int
    violations: Sequence[Violation]
    counts: Counter[str]
    trace: str


@dataclass(slots=True)
class Report:
    rounds: list[Round] = field(default_factory=list)

    @property
    def failed(self) -> list[Round]:
        return [one for one in self.rounds if one.violations]

    @property
    def counts(self) -> Counter[str]:
        return sum((one.counts for one in self.rounds), Counter())

    def __str__(self) -> str:
        seeds = sorted({one.seed for one in self.rounds})
        span = f" (seeds {seeds[0]} to {seeds[-1]})" if seeds else ""
        lines = [f"{len(self.rounds)} rounds{span}, {len(self.failed)} with violations"]
        for one in self.failed:
            lines.append(
                f"seed {one.seed}: python -m tests.delivery --seed {one.seed} --workers {one.workers}"
            )
            lines += [f"  {violation}" for violation in one.violations]
        lines += [f"{count:>8} {name}" for name, count in sorted(self.counts.items())]
        return "\n".join(lines)


async def run_rounds(
    seeds: Sequence[int],
    *,
    workers: Sequence[int] = (1, 2),
    server_argv: Sequence[str] = SERVER_ARGV,
    drawn: Callable[[int], Plan] = draw,
    on_round: Callable[[Round], None] = lambda _: None,
) -> Report:
    """One lane for each entry of `workers`, which says how many worker processes its server has.

    Raises ProcessFailed (with the server's stderr) when the server does not start or does not stop.
    """
    report = Report()

    async def run_lane(worker_count: int, lane_seeds: Sequence[int]) -> None:
        async with trio.open_nursery() as nursery:
            async with Pair(server_argv, SETTINGS, worker_count, DRAIN_S, nursery) as pair:
                for seed in lane_seeds:
                    one = await _run_round(pair, drawn(seed), worker_count)
                    report.rounds.append(one)
                    on_round(one)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for lane, worker_count in enumerate(workers):
            if lane_seeds := seeds[lane :: len(workers)]:
                nursery.start_soon(run_lane, worker_count, lane_seeds)
    return report


async def _run_round(pair: Pair, plan: Plan, workers: int) -> Round:
    topics = [TopicWriter(f"d{plan.seed}-{number}-{time.monotonic_ns()}") for number in range(plan.topics)]
    clients = [
        Client(f"{number}", client, topics[client.topic].name, pair)
        for number, client in enumerate(plan.clients)
    ]
    driver = _Driver(pair, topics, clients)
    try:
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run)
            for step in plan.steps:
                await driver.do(step)
            await driver.settle()
            nursery.cancel_scope.cancel()
    finally:
        driver.link.close()
    wrong = await _left_over(pair)
    wrong += [
        Violation("traceback", "-", -1, line[-400:])
        for server in pair.servers
        for line in server.take_tracebacks()
    ]
    return _judge(plan, workers, topics, clients, wrong)


async def _left_over(pair: Pair) -> list[Violation]:
    """What the servers still hold of clients that are gone."""
    held: dict[str, str] = {}

    async def look(server: ServerProcess) -> None:
        if (rest := await server.wait_idle(LEFT_OVER_LIMIT_S)) is not None:
            held[server.name] = rest

    async with trio.open_nursery() as nursery:
        for server in pair.servers:
            nursery.start_soon(look, server)
    return [
        Violation("left_over", "-", -1, f"{name} after {LEFT_OVER_LIMIT_S} s: {rest}")
        for name, rest in held.items()
    ]


class _Driver:
    """Does the steps of one round, one after another."""

    def __init__(self, pair: Pair, topics: Sequence[TopicWriter], clients: Sequence[Client]) -> None:
        self._pair = pair
        self._topics = topics
        self._clients = clients
        self.link = RedisLink(pair.redis.port)
        self._went_back = False

    async def do(self, step: Step) -> None:
        match step:
            case steps.Pause():
                await trio.sleep(step.for_s)
            case steps.Publish():
                self._topics[step.topic].publish(self.link, step)
            case steps.TrimToLength():
                self._topics[step.topic].trim_to_length(self.link, step.keep)
            case steps.TrimBelow():
                self._topics[step.topic].trim_below(self.link, step.back)
            case steps.Delete():
                self._topics[step.topic].delete(self.link, step.backs)
            case steps.DropTopic():
                self._topics[step.topic].drop(self.link)
            case steps.FlushAll():
                flush_all(self.link, self._topics)
            case steps.SaveRedis():
                if has_epoch(self.link) and not self._went_back:
                    for topic in self._topics:
                        topic.note_saved(self.link)
                    self._pair.redis.save()
            case steps.KillRedis():
                await self._kill_redis(step)
            case steps.DisturbRedis():
                await self._disturb_redis(step)
            case steps.FreezeServer():
                await self._freeze_server(step)
            case steps.RestartServer():
                await self._restart_server(step)
            case _:
                assert_never(step)

    async def settle(self) -> None:
        for client in self._clients:
            client.stay()
        with trio.move_on_after(SETTLE_LIMIT_WHOLE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._give_up, nursery.cancel_scope)
                await self._reach_markers()
                if self._went_back:
                    # Servers that have heard of what came since have also marked the rollback: in front of
                    # these.
                    await self._reach_markers()
                nursery.cancel_scope.cancel()
        await trio.sleep(AFTERMATH_S)

    async def _give_up(self, scope: trio.CancelScope) -> None:
        received, deadline_s = -1, math.inf
        while trio.current_time() < deadline_s:
            now = sum(client.received for client in self._clients)
            if now != received:
                received, deadline_s = now, trio.current_time() + SETTLE_LIMIT_S
            await trio.sleep(SETTLE_LOOK_S)
        scope.cancel()

    async def _reach_markers(self) -> None:
        for _ in range(2):  # two, so that the markers themselves can show a disorder
            for topic in self._topics:
                topic.publish(self.link, steps.Publish(0, 1))
            await trio.sleep(MARKER_PAUSE_S)
        for client in self._clients:
            await client.wait_reached(self._topics[client.plan.topic].newest)

    async def _kill_redis(self, step: steps.KillRedis) -> None:
        for topic, count in zip(self._topics, step.in_flight, strict=True):
            topic.send(self.link, count)
        await trio.sleep(step.grace_s)
        killed_s = time.monotonic()
        self._pair.redis.kill()
        try:
            for topic in self._topics:
                topic.collect(self.link)
        except OSError:
            pass  # what is left is in doubt until the restart
        self.link.close()
        wiped = step.left is steps.Left.NOTHING
        goes_back = step.left is steps.Left.SAVED and all(topic.can_go_back for topic in self._topics)
        if wiped:
            self._pair.redis.wipe()
        elif goes_back:
            self._pair.redis.go_back()
        await trio.sleep(step.down_s)
        await self._pair.redis.start()
        self.link = RedisLink(self._pair.redis.port)
        back_s = time.monotonic()
        for topic in self._topics:
            topic.settle_doubt(self.link, wiped=wiped)
            if wiped:
                topic.note_wipe(killed_s, back_s)
            elif goes_back:
                self._went_back = True
                topic.note_rollback(killed_s, back_s)

    async def _disturb_redis(self, step: steps.DisturbRedis) -> None:
        proxy = self._pair.proxy
        match step.how:
            case steps.Disturbance.SLOW:
                proxy.slowness_s = SLOWNESS_S
            case steps.Disturbance.HELD | steps.Disturbance.LOST:
                proxy.hold()
            case steps.Disturbance.REFUSED:
                proxy.refuses = True
                proxy.cut()
            case _:
                assert_never(step.how)
        try:
            for one in step.meanwhile:
                await self.do(one)
            await trio.sleep(step.for_s)
        finally:
            if step.how is steps.Disturbance.LOST:
                proxy.cut()
            proxy.slowness_s, proxy.refuses = 0.0, False
            proxy.release()

    async def _freeze_server(self, step: steps.FreezeServer) -> None:
        server = self._pair.server(secure=step.secure)
        server.freeze()
        try:
            for one in step.meanwhile:
                await self.do(one)
            await trio.sleep(step.for_s)
        finally:
            server.thaw()

    async def _restart_server(self, step: steps.RestartServer) -> None:
        server = self._pair.server(secure=step.secure)
        if step.kill:
            server.kill()
        else:
            for client in self._clients:
                client.note_drain(secure=step.secure)
            server.tell_to_stop()
            for one in step.meanwhile:
                await self.do(one)
            await server.wait_stopped()
        for one in step.meanwhile:
            await self.do(one)
        await server.start()


def _judge(
    plan: Plan,
    workers: int,
    topics: Sequence[TopicWriter],
    clients: Sequence[Client],
    wrong: Sequence[Violation],
) -> Round:
    violations = list(wrong)
    for number, topic in enumerate(topics):
        histories = [client.history for client in clients if client.plan.topic == number]
        violations += check(topic.log, histories, backlog_limit_events=BACKLOG_LIMIT_EVENTS)
    violations += [violation for client in clients for violation in client.wrong]
    bad = {violation.client for violation in violations}
    trace = "\n".join(_trace(topics[client.plan.topic], client) for client in clients if client.name in bad)
    return Round(plan.seed, workers, violations, _count(plan, topics, clients), trace)


def _count(plan: Plan, topics: Sequence[TopicWriter], clients: Sequence[Client]) -> Counter[str]:
    counts = Counter(f"step {type(step).__name__}" for step in plan.steps)
    counts.update(f"redis {step.how}" for step in plan.steps if isinstance(step, steps.DisturbRedis))
    counts["rollbacks"] = sum(one.rollback for topic in topics for one in topic.log.removals)
    counts["unreadable"] = sum(one.unreadable for topic in topics for one in topic.log.appends)
    counts["appended"] = sum(len(topic.log.appends) for topic in topics)
    for client in clients:
        kind = asdict(client.plan.kind)
        counts.update(f"client {'+'.join(transports)}" for transports in [kind.pop("transports")])
        counts.update(f"client {name}" for name, is_one in kind.items() if is_one)
        counts.update({f"status {status}": count for status, count in client.statuses.items()})
        for connection in client.history.connections:
            counts["resumed"] += connection.cursor is not None
            counts["drained"] += connection.drained
            counts[f"ended {connection.end}"] += 1
            for item in connection.items:
                counts["received"] += isinstance(item, Event)
                if isinstance(item, Reload):
                    counts[f"reload {item.reason}"] += 1
    return counts


def _trace(topic: TopicWriter, client: Client) -> str:
    log = topic.log
    known = [
        *((one.sent_s, f"append {one}") for one in log.appends),
        *((one.sent_s, f"remove {one}") for one in log.removals),
        *((one.sent_s, f"wipe {one}") for one in log.wipes),
    ]
    for number, one in enumerate(client.history.connections):
        stalled = f" stalled at {one.stalled_s:.4f}" if one.stalled_s is not None else ""
        known.append(
            (one.opened_s, f"  client {client.name} connection {number} opens with {one.cursor}{stalled}")
        )
        known += [(item.at_s, f"  client {client.name} connection {number}: {item}") for item in one.items]
    known.sort(key=lambda pair: pair[0])
    return "\n".join(f"{at_s:.4f} {what}" for at_s, what in known)
