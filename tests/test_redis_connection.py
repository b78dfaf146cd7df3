"""The Redis protocol on Trio: one contract for every server, and what happens when there is none."""

import ssl
from collections.abc import Callable

import hiredis
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from servers import (
    HOST,
    RedisServer,
    ServerFailed,
    free_port,
    make_certificate,
    redis_binary,
    redis_client,
    run_redis,
    wait_for,
)

from app.redis_connection import (
    Address,
    Backoff,
    Client,
    Connection,
    InvalidRedisUrl,
    RedisRefused,
    RedisUnavailable,
    connect,
)


async def start_client(
    url: str, nursery: trio.Nursery, timeout_s: float = 5, waiting_limit: int = 100
) -> Client:
    client = Client(Address.from_url(url), timeout_s=timeout_s, waiting_limit=waiting_limit)
    await nursery.start(client.run)
    return client


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, to kill and to pause."""
    with run_redis(tmp_path) as running:
        yield running


async def wait_reconnected(client: Client) -> None:
    await wait_for(lambda: client.statistics().reconnects and client.statistics().connected)


# -- the contract, on every server


async def test_a_command_has_its_reply(client):
    assert await client.execute("SET", "key", b"\x00\xff\r\n") in ("OK", b"OK")
    assert await client.execute("GET", "key") == b"\x00\xff\r\n"
    assert await client.execute("GET", "no such key") is None
    assert await client.execute("INCRBY", "number", 7) == 7


async def test_a_refused_command_raises(client):
    await client.execute("SET", "key", "text")

    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await client.execute("XLEN", "key")

    assert await client.execute("GET", "key") == b"text"


async def test_a_pipeline_returns_errors_as_values(client):
    ok, error, value = await client.pipeline([("SET", "key", "1"), ("XLEN", "key"), ("GET", "key")])

    assert ok in ("OK", b"OK")
    assert isinstance(error, hiredis.ReplyError)
    assert value == b"1"


async def test_a_transaction_returns_a_reply_for_each_command(client):
    replies = await client.transaction(
        [("SET", "key", "1"), ("INCR", "key"), ("XLEN", "key"), ("GET", "key")]
    )

    assert replies[1] == 2
    assert isinstance(replies[2], hiredis.ReplyError)
    assert replies[3] == b"2"


async def test_a_transaction_that_was_not_queued_does_nothing(client):
    with pytest.raises(RedisRefused, match=r"(?i)unknown command|wrong number"):
        await client.transaction([("SET", "key", "1"), ("NOSUCHCOMMAND",), ("SET", "key", "2")])

    assert await client.execute("GET", "key") is None


async def test_callers_at_the_same_time_get_their_own_replies(client):
    answered = {}

    async def ask(number: int) -> None:
        answered[number] = await client.pipeline([("ECHO", str(number)), ("ECHO", str(-number))])

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(ask, number)

    assert answered == {number: [b"%d" % number, b"%d" % -number] for number in range(200)}
    assert client.statistics().waiting == 0


async def test_a_cancelled_caller_disturbs_nobody(client):
    async with trio.open_nursery() as nursery:
        for number in range(50):

            async def ask(number: int = number) -> None:
                assert await client.execute("ECHO", str(number)) == b"%d" % number

            async def give_up() -> None:
                with trio.move_on_after(0):
                    await client.pipeline([("ECHO", "dropped"), ("ECHO", "dropped")])

            nursery.start_soon(ask)
            nursery.start_soon(give_up)

    assert await client.execute("ECHO", "still here") == b"still here"
    assert client.statistics().reconnects == 0


async def test_a_large_reply_arrives_whole(client):
    value = bytes(range(256)) * 4096
    await client.execute("SET", "key", value)

    assert await client.execute("GET", "key") == value


async def test_a_connection_answers_in_order(redis_url):
    async with await connect(Address.from_url(redis_url), name="test", timeout_s=5) as connection:
        replies = await connection.call(("SET", "key", "1"), ("XLEN", "key"), ("GET", "key"))

    assert isinstance(replies[1], hiredis.ReplyError)
    assert replies[2] == b"1"
    assert connection.client_id > 0


async def test_a_cancelled_call_closes_its_connection(redis_url):
    """The reply may be half read: the next call must not get it for its own."""
    connection = await connect(Address.from_url(redis_url), name="test", timeout_s=5)
    with trio.move_on_after(0.05):
        await connection.call(("XREAD", "BLOCK", 0, "STREAMS", "key", "$"))

    with trio.fail_after(5), pytest.raises(RedisUnavailable):
        await connection.call(("PING",))


async def test_a_blocked_read_is_woken_by_the_other_connection(client, redis_url):
    async with await connect(Address.from_url(redis_url), name="test", timeout_s=5) as connection:
        started_s = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def wake() -> None:
                await trio.sleep(0.05)
                await client.execute("CLIENT", "UNBLOCK", connection.client_id)

            nursery.start_soon(wake)
            assert await connection.call(("XREAD", "BLOCK", 5000, "STREAMS", "key", "$")) == [None]

        assert trio.current_time() - started_s < 2


async def test_the_database_of_the_url_is_selected(redis_url, nursery, writer):
    client = await start_client(f"{redis_url}/3", nursery)
    await client.execute("SET", "key", "in 3")

    assert writer.get("key") is None
    with redis_client(f"{redis_url}/3") as in_three:
        assert in_three.get("key") == b"in 3"


# -- callers and their limits


async def test_what_is_asked_at_the_same_time_travels_in_one_write(redis_url, nursery, monkeypatch):
    writes = []
    send = Connection.send

    async def count(self: Connection, packed: bytes) -> None:
        writes.append(packed)
        await send(self, packed)

    client = await start_client(redis_url, nursery)
    await client.execute("PING")
    monkeypatch.setattr(Connection, "send", count)

    async with trio.open_nursery() as asking:
        for _ in range(100):
            asking.start_soon(client.execute, "PING")

    assert len(writes) <= 2
    assert b"".join(writes).count(b"PING") == 100


async def test_too_many_waiting_calls_are_refused_at_once(nursery):
    client = await start_client(f"redis://{HOST}:{free_port()}", nursery, waiting_limit=3)
    refused = []

    async def ask() -> None:
        with pytest.raises(RedisUnavailable) as error:
            await client.execute("PING")
        refused.append(str(error.value))

    async with trio.open_nursery() as asking:
        for _ in range(5):
            asking.start_soon(ask)

    assert sum("3 calls are waiting" in text for text in refused) == 2


async def test_a_redis_that_does_not_answer_costs_the_timeout_and_no_more(server, nursery):
    client = await start_client(server.url, nursery, timeout_s=0.3)
    assert await client.execute("PING") in ("PONG", b"PONG")

    with server.paused():
        started_s = trio.current_time()
        with pytest.raises(RedisUnavailable, match=r"did not answer within 0\.3 s"):
            await client.execute("PING")
        assert 0.2 < trio.current_time() - started_s < 1

    await wait_reconnected(client)
    assert await client.execute("ECHO", "again") == b"again"


async def test_a_reply_that_comes_after_the_timeout_is_nobody_elses(server, nursery):
    client = await start_client(server.url, nursery, timeout_s=0.2)
    await client.execute("PING")
    with server.paused(), pytest.raises(RedisUnavailable):
        await client.execute("ECHO", "late")

    await wait_reconnected(client)
    assert await client.execute("ECHO", "mine") == b"mine"


# -- Redis away


async def test_the_client_comes_back_when_redis_does(server, nursery):
    client = await start_client(server.url, nursery)
    await client.execute("PING")

    await trio.to_thread.run_sync(server.kill)
    await wait_for(lambda: not client.statistics().connected)
    with trio.fail_after(3), pytest.raises(RedisUnavailable):
        await client.execute("PING")

    await trio.to_thread.run_sync(server.start)
    await wait_reconnected(client)
    assert await client.execute("ECHO", "back") == b"back"


async def test_whoever_waits_when_the_connection_breaks_is_told(server, nursery):
    client = await start_client(server.url, nursery, timeout_s=30)
    await client.execute("PING")

    async def ask() -> None:
        with pytest.raises(RedisUnavailable):
            await client.execute("PING")

    with trio.fail_after(10):
        async with trio.open_nursery() as asking:
            with server.paused():
                asking.start_soon(ask)
                asking.start_soon(ask)
                await trio.sleep(0.1)
                server.kill()


async def test_tries_to_reconnect_are_spaced(nursery):
    tried_s = []

    async def refuse(stream: trio.SocketStream) -> None:
        tried_s.append(trio.current_time())
        await stream.aclose()

    (listener,) = await nursery.start(serve, refuse)
    await start_client(listener, nursery)
    await trio.sleep(1.5)

    assert 2 <= len(tried_s) <= 40


def test_backoff_grows_to_its_limit_and_starts_anew(monkeypatch):
    monkeypatch.setattr("random.random", lambda: 1.0)
    backoff = Backoff(first_s=0.1, limit_s=1.0)

    assert [round(backoff.next_s(), 3) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.reset()
    assert backoff.next_s() == pytest.approx(0.1)


@given(st.integers(1, 2000))
def test_backoff_is_jittered_within_its_limit(tries):
    backoff = Backoff(first_s=0.05, limit_s=3.0)
    delays_s = [backoff.next_s() for _ in range(tries)]

    assert all(0 < delay_s <= 3.0 for delay_s in delays_s)
    assert len(set(delays_s)) > tries / 2


def test_backoff_is_never_zero(monkeypatch):
    monkeypatch.setattr("random.random", lambda: 0.0)

    assert Backoff(first_s=0.05).next_s() >= 0.005


# -- who may connect


async def test_the_password_of_the_url_is_used(tmp_path, nursery):
    with run_redis(tmp_path, password="s3cr3t") as server:
        client = await start_client(server.url, nursery)
        assert await client.execute("ECHO", "in") == b"in"


async def test_user_and_password_of_the_url_are_used(server, nursery):
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "watcher", "on", ">s3 cr3t/", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://watcher:s3%20cr3t%2F@")

    client = await start_client(url, nursery)

    assert await client.execute("ACL", "WHOAMI") == b"watcher"


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_a_wrong_password_is_refused_and_not_repeated_in_the_text(tmp_path, password):
    with run_redis(tmp_path, password="s3cr3t") as server:
        server.password = password
        with pytest.raises(RedisRefused, match=r"NOAUTH|WRONGPASS") as refused:
            await connect(Address.from_url(server.url), name="test", timeout_s=5)

    assert "s3cr3t" not in str(refused.value)
    assert "wrong " not in str(refused.value)


async def test_callers_of_a_client_with_a_wrong_password_are_told_why(tmp_path, nursery):
    with run_redis(tmp_path, password="s3cr3t") as server:
        client = await start_client(server.url.replace("s3cr3t", "wrong"), nursery)
        with trio.fail_after(3), pytest.raises(RedisUnavailable, match="WRONGPASS"):
            await client.execute("PING")


async def test_a_unix_socket(tmp_path, nursery):
    with run_redis(tmp_path, unix=True, password="s3cr3t") as server:
        client = await start_client(server.url, nursery)
        assert await client.execute("ECHO", "in") == b"in"


async def test_nobody_listens():
    address = Address.from_url(f"redis://{HOST}:{free_port()}")

    with pytest.raises(RedisUnavailable, match=f"{HOST}:{address.port} cannot be reached"):
        await connect(address, name="test", timeout_s=5)


async def test_somebody_else_listens(nursery):
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    (listener,) = await nursery.start(serve, answer)

    with pytest.raises(RedisUnavailable, match="does not speak the Redis protocol"):
        await connect(Address.from_url(listener), name="test", timeout_s=5)


async def test_a_server_without_hello_is_greeted_the_old_way(nursery):
    """A proxy or an emulation that knows RESP2 only."""
    commands = []
    answers = {b"HELLO": b"-ERR unknown command 'HELLO'\r\n", b"CLIENT": b"-ERR unknown command\r\n"}

    async def answer(stream: trio.SocketStream) -> None:
        reader = hiredis.Reader()
        async with stream:
            async for received in stream:
                reader.feed(bytes(received))
                while (command := reader.gets()) is not False:
                    commands.append(command)
                    await stream.send_all(answers.get(command[0], b"+OK\r\n"))

    (listener,) = await nursery.start(serve, answer)
    url = listener.replace("redis://", "redis://:s3cr3t@")

    async with await connect(Address.from_url(url), name="test", timeout_s=5) as connection:
        assert connection.client_id == 0

    assert [b"AUTH", b"s3cr3t"] in commands


async def serve(
    handler: Callable[[trio.SocketStream], object],
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A scripted peer; starts with its URLs."""
    (listener,) = await trio.open_tcp_listeners(0, host=HOST)
    task_status.started([f"redis://{HOST}:{listener.socket.getsockname()[1]}"])
    await trio.serve_listeners(handler, [listener])


