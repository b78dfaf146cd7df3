"""The scenarios that measure speed and size. Stuck clients and deploys have files of their own.

Every leg gets a fresh server process, so that no leg pays for the one before it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench import drain, stuck
from bench.load import Receipts
from bench.processes import KIB, LIMIT, STALECAST, cpu_s, rss_bytes
from bench.report import latency_row
from bench.stage import RATIO, Stage, steady

SIDES = (STALECAST, LIMIT)
LATENCY_RATIOS = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "span_ms")
WAIT_S = 10  # how long after the last event a receipt still counts
MEMORY_SETTLE_S = 1
TOPICS_SEED = 1  # the same topics in the same order in every run


@dataclass(frozen=True, slots=True)
class FanOut:
    subscribers: int
    events: int
    interval_s: float  # several times the bare loop's span: one fan-out is over before the next begins


FANOUT = (FanOut(1, 200, 0.02), FanOut(1000, 60, 0.15), FanOut(5000, 20, 0.6))
FANOUT_QUICK = (FanOut(1, 20, 0.02), FanOut(100, 10, 0.05))


def fanout(stage: Stage) -> None:
    """One topic, steady events: what one subscriber waits, and how long until the last one has it."""
    for size in FANOUT_QUICK if stage.quick else FANOUT:
        receipts = {side: Receipts() for side in SIDES}
        for _ in range(stage.rounds):
            for side in SIDES:
                topic = stage.new_topic()
                with stage.server(side) as server, stage.load(server) as load, stage.publisher() as publisher:
                    load.connect([topic] * size.subscribers)
                    plan = steady(topic, size.events, size.interval_s)
                    receipts[side].add(load.run(publisher, plan, WAIT_S))
        stage.compare({"subscribers": size.subscribers}, receipts, LATENCY_RATIOS)


BURST_EVENTS = 200
BURST_INTERVAL_S = 2.0


def burst(stage: Stage) -> None:
    """Many events in one pipeline: span is from the first publishing to the last receipt."""
    subscribers, bursts = (100, 2) if stage.quick else (1000, 4)
    interval_s = BURST_INTERVAL_S / (4 if stage.quick else 1)
    receipts = {side: Receipts() for side in SIDES}
    for _ in range(stage.rounds):
        for side in SIDES:
            topic = stage.new_topic()
            plan = [(at * interval_s, topic) for at in range(bursts) for _ in range(BURST_EVENTS)]
            with stage.server(side) as server, stage.load(server) as load, stage.publisher() as publisher:
                load.connect([topic] * subscribers)
                receipts[side].add(load.run(publisher, plan, WAIT_S))
    stage.compare({"subscribers": subscribers, "burst": BURST_EVENTS}, receipts, LATENCY_RATIOS)


# Half the listen backlog: enough to keep any server busy all the time, and no SYN is dropped.
CONNECT_IN_FLIGHT = 2000


def connect(stage: Stage) -> None:
    """All at once, as after a deploy: seconds until everyone is greeted, and memory for each client."""
    clients = 200 if stage.quick else 5000
    found: dict[str, dict[str, float]] = {}
    for side in SIDES:
        topic = stage.new_topic()
        with stage.server(side) as server, stage.load(server) as load:
            time.sleep(MEMORY_SETTLE_S)
            before_bytes = rss_bytes(server.pids())
            seconds = load.connect([topic] * clients, CONNECT_IN_FLIGHT)
            load.listen(MEMORY_SETTLE_S)
            after_bytes = rss_bytes(server.pids())
        found[side] = {
            "greeted_s": seconds,
            "ms_a_client": seconds * 1000 / clients,
            "rss_before_mib": before_bytes / KIB / KIB,
            "rss_after_mib": after_bytes / KIB / KIB,
            "kib_a_client": (after_bytes - before_bytes) / KIB / clients,
        }
        stage.outcome.rows.append({"clients": clients, "side": side, **found[side]})
    ratio = found[STALECAST]["greeted_s"] / found[LIMIT]["greeted_s"]
    stage.outcome.rows.append({"clients": clients, "side": RATIO, "greeted_s": ratio})


def idle(stage: Stage) -> None:
    """Nothing is published: what heartbeats alone cost, and that every client gets them."""
    clients, seconds = (200, 4) if stage.quick else (10_000, 45)
    # The full run keeps the server's default of 15 s; the quick one could not see a heartbeat then.
    settings = {"STALECAST_HEARTBEAT_INTERVAL_S": "1"} if stage.quick else None
    topic = stage.new_topic()
    with stage.server(STALECAST, settings) as server, stage.load(server) as load:
        load.connect([topic] * clients)
        load.listen(MEMORY_SETTLE_S)
        before = dict(load.heartbeats)
        begin, cpu_begin_s = time.monotonic(), cpu_s(server.pids())
        load.listen(seconds)
        elapsed_s, used_s = time.monotonic() - begin, cpu_s(server.pids()) - cpu_begin_s
        counts = [total - before[fd] for fd, total in load.heartbeats.items()]
        stage.outcome.rows.append(
            {
                "clients": clients,
                "seconds": elapsed_s,
                "cpu_share": used_s / elapsed_s,
                "heartbeats_min": min(counts),
                "heartbeats_mean": sum(counts) / clients,
                "heartbeats_max": max(counts),
                "rss_mib": rss_bytes(server.pids()) / KIB / KIB,
                "cut": load.receipts.cut,
            }
        )
        if load.receipts.cut:
            stage.outcome.violations.append(f"idle: {load.receipts.cut} connections cut")


def topics(stage: Stage) -> None:
    """A topic for each subscriber: the server's reading of many streams, not its sending, is what counts."""
    count, rate_hz, seconds = (200, 200, 2) if stage.quick else (10_000, 1000, 10)
    names = [stage.new_topic() for _ in range(count)]
    choose = random.Random(TOPICS_SEED)
    plan = [(at / rate_hz, choose.choice(names)) for at in range(rate_hz * seconds)]
    with stage.server(STALECAST) as server, stage.load(server) as load, stage.publisher() as publisher:
        load.connect(names)
        cpu_begin_s = cpu_s(server.pids())
        receipts = load.run(publisher, plan, WAIT_S)
        cpu_share = (cpu_s(server.pids()) - cpu_begin_s) / max(receipts.elapsed_ns / 1e9, seconds)
    row = {"topics": count, "events_a_s": rate_hz, **latency_row(receipts), "cpu_share": cpu_share}
    stage.outcome.rows.append(row)
    stage.outcome.check("topics", receipts)


SCENARIOS: Mapping[str, Callable[[Stage], None]] = {
    "fanout": fanout,
    "burst": burst,
    "connect": connect,
    "idle": idle,
    "topics": topics,
    "stuck": stuck.stuck,
    "drain": drain.drain,
}
