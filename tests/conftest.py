"""Fixtures that several test files share. What starts processes is in servers.py."""

import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fakeredis
import hiredis
import pytest
import redis
import structlog
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from servers import redis_binary, redis_client, run_fakeredis, run_redis, valkey_binary, wait_for

from app.contracts import builtin_registry
from app.publish import stream_key
from app.redis_connection import Address, Client, Command, RedisUnavailable
from app.settings import Settings
from app.streams.hub import Hub
from app.streams.ids import StreamId
from app.streams.reading import parse_entries, read_newest
from app.streams.sse import Message, Parser, chunk, unchunk
from app.streams.subscriber import Catchup, Subscriber
from app.streams.tail import Tailed, TailStatistics
from app.streams.wire import AsgiWire, DirectWire, Wire

# No deadline: CI machines stall. Enough examples to notice a changed comparison, few enough to run often.
settings.register_profile(
    "stalecast", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("stalecast")


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command sets up in this process ends with its test; and no logger that is first used there keeps
    it, or other tests would not see what is logged."""
    before, configure = structlog.get_config(), structlog.configure

    def configure_for_now(**how: Any) -> None:
        configure(**{**how, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", configure_for_now)
    yield
    configure(**before)


@pytest.fixture(scope="session", params=["fakeredis", "valkey", "redis"])
def shared_redis_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The contract suites run on each of these."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with ExitStack() as stack:
        if request.param == "fakeredis":
            yield stack.enter_context(run_fakeredis())
            return
        binary = valkey_binary() if request.param == "valkey" else redis_binary()
        if binary is None:
            pytest.skip(f"no {request.param}-server is installed")
        yield stack.enter_context(run_redis(folder, binary)).url


@pytest.fixture
def redis_url(shared_redis_url: str) -> str:
    """An empty Redis."""
    with redis_client(shared_redis_url) as client:
        client.flushall()
    return shared_redis_url


@pytest.fixture
def needs_real_server(request: pytest.FixtureRequest) -> None:
    """For what fakeredis does not have: memory limits, users, killed connections."""
    if request.node.callspec.params.get("shared_redis_url") == "fakeredis":
        pytest.skip("fakeredis does not have it")


@pytest.fixture
def writer(redis_url: str) -> Iterator[redis.Redis]:
    """redis-py, as a producer has it."""
    with redis_client(redis_url) as client:
        yield client


@pytest.fixture
async def client(redis_url: str, nursery: trio.Nursery) -> Client:
    """The shared connection, running until the test ends."""
    client = Client(Address.from_url(redis_url), timeout_s=5, waiting_limit=1000)
    await nursery.start(client.run)
    await wait_for(lambda: client.statistics().connected)
    return client


# -- a hub whose Redis and tail do what the test says, on the test's own clock


class FakeClient:
    """The shared connection, to a fakeredis in this process."""

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer()
        self.redis = fakeredis.FakeRedis(server=self.server, protocol=2)
        self.redis.response_callbacks.clear()  # replies as hiredis would give them
        self.away = False
        self.refuses: str | None = None  # a command that an ACL forbids
        self.reads = 0
        self.at_await: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        self.reads += 1
        await self.at_await()
        if self.away:
            raise RedisUnavailable("away, says the test")
        replies = [self._execute(command) for command in commands]
        await self.at_await()
        return replies

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        return await self.transaction(commands)

    def _execute(self, command: Command) -> Any:
        if command[0] == self.refuses:
            return hiredis.ReplyError(f"NOPERM no permission to run {command[0]}")
        try:
            return self.redis.execute_command(*command)
        except redis.ResponseError as error:
            return hiredis.ReplyError(str(error))


class FakeTails:
    """Reads when `World.deliver` says so."""

    def __init__(self) -> None:
        self.watched: dict[str, Tailed] = {}
        self.rechecked: list[str] = []

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    def watch(self, topic: Tailed) -> None:
        self.watched[topic.key] = topic

    def unwatch(self, topic: Tailed) -> None:
        self.watched.pop(topic.key, None)

    def recheck(self, topic: Tailed) -> None:
        self.rechecked.append(topic.key)

    def statistics(self) -> TailStatistics:
        return TailStatistics(1, 1, len(self.watched), 0, 0, 0)


class Browser:
    """One client, from the first bytes to the end of its stream."""

    def __init__(self, world: "World", stuck_timeout_s: float) -> None:
        self.received = bytearray()  # of the event stream, without HTTP's framing
        self.messages: list[Message] = []
        self.ended_s: float | None = None
        self.connection = trio.CancelScope()  # the task that serves it
        self.arriving = True
        self._saw_end = False
        self.begun = False
        self.aborted = False
        self.subscriber: Subscriber
        self._world = world
        self._stuck_timeout_s = stuck_timeout_s
        self._parser = Parser()
        self.blocks: list[str] = []  # as they came
        self._block = ""

    def _read(self, text: bytes) -> None:
        """Every block dispatches something, whatever the client: no `id:` and no `retry:` stands alone."""
        self.received += text
        self.messages += self._parser.feed(text)
        *blocks, self._block = (self._block + text.decode()).split("\n\n")
        for block in blocks:
            assert "\ndata: " in f"\n{block}", block
        self.blocks += blocks

    async def begin(self, first: bytes, then: bytes = b"") -> Wire:
        raise NotImplementedError

    def receive(self) -> None:
        """Take everything that has arrived."""
        raise NotImplementedError

    @property
    def comments(self) -> int:
        self.receive()
        return self._parser.comments

    @property
    def position(self) -> str:
        """What the browser would send as Last-Event-ID."""
        self.receive()
        return self._parser.last_event_id

    @property
    def retries_ms(self) -> list[int]:
        self.receive()
        return [message.retry_ms for message in self.messages if message.retry_ms is not None]

    @property
    def told(self) -> list[str]:
        """Each event as `id reason`, in order."""
        self.receive()
        return [
            f"{message.last_event_id} {json.loads(message.data)['data']['reason']}"
            for message in self.messages
            if message.data is not None
        ]

    @property
    def ended_cleanly(self) -> bool | None:
        self.receive()
        return None if self.ended_s is None else self._saw_end

    def disconnect(self) -> None:
        raise NotImplementedError

    def check_no_gap(self, cursor: StreamId, appended: Sequence[StreamId]) -> None:
        """Every event behind `cursor` in order and once, except where a reload stood in for some."""
        at = cursor.read_after
        for told in self.told:
            text, reason = told.split()
            event_id = StreamId.parse(text)
            if reason not in ("trimmed", "overflow"):
                assert event_id == min(one for one in appended if one > at), (cursor, self.told)
            at = event_id
        assert [one for one in appended if one > at] == [], (cursor, self.told)


class SocketBrowser(Browser):
    """HTTP/1.1 in cleartext: chunks on a socket."""

    def __init__(self, world: "World", stuck_timeout_s: float) -> None:
        super().__init__(world, stuck_timeout_s)
        ours, self.socket = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.socket.setblocking(False)
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._received = b""
        self.at_end = False

    async def begin(self, first: bytes, then: bytes = b"") -> Wire:
        assert not self.begun
        self.begun = True
        await self._world.client.at_await()
        with contextlib.suppress(trio.BrokenResourceError):  # as the server: the reader learns of it
            await self._stream.send_all(chunk(first) + then)
        await self._world.client.at_await()
        return DirectWire(self._stream, self._stuck_timeout_s)

    def receive(self) -> None:
        while self.socket.fileno() != -1:
            try:
                received = self.socket.recv(1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                received = b""
            if not received:
                self.at_end = True
                break
            self._received += received
        while b"\r\n" in self._received:
            size, _, rest = self._received.partition(b"\r\n")
            length = int(size, 16)
            self._saw_end |= length == 0
            if len(rest) < length + 2:
                break
            assert rest[length : length + 2] == b"\r\n"
            self._read(rest[:length])
            self._received = rest[length + 2 :]

    def disconnect(self) -> None:
        """The server learns of it from the socket and, while the client catches up, from its reader."""
        self.socket.shutdown(socket.SHUT_RDWR)
        if self.arriving:
            self.subscriber.disconnect()

    def close(self) -> None:
        self.socket.close()
        self._stream.socket.close()


class AsgiBrowser(Browser):
    """Everything else: bodies through ASGI `send`."""

    def __init__(self, world: "World", stuck_timeout_s: float) -> None:
        super().__init__(world, stuck_timeout_s)
        self._sent: list[bytes] = []
        self.reads = trio.Event()  # set: it takes what is sent
        self.reads.set()

    async def begin(self, first: bytes, then: bytes = b"") -> Wire:
        assert not self.begun
        self.begun = True
        await self._send({"body": first + unchunk(then) if then else first})
        return AsgiWire(self._send, self._abort, self._stuck_timeout_s)

    async def _send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        await self._world.client.at_await()
        self._sent.append(message["body"])
        self._saw_end |= not message.get("more_body", True)
        await self._world.client.at_await()

    def _abort(self) -> None:
        self.aborted = True

    def disconnect(self) -> None:
        self.connection.cancel()

    def receive(self) -> None:
        sent, self._sent = self._sent, []
        for body in sent:
            self._read(body)

    def close(self) -> None:
        pass


class World:
    """A hub, its Redis, and the browsers that are connected to it."""

    def __init__(self, nursery: trio.Nursery, **changes: Any) -> None:
        self.settings = Settings(_env_file=None, **{"retry_ms": 1000, "window_limit_events": 50, **changes})
        self.nursery = nursery
        self.client = FakeClient()
        self.tails = FakeTails()
        self.hub = Hub(self.settings, builtin_registry(), self.client, self.tails)
        self.browsers: list[SocketBrowser | AsgiBrowser] = []
        self.writer = fakeredis.FakeRedis(server=self.client.server)  # redis-py, as a producer has it

    def publish(self, *numbers: int, topic: str = "a", resource: str | None = None) -> list[StreamId]:
        """Append an event `n<number>` for each, with the id `<number>-0`."""
        return [self._append(number, topic, resource) for number in numbers]

    def _append(self, number: int, topic: str, resource: str | None) -> StreamId:
        data = {"id": resource or f"r{number}", "reason": f"n{number}"}
        payload = builtin_registry().encode("argument_updated", data)
        self.writer.xadd(stream_key(topic), {"payload": payload}, id=f"{number}-0")
        return StreamId(number, 0)

    async def deliver(self, topic: str = "a") -> None:
        """The tail's turn: everything behind its position, in one read."""
        watched = self.tails.watched.get(stream_key(topic))
        if watched is None:
            return
        after = b"(" + bytes(watched.position.read_after)
        entries = parse_entries(self.client.redis.execute_command("XRANGE", watched.key, after, "+"))
        if entries:
            await watched.deliver(entries)

    async def lose(self, topic: str = "a", *, forced: bool) -> None:
        """The tail's turn, when it finds that continuity is broken."""
        watched = self.tails.watched[stream_key(topic)]
        page = await read_newest(self.client, watched.key, 0)
        await watched.lose(page.stream, forced=forced)

    async def position_of(self, topic: str = "a") -> str:
        """Where a client that connects now is told that it stands."""
        browser = self.connect(topic=topic)
        await self.settle()
        browser.disconnect()
        await self.settle()
        return browser.position

    async def open(self, topic: str = "a", *, afresh: bool = False) -> None:
        """Have the hub watch a topic, from where it stands now; `afresh`: also if it is watched already. One
        that nobody has written to is watched for as long as it has a client: that one stays."""
        watched = self.tails.watched.get(stream_key(topic))
        if afresh and watched is not None:
            self.hub.forget(watched)
        browser = self.connect(topic=topic)
        await self.settle()
        if self.writer.exists(stream_key(topic)):
            browser.disconnect()
            await self.settle()

    def connect(
        self,
        cursor: object = None,
        *,
        topic: str = "a",
        catchup: Catchup = "all",
        live: bool = True,
        asgi: bool = False,
        stuck_timeout_s: float = 30.0,
    ) -> Any:
        """A browser whose stream runs in the world's nursery."""
        browser = self.create_browser(
            cursor, topic=topic, catchup=catchup, live=live, asgi=asgi, stuck_timeout_s=stuck_timeout_s
        )

        async def run() -> None:
            with browser.connection:
                if await browser.subscriber.catch_up():
                    browser.arriving = False
                    await browser.subscriber.follow()
            browser.ended_s = trio.current_time()

        self.nursery.start_soon(run)
        return browser

    def create_browser(
        self,
        cursor: object = None,
        *,
        topic: str = "a",
        catchup: Catchup = "all",
        live: bool = True,
        asgi: bool = False,
        stuck_timeout_s: float = 30.0,
    ) -> Any:
        """One whose phases the test runs itself."""
        browser = (AsgiBrowser if asgi else SocketBrowser)(self, stuck_timeout_s)
        self.browsers.append(browser)
        browser.subscriber = Subscriber(
            self.hub, topic, None if cursor is None else str(cursor), browser.begin, catchup, live=live
        )
        return browser

    async def settle(self) -> None:
        """Until nobody has anything left to do without time passing."""
        await trio.testing.wait_all_tasks_blocked(0.001)

    async def publish_and_deliver(self, *numbers: int) -> list[StreamId]:
        published = self.publish(*numbers)
        await self.deliver()
        await self.settle()
        return published

    def close(self) -> None:
        for browser in self.browsers:
            browser.close()


@pytest.fixture
def make_world(nursery: trio.Nursery) -> Iterator[Any]:
    """A test asks for `autojump_clock` itself: pytest-trio looks for a clock among its arguments only."""
    worlds: list[World] = []

    async def make(**changes: Any) -> World:
        world = World(nursery, **changes)
        worlds.append(world)
        await nursery.start(world.hub.run)
        return world

    yield make
    for world in worlds:
        world.close()


@pytest.fixture
async def world(make_world: Callable[..., Awaitable[World]]) -> World:
    return await make_world()
