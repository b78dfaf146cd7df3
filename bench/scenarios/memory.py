"""What a connected client costs while nothing happens: resident memory, and the CPU that heartbeats take."""

from __future__ import annotations

import time

from bench.peers.limit import Limit
from bench.processes import cpu_s, rss_bytes
from bench.stage import Stage

SETTLE_S = 2.0
BYTES_PER_KB = 1000
# Memory hardly differs from round to round, and each takes most of a minute.
ROUNDS_LIMIT = 2


def memory(stage: Stage) -> None:
    clients, heartbeat_s, idle_s = (200, 1, 3) if stage.quick else (5000, 15, 35)
    if stage.paired:
        heartbeat_s, idle_s = 4, 9
    else:
        stage.rounds = min(stage.rounds, ROUNDS_LIMIT)
    for size, round_, side in stage.visits([{"clients": clients}], stage.taking_part()):
        topic = stage.new_topic()
        with (
            stage.leg(size, side, round_),
            stage.server(side, heartbeat_s) as server,
            stage.load(side, server) as load,
        ):
            time.sleep(SETTLE_S)
            pids = server.pids()
            before_bytes = rss_bytes(pids)
            load.connect([topic] * clients)
            load.listen(SETTLE_S)
            figures = {"kb_a_client": (rss_bytes(pids) - before_bytes) / BYTES_PER_KB / clients}
            if not isinstance(side, Limit):  # it sends no heartbeats
                seen = sum(load.heartbeats())
                begin_s, cpu_begin_s = time.monotonic(), cpu_s(pids)
                load.listen(idle_s)
                figures["cpu_share"] = (cpu_s(pids) - cpu_begin_s) / (time.monotonic() - begin_s)
                figures["heartbeats_a_client"] = (sum(load.heartbeats()) - seen) / clients
                if min(load.heartbeats()) == 0:
                    stage.result.violations.append(f"{side.name}: a client saw no heartbeat")
            stage.check(size, side, round_, load.receipts())
            stage.record(size, side, round_, figures)
