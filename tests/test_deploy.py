"""The files in deploy/ keep every client alive while the server is away: run as they are, but for addresses.

One server behind all proxies at once, each with clients that behave as a browser's EventSource does: cut or
refused, one comes again after its `retry:`, with the last event id that it has; an answer other than a 200 of
`text/event-stream` ends it for good.
"""

import contextlib
import http.client
import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import redis
import trio
from servers import HOST, PROJECT, Process, free_port, run_app, run_redis

from app.publish import publish_topic_event_sync
from app.streams.sse import Parser, position_block

DEPLOY: Final = PROJECT / "deploy"
CLIENTS: Final = 16  # of each proxy
SERVER: Final = "127.0.0.1:8000"  # where the files have the server
ORIGIN: Final = "https://app.example"  # the page's: of another origin, so the fallback has to let it in, too
AWAY_S: Final = 4.0
RETURN_TIMEOUT_S: Final = 25.0  # some pauses of 5 s, and what a busy machine needs
TOPIC: Final = "42"


class Proxy(Process):
    def __init__(self, name: str, folder: Path, argv: list[str], port: int) -> None:
        super().__init__(name, folder, argv, {"HOME": str(folder), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        self.port = port

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, f"deploy/ no longer says {old!r}"
        text = text.replace(old, new)
    return text


def nginx(folder: Path, program: str, port: int, server: str, *changes: tuple[str, str]) -> list[str]:
    inner = replaced(
        (DEPLOY / "nginx.conf").read_text(),
        (SERVER, server),
        ("listen 80;", f"listen {HOST}:{port};"),
        *changes,
    )
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        f"events {{ worker_connections 512; }}\nhttp {{ access_log off;\n{temporary}{inner}}}\n"
    )
    return [program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def nginx_without_fallback(folder: Path, program: str, port: int, server: str) -> list[str]:
    return nginx(folder, program, port, server, ("error_page 429 502 503 504 = @away;", ""))


def haproxy(folder: Path, program: str, port: int, server: str) -> list[str]:
    text = replaced(
        (DEPLOY / "haproxy.cfg").read_text(),
        (SERVER, server),
        ("bind :80 ", f"bind {HOST}:{port} "),
        ("/etc/haproxy/", f"{DEPLOY}/"),
    )
    (folder / "haproxy.cfg").write_text(text)
    return [program, "-db", "-f", str(folder / "haproxy.cfg")]


def caddy(folder: Path, program: str, port: int, server: str) -> list[str]:
    text = replaced(
        (DEPLOY / "Caddyfile").read_text(), (SERVER, server), ("\n:80 {", f"\nhttp://{HOST}:{port} {{")
    )
    (folder / "Caddyfile").write_text("{\n\tadmin off\n}\n" + text)
    return [program, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


PROXIES: Final[dict[str, tuple[str, Callable[..., list[str]]]]] = {
    "nginx": ("nginx", nginx),
    "haproxy": ("haproxy", haproxy),
    "caddy": ("caddy", caddy),
    "nginx without the fallback": ("nginx", nginx_without_fallback),
}


@dataclass
class Client:
    """What an EventSource is, as far as this matters."""

    port: int
    heard: list[str] = field(default_factory=list)
    died_of: str | None = None
    live: bool = False
    retry_ms: int = 3000
    last_event_id: str = ""
    put_off: list[bytes] = field(default_factory=list)  # what a proxy answered in the server's stead

    async def run(self) -> None:
        while self.died_of is None:
            with contextlib.suppress(OSError, trio.BrokenResourceError):  # refused, or cut
                await self._follow()
            self.live = False
            await trio.sleep(self.retry_ms / 1000)

    async def _follow(self) -> None:
        cursor = f"Last-Event-ID: {self.last_event_id}\r\n" if self.last_event_id else ""
        request = (
            f"GET /v1/sse/{TOPIC} HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n"
            f"Origin: {ORIGIN}\r\n{cursor}\r\n"
        )
        async with await trio.open_tcp_stream(HOST, self.port) as stream:
            await stream.send_all(request.encode())
            received = b""
            while b"\r\n\r\n" not in received:
                more = await stream.receive_some()
                if not more:
                    return  # closed without an answer: as good as refused
                received += more
            head, _, body = received.partition(b"\r\n\r\n")
            status, _, fields = head.decode().lower().partition("\r\n")
            field = dict(line.split(": ", 1) for line in fields.split("\r\n"))
            if " 200 " not in f"{status} " or not field["content-type"].startswith("text/event-stream"):
                self.died_of = status
                return
            if field.get("access-control-allow-origin") not in ("*", ORIGIN):
                self.died_of = "not for this origin"
                return
            await self._read(stream, body, field)

    async def _read(self, stream: trio.SocketStream, received: bytes, field: dict[str, str]) -> None:
        parser, whole = Parser(), b""
        parser.last_event_id = self.last_event_id
        left = int(field["content-length"]) if "content-length" in field else None
        while True:
            if left is not None:
                piece, left = received, left - len(received)
                whole += piece
            else:
                piece, received, ended = unchunked(received)
                left = 0 if ended else None
            for message in parser.feed(piece):
                self.live = left is None
                self.retry_ms = self.retry_ms if message.retry_ms is None else message.retry_ms
                if message.data is not None:
                    self.heard.append(json.loads(message.data)["data"]["reason"])
            self.last_event_id = parser.last_event_id
            if left == 0:
                self.put_off += [whole] if whole else []
                return
            more = await stream.receive_some()
            if not more:
                return
            received = more if left is not None else received + more


def unchunked(received: bytes) -> tuple[bytes, bytes, bool]:
    """The data of whole chunks, what is left behind them, and whether that was the last."""
    data = b""
    while b"\r\n" in received:
        size, _, rest = received.partition(b"\r\n")
        length = int(size, 16)
        if len(rest) < length + 2:
            break
        if length == 0:
            return data, b"", True
        data += rest[:length]
        received = rest[length + 2 :]
    return data, received, False


@dataclass
class Outcome:
    missing: dict[str, str] = field(default_factory=dict)
    clients: dict[str, list[Client]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("deploy")
    outcome = Outcome()
    with ExitStack() as stack:
        redis_server = stack.enter_context(run_redis(folder))
        app = stack.enter_context(run_app(folder, redis_url=redis_server.url, port=free_port()))
        producer = stack.enter_context(redis_server.client())
        proxies: dict[str, Proxy] = {}
        for name, (command, configure) in PROXIES.items():
            program = shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin")
            if program is None:
                outcome.missing[name] = f"{command} is not installed"
                continue
            own = folder / name.replace(" ", "-")
            own.mkdir()
            port = free_port()
            proxy = Proxy(command, own, configure(own, program, port, f"{HOST}:{app.port}"), port)
            stack.callback(proxy.kill)
            proxy.start()
            proxies[name] = proxy
        outcome.clients = {name: [Client(at.port) for _ in range(CLIENTS)] for name, at in proxies.items()}

        async def scene() -> None:
            async with trio.open_nursery() as nursery:
                for clients in outcome.clients.values():
                    for client in clients:
                        nursery.start_soon(client.run)
                everybody = [one for clients in outcome.clients.values() for one in clients]
                await settled(lambda: all(one.live for one in everybody))
                await publish(producer, outcome)
                await settled(lambda: all(one.heard == outcome.published for one in everybody))
                await trio.to_thread.run_sync(app.kill)
                await publish(producer, outcome)
                await trio.sleep(AWAY_S)
                await trio.to_thread.run_sync(app.start)
                await settled(lambda: all(one.live or one.died_of is not None for one in everybody))
                await publish(producer, outcome)
                await settled(
                    lambda: all(
                        one.heard == outcome.published or one.died_of is not None for one in everybody
                    )
                )
                nursery.cancel_scope.cancel()

        trio.run(scene)
        outcome.outputs = {name: proxy.output() for name, proxy in proxies.items()}
    return outcome


async def settled(condition: Callable[[], bool]) -> None:
    """Or not in time: then its own test fails, and says for whom."""
    with trio.move_on_after(RETURN_TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 other processes set no trio.Event
            await trio.sleep(0.02)


async def publish(producer: redis.Redis, outcome: Outcome) -> None:
    for _ in range(5):
        reason = f"number {len(outcome.published)}"
        publish_topic_event_sync(producer, TOPIC, "argument_updated", {"id": reason, "reason": reason})
        outcome.published.append(reason)


@pytest.mark.parametrize("name", PROXIES)
def test_behind_each_proxy_all_clients_live_on_and_have_every_event_once(outcome: Outcome, name: str) -> None:
    if reason := outcome.missing.get(name):
        assert not os.environ.get("REQUIRE_ALL"), reason
        pytest.skip(reason)
    clients = outcome.clients[name]
    if name == "nginx without the fallback":  # what it is there for
        assert all("502" in str(client.died_of) for client in clients)
        return
    output = outcome.outputs[name][-2000:]
    assert [client.died_of for client in clients] == [None] * CLIENTS, output
    assert [client.heard for client in clients] == [outcome.published] * CLIENTS, output
    # The proxy has answered for the server, in the server's own words.
    assert {answer for client in clients for answer in client.put_off} == {position_block(None, 5000)}, output
