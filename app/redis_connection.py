"""The Redis protocol on Trio: everything that knows a Redis socket lives here.

Two users, two shapes. `Connection` belongs to one task and may block (a tail's XREAD). `Client` is shared by
all tasks: what they ask for at the same time travels in one write, and a cancelled caller costs nobody
anything, since its reply is read and dropped. redis-py parses the URL; hiredis packs and parses.
"""

# redis-py and hiredis leave parts of their types unsaid:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
import random
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import hiredis
import structlog
import trio
from redis import connection as redis_py

Command = Sequence[str | bytes | int]

# Small enough for malloc to reuse: at 64 KB each receive moved the heap's end (brk) and faulted its pages in.
RECEIVE_BYTES: Final = 1 << 14
NOT_YET: Final = object()
# The first words of error replies that say "not now" rather than "never".
_PASSING_ERRORS: Final = (
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "UNBLOCKED",
    "READONLY",
    "OOM",
)

_log = structlog.get_logger("stalecast.redis")


class RedisUnavailable(Exception):
    """Redis cannot be reached or cannot answer now. What was asked for may or may not have happened."""


class RedisRefused(Exception):
    """Redis answered with an error; asking again gives the same answer."""


class InvalidRedisUrl(ValueError):
    """The URL cannot be used; the operator's fault."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where and as whom to connect."""

    host: str
    port: int
    unix_path: str | None
    tls: ssl.SSLContext | None
    username: str | None
    password: str | None = field(repr=False)
    database: int

    @classmethod
    def from_url(cls, url: str) -> Self:
        """redis://, rediss:// and unix:// with user, password, database and the ssl_* options of redis-py.
        Raises InvalidRedisUrl, whose text does not hold the password."""
        try:
            options: dict[str, Any] = redis_py.parse_url(url)
        except ValueError:
            # Without redis-py's own words, which may quote a part of the password.
            raise InvalidRedisUrl(
                "REDIS_URL is not usable: write redis://, rediss:// or unix://, e.g. "
                "redis://:password@host:6379/0, with special characters of the password percent-encoded"
            ) from None
        kind: Any = options.get("connection_class")
        return cls(
            host=options.get("host", "localhost"),
            port=options.get("port", 6379),
            unix_path=options["path"] if kind is redis_py.UnixDomainSocketConnection else None,
            tls=_tls_context(options) if kind is redis_py.SSLConnection else None,
            username=options.get("username"),
            password=options.get("password"),
            database=int(options.get("db", 0)),
        )

    def __str__(self) -> str:
        return self.unix_path or f"{self.host}:{self.port}"


_CERT_REQUIREMENTS: Final = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path")
        )
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except (OSError, ssl.SSLError) as error:
        raise InvalidRedisUrl(f"the certificates named in REDIS_URL cannot be read: {error}") from error
    requirement = str(options.get("ssl_cert_reqs", "required")).lower()
    if str(options.get("ssl_check_hostname", True)).lower() in ("false", "0") or requirement != "required":
        context.check_hostname = False
    if requirement not in _CERT_REQUIREMENTS:
        raise InvalidRedisUrl(f"ssl_cert_reqs={requirement!r} in REDIS_URL: use required, optional or none")
    context.verify_mode = _CERT_REQUIREMENTS[requirement]
    return context


def _pack(commands: Sequence[Command]) -> bytes:
    # hiredis's own types take a tuple of one item
    pack: Any = hiredis.pack_command
    return b"".join([pack(tuple(command)) for command in commands])


