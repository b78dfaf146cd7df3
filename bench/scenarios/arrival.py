"""Everybody comes at once: for the first time, or back after a deploy with something to catch up on."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from redis import Redis

from bench.peers.side import Side
from bench.probe import Probe
from bench.processes import cpu_s, running
from bench.stage import Stage

MS_PER_S = 1000
# Half of a usual listen backlog: enough to keep any server busy all the time, and no SYN is dropped, which
# would cost that client a whole second.
IN_FLIGHT = 2000
SETTLE_S = 1.0  # a server that has just become ready, or a connection that has just been greeted
MISSED_EVENTS = 100
SEEN_EVENTS = 50  # before the missed ones
PROBE_TIMEOUT_S = 30
# For those who come back: until everyone has everything.
CATCH_UP_TIMEOUT_S = 300


def connect(stage: Stage) -> None:
    """Nothing is published: seconds until everyone is greeted."""
    clients = 200 if stage.quick else 5000
    for size, round_, side in stage.visits([{"clients": clients}], stage.taking_part()):
        topic = stage.new_topic()
        with stage.leg(size, side, round_), stage.server(side) as server, stage.load(side, server) as load:
            time.sleep(SETTLE_S)
            pids = server.pids()
            cpu_begin_s = cpu_s(pids)
            connected = load.connect([topic] * clients, in_flight=IN_FLIGHT)
            used_s = cpu_s(pids) - cpu_begin_s
            figures = {
                "greeted_s": connected.greeted_s,
                "cpu_ms_a_client": used_s * MS_PER_S / clients,
            }
            stage.record(size, side, round_, figures)


def resume(stage: Stage) -> None:
    """The deploy case: a new server, and everyone is back at once with a hundred events to catch up on."""
    clients = 100 if stage.quick else 5000
    sizes = [{"clients": clients, "missed": MISSED_EVENTS}]
    for size, round_, side in stage.visits(sizes, stage.taking_part()):
        with stage.leg(size, side, round_), tempfile.TemporaryDirectory(prefix="bench-") as folder:
            topic = stage.new_topic()
            cursor = _publish_before_deploy(stage, side, topic)
            with (
                running(side.start(stage.redis_url, Path(folder))) as server,
                Redis.from_url(stage.redis_url) as redis,
                stage.load(side, server) as load,
            ):
                time.sleep(SETTLE_S)
                pids = server.pids()
                commands_begin, cpu_begin_s = _commands(redis), cpu_s(pids)
                connected = load.connect(
                    [topic] * clients,
                    in_flight=IN_FLIGHT,
                    timeout_s=CATCH_UP_TIMEOUT_S,
                    cursor=cursor,
                    first_seq=SEEN_EVENTS,
                    backlog_events=MISSED_EVENTS,
                )
                used_s, commands = cpu_s(pids) - cpu_begin_s, _commands(redis) - commands_begin - 1
                load.listen(SETTLE_S)  # for what comes twice
                figures = {
                    "caught_up_s": connected.caught_up_s,
                    "greeted_s": connected.greeted_s,
                    "redis_commands_a_client": commands / clients,
                    "cpu_ms_a_client": used_s * MS_PER_S / clients,
                }
                receipts = load.receipts()
                stage.check(size, side, round_, receipts)
                stage.record(size, side, round_, figures)


def _publish_before_deploy(stage: Stage, side: Side, topic: str) -> str:
    """On the server that goes; returns the id of the last event that the clients have seen."""
    with stage.server(side) as server, stage.publisher(side, server) as publisher:
        probe = Probe(server.port, side.dialect, topic)
        try:
            count = SEEN_EVENTS + MISSED_EVENTS
            publisher.publish([(topic, time.monotonic_ns())] * count)
            seen = probe.wait_events(count, PROBE_TIMEOUT_S)
        finally:
            probe.close()
    return next(event_id for event_id, seq in seen if seq == SEEN_EVENTS - 1)


def _commands(redis: Redis) -> int:
    """How many commands Redis has processed since it started, this one included."""
    return int(redis.info("stats")["total_commands_processed"])  # pyright: ignore
