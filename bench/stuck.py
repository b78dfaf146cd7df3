"""Clients that never read, beside clients that do: what they cost the others, the memory, and the shutdown.

Each stuck client offers a tiny receive buffer and the segment size of the internet. Loopback's own 64 kB
segments would let the kernel take about 2.5 MB for each client before a write blocks; with 1460 bytes it is
below 100 kB, as it is for a client across the network. So the server meets "would block" within the run.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench import wire
from bench.load import LoadFailed, Receipts
from bench.processes import KIB, STALECAST, Server, open_descriptors, rss_bytes, start_stalecast
from bench.stage import Stage, steady

STUCK_RECEIVE_BUFFER_BYTES = 1  # the kernel raises it to its own minimum, about 2 kB
INTERNET_SEGMENT_BYTES = 1460
CONNECT_TIMEOUT_S = 60
IN_FLIGHT = 200
POLL_S = 0.05
WAIT_S = 20
EXIT_GRACE_S = 20  # beyond the drain time a server that is still there is killed and counted
RELEASE_MARGIN_S = 3  # beyond the stuck timeout, counted from the last event
TCP_ESTABLISHED = "01"
PROC_TCP = Path("/proc/net/tcp")

WITH, WITHOUT = "with stuck", "without"
OUT_OF_REACH_S = "600"
RATIOS = ("p50_ms", "p90_ms", "p99_ms", "max_ms")
# Distinct ids cannot be conflated; the length makes the stuck clients' buffers fill within the first seconds.
REASON = b"r" * 200


@dataclass(frozen=True, slots=True)
class Size:
    readers: int
    stuck: int
    events: int
    rate_hz: int
    stuck_timeout_s: int
    drain_s: int
    drain_events: int  # published to the fresh stuck clients before SIGTERM: enough to fill their buffers


# Twice the rate would fill the server's core with readers alone, and hide what the stuck clients add.
FULL = Size(
    readers=500, stuck=500, events=5000, rate_hz=250, stuck_timeout_s=5, drain_s=10, drain_events=1000
)
QUICK = Size(readers=50, stuck=50, events=600, rate_hz=500, stuck_timeout_s=1, drain_s=2, drain_events=400)


class StuckClients:
    """Subscribers that ask and then never read a byte, not even the head."""

    def __init__(self, server_port: int, topic: str) -> None:
        self._address, self._topic = ("127.0.0.1", server_port), topic
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.poll()

    def __enter__(self) -> StuckClients:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets.values():
            sock.close()

    def connect(self, count: int) -> None:
        """Returns when each of them has bytes waiting: from then on the server counts it as a subscriber."""
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        waiting = select.poll()
        on_their_way = 0
        while len(self._sockets) < count or on_their_way:
            while len(self._sockets) < count and on_their_way < IN_FLIGHT:
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, STUCK_RECEIVE_BUFFER_BYTES)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, INTERNET_SEGMENT_BYTES)
                sock.connect(self._address)
                sock.sendall(wire.request_head(self._topic))
                self._sockets[sock.fileno()] = sock
                self._poll.register(sock, select.POLLRDHUP)  # errors and hang-ups are always reported
                waiting.register(sock, select.POLLIN)
                on_their_way += 1
            for fd, _ in waiting.poll(POLL_S * 1000):
                waiting.unregister(fd)
                on_their_way -= 1
            if time.monotonic() > deadline:
                raise LoadFailed(f"{on_their_way} stuck clients were not answered")

    def ended(self) -> int:
        """How many connections have ended for the client's side, by a reset or a close.

        A close with unsent bytes before a shut window stays invisible here: its FIN waits behind them.
        """
        return len(self._poll.poll(0))

    def ports(self) -> set[int]:
        return {sock.getsockname()[1] for sock in self._sockets.values()}


def server_side(server_port: int, client_ports: Iterable[int]) -> tuple[int, int]:
    """Of these clients' connections, as the server's kernel sees them: established, and not forgotten yet.

    The second figure has those that the process closed while unsent bytes were left: memory that only the
    kernel still holds.
    """
    wanted = set(client_ports)
    established = lingering = 0
    for line in PROC_TCP.read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if int(local.partition(":")[2], 16) == server_port and int(remote.partition(":")[2], 16) in wanted:
            if state == TCP_ESTABLISHED:
                established += 1
            else:
                lingering += 1
    return established, lingering


class Watch:
    """The server's memory, and when it lets go of the stuck clients, while a run goes on."""

    def __init__(self, server: Server, held: int) -> None:
        """`held` is how many stuck clients the server has."""
        self._pids = server.pids()
        self._descriptors_without = open_descriptors(self._pids) - held
        self._begin = time.monotonic()
        self.held = held
        self.first_released_s: float | None = None
        self.last_released_s: float | None = None
        self.rss_mib: list[float] = []

    def tick(self) -> None:
        self.rss_mib.append(rss_bytes(self._pids) / KIB / KIB)
        held = open_descriptors(self._pids) - self._descriptors_without
        if held < self.held:
            self.held, self.last_released_s = held, time.monotonic() - self._begin
            self.first_released_s = self.first_released_s or self.last_released_s