class Connection:
    """One connection, one task. Cancelling a call closes the connection, for the reply may be half read."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._reader = hiredis.Reader(notEnoughData=NOT_YET)
        self.client_id = 0

    async def call(self, *commands: Command) -> list[Any]:
        """Send the commands in one write and read one reply for each; error replies are returned as
        `hiredis.ReplyError` values. Raises RedisUnavailable; then, and when cancelled, it is closed."""
        try:
            await self.send(_pack(commands))
            replies: list[Any] = []
            for _ in commands:
                reply = self.receive_nowait()
                replies.append(await self.receive() if reply is NOT_YET else reply)
        except BaseException:
            await trio.aclose_forcefully(self._stream)
            raise
        return replies

    async def send(self, packed: bytes) -> None:
        try:
            await self._stream.send_all(packed)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise RedisUnavailable(f"the connection to Redis broke: {error}") from error

    async def receive(self) -> Any:
        """Wait for the next reply, after `receive_nowait` has found none."""
        while True:
            try:
                received = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise RedisUnavailable(f"the connection to Redis broke: {error}") from error
            if not received:
                raise RedisUnavailable("Redis closed the connection")
            self._reader.feed(bytes(received))
            if (reply := self.receive_nowait()) is not NOT_YET:
                return reply

    def receive_nowait(self) -> Any:
        """A reply that has already arrived, or the marker `NOT_YET`; what Redis pushes out of band is passed
        over."""
        try:
            while isinstance(reply := self._reader.gets(), hiredis.PushNotification):
                pass
        except hiredis.ProtocolError as error:
            raise RedisUnavailable(f"the peer does not speak the Redis protocol: {error}") from error
        return reply

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


async def connect(address: Address, *, name: str, timeout_s: float) -> Connection:
    """Connect, authenticate and select. Raises RedisUnavailable, or RedisRefused for a wrong password."""
    try:
        with trio.fail_after(timeout_s):
            connection = Connection(await _open_stream(address))
            try:
                await _greet(connection, address, name)
            except BaseException:
                await connection.aclose()
                raise
            return connection
    except trio.TooSlowError:
        raise RedisUnavailable(f"Redis at {address} did not answer within {timeout_s:g} s") from None
    except (OSError, trio.BrokenResourceError) as error:
        # Trio says "broken"; why is in its cause (a certificate, for one).
        reason = error if str(error) else error.__cause__
        raise RedisUnavailable(f"Redis at {address} cannot be reached: {reason}") from error


async def _open_stream(address: Address) -> trio.abc.Stream:
    if address.unix_path is not None:
        return await trio.open_unix_socket(address.unix_path)
    stream = await trio.open_tcp_stream(address.host, address.port)
    if address.tls is None:
        return stream
    secure: trio.SSLStream[trio.SocketStream] = trio.SSLStream(
        stream, address.tls, server_hostname=address.host, https_compatible=True
    )
    try:
        await secure.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secure


async def _greet(connection: Connection, address: Address, name: str) -> None:
    hello: list[str | int] = ["HELLO", 3]
    auth: list[str] = []
    if address.password is not None:
        auth = [address.username or "default", address.password]
        hello += ["AUTH", *auth]
    (reply,) = await connection.call(hello)
    if isinstance(reply, hiredis.ReplyError):
        if not str(reply).startswith(("ERR unknown command", "NOPROTO", "ERR Protocol")):
            raise _error(reply)
        # A server without RESP3 (a proxy, an emulation): the old way round.
        if auth:
            (reply,) = await connection.call(("AUTH", *(auth if address.username else auth[1:])))
            _raise_if_error(reply)
    commands: list[Command] = [("CLIENT", "SETNAME", name), ("CLIENT", "ID"), ("SELECT", address.database)]
    _named, client_id, selected = await connection.call(*commands)
    _raise_if_error(selected)
    # 0: CLIENT ID is not allowed to this user; wake-ups then wait for the read to time out.
    connection.client_id = client_id if isinstance(client_id, int) else 0
    (reply,) = await connection.call(("PING",))  # refused while Redis loads its data
    _raise_if_error(reply)


def _raise_if_error(reply: Any) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise _error(reply)


def _error(reply: hiredis.ReplyError) -> RedisUnavailable | RedisRefused:
    text = str(reply)
    if text.startswith(_PASSING_ERRORS):
        return RedisUnavailable(f"Redis answered: {text}")
    return RedisRefused(f"Redis answered: {text}")


def raise_if_unavailable(replies: Sequence[Any]) -> None:
    """Raises RedisUnavailable when one of the replies says that Redis cannot answer now."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError) and isinstance(error := _error(reply), RedisUnavailable):
            raise error


class Backoff:
    """Exponential with full jitter between tries; `reset` after a success."""

    def __init__(self, first_s: float = 0.05, limit_s: float = 3.0) -> None:
        self._first_s, self._limit_s, self._tries = first_s, limit_s, 0

    def reset(self) -> None:
        self._tries = 0

    def next_s(self) -> float:
        ceiling_s = min(self._limit_s, self._first_s * 2 ** min(self._tries, 30))
        self._tries += 1
        # Never zero: a refused connection must not become a busy loop.
        return ceiling_s * (0.2 + 0.8 * random.random())  # noqa: S311 jitter, not a secret


