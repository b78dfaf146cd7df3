"""Descriptors stay in reserve: who only connects makes room for who asks."""

import socket
import subprocess
import sys
import time

import pytest
from servers import PROJECT, run_app, run_redis
from structlog.testing import capture_logs

from app import descriptors
from app.descriptors import RESERVED_DESCRIPTORS, Connections, connections_limit, prepare
from app.settings import Settings


class Connection:
    def __init__(self, *, is_idle: bool = True) -> None:
        self.is_idle = is_idle
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


async def test_below_the_limit_everybody_is_taken_in():
    connections = Connections(3)

    assert all(connections.admit(Connection()) for _ in range(3))
    assert len(connections) == 3


async def test_at_the_limit_the_one_that_waits_longest_makes_room():
    connections = Connections(3)
    busy, first, second = Connection(is_idle=False), Connection(), Connection()
    for connection in (busy, first, second):
        connections.admit(connection)

    assert connections.admit(Connection(is_idle=False))
    assert (busy.aborted, first.aborted, second.aborted) == (False, True, False)
    assert connections.admit(Connection(is_idle=False))
    assert second.aborted
    assert len(connections) == 3


async def test_where_all_are_served_the_newcomer_is_turned_away(autojump_clock):
    connections = Connections(2)
    served = [Connection(is_idle=False) for _ in range(2)]
    assert all(map(connections.admit, served))

    assert not connections.admit(Connection())
    connections.discard(served[0])
    assert connections.admit(Connection())


async def test_who_got_busy_since_it_was_looked_at_is_not_cut():
    connections = Connections(2)
    first, second = Connection(), Connection()
    connections.admit(first)
    connections.admit(second)
    third = Connection()
    connections.admit(third)
    second.is_idle = False

    assert connections.admit(Connection())
    assert (first.aborted, second.aborted, third.aborted) == (True, False, True)


@pytest.mark.parametrize(("available", "limit"), [(1024, 896), (100_128, 100_000), (64, 32)])
def test_some_are_kept_in_reserve(available, limit):
    assert connections_limit(available) == limit


@pytest.mark.parametrize(("available", "warned"), [(1024, True), (10_000 + RESERVED_DESCRIPTORS, False)])
def test_a_limit_in_the_way_of_the_settings_is_told(monkeypatch, available, warned):
    monkeypatch.setattr(descriptors, "raise_limit", lambda: available)
    with capture_logs() as lines:
        prepare(Settings(_env_file=None, max_clients=10_000))

    assert [line["event"] for line in lines] == ["too_few_descriptors"] * warned
    assert not warned or "10128" in lines[0]["hint"]


def test_the_soft_limit_is_raised_to_the_hard_one():
    code = (
        "import resource as r; h = r.getrlimit(r.RLIMIT_NOFILE)[1]; r.setrlimit(r.RLIMIT_NOFILE, (256, h)); "
    )
    code += "from app.descriptors import raise_limit; "
    code += "assert raise_limit() == h == r.getrlimit(r.RLIMIT_NOFILE)[0]"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


HARD_LIMIT = 400


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("talks", [False, True], ids=["silent", "half_a_request"])
def test_a_crowd_that_only_connects_keeps_nobody_out(tmp_path, workers, talks):
    """More connections than the process has descriptors, and none of them asks for anything."""
    with (
        run_redis(tmp_path) as redis,
        run_app(
            tmp_path,
            redis_url=redis.url,
            workers=workers,
            wait_ready=True,
            hard_limit_descriptors=HARD_LIMIT,
            settings={"STALECAST_REQUEST_HEAD_TIMEOUT_S": "60"},
        ) as app,
    ):
        crowd = []
        try:
            for number in range(workers * HARD_LIMIT + 200):
                sock = socket.create_connection(("127.0.0.1", app.port), 5)
                if talks:
                    sock.sendall(b"GET /v1/sse/a HTTP/1.1\r\nHost:")
                crowd.append(sock)
                if number % 100 == 99:
                    begin = time.monotonic()
                    assert app.get("/readyz")[0] == 200
                    with socket.create_connection(("127.0.0.1", app.port), 5) as honest:
                        honest.sendall(b"GET /v1/sse/a HTTP/1.1\r\nHost: x\r\n\r\n")
                        assert honest.recv(15) == b"HTTP/1.1 200 OK"
                    assert time.monotonic() - begin < 3
        finally:
            for sock in crowd:
                sock.close()
        assert "Too many open files" not in app.output()
        assert "EMFILE" not in app.output()
        assert "Traceback" not in app.output()
        assert "too_few_descriptors" in app.output()
