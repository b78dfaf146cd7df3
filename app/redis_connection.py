"""The Redis protocol on Trio: everything that knows a Redis socket lives here.

Two users, two shapes. `Connection` belongs to one task and may block (a tail's XREAD). `Client` is shared by
all tasks: what they ask for at the same time travels in one write, and a cancelled caller costs nobody
anything, since its reply is read and dropped. redis-py parses the URL; hiredis packs and parses.
"""

# redis-py and hiredis leave parts of their types unsaid:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
import contextlib
import random
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import hiredis
import structlog
import trio
from redis import connection as redis_py

Command = Sequence[str | bytes | int]

# Small enough for malloc to reuse: at 64 KB each receive moved the heap's end (brk) and faulted its pages in.
RECEIVE_BYTES: Final = 1 << 14
NOT_YET: Final = object()
# The first words of error replies that say "not now" rather than "never".
_PASSING_ERRORS: Final = frozenset(
    {
        "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED", "READONLY", "OOM",
        "NOREPLICAS", "MISCONF",
    }
)  # fmt: skip
# Of those, the ones that a server gives which is not the master any more, or not yet: after a failover the
# name in REDIS_URL may lead to another one, while this connection would stay where it is for ever.
_PERHAPS_ELSEWHERE: Final = frozenset({"READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS"})
_CLUSTER_ERRORS: Final = frozenset({"MOVED", "ASK", "CROSSSLOT"})
# What only reads may be sent again when a connection broke before it was answered.
_READS: Final = frozenset({"GET", "XINFO", "XRANGE", "XREVRANGE", "XREAD", "PING", "MULTI", "EXEC"})

# NATs and balancers forget a connection after 30 s of silence at the least; the role is asked with it.
PROBE_INTERVAL_S: Final = 5.0
# A call that waits this long, with nothing heard meanwhile, has a second connection tried beside the first. A
# forgotten connection answers never, a busy Redis answers on neither: that tells them apart.
SILENCE_S: Final = 1.0
KEEPALIVE_IDLE_S: Final = 15
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_PROBES: Final = 3
# A connection is made anew over an answer of `_PERHAPS_ELSEWHERE` at first after 1 s, later after up to 60: a
# server may be a replica on purpose, and says READONLY to every writer.
RENEWAL_FIRST_S: Final = 1.0
RENEWAL_LIMIT_S: Final = 60.0

_log = structlog.get_logger("stalecast.redis")


