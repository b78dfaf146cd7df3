"""The supervisor and its workers: who ends whom, and what clients see of it."""

import errno
import json
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import redis
import trio
import trio._core._thread_cache
from servers import (
    HOST,
    PROJECT,
    START_TIMEOUT_S,
    AppServer,
    RedisServer,
    free_port,
    redis_client,
    run_app,
    run_redis,
    wait_until,
)

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


def worker_pids(server: AppServer) -> list[int]:
    """Of all workers that were ever started, oldest first."""
    return [int(str(line["pid"])) for line in server.log_lines("worker_started")]


def wait_serving(server: AppServer, workers: int) -> None:
    """Until so many workers, over all that were ever started, have come to serve."""
    wait_until(lambda: len(server.log_lines("serving")) == workers, f"{workers} workers serve")


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

    def __init__(self, connection: HTTPConnection, target: str = "/v1/sse/a") -> None:
        self._connection = connection
        self._connection.request("GET", target)
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
    stream = Stream(HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S))
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
        (crash,) = server.log_lines("worker_crashed")
        assert crash["status"] == -signal.SIGKILL


def test_sigterm_does_not_wait_for_a_worker_that_is_yet_to_be_replaced(server: AppServer) -> None:
    for pid in worker_pids(server):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(server.log_lines("worker_crashed")) == 2, "both are missed")
    server.terminate()
    assert server.wait_ended(SOON_S) == 0
    assert not any(map(is_alive, worker_pids(server)))


def test_sighup_ends_nothing(server: AppServer) -> None:
    with follow(server):
        server.signal(signal.SIGHUP)
        wait_until(lambda: bool(server.log_lines("hangup_ignored")), "it is noticed")
        assert server.is_ready()
        assert len(worker_pids(server)) == 2


@pytest.fixture
def single(redis_server: RedisServer, tmp_path: Path) -> Iterator[AppServer]:
    settings = {"STALECAST_DRAIN_S": str(DRAIN_S), "STALECAST_DRAIN_RATE_CLIENTS_PER_S": "1"}
    with run_app(tmp_path, redis_url=redis_server.url, settings=settings) as app_server:
        yield app_server


HABITS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH)


@pytest.mark.parametrize("workers", [1, 2])
def test_signals_that_mean_other_things_elsewhere_cut_nobody(
    request: pytest.FixtureRequest, workers: int, writer: redis.Redis
) -> None:
    """The supervisor and each worker: `pkill -HUP -f stalecast` reaches them all."""
    server: AppServer = request.getfixturevalue("single" if workers == 1 else "server")
    with follow(server) as stream:
        for number in HABITS:
            for pid in [server.pid, *worker_pids(server)]:
                os.kill(pid, number)
        wait_until(lambda: len(server.log_lines("signal_ignored")) >= 4, "they are noticed")
        wait_until(lambda: bool(server.log_lines("hangup_ignored")), "it is noticed")
        event_id = publish(writer)
        assert stream.read_until(b"id: ") == f"id: {event_id}\n".encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_says_stop_drains_also_when_said_twice(
    request: pytest.FixtureRequest, workers: int, number: signal.Signals
) -> None:
    server: AppServer = request.getfixturevalue("single" if workers == 1 else "server")
    with follow(server) as first, follow(server) as second:
        server.signal(number)
        wait_until(lambda: bool(server.log_lines("stopping")), "it is noticed")
        server.signal(number)
        server.signal(signal.SIGINT)
        server.signal(signal.SIGHUP)
        for stream in (first, second):
            assert b"retry: " in stream.read_clean_end()
    assert server.wait_ended(DRAIN_S + SOON_S) == 0


def test_a_closed_terminal_ends_the_server_with_a_drain(redis_server: RedisServer, tmp_path: Path) -> None:
    """And a log that nobody takes any more ends nothing before."""
    with on_terminal(redis_server, tmp_path) as (server, terminal), follow(server) as stream:
        os.close(terminal)
        server.signal(signal.SIGHUP)  # what the kernel says to the session of a closed terminal
        assert b"retry: " in stream.read_clean_end()
        assert server.wait_ended(SOON_S) == 0


@contextmanager
def on_terminal(redis_server: RedisServer, folder: Path) -> Iterator[tuple[AppServer, int]]:
    terminal, theirs = pty.openpty()
    with run_app(folder, redis_url=redis_server.url, wait_ready=False) as server:
        server.kill()
        argv = shlex.join(server.argv)
        server.argv = ["/bin/sh", "-c", f"exec {argv} <{os.ttyname(theirs)} 2>{os.ttyname(theirs)}"]
        server.start()
        os.close(theirs)
        yield server, terminal


def test_a_log_on_a_full_disk_ends_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    with run_app(tmp_path, redis_url=redis_server.url, wait_ready=False) as server:
        server.kill()
        server.argv = ["/bin/sh", "-c", f"exec {shlex.join(server.argv)} 2>/dev/full"]
        server.start()
        with follow(server) as stream:
            server.terminate()
            assert b"retry: " in stream.read_clean_end()
        assert server.wait_ended(SOON_S) == 0


