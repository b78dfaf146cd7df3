"""Whoever reads the log, or does not, halts nobody."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import HOST, PROJECT, AppServer, RedisServer, run_redis, wait_until

from app import log_output
from app.log_output import LINES_LIMIT, LogOutput

SOON_S = 5.0
PIPE_BYTES = 1 << 16
LINE = b"x" * 299 + b"\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(fd)


def read_some(fd: int, least_bytes: int) -> bytes:
    received = b""
    while len(received) < least_bytes:
        received += os.read(fd, 1 << 16)
    return received


def numbered(number: int) -> bytes:
    return b"%06d %b" % (number, LINE)


def senders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "log"]


@pytest.fixture(params=["nonblocking", "guarded"])
def output(
    request: pytest.FixtureRequest, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> LogOutput:
    """`guarded`: a system that cannot open a pipe anew."""
    if request.param == "guarded":

        def no_proc(*_: object) -> int:
            raise FileNotFoundError

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", no_proc)
            return LogOutput(pipe[1])
    return LogOutput(pipe[1])


def test_a_line_is_written_at_once_and_by_no_other_thread(output: LogOutput, pipe: tuple[int, int]) -> None:
    output.write(b"one\n")
    output.write(b"two\n")
    assert os.read(pipe[0], 100) == b"one\ntwo\n"
    assert senders() == []


def test_a_pipe_that_nobody_reads_halts_nobody_and_is_caught_up_with(
    output: LogOutput, pipe: tuple[int, int]
) -> None:
    count = PIPE_BYTES // len(LINE) + LINES_LIMIT // 2
    for number in range(count):
        output.write(numbered(number))
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK  # others write there, too

    expected = b"".join(map(numbered, range(count)))
    assert read_some(pipe[0], len(expected)) == expected
    wait_until(lambda: not senders(), "the thread is gone", SOON_S)
    output.write(b"next\n")
    assert os.read(pipe[0], 100) == b"next\n"


class WritesBeforeRelease:
    """A lock within which, at its last moment, somebody else writes a line: as the thread ends."""

    def __init__(self, output: LogOutput) -> None:
        self._lock, self._output = threading.Lock(), output

    def acquire(self, blocking: bool = True) -> bool:
        return self._lock.acquire(blocking)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if not self._output._waiting:
            self._output.write(b"late\n")
        self._lock.release()


def test_a_line_that_comes_as_the_thread_ends_does_not_wait_for_the_next(
    output: LogOutput, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_lock", WritesBeforeRelease(output))
    count = PIPE_BYTES // len(LINE) + 10
    for number in range(count):
        output.write(numbered(number))

    expected = b"".join(map(numbered, range(count)))
    assert read_some(pipe[0], len(expected) + len(b"late\n")) == expected + b"late\n"
    wait_until(lambda: not senders(), "the thread is gone", SOON_S)


def test_what_is_too_much_is_counted_and_told(pipe: tuple[int, int]) -> None:
    told: list[int] = []
    output = LogOutput(pipe[1], lambda: told.append(output.take_lost()))
    count = PIPE_BYTES // len(LINE) + 2 * LINES_LIMIT
    for number in range(count):
        output.write(numbered(number))
    assert len(output._waiting) == LINES_LIMIT
    assert output.take_lost() == 0  # there is no room to say it

    received = b""
    while not told:
        received += os.read(pipe[0], 1 << 16)
    kept = count - told[0]
    assert received + read_some(pipe[0], len(numbered(0)) * kept - len(received)) == b"".join(
        map(numbered, range(kept))
    )
    assert output.take_lost() == 0


@pytest.mark.parametrize("size", [5_000, 3 * PIPE_BYTES])
def test_a_long_line_is_not_torn(output: LogOutput, pipe: tuple[int, int], size: int) -> None:
    lines = [b"a" * size + b"\n", b"b\n", b"c" * size + b"\n"]
    for line in lines:
        output.write(line)
    assert read_some(pipe[0], 2 * size + 4) == b"".join(lines)


def test_lines_of_many_threads_stay_whole(output: LogOutput, pipe: tuple[int, int]) -> None:
    def write(letter: bytes) -> None:
        for _ in range(200):
            output.write(letter * 500 + b"\n")

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    received = read_some(pipe[0], 4 * 200 * 501)
    for thread in threads:
        thread.join()
    lines = received.splitlines()
    assert len(lines) == 800
    assert all(len(line) == 500 and len(set(line)) == 1 for line in lines)


def test_a_line_that_is_logged_while_one_is_written_comes_behind_it(pipe: tuple[int, int]) -> None:
    output = LogOutput(pipe[1])
    put, within = output._put, [b"of a destructor\n"]

    def log_within(line: bytes) -> int:
        if within:
            output.write(within.pop())
        return put(line)

    output._put = log_within
    output.write(b"first\n")
    assert os.read(pipe[0], 100) == b"first\nof a destructor\n"


def test_a_pipe_whose_reader_has_ended_takes_everything(output: LogOutput, pipe: tuple[int, int]) -> None:
    for _ in range(PIPE_BYTES // len(LINE) + 100):
        output.write(LINE)
    os.close(pipe[0])
    wait_until(lambda: not senders(), "the thread is gone", SOON_S)
    output.write(LINE)
    assert not output._waiting


def test_the_end_of_the_process_waits_for_a_reader_but_not_for_long(
    output: LogOutput, pipe: tuple[int, int]
) -> None:
    for number in range(1000):
        output.write(numbered(number))
    started_s = time.monotonic()
    output.flush(0.2)
    assert 0.15 < time.monotonic() - started_s < SOON_S

    received: list[bytes] = []
    reader = threading.Thread(
        target=lambda: received.append(read_some(pipe[0], 1001 * len(numbered(0)))), daemon=True
    )
    reader.start()
    output.write(numbered(1000))
    output.flush(SOON_S)
    reader.join(SOON_S)
    assert received == [b"".join(map(numbered, range(1001)))]


def test_a_socket_that_nobody_reads_halts_nobody() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        output = LogOutput(ours.fileno())
        for number in range(1000):
            output.write(numbered(number))
        received = b""
        while len(received) < 1000 * len(numbered(0)):
            received += theirs.recv(1 << 16)
        assert received == b"".join(map(numbered, range(1000)))
        assert ours.getblocking()


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal is opened anew through /proc")
def test_a_halted_terminal_halts_nobody() -> None:
    ours, theirs = pty.openpty()
    try:
        termios.tcflow(theirs, termios.TCOOFF)  # Ctrl-S
        output = LogOutput(theirs)
        for number in range(100):
            output.write(b"%d\n" % number)
        termios.tcflow(theirs, termios.TCOON)
        expected = b"".join(b"%d\r\n" % number for number in range(100))
        assert read_some(ours, len(expected)) == expected
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_file_takes_everything_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        output = LogOutput(file.fileno())
        for number in range(1000):
            output.write(numbered(number))
        assert (tmp_path / "log").read_bytes() == b"".join(map(numbered, range(1000)))


def test_without_another_thread_the_next_line_sends_what_waits(
    output: LogOutput, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(log_output.threading.Thread, "start", refuse)
    for number in range(300):
        output.write(numbered(number))
    received = read_some(pipe[0], PIPE_BYTES // 2)
    output.write(numbered(300))
    received += read_some(pipe[0], 301 * len(numbered(0)) - len(received))
    assert received == b"".join(map(numbered, range(301)))


# -- a server


class PipedServer(AppServer):
    """With a pipe as its standard error, which the test reads, or does not."""

    def spawn(self) -> None:
        self._popen = subprocess.Popen(
            self.argv, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def pipe(self) -> Any:
        assert self._popen is not None
        return self._popen.stderr

    def output(self) -> str:
        return "not read"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=[1, 2])
def server(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[PipedServer]:
    server = PipedServer(
        tmp_path,
        redis_url=redis_server.url,
        port=0,
        arguments=["--workers", str(request.param)],
        settings={"STALECAST_DRAIN_S": "1", "STALECAST_LOG_FORMAT": "json"},
    )
    try:
        server.spawn()
        first = json.loads(next(line for line in server.pipe if b'"listening"' in line))
        server.port = int(first["url"].rpartition(":")[2])
        server.wait_ready()
        yield server
    finally:
        server.kill()
        server.pipe.close()


def log_much(server: PipedServer, streams: int) -> None:
    """Two lines for each stream, of some 200 bytes."""
    for _ in range(streams):
        with socket.create_connection((HOST, server.port), SOON_S) as connection:
            connection.sendall(b"GET /v1/sse/a HTTP/1.1\r\nHost: x\r\nUser-Agent: %b\r\n\r\n" % (b"x" * 200))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_server_whose_log_nobody_reads_answers_and_ends(server: PipedServer) -> None:
    log_much(server, 400)
    assert server.get("/healthz")[0] == 200
    assert server.get("/readyz")[0] == 200
    server.signal(signal.SIGTERM)
    assert server.wait_ended(10) == 0
    for line in server.pipe.read().splitlines()[:-1]:  # the last one may be cut off
        json.loads(line)


def test_a_server_whose_log_is_read_again_tells_what_was_lost(server: PipedServer) -> None:
    log_much(server, 3000)
    lines: list[dict[str, Any]] = []
    while not any(line["event"] == "log_lines_lost" for line in lines):
        lines.append(json.loads(server.pipe.readline()))
    assert lines[-1]["lines"] > 100
    assert lines[-1]["level"] == "warning"
    with socket.create_connection((HOST, server.port), SOON_S) as connection:
        connection.sendall(b"GET /v1/sse/afterwards HTTP/1.1\r\nHost: x\r\n\r\n")
        while lines[-1].get("topic") != "afterwards":
            lines.append(json.loads(server.pipe.readline()))


def test_what_cannot_be_served_ends_though_nobody_reads_why(tmp_path: Path, pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe[1], b"x" * 4096)
    os.set_blocking(pipe[1], True)
    ended = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--no-embedded"], cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)}, stderr=pipe[1], timeout=20,
    )  # fmt: skip
    assert ended.returncode == 2