class RedisError(Exception):
    """`code`: the first word of Redis's error reply, or "" where there was none. `command`: what it answered
    so, if that matters to whoever has to mend it."""

    def __init__(self, text: str, *, code: str = "", command: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.command = command

    @property
    def is_of_cluster(self) -> bool:
        return self.code in _CLUSTER_ERRORS

    @property
    def public(self) -> str:
        """For anybody to see: without addresses, names and Redis's own words."""
        if self.is_of_cluster:
            return "REDIS_URL names a node of a Redis Cluster, which this release cannot use"
        to = f" to {self.command}" if self.command else ""
        return f"Redis answers {self.code}{to}" if self.code else "Redis cannot be reached"


class RedisUnavailable(RedisError):
    """Redis cannot be reached or cannot answer now. What was asked for may or may not have happened."""


class ConnectionCut(RedisUnavailable):
    """Redis, or something on the way, ended a connection that still owed replies."""


class RedisRefused(RedisError):
    """Redis answered with an error, or with something that no Redis says; asking again gives the same."""


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
            _check_url(urlsplit(url))
            options: dict[str, Any] = redis_py.parse_url(url)
        except InvalidRedisUrl:
            raise
        except ValueError:
            # Without redis-py's own words, which may quote a part of the password.
            raise InvalidRedisUrl(_USABLE_URL) from None
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


_USABLE_URL: Final = (
    "REDIS_URL is not usable: write redis://, rediss:// or unix://, e.g. redis://:password@host:6379/0, with "
    "special characters of the password percent-encoded"
)
_DATABASE: Final = re.compile(r"\d{1,9}", re.ASCII)
_TLS_OPTIONS: Final = frozenset(
    {"ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"}
)
_OPTIONS: Final = frozenset({"db", "username", "password"})


def _check_url(url: SplitResult) -> None:
    """What redis-py would pass over in silence. Raises InvalidRedisUrl, or ValueError for a bad port."""
    scheme = url.scheme.lower()
    if "sentinel" in scheme or "cluster" in scheme:
        raise InvalidRedisUrl(
            "REDIS_URL: Sentinel and Cluster are not supported yet: name the one Redis to use as redis:// or "
            "rediss://, e.g. by a host name that follows its master"
        )
    if scheme not in ("redis", "rediss", "unix"):
        raise InvalidRedisUrl(_USABLE_URL)
    if url.fragment or "@" in url.path or "@" in url.query:
        # Most likely a `#`, `/` or `?` of the password: what follows is a part of it, and not to be shown.
        raise InvalidRedisUrl(_USABLE_URL)
    database = unquote(url.path).removeprefix("/")
    if scheme == "unix":
        if not database or url.hostname:
            raise InvalidRedisUrl(
                "REDIS_URL: unix:// needs the path of the socket: unix:///run/redis.sock?db=0"
            )
        database = ""
    else:
        if not url.hostname and (url.netloc or url.path):  # `redis://` alone is this machine
            raise InvalidRedisUrl("REDIS_URL names no host: write redis://host:6379/0")
        if url.netloc.endswith(":") or url.port == 0:
            raise InvalidRedisUrl("REDIS_URL: the port must be a number from 1 to 65535")
        if database and not _DATABASE.fullmatch(database):
            raise InvalidRedisUrl(
                "REDIS_URL: what follows the host must be the number of a database, as in redis://host:6379/0"
            )
    options = parse_qsl(url.query, keep_blank_values=True)
    known = _OPTIONS | _TLS_OPTIONS if scheme == "rediss" else _OPTIONS
    for name, value in options:
        if name in _TLS_OPTIONS and scheme != "rediss":
            raise InvalidRedisUrl(f"REDIS_URL: {name} needs rediss://; {scheme}:// has no TLS")
        if name not in known:
            raise InvalidRedisUrl(
                f"REDIS_URL: the option {name!r} is not known; known are {', '.join(sorted(known))}"
            )
        if [other for other, _ in options].count(name) > 1:
            raise InvalidRedisUrl(f"REDIS_URL: the option {name!r} is given more than once")
        if name == "db" and (not _DATABASE.fullmatch(value) or (database and int(database) != int(value))):
            raise InvalidRedisUrl("REDIS_URL: db must be the number of a database, and given once")


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
        self.role: str | None = None

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
            raise ConnectionCut(f"the connection to Redis broke: {error}") from error

    async def receive(self) -> Any:
        """Wait for the next reply, after `receive_nowait` has found none."""
        while True:
            try:
                received = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise ConnectionCut(f"the connection to Redis broke: {error}") from error
            if not received:
                raise ConnectionCut("Redis closed the connection")
            self._reader.feed(bytes(received))
            if (reply := self.receive_nowait()) is not NOT_YET:
                return reply

    def receive_nowait(self) -> Any:
        """A reply that has already arrived, or the marker `NOT_YET`; what Redis pushes out of band is passed
        over."""
        try:
            while isinstance(reply := self._reader.gets(), hiredis.PushNotification):
                pass
        except Exception as error:  # hiredis has also TypeError, for a map with a list as a key
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
            connection = Connection(await _open_stream(address, timeout_s))
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


async def _open_stream(address: Address, timeout_s: float) -> trio.abc.Stream:
    if address.unix_path is not None:
        return await trio.open_unix_socket(address.unix_path)
    stream = await trio.open_tcp_stream(address.host, address.port)
    _keep_alive(stream, timeout_s)
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


def _keep_alive(stream: trio.SocketStream, timeout_s: float) -> None:
    """Have the kernel notice a peer that is gone without a word (tcp(7))."""
    options = {
        "TCP_KEEPIDLE": KEEPALIVE_IDLE_S,
        "TCP_KEEPALIVE": KEEPALIVE_IDLE_S,  # the same on macOS
        "TCP_KEEPINTVL": KEEPALIVE_INTERVAL_S,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": max(1000, int(timeout_s * 1000)),
    }
    with contextlib.suppress(OSError):  # a kernel without one of them: the probes of `Client` remain
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _greet(connection: Connection, address: Address, name: str) -> None:
    hello: list[str | int] = ["HELLO", 3]
    auth: list[str] = []
    if address.password is not None:
        auth = [address.username or "default", address.password]
        hello += ["AUTH", *auth]
    (reply,) = await connection.call(hello)
    if isinstance(reply, hiredis.ReplyError):
        if not str(reply).startswith(("ERR unknown command", "NOPROTO", "ERR Protocol")):
            raise to_error(reply)
        # A server without RESP3 (a proxy, an emulation): the old way round.
        if auth:
            (reply,) = await connection.call(("AUTH", *(auth if address.username else auth[1:])))
            raise_if_error(reply)
    else:
        connection.role, mode = _role_and_mode(reply)
        if mode == "cluster":
            raise RedisRefused(
                f"Redis at {address} is a node of a Redis Cluster, which this release cannot use: "
                "name a single Redis in REDIS_URL",
                code="MOVED",
            )
        if mode == "sentinel":
            raise RedisRefused(f"{address} is a Sentinel: name the Redis itself in REDIS_URL")
    # CLIENT UNBLOCK of nobody: whether this user may wake a blocked read at all.
    commands: list[Command] = [("CLIENT", "SETNAME", name), ("CLIENT", "ID"), ("CLIENT", "UNBLOCK", 0)]
    if address.database:
        commands.append(("SELECT", address.database))
    _named, client_id, unblocked, *selected = await connection.call(*commands)
    for reply in selected:
        if isinstance(reply, hiredis.ReplyError):
            error = to_error(reply)
            raise type(error)(f"SELECT {address.database}: {error}", code=error.code, command="SELECT")
    # 0: CLIENT ID or UNBLOCK is not allowed to this user; reads are then short.
    wakeable = isinstance(client_id, int) and isinstance(unblocked, int)
    connection.client_id = client_id if wakeable else 0
    (reply,) = await connection.call(("PING",))  # refused while Redis loads its data
    raise_if_unavailable([reply])


def _role_and_mode(hello: Any) -> tuple[str | None, str | None]:
    """Of HELLO's reply, a map or a flat list; None for what it does not say."""
    flat: list[Any] = hello if isinstance(hello, list) else []
    pairs: Any = hello.items() if isinstance(hello, dict) else zip(flat[::2], flat[1::2], strict=False)
    fields = {_text(name): _text(value) for name, value in pairs}
    return fields.get("role"), fields.get("mode")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def raise_if_error(reply: Any) -> None:
    """Raises RedisUnavailable or RedisRefused for an error reply."""
    if isinstance(reply, hiredis.ReplyError):
        raise to_error(reply)


def error_code(reply: hiredis.ReplyError) -> str:
    """The first word of an error reply, which is its kind."""
    return str(reply).partition(" ")[0]


def to_error(reply: hiredis.ReplyError) -> RedisUnavailable | RedisRefused:
    """The exception for an error reply: not now, or never."""
    text, code = str(reply), error_code(reply)
    if code in _PASSING_ERRORS or text.startswith("ERR max number of clients"):
        return RedisUnavailable(f"Redis answered: {text}", code=code)
    if code in _CLUSTER_ERRORS:
        # Not its own words, which name the address of another node.
        return RedisRefused(f"Redis answered {code}: REDIS_URL names a node of a Redis Cluster", code=code)
    return RedisRefused(f"Redis answered: {text}", code=code)


def raise_if_unavailable(replies: Sequence[Any]) -> None:
    """Raises RedisUnavailable when one of the replies says that Redis cannot answer now."""
    for reply in replies:
        if isinstance(reply, hiredis.ReplyError) and isinstance(error := to_error(reply), RedisUnavailable):
            raise error


def parse_transaction(queued: Sequence[Any], executed: Any) -> list[Any]:
    """The replies of a MULTI's commands, errors as values; `queued`: how MULTI and each were answered.

    Raises RedisUnavailable, or RedisRefused when Redis refused to queue one.
    """
    if refused := [reply for reply in queued if isinstance(reply, hiredis.ReplyError)]:
        raise to_error(refused[0])
    raise_if_error(executed)
    replies: list[Any] = executed if isinstance(executed, list) else []
    if len(replies) != len(queued) - 1:
        raise RedisRefused("Redis answered to EXEC what no Redis answers: a proxy without transactions?")
    raise_if_unavailable(replies)
    return replies


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
    """One caller's place in the queue of replies. `packed`: what to send once more, on a new connection, if
    this one breaks before it is answered."""

    __slots__ = ("asked_s", "count", "done", "error", "packed", "replies")

    def __init__(self, count: int, packed: bytes | None) -> None:
        self.count = count
        self.packed = packed
        self.asked_s = trio.current_time()
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
        self._asked = trio.Event()
        self._connected = False
        self._commands_sent = 0
        self._reconnects = 0
        self._heard_s = 0.0
        self._replacement: Connection | None = None  # for the connection that is about to end
        self._renewal = Backoff(RENEWAL_FIRST_S, RENEWAL_LIMIT_S)
        self._renewed_s = self._renew_from_s = 0.0
        self.trouble: RedisError | None = None  # why there is no connection now
        # Called when the server at the other end is not the one to talk to any more, or is gone: connections
        # of others are no better.
        self.on_renewal: Callable[[], None] = lambda: None

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(self._connected, self._commands_sent, self._reconnects, len(self._queue))

    async def execute(self, *command: str | bytes | int) -> Any:
        """One command. Raises RedisUnavailable or RedisRefused."""
        (reply,) = await self.pipeline([command])
        raise_if_error(reply)
        return reply

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """The commands in one MULTI; one reply each, errors as values. Raises RedisUnavailable, or
        RedisRefused when Redis refused to queue one."""
        *queued, executed = await self.pipeline([("MULTI",), *commands, ("EXEC",)])
        return parse_transaction(queued, executed)

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """The commands in one write; one reply each, errors as values.

        Raises RedisUnavailable: not connected, timed out, or too much is already waiting. If cancelled, the
        commands may still be carried out.
        """
        if len(self._queue) >= self._waiting_limit:
            raise RedisUnavailable(f"{self._waiting_limit} calls are waiting for Redis already")
        packed = _pack(commands)
        waiter = _Waiter(len(commands), packed if _READS.issuperset([one[0] for one in commands]) else None)
        self._outbox.append(packed)
        self._queue.append(waiter)
        self._commands_sent += len(commands)
        self._wanted.set()
        try:
            with trio.fail_after(self._timeout_s):
                await waiter.done.wait()
        except trio.Cancelled:
            waiter.packed = None  # nobody waits for it any more
            raise
        except trio.TooSlowError:
            waiter.packed = None
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
            connection, self._replacement = self._replacement, None
            if connection is None:
                try:
                    connection = await connect(
                        self._address, name="stalecast-client", timeout_s=self._timeout_s
                    )
                except (RedisUnavailable, RedisRefused) as error:
                    self.trouble = error
                    self._end_waiting(RedisUnavailable(str(error), code=error.code, command=error.command))
                    delay_s = backoff.next_s()
                    _log.warning("redis_unreachable", error=str(error), retry_in_s=round(delay_s, 2))
                    await trio.sleep(delay_s)
                    continue
            backoff.reset()
            broken = RedisUnavailable("the connection to Redis broke")
            async with connection:
                self._connected, self.trouble = True, None
                self._heard_s = trio.current_time()
                try:
                    async with trio.open_nursery() as nursery:
                        self._connection_scope = nursery.cancel_scope
                        nursery.start_soon(self._write, connection)
                        nursery.start_soon(self._read, connection)
                        nursery.start_soon(self._watch, connection, nursery)
                except* RedisUnavailable as group:
                    _log.warning("redis_connection_lost", error=str(group.exceptions[0]))
                    if isinstance(group.exceptions[0], ConnectionCut):
                        broken = ConnectionCut("the connection to Redis broke")
                finally:
                    self._connected = False
                    self._reconnects += 1
                    self._repeat_waiting(broken)

    def _repeat_waiting(self, error: RedisUnavailable) -> None:
        """The connection broke: reads are sent once more on the next one, everybody else is told."""
        waiting = list(self._queue)
        self._outbox.clear()
        self._queue.clear()
        for waiter in waiting:
            if waiter.packed is None:
                waiter.error = error
                waiter.done.set()
            else:
                self._outbox.append(waiter.packed)
                self._queue.append(waiter)
                waiter.packed = None
                waiter.replies.clear()

    def _end_waiting(self, error: RedisUnavailable) -> None:
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
            self._asked.set()
            await connection.send(packed)

    async def _read(self, connection: Connection) -> None:
        while True:
            reply = await connection.receive()
            self._heard_s = trio.current_time()
            while reply is not NOT_YET:
                if not self._queue:
                    raise RedisUnavailable("Redis answered what nobody had asked")
                if isinstance(reply, hiredis.ReplyError) and error_code(reply) in _PERHAPS_ELSEWHERE:
                    self._renew(error_code(reply))
                waiter = self._queue[0]
                waiter.replies.append(reply)
                if len(waiter.replies) == waiter.count:
                    self._queue.popleft()
                    waiter.done.set()
                reply = connection.receive_nowait()

    def _renew(self, reason: str) -> None:
        """The name may lead to another server by now: connect anew, but not for ever more."""
        now_s = trio.current_time()
        if now_s < self._renew_from_s:
            return
        if now_s > self._renewed_s + 2 * RENEWAL_LIMIT_S:
            self._renewal.reset()
        self._renewed_s, self._renew_from_s = now_s, now_s + self._renewal.next_s()
        _log.warning("redis_connection_renewed", reason=reason)
        self.on_renewal()
        self._connection_scope.cancel()

    async def _watch(self, connection: Connection, nursery: trio.Nursery) -> None:
        """Find a connection that is dead, or a server that was demoted, before somebody needs it."""
        probe_at_s = trio.current_time() + PROBE_INTERVAL_S
        while True:
            if self._queue:
                await trio.sleep(SILENCE_S / 2)
            else:
                # Each wake of an idle process costs about 0.3 ms: its caches are cold.
                self._asked = trio.Event()
                with trio.move_on_at(probe_at_s):
                    await self._asked.wait()
            now_s = trio.current_time()
            if self._queue and now_s - max(self._heard_s, self._queue[0].asked_s) >= SILENCE_S:
                await self._try_another()
            elif now_s >= probe_at_s:
                probe_at_s = now_s + PROBE_INTERVAL_S
                nursery.start_soon(self._probe, connection)

    async def _try_another(self) -> None:
        heard_s = self._heard_s
        try:
            other = await connect(self._address, name="stalecast-client", timeout_s=self._timeout_s)
        except (RedisUnavailable, RedisRefused):
            return  # Redis itself does not answer: each call waits for its own timeout
        if self._heard_s != heard_s:
            await other.aclose()
            return
        self._replacement = other
        _log.warning("redis_connection_dead", silent_s=round(trio.current_time() - heard_s, 2))
        self.on_renewal()
        self._connection_scope.cancel()

    async def _probe(self, connection: Connection) -> None:
        with contextlib.suppress(RedisUnavailable):
            if connection.role is None:
                await self.pipeline([("PING",)])
                return
            (reply,) = await self.pipeline([("HELLO",)])
            role, _ = _role_and_mode(reply)
            if role is not None and role != connection.role:
                self._renew(f"the server became {role}")