class _Waiter:
    """One caller's place in the queue of replies."""

    __slots__ = ("count", "done", "error", "replies")

    def __init__(self, count: int) -> None:
        self.count = count
        self.replies: list[Any] = []
        self.error: RedisUnavailable | None = None
        self.done = trio.Event()


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    connected: bool
    commands_sent: int
    reconnects: int
    waiting: int


class Client:
    """A shared, self-healing connection; started with `await nursery.start(client.run)`."""

    def __init__(self, address: Address, *, timeout_s: float, waiting_limit: int) -> None:
        self._address = address
        self._connection_scope = trio.CancelScope()
        self._timeout_s = timeout_s
        self._waiting_limit = waiting_limit
        self._outbox: list[bytes] = []
        self._queue: deque[_Waiter] = deque()
        self._wanted = trio.Event()
        self._connected = False
        self._commands_sent = 0
        self._reconnects = 0

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(self._connected, self._commands_sent, self._reconnects, len(self._queue))

    async def execute(self, *command: str | bytes | int) -> Any:
        """One command. Raises RedisUnavailable or RedisRefused."""
        (reply,) = await self.pipeline([command])
        _raise_if_error(reply)
        return reply

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """The commands in one MULTI; one reply each, errors as values. Raises RedisUnavailable, or
        RedisRefused when Redis refused to queue one."""
        *_queued, replies = await self.pipeline([("MULTI",), *commands, ("EXEC",)])
        if isinstance(replies, hiredis.ReplyError):
            refused = [reply for reply in _queued if isinstance(reply, hiredis.ReplyError)]
            raise _error(refused[0] if refused else replies)
        raise_if_unavailable(replies)
        return replies

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """The commands in one write; one reply each, errors as values.

        Raises RedisUnavailable: not connected, timed out, or too much is already waiting. If cancelled, the
        commands may still be carried out.
        """
        if len(self._queue) >= self._waiting_limit:
            raise RedisUnavailable(f"{self._waiting_limit} calls are waiting for Redis already")
        waiter = _Waiter(len(commands))
        self._outbox.append(_pack(commands))
        self._queue.append(waiter)
        self._commands_sent += len(commands)
        self._wanted.set()
        try:
            with trio.fail_after(self._timeout_s):
                await waiter.done.wait()
        except trio.TooSlowError:
            # Replies come in order: behind this one nobody would be answered either.
            self._connection_scope.cancel()
            raise RedisUnavailable(
                f"Redis at {self._address} did not answer within {self._timeout_s:g} s"
            ) from None
        if waiter.error is not None:
            raise waiter.error
        return waiter.replies

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection; started as soon as callers may queue, connected or not."""
        backoff = Backoff()
        task_status.started()
        while True:
            try:
                connection = await connect(self._address, name="stalecast-client", timeout_s=self._timeout_s)
            except (RedisUnavailable, RedisRefused) as error:
                self._fail_waiting(RedisUnavailable(str(error)))
                delay_s = backoff.next_s()
                _log.warning("redis_unreachable", error=str(error), retry_in_s=round(delay_s, 2))
                await trio.sleep(delay_s)
                continue
            backoff.reset()
            async with connection:
                self._connected = True
                try:
                    async with trio.open_nursery() as nursery:
                        self._connection_scope = nursery.cancel_scope
                        nursery.start_soon(self._write, connection)
                        nursery.start_soon(self._read, connection)
                except* RedisUnavailable as group:
                    _log.warning("redis_connection_lost", error=str(group.exceptions[0]))
                finally:
                    self._connected = False
                    self._reconnects += 1
                    self._fail_waiting(RedisUnavailable("the connection to Redis broke"))

    def _fail_waiting(self, error: RedisUnavailable) -> None:
        self._outbox.clear()
        for waiter in self._queue:
            waiter.error = error
            waiter.done.set()
        self._queue.clear()

    async def _write(self, connection: Connection) -> None:
        while True:
            if not self._outbox:
                self._wanted = trio.Event()
                await self._wanted.wait()
            packed = b"".join(self._outbox)
            self._outbox.clear()
            await connection.send(packed)

    async def _read(self, connection: Connection) -> None:
        while True:
            reply = await connection.receive()
            while reply is not NOT_YET:
                waiter = self._queue[0]
                waiter.replies.append(reply)
                if len(waiter.replies) == waiter.count:
                    self._queue.popleft()
                    waiter.done.set()
                reply = connection.receive_nowait()
