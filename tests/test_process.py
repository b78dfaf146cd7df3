"""The supervisor and its workers: who ends whom, and what clients see of it."""

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import pytest
import redis
import trio
import trio._core._thread_cache
from servers import HOST, AppServer, RedisServer, redis_client, run_app, run_redis, wait_until

import app.process
from app.process import Supervisor
from app.publish import publish_topic_event_sync

READ_TIMEOUT_S = 10.0
SOON_S = 5.0
DRAIN_S = 5.0

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def writer(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_client(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def server(redis_server: RedisServer, tmp_path: Path) -> Iterator[AppServer]:
    """Two workers under a supervisor, both serving."""
    settings = {"STALECAST_DRAIN_S": str(DRAIN_S), "STALECAST_DRAIN_RATE_CLIENTS_PER_S": "1"}
    with run_app(tmp_path, redis_url=redis_server.url, workers=2, settings=settings) as app_server:
        try:
            wait_serving(app_server, 2)
            yield app_server
        finally:
            for pid in worker_pids(app_server):
                if is_alive(pid):
                    os.kill(pid, signal.SIGKILL)


def log_lines(server: AppServer, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in server.output().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


def worker_pids(server: AppServer) -> list[int]:
    """Of all workers that were ever started, oldest first."""
    return [int(str(line["pid"])) for line in log_lines(server, "worker_started")]


def wait_serving(server: AppServer, workers: int) -> None:
    """Until so many workers, over all that were ever started, have come to serve."""
    wait_until(lambda: len(log_lines(server, "serving")) == workers, f"{workers} workers serve")


def is_alive(pid: int) -> bool:
    """Neither gone nor waiting for a parent that does not ask."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def publish(writer: redis.Redis, topic: str = "a") -> str:
    return publish_topic_event_sync(writer, topic, "argument_updated", {"id": "1", "reason": "edited"})


@contextmanager
def only(pid: int, others: list[int]) -> Iterator[None]:
    """Inside the block `pid` alone accepts connections."""
    paused = [other for other in others if other != pid]
    for other in paused:
        os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in paused:
            os.kill(other, signal.SIGCONT)


class Stream:
    """A client of topic `a`."""

    def __init__(self, server: AppServer) -> None:
        self._connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
        self._connection.request("GET", "/v1/sse/a")
        self._sock = self._connection.sock  # http.client forgets it where the server says it will close
        self._response: HTTPResponse = self._connection.getresponse()
        assert self._response.status == 200
        self.read_until(b"id: ")

    def read_until(self, start: bytes) -> bytes:
        """The next line that starts so."""
        while not (line := self._response.readline()).startswith(start):
            assert line, "the stream ended"
        return line

    @property
    def has_more(self) -> bool:
        return bool(select.select([self._sock], [], [], 0)[0])

    def read_clean_end(self) -> bytes:
        """What is left. Raises IncompleteRead (http.client) when the last chunk is missing."""
        return self._response.read()

    def close(self) -> None:
        self._response.close()
        self._connection.close()


@contextmanager
def follow(server: AppServer) -> Iterator[Stream]:
    stream = Stream(server)
    try:
        yield stream
    finally:
        stream.close()


@contextmanager
def one_client_each(server: AppServer) -> Iterator[list[Stream]]:
    """A client of the first worker, and one of the second."""
    pids = worker_pids(server)
    with ExitStack() as clients:
        streams: list[Stream] = []
        for pid in pids:
            with only(pid, pids):
                streams.append(clients.enter_context(follow(server)))
        yield streams


def test_sigterm_drains_every_worker(server: AppServer) -> None:
    with one_client_each(server) as streams:
        started_s = time.monotonic()
        server.terminate()
        for stream in streams:
            assert b"retry: " in stream.read_clean_end()
        assert server.wait_ended(DRAIN_S + SOON_S) == 0
        assert time.monotonic() - started_s < DRAIN_S
    assert not any(map(is_alive, worker_pids(server)))


def test_the_port_is_refused_at_once_while_clients_are_sent_away(server: AppServer) -> None:
    first, _ = pids = worker_pids(server)
    with ExitStack() as clients:
        with only(first, pids):
            one, two = (clients.enter_context(follow(server)) for _ in range(2))
        server.terminate()
        wait_until(lambda: is_refused(server), "the port is refused", timeout_s=SOON_S)
        # The second one's slot is a second after the first one's.
        assert not two.has_more
        one.read_clean_end()
        assert is_refused(server)
        two.read_clean_end()
    assert server.wait_ended(SOON_S) == 0


def is_refused(server: AppServer) -> bool:
    try:
        socket.create_connection((HOST, server.port), timeout=SOON_S).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it was in the backlog that was just given up
    return False


def test_a_killed_worker_is_replaced_and_the_other_ones_clients_stay(
    server: AppServer, writer: redis.Redis
) -> None:
    with one_client_each(server) as (cut, staying):
        killed, survivor = worker_pids(server)
        os.kill(killed, signal.SIGKILL)
        with pytest.raises((HTTPException, OSError)):
            cut.read_clean_end()
        event_id = publish(writer)
        assert staying.read_until(b"id: ") == f"id: {event_id}\n".encode()
        wait_serving(server, 3)
        replacement = worker_pids(server)[2]
        with only(replacement, [survivor, replacement]), follow(server) as stream:
            event_id = publish(writer)
            assert stream.read_until(b"id: ") == f"id: {event_id}\n".encode()
        assert staying.read_until(b"id: ") == f"id: {event_id}\n".encode()
        (crash,) = log_lines(server, "worker_crashed")
        assert crash["status"] == -signal.SIGKILL


def test_sigterm_does_not_wait_for_a_worker_that_is_yet_to_be_replaced(server: AppServer) -> None:
    for pid in worker_pids(server):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(log_lines(server, "worker_crashed")) == 2, "both are missed")
    server.terminate()
    assert server.wait_ended(SOON_S) == 0
    assert not any(map(is_alive, worker_pids(server)))


def test_sighup_ends_nothing(server: AppServer) -> None:
    with follow(server):
        server.signal(signal.SIGHUP)
        wait_until(lambda: bool(log_lines(server, "hangup_ignored")), "it is noticed")
        assert server.is_ready()
        assert len(worker_pids(server)) == 2


@linux_only
def test_workers_end_when_their_supervisor_is_killed(server: AppServer) -> None:
    with one_client_each(server) as streams:
        server.kill()
        for stream in streams:
            assert b"retry: " in stream.read_clean_end(), "as on any other deploy"
        wait_until(lambda: not any(map(is_alive, worker_pids(server))), "both are gone", timeout_s=SOON_S)
        assert is_refused(server)


# -- the supervisor in this process, with workers that serve nothing

_WORKER = """
import os, pathlib, signal, sys
folder, stubborn = pathlib.Path(sys.argv[1]), sys.argv[2:]
signal.signal(signal.SIGTERM, lambda *_: None if stubborn else sys.exit(0))
signal.signal(signal.SIGUSR1, lambda *_: (folder / f"{os.getpid()}.alive").touch())
(folder / f"{os.getpid()}.pid").touch()
while True:
    signal.pause()
"""


def touched(folder: Path, suffix: str) -> list[int]:
    """The pids of the workers that left a file."""
    return [int(name.removesuffix(suffix)) for name in os.listdir(folder) if name.endswith(suffix)]


async def wait_touched(folder: Path, suffix: str) -> int:
    with trio.fail_after(SOON_S):
        while not (pids := touched(folder, suffix)):  # noqa: ASYNC110 another process makes it
            await trio.sleep(0.005)
    return pids[0]


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as listener:
        yield listener


async def test_a_worker_outlives_the_threads_of_its_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prctl(2): a child that asked for it gets its signal when the *thread* that forked it ends."""
    monkeypatch.setattr(trio._core._thread_cache, "IDLE_TIMEOUT", 0.01)
    with listening() as listener, trio.fail_after(SOON_S):
        argv = [sys.executable, "-I", "-S", "-c", _WORKER, str(tmp_path)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervisor(1, argv, listener, DRAIN_S).run)
            pid = await wait_touched(tmp_path, ".pid")
            await trio.sleep(0.1)  # the time in which the signal would come
            os.kill(pid, signal.SIGUSR1)
            await wait_touched(tmp_path, ".alive")
            os.kill(os.getpid(), signal.SIGTERM)
    assert touched(tmp_path, ".pid") == touched(tmp_path, ".alive") == [pid]


async def test_a_worker_that_does_not_end_in_time_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.process, "END_GRACE_S", 0.1)
    with listening() as listener:
        argv = [sys.executable, "-I", "-S", "-c", _WORKER, str(tmp_path), "stubborn"]
        supervisor = Supervisor(1, argv, listener, drain_s=0.1)
        status: list[int] = []

        async def run() -> None:
            status.append(await supervisor.run())

        with trio.fail_after(SOON_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                pid = await wait_touched(tmp_path, ".pid")
                os.kill(os.getpid(), signal.SIGTERM)
        assert status == [1], "the platform is told that clients were cut"
        assert not is_alive(pid)