# -- what is wrong from the start, or becomes so


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"STALECAST_TLS_CERTFILE": "cert.pem"}, "STALECAST_TLS_KEYFILE"),
        ({"STALECAST_TLS_CERTFILE": "none", "STALECAST_TLS_KEYFILE": "none"}, "STALECAST_TLS_CERTFILE=none"),
        ({"STALECAST_EVENTS_MODULE": "no_such"}, "STALECAST_EVENTS_MODULE"),
        ({"STALECAST_MAX_CLIENTS": "many"}, "STALECAST_MAX_CLIENTS"),
        ({"REDIS_URL": "http://x"}, "REDIS_URL"),
        ({"PORT": "abc"}, "PORT"),
        ({"HOST": "nowhere.invalid"}, "HOST"),
        ({"HOST": "http://127.0.0.1"}, "no address"),
    ],
)
def test_a_wrong_setting_is_told_once_and_not_tried_again(
    tmp_path: Path, workers: str, environment: dict[str, str], words: str
) -> None:
    with run_app(
        tmp_path, redis_url="redis://127.0.0.1:1", wait_ready=False, settings={"PORT": "0"} | environment
    ) as server:
        server.kill()
        server.argv = [sys.executable, "-m", "app", "serve", "--workers", workers]
        server.spawn()
        assert server.wait_ended(START_TIMEOUT_S) == 2
        (line,) = server.log_lines("cannot_serve")
        assert words in str(line["error"])
        assert "Traceback" not in server.output()
        assert not server.log_lines("worker_started")