# -- TLS


@pytest.fixture
def tls_server(tmp_path):
    certificate = make_certificate(tmp_path)
    if certificate is None or redis_binary() is None:
        pytest.skip("needs the openssl command and a redis-server")
    try:
        with run_redis(tmp_path, redis_binary(), certificate=certificate) as running:
            yield running
    except ServerFailed as error:
        pytest.skip(f"this redis-server has no TLS: {str(error)[-100:]}")


async def test_tls(tls_server: RedisServer, nursery):
    client = await start_client(tls_server.url, nursery)

    assert await client.execute("ECHO", "in") == b"in"


async def test_a_certificate_of_nobody_we_trust_is_named(tls_server: RedisServer):
    url = tls_server.url.partition("?")[0]

    with pytest.raises(RedisUnavailable, match="certificate"):
        await connect(Address.from_url(url), name="test", timeout_s=5)


async def test_a_certificate_need_not_be_checked(tls_server: RedisServer):
    url = f"{tls_server.url.partition('?')[0]}?ssl_cert_reqs=none"

    async with await connect(Address.from_url(url), name="test", timeout_s=5) as connection:
        await connection.call(("PING",))


async def test_a_handshake_that_never_ends_leaves_no_socket_behind(nursery):
    gone = trio.Event()

    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some():
                pass
        gone.set()

    (listener,) = await nursery.start(serve, say_nothing)
    address = Address.from_url(listener.replace("redis://", "rediss://"))

    with pytest.raises(RedisUnavailable, match="did not answer within"):
        await connect(address, name="test", timeout_s=0.2)
    with trio.fail_after(2):
        await gone.wait()


