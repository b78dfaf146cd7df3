"""Redis as it is run in the field: users with few permissions, failovers, balancers, foreign content."""

import http.client
import itertools
import json
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import hiredis
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from servers import (
    PROJECT,
    RedisServer,
    free_port,
    redis_binary,
    redis_client,
    run_app,
    run_redis,
    wait_for,
    wait_until,
)
from structlog.testing import capture_logs
from tcp_proxy import TcpProxy
from test_tail import Watched, add

from app.publish import stream_key
from app.redis_connection import (
    Address,
    Client,
    InvalidRedisUrl,
    RedisError,
    RedisRefused,
    RedisUnavailable,
    connect,
    parse_transaction,
    to_error,
)
from app.streams import reading
from app.streams.ids import StreamId
from app.streams.reading import EPOCH_KEY, ReplyLimit, examine, read_after, read_newest
from app.streams.tail import Tails

TIMEOUT_S = 5.0
KEY = stream_key("a")
# What README says a user needs.
# As README gives it to be pasted, with the password of these tests.
_README_LINES = (PROJECT / "README.md").read_text().splitlines()
(_ACL_LINE,) = [line for line in _README_LINES if line.startswith("ACL SETUSER stalecast ")]
ACL = _ACL_LINE.removeprefix("ACL SETUSER stalecast ").replace(">password", ">secret")


@pytest.fixture(scope="module")
def module_server(tmp_path_factory) -> Iterator[RedisServer]:
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server is installed")
    with run_redis(tmp_path_factory.mktemp("redis"), binary) as server:
        yield server


@pytest.fixture
def server(module_server) -> Iterator[RedisServer]:
    """An empty Redis without users and without settings of others."""
    with module_server.client() as admin:
        admin.flushall()
    yield module_server
    with module_server.client() as admin:
        admin.execute_command("ACL", "DELUSER", "watcher")
        admin.config_set("client-output-buffer-limit", "normal 0 0 0")
        admin.execute_command("REPLICAOF", "NO", "ONE")
        admin.config_set("min-replicas-to-write", "0")


@pytest.fixture
def admin(server) -> Iterator[Redis]:
    with server.client() as admin:
        yield admin


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    reading._complaints.clear()


def as_watcher(admin: Redis, server: RedisServer, rules: str) -> str:
    admin.execute_command("ACL", "SETUSER", "watcher", "reset", *rules.split())
    return server.url.replace("redis://", "redis://watcher:secret@")


async def start(url: str, nursery: trio.Nursery, **options) -> tuple[Client, Tails]:
    client = Client(Address.from_url(url), timeout_s=TIMEOUT_S, waiting_limit=1000)
    options = {"group_limit_topics": 64, "read_limit_events": 500, "timeout_s": TIMEOUT_S, **options}
    tails = Tails(Address.from_url(url), client, **options)
    await nursery.start(client.run)
    await nursery.start(tails.run)
    await wait_for(lambda: client.statistics().connected)
    return client, tails


async def watch(client: Client, tails: Tails, name: str) -> Watched:
    topic = Watched(name)
    await topic.open(client)
    tails.watch(topic)
    return topic


async def wait_blocked(tails: Tails) -> None:
    await wait_for(lambda: tails.statistics().connected_groups == tails.statistics().groups)
    await trio.sleep(0.1)


# -- permissions


