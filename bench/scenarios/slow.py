"""Clients that stop reading, beside clients that do not: what they cost the others.

For every side: the same events with and without them. For Stalecast besides: at a higher rate when they are
released, the memory meanwhile, and a SIGTERM among them.

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

from bench.load import LoadFailed, Receipts
from bench.load_process import request_head
from bench.peers import Stalecast
from bench.peers.side import Dialect, Side
from bench.processes import Server, open_descriptors, rss_bytes
from bench.stage import Size, Stage, steady

STUCK_RECEIVE_BUFFER_BYTES = 1  # the kernel raises it to its own minimum, about 2 kB
INTERNET_SEGMENT_BYTES = 1460
CONNECT_TIMEOUT_S = 60
IN_FLIGHT = 200
POLL_S = 0.05
WAIT_S = 60
EXIT_GRACE_S = 20  # beyond the drain time a server that is still there is killed and counted
RELEASE_MARGIN_S = 3  # beyond the stuck timeout, counted from the last event
TCP_ESTABLISHED = "01"
PROC_TCP = Path("/proc/net/tcp")
BYTES_PER_MB = 1_000_000
ROUNDS_LIMIT = 2  # a leg takes most of a minute

OUT_OF_REACH_S = "600"
# Distinct ids cannot be conflated; the length makes the stuck clients' buffers fill within the first seconds.
REASON = b"r" * 256


@dataclass(frozen=True, slots=True)
class Share:
    """For every side: a rate that the slowest of them can hold."""

    readers: int
    stuck: int
    events: int
    rate_hz: int


SHARE = Share(readers=100, stuck=100, events=400, rate_hz=20)
SHARE_QUICK = Share(readers=20, stuck=10, events=40, rate_hz=20)


@dataclass(frozen=True, slots=True)
class Deep:
    """For Stalecast: a rate that fills buffers fast, and its own limits."""

    readers: int
    stuck: int
    events: int
    rate_hz: int
    stuck_timeout_s: int
    drain_s: int
    drain_events: int  # published to the fresh stuck clients before SIGTERM: enough to fill their buffers


# Twice the rate would fill the server's core with readers alone, and hide what the stuck clients add.
DEEP = Deep(
    readers=500, stuck=500, events=5000, rate_hz=250, stuck_timeout_s=5, drain_s=10, drain_events=1000
)
DEEP_QUICK = Deep(
    readers=50, stuck=50, events=600, rate_hz=500, stuck_timeout_s=1, drain_s=2, drain_events=400
)


class StuckClients:
    """Subscribers that ask and then never read a byte, not even the head."""

    def __init__(self, server_port: int, dialect: Dialect, topic: str) -> None:
        self._address, self._head = ("127.0.0.1", server_port), request_head(dialect, topic)
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
                sock.sendall(self._head)
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
        self.rss_mb: list[float] = []

    def tick(self) -> None:
        self.rss_mb.append(rss_bytes(self._pids) / BYTES_PER_MB)
        held = open_descriptors(self._pids) - self._descriptors_without
        if held < self.held:
            self.held, self.last_released_s = held, time.monotonic() - self._begin
            self.first_released_s = self.first_released_s or self.last_released_s


def slow(stage: Stage) -> None:
    share, deep = (SHARE_QUICK, DEEP_QUICK) if stage.quick else (SHARE, DEEP)
    stage.rounds = min(stage.rounds, ROUNDS_LIMIT)
    sizes = [{"readers": share.readers, "stuck": stuck} for stuck in (0, share.stuck)]
    for size, round_, side in stage.visits(sizes, stage.taking_part()):
        with stage.leg(size, side, round_):
            plan = (share.events, 1 / share.rate_hz)
            receipts, watch, _ = _one_run(stage, side, size, plan, release_within_s=0)
            stage.record(size, side, round_, {"rss_max_mb": max(watch.rss_mb)}, receipts)
    _deep(stage, deep)


def _one_run(
    stage: Stage, side: Side, size: Size, plan: tuple[int, float], release_within_s: float
) -> tuple[Receipts, Watch, str]:
    """Receipts of the readers, what was watched, and how the kernel sees the stuck ones afterwards."""
    topic = stage.new_topic()
    with (
        stage.server(side) as server,
        stage.publisher(side, server, REASON) as publisher,
        stage.load(side, server) as load,
        StuckClients(server.port, side.dialect, topic) as clients,
    ):
        load.connect([topic] * int(size["readers"]))
        clients.connect(int(size["stuck"]))
        watch = Watch(server, int(size["stuck"]))
        events, interval_s = plan
        receipts = load.run(publisher, steady(topic, events, interval_s), WAIT_S, watch.tick)
        deadline = time.monotonic() + release_within_s
        while watch.held > 0 and time.monotonic() < deadline:
            load.listen(POLL_S)
            watch.tick()
        established, lingering = server_side(server.port, clients.ports())
        seen = f"{clients.ended()} of them saw it; the kernel has {established} established"
        seen += f" and {lingering} closed but unsent"
    return receipts, watch, seen


def _deep(stage: Stage, deep: Deep) -> None:
    side = Stalecast({"STALECAST_STUCK_TIMEOUT_S": str(deep.stuck_timeout_s)})
    sizes = [{"readers": deep.readers, "stuck": stuck} for stuck in (0, deep.stuck)]
    for size, round_, _ in stage.visits(sizes, [side]):
        with stage.leg(size, side, round_):
            plan, within_s = (deep.events, 1 / deep.rate_hz), deep.stuck_timeout_s + RELEASE_MARGIN_S
            receipts, watch, seen = _one_run(stage, side, size, plan, within_s)
            stage.record(size, side, round_, {"rss_max_mb": max(watch.rss_mb)}, receipts)
            count = int(size["stuck"])
            if not count:
                continue
            note = f"{side.name}: rss {watch.rss_mb[0]:.0f} MB at first, {max(watch.rss_mb):.0f} at most"
            note += f", {watch.rss_mb[-1]:.0f} at the end; {count - watch.held} of {count} stuck released"
            if watch.last_released_s is not None:
                note += f" {watch.first_released_s:.1f} to {watch.last_released_s:.1f} s after the start"
            stage.result.notes.append(f"{note}, {seen}")
            if watch.held > 0:
                stage.result.violations.append(f"{watch.held} stuck clients still held")
    _exit_among_stuck(stage, deep)


def _exit_among_stuck(stage: Stage, deep: Deep) -> None:
    """The stuck timeout is out of reach here, so that only the drain can end the stuck connections."""
    settings = {"STALECAST_STUCK_TIMEOUT_S": OUT_OF_REACH_S, "STALECAST_DRAIN_S": str(deep.drain_s)}
    side, topic = Stalecast(settings), stage.new_topic()
    server = side.start(stage.redis_url, Path())
    try:
        server.wait_ready()
        with (
            stage.publisher(side, server, REASON) as publisher,
            stage.load(side, server) as load,
            StuckClients(server.port, side.dialect, topic) as clients,
        ):
            load.connect([topic] * deep.readers)
            clients.connect(deep.stuck)
            receipts = load.run(publisher, steady(topic, deep.drain_events, 1 / deep.rate_hz), WAIT_S)
            stage.check({"before SIGTERM": deep.stuck}, side, 0, receipts)
            server.process.terminate()
            begin = time.monotonic()
            while server.process.poll() is None and time.monotonic() - begin < deep.drain_s + EXIT_GRACE_S:
                load.listen(POLL_S)
            exited_s = time.monotonic() - begin
        if server.process.returncode is None:
            stage.result.violations.append(f"still there {exited_s:.0f} s after SIGTERM")
        stage.result.notes.append(
            f"SIGTERM with {deep.stuck} stuck and {deep.readers} reading clients: exit after {exited_s:.2f} s"
            f" with status {server.process.returncode}, drain time {deep.drain_s} s"
        )
    finally:
        server.kill()
