"""The processes of a measurement: Redis, the server that is measured, and which core each of them runs on.

The server has one core for itself; Redis, the publisher and the load share another. Every process that is
started here is ended here, by its own pid.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.embedded import find_server
from bench.ports import free_port

REPOSITORY = Path(__file__).resolve().parent.parent

START_TIMEOUT_S = 20
POLL_S = 0.02
PROBE_TIMEOUT_S = 1
STOP_TIMEOUT_S = 10  # a server without clients has nothing to drain
KIB = 1024
PR_SET_TIMERSLACK = 29  # prctl(2)
LOG_TAIL_CHARACTERS = 2000
PARENT_FIELD, UTIME_FIELD, STIME_FIELD = 1, 11, 12  # of /proc/PID/stat, counted from the state (proc(5))

_CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU = _CPUS[0]
LOAD_CPU = _CPUS[1] if len(_CPUS) > 1 else _CPUS[0]


class ServerFailed(Exception):
    """A process did not start, or ended on its own."""


def pin_load() -> None:
    """This process publishes on a schedule: on the load's core, woken without the usual 50 us of slack."""
    os.sched_setaffinity(0, {LOAD_CPU})
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)


@contextmanager
def children_on(cpu: int) -> Generator[None]:
    """What is started inside inherits `cpu`; setting it afterwards would miss a child's first threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """One server process, with its workers if it has any."""

    def __init__(
        self,
        kind: str,
        port: int,
        command: Sequence[str],
        environment: Mapping[str, str],
        cpu: int,
        ready_path: str | None = None,
        *,
        folder: Path = REPOSITORY,
    ) -> None:
        """Without `ready_path` a server is ready as soon as it listens. `folder`: where it is started."""
        self.kind = kind
        self.port = port
        self._ready_path = ready_path
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 it lives as long as the server
        with children_on(cpu):
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> None:
        """Raises `ServerFailed` with the end of the process's output."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_S).close()
                if self._ready_path is None or self._is_ready():
                    return
            except OSError:
                pass
            time.sleep(POLL_S)
        self.kill()
        raise ServerFailed(f"{self.kind} is not ready on port {self.port}:\n{self.log_tail()}")

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", self._ready_path or "/")
            return connection.getresponse().status == http.client.OK
        except http.client.HTTPException:
            return False
        finally:
            connection.close()

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise ServerFailed(f"{self.kind} ended with status {self.process.returncode}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-LOG_TAIL_CHARACTERS:]

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Also right for a process that has ended already."""
        for pid in reversed(self.pids()):  # workers first: a killed parent no longer leads to them
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        self.process.wait()

    def pids(self) -> list[int]:
        """The process and all that descend from it, parents first."""
        children: dict[int, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            fields = _stat_fields(int(folder.name))
            if fields:
                children.setdefault(int(fields[PARENT_FIELD]), []).append(int(folder.name))
        found = [self.pid] if self.process.returncode is None else []
        for pid in found:
            found.extend(children.get(pid, []))
        return found


def rss_bytes(pids: Iterable[int]) -> int:
    """VmRSS of all of them; pages that a parent and its workers share count once for each."""
    total = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * KIB
    return total


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of all of them since they started."""
    ticks = 0
    for pid in pids:
        fields = _stat_fields(pid)
        ticks += int(fields[UTIME_FIELD]) + int(fields[STIME_FIELD]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def open_descriptors(pids: Iterable[int]) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the process's state on; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextmanager
def running(server: Server) -> Generator[Server]:
    """Ready inside, ended afterwards; a server that ended on its own inside is an error."""
    try:
        server.wait_ready()
        yield server
        server.check_alive()
    finally:
        if server.process.poll() is None:
            server.stop()


@contextmanager
def redis_server() -> Generator[str]:
    """The URL of $REDIS_URL, or of the embedded Valkey without persistence, which ends with the block."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
        ]
        server = Server("Redis", port, [find_server(), *options], {}, LOAD_CPU)
        try:
            server.wait_ready()
            url = f"redis://127.0.0.1:{port}"
            _wait_loaded(url)
            yield url
        finally:
            server.stop()


def _wait_loaded(url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except RedisConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return