def test_the_number_of_workers_and_the_port_in_use_are_told(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as other:
        for variables, words in (
            ({"WEB_CONCURRENCY": "two"}, "WEB_CONCURRENCY"),
            ({"WEB_CONCURRENCY": "0"}, "WEB_CONCURRENCY"),
            ({"PORT": str(other.getsockname()[1])}, "--port"),
        ):
            with run_app(tmp_path, redis_url=None, wait_ready=False, settings=variables) as server:
                server.kill()
                server.argv = [sys.executable, "-m", "app", "serve"]
                server.spawn()
                assert server.wait_ended(START_TIMEOUT_S) == 2
                (line,) = server.log_lines("cannot_serve")
                assert words in str(line["error"])


def test_every_line_of_a_whole_run_is_json(redis_server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "own_events.py").write_text(
        "import logging, threading, warnings\n"
        "def register(registry):\n"
        "    warnings.warn('a warning\\nof two lines')\n"
        "    logging.getLogger('library').error('from %s', 'a library')\n"
        "    thread = threading.Thread(target=lambda: 1 / 0)\n"
        "    thread.start()\n"
        "    thread.join()\n"
    )
    settings = {"STALECAST_EVENTS_MODULE": "own_events", "STALECAST_MAX_CLIENT": "1"}
    with run_app(tmp_path, redis_url=redis_server.url, workers=2, settings=settings) as server:
        assert server.get("/healthz")[0] == 200
        server.terminate()
        assert server.wait_ended(SOON_S) == 0
        lines = [json.loads(line) for line in server.output().splitlines()]
    told = [line["event"] for line in lines]
    assert "from a library" in told
    assert any("a warning" in event for event in told)
    assert [line["name"] for line in lines if line["event"] == "unknown_variable"] == ["STALECAST_MAX_CLIENT"]
    assert any("ZeroDivisionError" in line.get("exception", "") for line in lines)


def test_what_nobody_caught_is_one_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import app.cli\napp.cli.run_worker = None\n")
    path = os.pathsep.join([str(tmp_path), str(PROJECT)])
    with run_app(
        tmp_path, redis_url="redis://127.0.0.1:1", wait_ready=False, settings={"PYTHONPATH": path}
    ) as server:
        assert server.wait_ended(SOON_S) == 1
        line = json.loads(server.output().splitlines()[-1])
    assert line["event"] == "crashed"
    assert "TypeError" in line["exception"]


# -- a unix socket


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_on_a_unix_socket_serves_drains_and_leaves_no_file(
    redis_server: RedisServer, writer: redis.Redis, workers: int
) -> None:
    with tempfile.TemporaryDirectory(prefix="stalecast-") as folder:
        path = f"{folder}/http.sock"
        with run_app(
            Path(folder),
            redis_url=redis_server.url,
            workers=workers,
            wait_ready=False,
            arguments=["--uds", path],
        ) as server:
            wait_until(lambda: len(server.log_lines("serving")) == workers, "it serves")
            assert server.log_lines("listening")[0]["url"] == f"http://unix:{path}"
            for target in ("/v1/sse/a", "/v1/sse/a?catchup=all&%20"):  # the short way, and Quart's
                with follow_unix(path, target) as stream:
                    event_id = publish(writer)
                    assert stream.read_until(b"id: ") == f"id: {event_id}\n".encode()
            with follow_unix(path, "/v1/sse/a") as stream:
                server.terminate()
                assert b"retry: " in stream.read_clean_end()
            assert server.wait_ended(SOON_S) == 0
        assert not os.path.exists(path)
        assert "Traceback" not in server.output()


def test_a_killed_server_s_socket_file_is_taken_over(redis_server: RedisServer) -> None:
    with tempfile.TemporaryDirectory(prefix="stalecast-") as folder:
        path = f"{folder}/http.sock"
        with run_app(
            Path(folder), redis_url=redis_server.url, wait_ready=False, arguments=["--uds", path]
        ) as server:
            wait_until(lambda: len(server.log_lines("serving")) == 1, "it serves")
            server.kill()
            assert os.path.exists(path)
            server.spawn()
            wait_until(lambda: len(server.log_lines("serving")) == 2, "it serves again")
            with follow_unix(path, "/v1/sse/a"):
                pass


class UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=READ_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(READ_TIMEOUT_S)
        self.sock.connect(self._path)


@contextmanager
def follow_unix(path: str, target: str) -> Iterator[Stream]:
    stream = Stream(UnixConnection(path), target)
    try:
        yield stream
    finally:
        stream.close()


def test_nginx_reaches_a_unix_socket(redis_server: RedisServer, writer: redis.Redis) -> None:
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    with tempfile.TemporaryDirectory(prefix="stalecast-") as folder:
        os.chmod(folder, 0o755)
        path, port = f"{folder}/http.sock", free_port()
        Path(folder, "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log stderr;\n"
            "events {}\n"
            f"http {{ access_log off; server {{ listen {HOST}:{port}; location / {{\n"
            f"  proxy_pass http://unix:{path}; proxy_http_version 1.1; proxy_buffering off;\n"
            "} } }\n"
        )
        with run_app(
            Path(folder), redis_url=redis_server.url, wait_ready=False, arguments=["--uds", path]
        ) as server:
            wait_until(lambda: len(server.log_lines("serving")) == 1, "it serves")
            proxy = subprocess.Popen([nginx, "-c", f"{folder}/nginx.conf", "-p", folder])
            try:
                wait_until(lambda: is_open(port), "nginx listens")
                stream = Stream(HTTPConnection(HOST, port, timeout=READ_TIMEOUT_S))
                event_id = publish(writer)
                assert stream.read_until(b"id: ") == f"id: {event_id}\n".encode()
                server.terminate()
                assert b"retry: " in stream.read_clean_end()
                stream.close()
            finally:
                proxy.terminate()
                proxy.wait()


def is_open(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=SOON_S).close()
    except OSError:
        return False
    return True


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


async def test_a_worker_that_cannot_serve_as_configured_ends_all(tmp_path: Path) -> None:
    with listening() as listener, trio.fail_after(SOON_S):
        argv = [sys.executable, "-I", "-S", "-c", "import sys; sys.exit(2)"]
        assert await Supervisor(2, argv, listener, DRAIN_S).run() == 2
        assert listener.fileno() == -1


async def test_a_worker_that_cannot_be_started_now_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, tries = app.process.spawn, iter([OSError(errno.EAGAIN, "no processes left"), None])

    def refuse_once(*args: Any, **kwargs: Any) -> Any:
        if (error := next(tries, None)) is not None:
            raise error
        return spawn(*args, **kwargs)

    monkeypatch.setattr(app.process, "spawn", refuse_once)
    with listening() as listener, trio.fail_after(SOON_S):
        argv = [sys.executable, "-I", "-S", "-c", _WORKER, str(tmp_path)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervisor(1, argv, listener, DRAIN_S).run)
            await wait_touched(tmp_path, ".pid")
            os.kill(os.getpid(), signal.SIGTERM)


async def test_a_mistake_that_comes_later_does_not_end_workers_that_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.process, "HEALTHY_AFTER_S", 0.2)
    with listening() as listener, trio.fail_after(SOON_S):
        argv = [sys.executable, "-I", "-S", "-c", _LATE_MISTAKE + _WORKER, str(tmp_path)]
        statuses: list[int] = []

        async def run() -> None:
            statuses.append(await Supervisor(2, argv, listener, DRAIN_S).run())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            while len(touched(tmp_path, ".pid")) < 4:  # noqa: ASYNC110 another process makes them
                await trio.sleep(0.01)
            assert statuses == []
            os.kill(os.getpid(), signal.SIGTERM)
        assert statuses == [0]


# The first one serves; all others find themselves misconfigured after a while.
_LATE_MISTAKE = """
import os, pathlib, sys, time
try:
    os.mkdir(f"{sys.argv[1]}/first")
except FileExistsError:
    pathlib.Path(f"{sys.argv[1]}/{os.getpid()}.pid").touch()
    time.sleep(0.5)
    sys.exit(2)
"""


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