async def test_the_permissions_that_readme_lists_are_enough(server, admin, nursery):
    client, tails = await start(as_watcher(admin, server, ACL), nursery)

    examination = await examine(client)
    assert (examination.obstacles, examination.warnings) == ([], [])
    topic = await watch(client, tails, "a")
    await topic.wait_delivered(*add(admin, "a", 1, 2))
    assert (await read_after(client, KEY, StreamId(1, 0), 5)).entry_present


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        ("-get", f"GET {EPOCH_KEY}"),
        ("-xread", "XREAD topic:events:*"),
        ("-xrange", "XRANGE topic:events:*"),
        ("-xrevrange", "XREVRANGE topic:events:*"),
        ("-xinfo|stream", "XINFO STREAM topic:events:*"),
        ("-multi", "MULTI"),
        ("-exec", "EXEC"),
        ("resetkeys ~topic:events:*", f"GET {EPOCH_KEY}"),
        ("resetkeys ~stalecast:*", "XRANGE topic:events:*"),
    ],
)
async def test_a_permission_that_is_missing_is_named(server, admin, nursery, change, obstacle):
    client, _ = await start(as_watcher(admin, server, f"{ACL} {change}"), nursery)

    obstacles = (await examine(client)).obstacles

    assert any(one.startswith(obstacle) for one in obstacles), obstacles
    assert "watcher" not in str(obstacles)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ("-set", f"SET {EPOCH_KEY}"),
        ("-xadd", "XADD topic:events:*"),
        ("-client|unblock", "CLIENT UNBLOCK"),
        ("-client|id", None),
        ("-client|setname", None),
        ("-ping", None),
        ("-select", None),
    ],
)
async def test_a_permission_that_streams_can_do_without_is_a_warning(server, admin, nursery, change, warning):
    client, tails = await start(as_watcher(admin, server, f"{ACL} {change}"), nursery)

    examination = await examine(client)
    assert examination.obstacles == []
    assert [one.split(":")[0] for one in examination.warnings] == ([warning.split(":")[0]] if warning else [])
    add(admin, "a", 1)
    topic = await watch(client, tails, "a")
    await topic.wait_delivered(*add(admin, "a", 2))


async def test_select_is_named_where_a_database_is_asked_for(server, admin):
    url = as_watcher(admin, server, f"{ACL} -select") + "/3"
    with pytest.raises(RedisRefused, match="SELECT 3"):
        await connect(Address.from_url(url), name="test", timeout_s=5)


async def test_readyz_names_what_is_missing_and_nobodys_address(server, admin, tmp_path):
    url = as_watcher(admin, server, f"{ACL} -xinfo|stream")

    def ask() -> tuple[int, dict]:
        with run_app(tmp_path, redis_url=url, wait_ready=False) as app:
            status, body = 0, b"{}"
            while status == 0:
                status, body = app.get("/readyz")
            return status, json.loads(body)

    status, body = await trio.to_thread.run_sync(ask)
    assert status == 503
    assert "XINFO STREAM" in body["reason"]
    assert str(server.port) not in str(body)
    assert "watcher" not in str(body)


# -- without CLIENT UNBLOCK


@pytest.mark.parametrize("rules", ["on >secret ~* &* +@all -@dangerous", f"{ACL} -client|unblock"])
async def test_without_unblock_a_new_topic_is_heard_soon_and_redis_is_left_alone(
    server, admin, nursery, rules
):
    with capture_logs() as logs:
        client, tails = await start(as_watcher(admin, server, rules), nursery)
        await watch(client, tails, "a")
        await wait_blocked(tails)
        before = refused_unblocks(admin)
        for number in range(1, 6):
            topic = await watch(client, tails, f"t{number}")
            await trio.sleep(0.01)
            expected = add(admin, topic.name, 1)
            with trio.fail_after(0.5):
                await topic.wait_delivered(*expected)

    assert refused_unblocks(admin) - before <= 2
    assert [log["event"] for log in logs].count("tail_wakeups_refused") == 1


async def test_a_withdrawn_permission_is_noticed_and_said_once(server, admin, nursery):
    url = as_watcher(admin, server, ACL)
    with capture_logs() as logs:
        client, tails = await start(url, nursery)
        await watch(client, tails, "a")
        await wait_blocked(tails)
        admin.execute_command("ACL", "SETUSER", "watcher", "-client|unblock")
        before = refused_unblocks(admin)
        for number in range(1, 6):
            topic = await watch(client, tails, f"t{number}")
            expected = add(admin, topic.name, 1)
            with trio.fail_after(1):
                await topic.wait_delivered(*expected)
        assert refused_unblocks(admin) - before <= 10

    assert [log["event"] for log in logs].count("tail_wakeups_refused") == 1


def refused_unblocks(admin: Redis) -> int:
    statistics = admin.execute_command("INFO", "commandstats")
    return int(statistics.get("cmdstat_client|unblock", {}).get("rejected_calls", 0))


# -- a cluster


