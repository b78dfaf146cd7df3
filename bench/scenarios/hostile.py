"""Anonymous clients that mean no good, or know no better, beside honest ones. Stalecast alone.

Each leg has a fresh server. Held: clients resume from different cursors and never read a byte; the figure is
the server's memory for each of them. Invented topics: one client for each, and others that ask and leave; the
figures are an honest client's latency with and without them, Redis connections and readiness. Invented
cursors: clients resume from nowhere, again and again; the figures are how long an honest resume takes, and
what Redis has to send.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from redis import Redis

from bench.load import Receipts
from bench.peers import Stalecast
from bench.processes import Server, rss_bytes
from bench.scenarios.slow import INTERNET_SEGMENT_BYTES, STUCK_RECEIVE_BUFFER_BYTES
from bench.stage import Size, Stage, steady

HELD_TARGET_KB = 40
LATENCY_FACTOR = 2.0  # of the honest client's p99, with and without the crowd
# In the stream that is resumed from: several times what the kernel takes for a client that does not read.
EVENTS = {100: 5000, 4000: 1000}
SETTLE_S = 2.0
STUCK_TIMEOUT_S = "600"  # nobody is cut while it is measured
WAIT_S = 60
BYTES_PER_KB = 1000
BATCH = 200
CONNECT_TIMEOUT_S = 30
REDIS_CONNECTIONS_BESIDE = 8  # the shared one, the bench's own, and those on their way out


@dataclass(frozen=True, slots=True)
class Crowd:
    held: int
    topics: int
    events: int
    cursors: int
    resumes: int


FULL = Crowd(held=1000, topics=10_000, events=100, cursors=2000, resumes=20)
QUICK = Crowd(held=100, topics=300, events=20, cursors=50, resumes=5)


def hostile(stage: Stage) -> None:
    size = QUICK if stage.quick else FULL
    for event_bytes in EVENTS:
        for source in ("window", "redis"):
            _held(stage, size, event_bytes, source)
    _topics(stage, size)
    _cursors(stage, size)


def _held(stage: Stage, size: Crowd, event_bytes: int, source: str) -> None:
    # A window of one event leaves everything to Redis.
    window = {"window": str(EVENTS[event_bytes]), "redis": "1"}[source]
    side = Stalecast(
        {
            "STALECAST_STUCK_TIMEOUT_S": STUCK_TIMEOUT_S,
            "STALECAST_WINDOW_LIMIT_EVENTS": window,
            "STALECAST_LOG_LEVEL": "warning",
        }
    )
    legs: list[Size] = [{"clients": size.held, "event bytes": event_bytes, "from": source}]
    for leg, round_, _ in stage.visits(legs, [side]):
        topic = stage.new_topic()
        with stage.leg(leg, side, round_), stage.server(side) as server:
            ids = _fill(stage.redis_url, topic, event_bytes)
            with _clients(
                server, [_request(topic, ids[0])]
            ):  # what the window takes is not the clients' cost
                time.sleep(SETTLE_S)
                before = rss_bytes(server.pids())
                # From all over the older half: each has at least the newer one to come.
                cursors = [ids[1 + at * (len(ids) // 2) // size.held] for at in range(size.held)]
                with _clients(server, [_request(topic, cursor) for cursor in cursors], reads=False):
                    time.sleep(SETTLE_S)
                    held_kb = (rss_bytes(server.pids()) - before) / BYTES_PER_KB / size.held
            stage.record(leg, side, round_, {"kb_a_client": held_kb})
            if held_kb > HELD_TARGET_KB and not stage.quick:
                stage.result.violations.append(
                    f"{_in_words(leg)}: {held_kb:.1f} kB, more than {HELD_TARGET_KB}"
                )


def _topics(stage: Stage, size: Crowd) -> None:
    side = Stalecast({"STALECAST_MAX_CLIENTS": str(2 * size.topics), "STALECAST_LOG_LEVEL": "warning"})
    for leg, round_, _ in stage.visits([{"invented topics": size.topics}], [side]):
        topic = stage.new_topic()
        with (
            stage.leg(leg, side, round_),
            stage.server(side) as server,
            stage.publisher(side, server) as publisher,
            stage.load(side, server) as load,
            Redis.from_url(stage.redis_url) as redis,
        ):
            load.connect([topic] * 1)
            quiet = load.run(publisher, steady(topic, size.events, 0.05), WAIT_S)
            crowd = [_request(stage.new_topic()) for _ in range(size.topics)]
            with _clients(server, crowd):
                asking = [_request(stage.new_topic(), live=False) for _ in range(size.topics // 10)]
                with _clients(server, asking):
                    pass
                busy = load.run(publisher, steady(topic, size.events, 0.05), WAIT_S)
                connections = int(redis.info("clients")["connected_clients"])  # pyright: ignore
                status, ready = _get(server, "/readyz")
            time.sleep(SETTLE_S)
            _, after = _get(server, "/readyz")
            figures = {
                "quiet_p99_ms": _p99_ms(quiet),
                "busy_p99_ms": _p99_ms(busy),
                "redis_connections": float(connections),
                "topics": float(ready.get("topics", -1)),
                "topics_after": float(after.get("topics", -1)),
            }
            stage.record(leg, side, round_, figures)
            if status != http.client.OK:
                stage.result.violations.append(f"/readyz: {status} {ready}")
            if after.get("topics", 0) > 1:
                stage.result.violations.append(f"{after['topics']} topics are left of the crowd's")
            if figures["busy_p99_ms"] > LATENCY_FACTOR * figures["quiet_p99_ms"] and not stage.quick:
                stage.result.violations.append(f"honest p99: {figures}")


def _cursors(stage: Stage, size: Crowd) -> None:
    side = Stalecast({"STALECAST_LOG_LEVEL": "warning", "STALECAST_WINDOW_LIMIT_EVENTS": "1"})
    for leg, round_, _ in stage.visits([{"invented cursors": size.cursors}], [side]):
        topic = stage.new_topic()
        with (
            stage.leg(leg, side, round_),
            stage.server(side) as server,
            Redis.from_url(stage.redis_url) as redis,
        ):
            ids = _fill(stage.redis_url, topic, 100)
            quiet_s = [_resume_s(server, topic, ids) for _ in range(size.resumes)]
            sent = _sent_bytes(redis)
            with _again_and_again(server, topic, ids, size.cursors) as answered:
                time.sleep(SETTLE_S)
                began, answered_before = time.monotonic(), answered[0]
                sent = _sent_bytes(redis)
                busy_s = [_resume_s(server, topic, ids) for _ in range(size.resumes)]
                took_s = time.monotonic() - began
            figures = {
                "quiet_ms": 1000 * max(quiet_s),
                "busy_ms": 1000 * max(busy_s),
                "busy_median_ms": 1000 * sorted(busy_s)[len(busy_s) // 2],
                "requests_hz": (answered[0] - answered_before) / took_s,
                "redis_mb_s": (_sent_bytes(redis) - sent) / 1e6 / took_s,
            }
            stage.record(leg, side, round_, figures)


def _fill(redis_url: str, topic: str, event_bytes: int) -> list[str]:
    ids: list[str] = []
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        for number in range(EVENTS[event_bytes]):
            data = {"id": f"r{number}", "reason": "edited" + "x" * max(0, event_bytes - 90)}
            payload = json.dumps({"event": "argument_updated", "data": data})
            ids.append(str(redis.xadd(f"topic:events:{topic}", {"payload": payload})))  # pyright: ignore
    return ids


def _request(topic: str, cursor: str | None = None, *, live: bool = True) -> bytes:
    query = "" if live else "?live=false"
    resume = f"Last-Event-ID: {cursor}\r\n" if cursor else ""
    return f"GET /v1/sse/{topic}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n{resume}\r\n".encode()


@contextmanager
def _clients(server: Server, requests: Sequence[bytes], *, reads: bool = True) -> Generator[None]:
    """Inside, each request has been sent on a connection of its own. `reads`: each has been answered, too."""
    sockets: list[socket.socket] = []
    try:
        for begin in range(0, len(requests), BATCH):
            batch: list[socket.socket] = []
            for request in requests[begin : begin + BATCH]:
                sock = socket.socket()
                if not reads:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STUCK_RECEIVE_BUFFER_BYTES)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, INTERNET_SEGMENT_BYTES)
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(("127.0.0.1", server.port))
                sock.sendall(request)
                batch.append(sock)
            sockets += batch
            if reads:
                for sock in batch:
                    sock.recv(1 << 16)
        yield
    finally:
        for sock in sockets:
            sock.close()


@contextmanager
def _again_and_again(server: Server, topic: str, ids: Sequence[str], count: int) -> Generator[list[int]]:
    """A crowd, each of which resumes from nowhere; answered, it leaves, and another one comes."""
    answered, stop = [0], threading.Event()
    ms = int(ids[0].partition("-")[0])

    def work() -> None:
        number = 0
        while not stop.is_set():
            wave: list[socket.socket] = []
            for _ in range(count // 4):
                number += 1
                sock = socket.socket()
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(("127.0.0.1", server.port))
                sock.sendall(_request(topic, f"{ms}-{900_000 + number}"))
                wave.append(sock)
            for sock in wave:
                sock.recv(1 << 16)
                answered[0] += 1
                sock.close()

    def run() -> None:
        with suppress(OSError):
            work()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stop.set()
        for thread in threads:
            thread.join(CONNECT_TIMEOUT_S)


def _resume_s(server: Server, topic: str, ids: Sequence[str]) -> float:
    """Until the newest event is here."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), CONNECT_TIMEOUT_S) as sock:
        sock.sendall(_request(topic, ids[-100]))
        received = b""
        while f"id: {ids[-1]}\n".encode() not in received and (part := sock.recv(1 << 16)):
            received += part
    return time.monotonic() - begin


def _sent_bytes(redis: Redis) -> int:
    return int(redis.info("stats")["total_net_output_bytes"])  # pyright: ignore


def _get(server: Server, path: str) -> tuple[int, dict[str, int]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=CONNECT_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _p99_ms(receipts: Receipts) -> float:
    return receipts.histogram.get_value_at_percentile(99) / 1000


def _in_words(size: Size) -> str:
    return ", ".join(f"{value} {name}" for name, value in size.items())
