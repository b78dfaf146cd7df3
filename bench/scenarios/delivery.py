"""From publishing to receipt: one topic with many subscribers, many events at once, many topics."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from bench.load import Receipts
from bench.processes import cpu_s
from bench.stage import Stage, steady

# After the last event a receipt still counts for so long: the slowest peers need most of it.
WAIT_S = 60
TOPICS_SEED = 1  # the same topics in the same order in every run


@dataclass(frozen=True, slots=True)
class FanOut:
    subscribers: int
    events: int
    # Several times what the limit needs. A side that needs longer falls behind the schedule, and its
    # latencies show it.
    interval_s: float


FANOUT = (
    FanOut(1, 200, 0.02),
    FanOut(100, 100, 0.05),
    FanOut(1000, 40, 0.25),
    FanOut(5000, 12, 1.0),
    FanOut(10_000, 8, 2.0),
)
FANOUT_QUICK = (FanOut(1, 20, 0.02), FanOut(50, 10, 0.05))


def latency(stage: Stage) -> None:
    """One topic, steady events: what one subscriber waits, and how long until the last one has it."""
    by_subscribers = {fan_out.subscribers: fan_out for fan_out in (FANOUT_QUICK if stage.quick else FANOUT)}
    sizes = [{"subscribers": count} for count in by_subscribers]
    for size, round_, side in stage.visits(sizes, stage.taking_part()):
        fan_out = by_subscribers[int(size["subscribers"])]
        topic = stage.new_topic()
        with (
            stage.leg(size, side, round_),
            stage.server(side) as server,
            stage.publisher(side, server) as publisher,
            stage.load(side, server) as load,
        ):
            load.connect([topic] * fan_out.subscribers)
            plan = steady(topic, fan_out.events, fan_out.interval_s)
            stage.record(size, side, round_, {}, load.run(publisher, plan, WAIT_S))


BURST_EVENTS = 200
BURST_PAUSE_S = 0.5


def burst(stage: Stage) -> None:
    """Many events at one moment. The next burst begins when everyone has the one before."""
    subscribers, bursts = (50, 1) if stage.quick else (1000, 3)
    sizes = [{"subscribers": subscribers, "events": BURST_EVENTS}]
    for size, round_, side in stage.visits(sizes, stage.taking_part()):
        topic = stage.new_topic()
        with (
            stage.leg(size, side, round_),
            stage.server(side) as server,
            stage.publisher(side, server) as publisher,
            stage.load(side, server) as load,
        ):
            load.connect([topic] * subscribers)
            receipts = Receipts()
            for _ in range(bursts):
                receipts.add(load.run(publisher, [(0.0, topic)] * BURST_EVENTS, WAIT_S))
                time.sleep(BURST_PAUSE_S)
            stage.record(size, side, round_, {"span_ms": max(receipts.spans_ns) / 1e6}, receipts)


def topics(stage: Stage) -> None:
    """A topic for each subscriber: reading many streams counts here, sending hardly does."""
    count, rate_hz, seconds = (100, 100, 1) if stage.quick else (10_000, 1000, 10)
    choose = random.Random(TOPICS_SEED)
    chosen = [choose.randrange(count) for _ in range(rate_hz * seconds)]
    for size, round_, side in stage.visits([{"topics": count}], stage.taking_part()):
        names = [stage.new_topic() for _ in range(count)]
        plan = [(at / rate_hz, names[index]) for at, index in enumerate(chosen)]
        with (
            stage.leg(size, side, round_),
            stage.server(side) as server,
            stage.publisher(side, server) as publisher,
            stage.load(side, server) as load,
        ):
            load.connect(names)
            pids, begin_s = server.pids(), time.monotonic()
            cpu_begin_s = cpu_s(pids)
            receipts = load.run(publisher, plan, WAIT_S)
            cpu_share = (cpu_s(pids) - cpu_begin_s) / (time.monotonic() - begin_s)
            stage.record(size, side, round_, {"cpu_share": cpu_share}, receipts)