def stuck(stage: Stage) -> None:
    """Readers with and without stuck clients beside them, then a SIGTERM while fresh stuck ones are there."""
    size = QUICK if stage.quick else FULL
    receipts = {WITH: Receipts(), WITHOUT: Receipts()}
    for _ in range(stage.rounds):
        for side, found in receipts.items():
            found.add(_one_run(stage, size, side))
    stage.compare({"readers": size.readers, "stuck": size.stuck}, receipts, RATIOS)
    _exit_among_stuck(stage, size)


def _one_run(stage: Stage, size: Size, side: str) -> Receipts:
    settings = {"STALECAST_STUCK_TIMEOUT_S": str(size.stuck_timeout_s)}
    count = size.stuck if side == WITH else 0
    topic = stage.new_topic()
    with (
        stage.server(STALECAST, settings) as server,
        stage.load(server) as load,
        stage.publisher(REASON) as publisher,
        StuckClients(server.port, topic) as clients,
    ):
        load.connect([topic] * size.readers)
        clients.connect(count)
        watch = Watch(server, count)
        receipts = load.run(publisher, steady(topic, size.events, 1 / size.rate_hz), WAIT_S, watch.tick)
        deadline = time.monotonic() + size.stuck_timeout_s + RELEASE_MARGIN_S
        while watch.held > 0 and time.monotonic() < deadline:
            load.listen(POLL_S)
            watch.tick()
        note = f"{side}: rss {watch.rss_mib[0]:.0f} MiB at first, {max(watch.rss_mib):.0f} at most"
        note += f", {watch.rss_mib[-1]:.0f} at the end"
        if count:
            established, lingering = server_side(server.port, clients.ports())
            note += f"; {count - watch.held} of {count} stuck clients released"
            if watch.last_released_s is not None:
                note += f" {watch.first_released_s:.1f} to {watch.last_released_s:.1f} s after the start"
            note += f", {clients.ended()} of them saw it; the kernel has {established} established"
            note += f" and {lingering} closed but unsent"
            if watch.held > 0:
                stage.outcome.violations.append(f"{watch.held} stuck clients still held")
        stage.outcome.notes.append(note)
    return receipts


def _exit_among_stuck(stage: Stage, size: Size) -> None:
    """The stuck timeout is out of reach here, so that only the drain can end the stuck connections."""
    settings = {"STALECAST_STUCK_TIMEOUT_S": OUT_OF_REACH_S, "STALECAST_DRAIN_S": str(size.drain_s)}
    topic = stage.new_topic()
    server = start_stalecast(stage.redis_url, settings)
    try:
        server.wait_ready()
        with (
            stage.load(server) as load,
            stage.publisher(REASON) as publisher,
            StuckClients(server.port, topic) as clients,
        ):
            load.connect([topic] * size.readers)
            clients.connect(size.stuck)
            receipts = load.run(publisher, steady(topic, size.drain_events, 1 / size.rate_hz), WAIT_S)
            stage.outcome.check("before SIGTERM", receipts)
            server.process.terminate()
            begin = time.monotonic()
            while server.process.poll() is None and time.monotonic() - begin < size.drain_s + EXIT_GRACE_S:
                load.listen(POLL_S)
            exited_s = time.monotonic() - begin
        if server.process.returncode is None:
            stage.outcome.violations.append(f"still there {exited_s:.0f} s after SIGTERM")
        stage.outcome.notes.append(
            f"SIGTERM with {size.stuck} stuck and {size.readers} reading clients: exit after {exited_s:.2f} s"
            f" with status {server.process.returncode}, drain time {size.drain_s} s"
        )
    finally:
        server.kill()