# -- URLs


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://", "localhost:6379"),
        ("redis://example:7000/2", "example:7000"),
        ("redis://user:pass@example", "example:6379"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
        ("unix://user:pass@/run/redis.sock?db=3", "/run/redis.sock"),
        ("redis://[::1]:6380/0", "::1:6380"),
    ],
)
def test_an_address_is_shown_without_its_password(url, shown):
    assert str(Address.from_url(url)) == shown


def test_what_a_url_says():
    address = Address.from_url("redis://user:p%40ss@example:7000/2")

    assert (address.host, address.port, address.database) == ("example", 7000, 2)
    assert (address.username, address.password, address.tls) == ("user", "p@ss", None)
    assert Address.from_url("unix:///run/redis.sock?db=3").database == 3
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://:s3cr3t@localhost",
        "redis:/:s3cr3t@localhost",
        "redis://:s3cr3t@localhost:port",
        "redis://:s3cr3t@localhost:99999",
        "redis://:s3cr3t@localhost?db=three",
        "redis://:s3cr3t/with-a-slash@localhost:6379",
        "redis://:s3cr3t#with-a-hash@localhost:6379",
        "redis://:s3cr3t?with-a-question@localhost:6379",
        "redis://:s3cr3t@[::1",
        "rediss://:s3cr3t@localhost?ssl_ca_certs=/no/such/file",
        "rediss://:s3cr3t@localhost?ssl_certfile=/no/such/file",
        "rediss://:s3cr3t@localhost?ssl_cert_reqs=sometimes",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url):
    with pytest.raises(InvalidRedisUrl) as refused:
        Address.from_url(url)

    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "verify_mode", "checks_host"),
    [
        ("", ssl.CERT_REQUIRED, True),
        ("?ssl_cert_reqs=required", ssl.CERT_REQUIRED, True),
        ("?ssl_check_hostname=false", ssl.CERT_REQUIRED, False),
        ("?ssl_cert_reqs=optional", ssl.CERT_OPTIONAL, False),
        ("?ssl_cert_reqs=none", ssl.CERT_NONE, False),
    ],
)
def test_how_certificates_are_checked(options, verify_mode, checks_host):
    tls = Address.from_url(f"rediss://localhost{options}").tls

    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (verify_mode, checks_host)