@pytest.fixture
def cluster_node(tmp_path) -> Iterator[RedisServer]:
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server is installed")
    with run_redis(
        tmp_path, binary, arguments=["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
    ) as server:
        yield server


async def test_a_cluster_node_is_named_as_such(cluster_node, nursery):
    client = Client(Address.from_url(cluster_node.url), timeout_s=5, waiting_limit=10)
    await nursery.start(client.run)
    with pytest.raises(RedisUnavailable, match="Redis Cluster"):
        await examine(client)

    assert client.trouble is not None
    assert "Redis Cluster" in client.trouble.public
    assert str(cluster_node.port) not in client.trouble.public


@pytest.mark.parametrize(
    "text",
    [
        "MOVED 3999 10.1.2.3:6381",
        "ASK 3999 10.1.2.3:6381",
        "CROSSSLOT Keys in request don't hash to the same slot",
    ],
)
def test_the_errors_of_a_cluster_name_it_without_addresses(text):
    error = to_error(hiredis.ReplyError(text))

    assert isinstance(error, RedisRefused)
    assert "Redis Cluster" in error.public
    assert "10.1.2.3" not in f"{error} {error.public}"


# -- failovers


@pytest.fixture
def two_servers(tmp_path) -> Iterator[tuple[RedisServer, RedisServer]]:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with run_redis(tmp_path / "one") as one, run_redis(tmp_path / "two") as two:
        yield one, two


async def test_after_a_failover_behind_a_name_the_connection_is_made_anew(two_servers, nursery):
    one, two = two_servers
    proxy = await nursery.start(TcpProxy(one.port).run)
    client, tails = await start(proxy.url, nursery)
    topic = await watch(client, tails, "a")
    await wait_blocked(tails)

    with one.client() as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", two.port)
    with pytest.raises(RedisUnavailable, match="READONLY"):
        await client.execute("XADD", KEY, "1-0", "payload", "{}")
    proxy.target_port = two.port  # the name has moved
    with trio.fail_after(10):
        while True:
            try:
                await client.execute("XADD", KEY, "*", "payload", "{}")
                break
            except RedisUnavailable:
                await trio.sleep(0.05)

    await wait_for(lambda: topic.delivered or topic.losses, 10)


async def test_a_demoted_server_is_noticed_by_its_role(two_servers, nursery, monkeypatch):
    """Nobody writes, so nobody is told READONLY."""
    monkeypatch.setattr("app.redis_connection.PROBE_INTERVAL_S", 0.2)
    one, two = two_servers
    proxy = await nursery.start(TcpProxy(one.port).run)
    client, tails = await start(proxy.url, nursery)
    await watch(client, tails, "a")
    await wait_blocked(tails)

    proxy.target_port = two.port
    with one.client() as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", two.port)

    await wait_for(lambda: client.statistics().reconnects and client.statistics().connected, 5)
    await wait_for(lambda: tails.statistics().reconnects, 5)


HELLO_OF_A_MASTER = b"*4\r\n+role\r\n+master\r\n+mode\r\n+standalone\r\n"


async def serve_redis(
    answer: Callable[[int, list[bytes]], Awaitable[bytes]],
    ended: list[int],
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """What looks like a master to who connects; `answer` has the number of the connection and the command.
    Starts with its URL; `ended`: the connections that the other side has closed."""
    numbers = itertools.count()
    greetings = {b"CLIENT": b":1\r\n", b"PING": b"+PONG\r\n"}

    async def serve(stream: trio.SocketStream) -> None:
        number, reader = next(numbers), hiredis.Reader()
        async with stream:
            async for received in stream:
                reader.feed(bytes(received))
                while (command := reader.gets()) is not False:
                    reply = greetings.get(command[0])
                    await stream.send_all(reply if reply is not None else await answer(number, command))
        ended.append(number)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(f"redis://127.0.0.1:{listener.socket.getsockname()[1]}")
    await trio.serve_listeners(serve, [listener])


@pytest.mark.parametrize("code", ["READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS"])
async def test_a_refusal_alone_has_the_connection_made_anew(nursery, code):
    """The role that a server tells may be right and still lead nowhere: a balancer answers HELLO for it."""

    async def answer(number: int, command: list[bytes]) -> bytes:
        if command[0] == b"HELLO":
            return HELLO_OF_A_MASTER
        return b"+1-0\r\n" if number else f"-{code} not here\r\n".encode()

    url = await nursery.start(serve_redis, answer, [])
    client = Client(Address.from_url(url), timeout_s=TIMEOUT_S, waiting_limit=10)
    told = []
    client.on_renewal = lambda: told.append(code)
    await nursery.start(client.run)

    with trio.fail_after(2):  # before anybody asks for the role
        with pytest.raises(RedisUnavailable, match=code):
            await client.execute("XADD", KEY, "*", "payload", "{}")
        await wait_for(lambda: client.statistics().reconnects and client.statistics().connected)
        assert await client.execute("XADD", KEY, "*", "payload", "{}") == b"1-0"
    assert told == [code]


async def test_a_connection_that_answers_after_all_is_kept_and_the_other_one_closed(nursery):
    tried, answered, ended = trio.Event(), trio.Event(), []

    async def answer(number: int, command: list[bytes]) -> bytes:
        if command[0] == b"HELLO":
            if number:
                tried.set()
                await answered.wait()
            return HELLO_OF_A_MASTER
        await tried.wait()  # the client has taken it for dead
        return b"$1\r\nx\r\n"

    url = await nursery.start(serve_redis, answer, ended)
    client = Client(Address.from_url(url), timeout_s=TIMEOUT_S, waiting_limit=10)
    await nursery.start(client.run)

    assert await client.execute("GET", "x") == b"x"
    answered.set()

    await wait_for(lambda: ended)
    assert ended == [1]
    assert client.statistics().reconnects == 0
    assert client.statistics().connected


async def test_an_honest_replica_is_not_connected_to_again_and_again(two_servers, nursery):
    one, two = two_servers
    with one.client() as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", two.port)
    client, _ = await start(one.url, nursery)

    until_s = trio.current_time() + 3
    while trio.current_time() < until_s:
        with pytest.raises(RedisError):
            await client.execute("XADD", KEY, "*", "payload", "{}")
        await trio.sleep(0.01)

    assert client.statistics().reconnects <= 6
    assert (await examine(client)).obstacles == []
    assert any("READONLY" in one for one in (await examine(client)).warnings)


@pytest.mark.parametrize(
    "text",
    [
        "READONLY You can't write against a read only replica.",
        "NOREPLICAS Not enough good replicas to write.",
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist on disk.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "BUSY Redis is busy running a script.",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "UNBLOCKED force unblock from blocking operation",
        "ERR max number of clients reached",
    ],
)
def test_what_passes_is_unavailable(text):
    assert isinstance(to_error(hiredis.ReplyError(text)), RedisUnavailable)


@pytest.mark.parametrize(
    "text", ["BUSYGROUP Consumer Group name already exists", "BUSYKEY x", "OOMPH x", "", "ERR x"]
)
def test_what_only_begins_like_it_is_not(text):
    assert isinstance(to_error(hiredis.ReplyError(text)), RedisRefused)


async def test_too_few_replicas_is_unavailable(server, admin, nursery):
    client, _ = await start(server.url, nursery)
    admin.config_set("min-replicas-to-write", "1")

    with pytest.raises(RedisUnavailable, match="NOREPLICAS"):
        await client.execute("XADD", KEY, "*", "payload", "{}")


# -- a connection that somebody forgot


async def test_a_forgotten_connection_costs_a_read_no_timeout(server, nursery):
    proxy = await nursery.start(TcpProxy(server.port).run)
    client, _ = await start(proxy.url, nursery)
    await client.execute("PING")

    proxy.forget()

    with trio.fail_after(3):
        await read_newest(client, KEY, 1)


async def test_a_forgotten_connection_fails_a_write_before_the_timeout(server, nursery):
    proxy = await nursery.start(TcpProxy(server.port).run)
    client, _ = await start(proxy.url, nursery)
    await client.execute("PING")

    proxy.forget()

    with trio.fail_after(3), pytest.raises(RedisUnavailable):
        await client.execute("XADD", KEY, "*", "payload", "{}")
    await client.execute("XADD", KEY, "*", "payload", "{}")


async def test_a_forgotten_connection_is_found_before_anybody_needs_it(server, nursery, monkeypatch):
    monkeypatch.setattr("app.redis_connection.PROBE_INTERVAL_S", 0.2)
    proxy = await nursery.start(TcpProxy(server.port).run)
    client, tails = await start(proxy.url, nursery)
    topic = await watch(client, tails, "a")
    await wait_blocked(tails)

    proxy.forget()

    # Those who read live learn of it as well.
    await wait_for(lambda: client.statistics().reconnects and client.statistics().connected, 4)
    await wait_for(lambda: tails.statistics().reconnects and tails.statistics().connected_groups, 4)
    with redis_client(server.url) as writer:
        await topic.wait_delivered(*add(writer, "a", 1))


async def test_a_connection_that_ends_costs_a_read_nothing(server, nursery):
    proxy = await nursery.start(TcpProxy(server.port).run)
    client, _ = await start(proxy.url, nursery)
    for _ in range(5):
        proxy.cut()
        await read_newest(client, KEY, 1)


async def test_a_slow_redis_is_waited_for_on_the_same_connection(server, nursery):
    """It answers on no other connection either, and what was written must not be told as failed."""
    client, _ = await start(server.url, nursery)
    with server.paused():
        async with trio.open_nursery() as asking:
            asking.start_soon(client.execute, "XADD", KEY, "*", "payload", "{}")
            await trio.sleep(2.5)
            server.signal(signal.SIGCONT)

    assert client.statistics().reconnects == 0


async def test_sockets_to_redis_are_kept_alive(server):
    async with await connect(Address.from_url(server.url), name="test", timeout_s=5) as connection:
        stream = connection._stream
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


# -- a reply larger than Redis lets a client have


async def test_replies_larger_than_the_output_buffer_are_asked_for_in_parts(server, admin, nursery):
    admin.config_set("client-output-buffer-limit", "normal 65536 0 0")
    client, tails = await start(server.url, nursery)
    topics = [await watch(client, tails, f"t{number}") for number in range(8)]
    await wait_blocked(tails)

    payload = "x" * 4000
    for topic in topics:
        with admin.pipeline(transaction=True) as pipeline:
            for number in range(1, 41):
                pipeline.xadd(topic.key, {"payload": payload}, id=f"{number}-0")
            pipeline.execute()

    for topic in topics:
        await wait_for(lambda topic=topic: len(topic.delivered) == 40 or topic.losses, 20)
        assert topic.delivered == [StreamId(number, 0) for number in range(1, 41)]
        assert topic.losses == []
    assert tails.statistics().reconnects < 30


async def test_a_page_larger_than_the_output_buffer_is_asked_for_in_parts(server, admin, nursery):
    for number in range(1, 101):
        admin.xadd(KEY, {"payload": "x" * 4000}, id=f"{number}-0")
    admin.config_set("client-output-buffer-limit", "normal 65536 0 0")
    client, _ = await start(server.url, nursery)
    limit, read, cursor, cuts = ReplyLimit(), 0, StreamId(1, 0), 0

    while True:
        try:
            page = await limit.read(100, partial(read_after, client, KEY, cursor))
        except RedisUnavailable:
            cuts += 1
            assert cuts < 10
            continue
        read += len(page.entries)
        if page.is_whole:
            break
        cursor = page.entries[-1][0]

    assert read == 99


# -- what is in our keys


FOREIGN_EPOCHS = ["abc", "", "-1", "9" * 400, "1.5", " 1", "0x10", str(2**52), b"\xff\x00"]


@pytest.mark.parametrize("content", FOREIGN_EPOCHS)
async def test_a_foreign_epoch_is_named_once_and_ends_nothing(server, admin, nursery, content):
    with capture_logs() as logs:
        admin.set(EPOCH_KEY, content)
        client, tails = await start(server.url, nursery)
        add(admin, "b", 1)
        unwritten, written = await watch(client, tails, "a"), await watch(client, tails, "b")
        await wait_blocked(tails)
        expected = add(admin, "b", 2, 3)
        await written.wait_delivered(*expected)
        # Nothing names the data set, so a position from before the first event proves nothing.
        add(admin, "a", 1)
        await wait_for(lambda: unwritten.losses, 2)

    assert (await read_newest(client, KEY, 1)).stream.epoch is None
    assert [log["event"] for log in logs].count("epoch_unusable") == 1
    assert any(EPOCH_KEY in one for one in (await examine(client)).warnings)
    assert admin.get(EPOCH_KEY) == (content if isinstance(content, bytes) else content.encode())


async def test_an_epoch_of_another_type_is_named_and_ends_nothing(server, admin, nursery):
    admin.rpush(EPOCH_KEY, "x")
    client, tails = await start(server.url, nursery)
    add(admin, "b", 1)
    written = await watch(client, tails, "b")
    await written.wait_delivered(*add(admin, "b", 2))

    assert any(EPOCH_KEY in one for one in (await examine(client)).warnings)


async def test_an_epoch_that_turns_foreign_and_is_mended_ends_nothing(server, admin, nursery):
    client, tails = await start(server.url, nursery)
    topic = await watch(client, tails, "a")
    await wait_blocked(tails)
    for number, content in enumerate([*FOREIGN_EPOCHS, "17"], 1):
        admin.set(EPOCH_KEY, content)
        (expected,) = add(admin, "a", number)
        await wait_for(
            lambda expected=expected: topic.position == expected, 2
        )  # delivered, or told as a loss


# -- whatever answers in Redis's place

replies = st.recursive(
    st.none()
    | st.integers()
    | st.binary(max_size=8)
    | st.floats()
    | st.booleans()
    | st.sampled_from([hiredis.ReplyError("ERR x"), hiredis.ReplyError(""), b"1-0", b"length", b"OK", "OK"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.binary(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(replies)
def test_no_reply_ends_anything(reply):
    parsers = [
        reading.parse_epoch,
        lambda reply: reading.parse_made_epoch(reading.make_epoch_command(), reply),
        lambda reply: reading.parse_snapshot(reply, 1),
        reading.parse_entries,
        reading.parse_streams,
        reading.parse_id,
        lambda reply: parse_transaction(["OK", "QUEUED"], reply),
    ]
    for parse in parsers:
        with suppress(RedisRefused, RedisUnavailable):
            parse(reply)


ODD_VALUES = [float("inf"), float("-inf"), float("nan"), None, 7, True, "text", b"\xff", [1], {1: 2}]
COUNTS = {b"length": 1, b"entries-added": 1}
IDS = {b"last-generated-id": b"1-0", b"max-deleted-entry-id": b"0-0"}


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
@pytest.mark.parametrize("name", [*COUNTS, *IDS, b"first-entry"])
def test_a_stream_with_an_odd_value_is_read_or_refused(name, value):
    info = {**COUNTS, **IDS, name: value}
    for reply in (info, [part for pair in info.items() for part in pair]):
        with suppress(RedisRefused):
            reading.parse_snapshot(reply, 1)


@pytest.mark.parametrize("value", [one for one in ODD_VALUES if not isinstance(one, bytes)], ids=repr)
@pytest.mark.parametrize("place", [0, 1])
def test_what_leaves_the_parsers_as_an_entry_is_bytes(place, value):
    fields = [b"payload", b"{}"]
    fields[place] = value
    for parse, reply in (
        (reading.parse_entries, [[b"1-0", fields]]),
        (reading.parse_streams, {b"topic:events:a": [[b"1-0", fields]]}),
    ):
        with pytest.raises(RedisRefused):
            parse(reply)


@pytest.mark.parametrize(
    "answer",
    [
        b"%1\r\n*1\r\n:1\r\n:2\r\n",  # a map with a list as its key
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n:6\r\n:7\r\n:8\r\n",  # more than was asked for
        b"-\r\n",
        b"-ERR \xff\xfe\r\n",
        b"$-1\r\n" * 8,
        b"+OK\r\n" * 8,
        b",nan\r\n" * 8,
    ],
)
async def test_a_peer_that_answers_anything_ends_no_task(nursery, answer):
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                async for _ in stream:
                    await stream.send_all(answer)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [listener])
    url = f"redis://127.0.0.1:{listener.socket.getsockname()[1]}"
    client = Client(Address.from_url(url), timeout_s=0.3, waiting_limit=100)
    tails = Tails(Address.from_url(url), client, group_limit_topics=64, read_limit_events=500, timeout_s=0.3)
    await nursery.start(client.run)
    await nursery.start(tails.run)
    tails.watch(Watched("a"))

    for _ in range(5):
        with trio.move_on_after(1):
            try:
                await read_newest(client, KEY, 1)
                await examine(client)
            except (RedisRefused, RedisUnavailable):
                await trio.sleep(0.05)


# -- how many connections


async def test_more_topics_than_the_groups_hold_go_into_the_groups_there_are(server, admin, nursery):
    client, tails = await start(server.url, nursery, group_limit_topics=4, limit_groups=3)
    topics = [await watch(client, tails, f"t{number}") for number in range(30)]

    expected = {topic.key: add(admin, topic.name, 1, 2) for topic in topics}

    for topic in topics:
        await topic.wait_delivered(*expected[topic.key])
    statistics = tails.statistics()
    assert (statistics.groups, statistics.topics) == (3, 30)
    assert {len(group.topics) for group in tails._groups} == {10}
    names = [one["name"] for one in admin.client_list()]
    assert names.count("stalecast-tail") == 3


async def test_a_group_is_away_only_after_some_seconds(server, nursery, monkeypatch):
    monkeypatch.setattr("app.streams.tail.AWAY_AFTER_S", 0.5)
    proxy = await nursery.start(TcpProxy(server.port).run)
    client, tails = await start(proxy.url, nursery)
    await watch(client, tails, "a")
    await wait_blocked(tails)

    with proxy.leading_to(1):  # nobody listens there
        proxy.cut()
        await wait_for(lambda: tails.statistics().connected_groups == 0, 5)
        assert tails.statistics().away_groups == 0
        await wait_for(lambda: tails.statistics().away_groups == 1, 5)
    await wait_for(lambda: tails.statistics().connected_groups == 1)
    assert tails.statistics().away_groups == 0


async def test_a_topic_rests_and_its_neighbours_do_not(server, admin, nursery):
    class Resting(Watched):
        async def deliver(self, entries):
            await super().deliver(entries)
            self.chunks.append(len(entries))
            return 0.5

    client, tails = await start(server.url, nursery)
    topic = Resting("a")
    topic.chunks = []
    await topic.open(client)
    tails.watch(topic)
    other = await watch(client, tails, "b")
    await wait_blocked(tails)

    await topic.wait_delivered(*add(admin, "a", 1))
    for number in range(2, 12):
        add(admin, "a", number)
        (expected,) = add(admin, "b", number)
        await wait_for(lambda expected=expected: other.position == expected, 0.3)
    await wait_for(lambda: len(topic.delivered) == 11, 2)

    assert topic.delivered == [StreamId(number, 0) for number in range(1, 12)]
    assert topic.chunks == [1, 10]
    assert topic.losses == []


async def test_a_group_of_nothing_but_resting_topics_takes_a_new_one(server, admin, nursery):
    class Resting(Watched):
        async def deliver(self, entries):
            await super().deliver(entries)
            return 3.0

    client, tails = await start(server.url, nursery)
    topic = Resting("a")
    await topic.open(client)
    tails.watch(topic)
    await topic.wait_delivered(*add(admin, "a", 1))

    other = await watch(client, tails, "b")
    with trio.fail_after(0.5):
        await other.wait_delivered(*add(admin, "b", 1))


# -- URLs


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr3t@host/mymaster",
        "redis://:s3cr3t@host/1x",
        "redis://:s3cr3t@host/-1",
        "redis://:s3cr3t@host/1/2",
        "redis://:s3cr3t@host/%31x",
        "redis://:s3cr3t@host?db=x",
        "redis://:s3cr3t@host?db=",
        "redis://:s3cr3t@host/1?db=2",
        "redis://:s3cr3t@host?db=1&db=1",
        "redis://:s3cr3t@host?database=1",
        "redis://:s3cr3t@host?socket_timeout=3",
        "redis://:s3cr3t@host?ssl_cert_reqs=none",
        "redis://:s3cr3t@host:0",
        "redis://:s3cr3t@host:",
        "redis://:s3cr3t@host:65536",
        "redis://:s3cr3t@host:-1",
        "redis://:s3cr3t@:6379/0",
        "redis://:s3cr3t@/0",
        "redis:///0",
        "rediss://:s3cr3t@/0",
        "unix://:s3cr3t@",
        "unix://host/run/redis.sock",
        "redis+sentinel://:s3cr3t@host:26379/mymaster",
        "rediss+sentinel://:s3cr3t@host:26379/mymaster/0",
        "sentinel://:s3cr3t@host:26379",
        "redis+cluster://:s3cr3t@host:7000",
        "valkey://:s3cr3t@host",
    ],
)
def test_what_would_silently_be_another_database_is_refused(url):
    with pytest.raises(InvalidRedisUrl, match="REDIS_URL") as refused:
        Address.from_url(url)

    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis+sentinel://h/mymaster", "rediss+sentinel://h1,h2/mymaster"])
def test_sentinel_is_a_clear_no(url):
    with pytest.raises(InvalidRedisUrl, match="Sentinel"):
        Address.from_url(url)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://host/", 0),
        ("redis://host/0", 0),
        ("redis://host/12", 12),
        ("redis://host?db=3", 3),
        ("redis://host/3?db=3", 3),
    ],
)
def test_databases_are_numbers(url, database):
    assert Address.from_url(url).database == database


# -- the whole server


def readiness(app) -> tuple[int, dict]:
    status, body = app.get("/readyz")
    return status, json.loads(body or b"{}")


@pytest.mark.parametrize("content", ["abc", "", "9" * 400])
def test_a_foreign_epoch_ends_no_server_and_no_restart(server, admin, tmp_path, content):
    admin.set(EPOCH_KEY, content)
    with run_app(tmp_path, redis_url=server.url) as app:
        for name in ("a", "b"):
            status, body = readiness(app)
            assert status == 200
            assert any(EPOCH_KEY in one for one in body["warnings"])
            with app_stream(app, f"/v1/sse/{name}") as stream:
                add_event(admin, name)
                assert b"reload_required" in read_until(stream, b"reload_required")
            assert app.is_running
            app.terminate()
            assert app.wait_ended() == 0
            app.start()


def test_a_writer_is_told_to_come_again_after_a_failover_and_may(two_servers, tmp_path):
    one, two = two_servers
    settings = {"STALECAST_PUBLISH_TOKEN": "token-of-the-test"}
    with run_app(tmp_path, redis_url=one.url, settings=settings) as app, one.client() as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", two.port)
        status, headers = post_event(app)
        assert (status, "retry-after" in headers) == (503, True)
        admin.execute_command("REPLICAOF", "NO", "ONE")
        wait_until(lambda: post_event(app)[0] == 201, "it publishes again", 10)


def add_event(admin: Redis, name: str) -> None:
    admin.xadd(stream_key(name), {"payload": '{"event":"argument_updated","data":{"id":"1","reason":"r"}}'})


@contextmanager
def app_stream(app, path: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        read_until(response, b"event: position")
        yield response
    finally:
        connection.close()


def read_until(response: http.client.HTTPResponse, wanted: bytes) -> bytes:
    received, deadline_s = b"", time.monotonic() + 10
    while wanted not in received:
        line = response.readline()
        assert line, received
        assert time.monotonic() < deadline_s, received
        received += line
    return received


def post_event(app) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=10)
    try:
        body = json.dumps({"event": "argument_updated", "data": {"id": "1", "reason": "r"}})
        headers = {"Authorization": "Bearer token-of-the-test", "Content-Type": "application/json"}
        connection.request("POST", "/v1/topics/a/events", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status, {name.lower(): value for name, value in response.headers.items()}
    finally:
        connection.close()


def test_many_that_cannot_be_read_are_few_reloads(server, admin, tmp_path):
    settings = {"STALECAST_UNREADABLE_GATHER_S": "0.5"}
    with (
        run_app(tmp_path, redis_url=server.url, settings=settings) as app,
        app_stream(app, "/v1/sse/a") as stream,
    ):
        for _ in range(100):
            admin.xadd(KEY, {"payload": "not json"})
            time.sleep(0.01)
        add_event(admin, "a")
        received = read_until(stream, b'"argument_updated"')

    assert 1 <= received.count(b'"unreadable"') <= 5
