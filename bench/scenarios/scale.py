"""The same work at 1, 2, 4 ... times the clients and topics: how the cost of a delivery grows."""

from __future__ import annotations

import random
import time

from bench.load import Receipts
from bench.peers.side import Side
from bench.processes import cpu_s, rss_bytes
from bench.stage import Size, Stage, steady

BASE, DOUBLINGS = 625, 5
QUICK_BASE, QUICK_DOUBLINGS = 25, 2
# What grows is looked at where it is small: the slower peers would fill the session, and `latency` has them.
SIDES = ("stalecast", "limit", "nchan")
SECONDS_A_CLIENT = 0.0002  # between events: the offered work grows with the clients, its rate does not
EVENTS = 10
TOPICS_RATE_HZ, TOPICS_SECONDS = 500, 4
SEED = 2
WAIT_S = 60
SETTLE_S = 1.0
US_PER_S = 1_000_000
BYTES_PER_KB = 1000


def scale(stage: Stage) -> None:
    base, doublings = (QUICK_BASE, QUICK_DOUBLINGS) if stage.quick else (BASE, DOUBLINGS)
    sides = [side for side in stage.taking_part() if side.name in SIDES]
    counts = [base << step for step in range(doublings)]
    for size, round_, side in stage.visits([{"clients": count, "topics": 1} for count in counts], sides):
        _leg(stage, size, round_, side)
    # The limit serves one topic.
    sides = [side for side in sides if side.name != "limit"]
    for size, round_, side in stage.visits([{"clients": count, "topics": count} for count in counts], sides):
        _leg(stage, size, round_, side)


def _leg(stage: Stage, size: Size, round_: int, side: Side) -> None:
    clients, topics = int(size["clients"]), int(size["topics"])
    names = [stage.new_topic() for _ in range(topics)]
    if topics == 1:
        plan = steady(names[0], EVENTS, max(0.02, clients * SECONDS_A_CLIENT))
    else:
        choose = random.Random(SEED)
        seconds = 1 if stage.quick else TOPICS_SECONDS
        plan = [(at / TOPICS_RATE_HZ, choose.choice(names)) for at in range(TOPICS_RATE_HZ * seconds)]
    with (
        stage.leg(size, side, round_),
        stage.server(side) as server,
        stage.publisher(side, server) as publisher,
        stage.load(side, server) as load,
    ):
        time.sleep(SETTLE_S)
        pids = server.pids()
        before_bytes = rss_bytes(pids)
        load.connect((names * clients)[:clients])
        load.listen(SETTLE_S)
        figures = {"kb_a_client": (rss_bytes(pids) - before_bytes) / BYTES_PER_KB / clients}
        cpu_begin_s = cpu_s(pids)
        receipts: Receipts = load.run(publisher, plan, WAIT_S)
        used_s = cpu_s(pids) - cpu_begin_s
        figures["cpu_us_a_delivery"] = used_s * US_PER_S / max(1, receipts.received)
        stage.record(size, side, round_, figures, receipts)
