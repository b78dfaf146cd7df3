"""The routes: what they promise in status, headers and body, and what they refuse with which words.

Streams are read over real HTTP; everything else goes through the application's test client.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis as redis_py
import trio
from pydantic import SecretStr
from quart.typing import TestClientProtocol as Client
from servers import HOST, AppServer, RedisServer, redis_client, run_app, run_redis

from app.publish import PAYLOAD_FIELD, publish_topic_event_sync, stream_key
from app.services import Services
from app.serving import Context
from app.settings import Settings
from app.streams.sse import Message, Parser
from app.web import FULL_RETRY_MS, _is_token, create_app

TOKEN = "a secret of the operator's choice"
READ_TIMEOUT_S = 10.0
SOON_S = 5.0
RETRY_MS = 100

INVALID_TOPIC_IDS = [".", "..", "a b", "a%b", "ä", "a\0b", "a\nb", "x" * 129]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real server for all: what is served over HTTP does not depend on which."""
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[redis_py.Redis]:
    """A client of an empty Redis."""
    with redis_client(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="module")
def server(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """One server for all streams; every test has topics of its own."""
    settings = {"STALECAST_RETRY_MS": str(RETRY_MS), "STALECAST_MAX_CLIENTS": "2"}
    with run_app(tmp_path_factory.mktemp("app"), redis_url=redis_server.url, settings=settings) as app_server:
        yield app_server


@pytest.fixture
def producer(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator["Producer"]:
    """Publishes to a topic that is named after the test."""
    with redis_client(redis_server.url) as client:
        yield Producer(client, re.sub(r"\W", "_", request.node.name))


class Producer:
    def __init__(self, redis: redis_py.Redis, topic: str) -> None:
        self.topic = topic
        self._redis = redis

    def publish(self, resource_id: str = "1") -> str:
        data = {"id": resource_id, "reason": "edited"}
        return publish_topic_event_sync(self._redis, self.topic, "argument_updated", data)


class Stream:
    """An open event stream over real HTTP."""

    def __init__(self, response: HTTPResponse) -> None:
        self.response = response
        self._parser = Parser()
        self._messages: list[Message] = []

    def message(self) -> Message:
        while not self._messages:
            line = self.response.readline()
            assert line, "the stream ended"
            self._messages += self._parser.feed(line)
        return self._messages.pop(0)

    def first(self) -> Message:
        """The block with the position, which says `retry` too."""
        first = self.message()
        assert RETRY_MS <= (first.retry_ms or 0) <= 2 * RETRY_MS
        return first


# A request with a declared body has somebody to read it, and so comes through Quart's route.
both_ways = pytest.mark.parametrize("headers", [{}, {"Content-Length": "0"}], ids=["direct", "asgi"])


@contextmanager
def open_stream(server: AppServer, path: str, headers: dict[str, str] | None = None) -> Iterator[Stream]:
    connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
    try:
        connection.request("GET", f"/v1/sse/{path}", headers=headers or {})
        with connection.getresponse() as response:
            yield Stream(response)
    finally:
        connection.close()


def envelope(message: Message) -> tuple[str, dict[str, Any]]:
    assert message.data is not None
    decoded = json.loads(message.data)
    return decoded["event"], decoded["data"]


# -- an application in this process


@pytest.fixture(autouse=True)
def _no_context_of_another_server() -> None:
    Context.current = None


MakeSettings = Callable[..., Settings]


@pytest.fixture
def settings(redis_server: RedisServer) -> MakeSettings:
    def make(**changes: Any) -> Settings:
        values: dict[str, Any] = {"redis_url": redis_server.url, "publish_token": SecretStr(TOKEN)}
        return Settings(**(values | changes))

    return make


def client_of(settings: Settings) -> Client:
    """Of an application that is not running: for answers that need no Redis."""
    return create_app(settings).test_client()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Client, Services]]:
    app = create_app(settings)
    async with app.test_app() as running_app:
        services: Services = app.extensions["stalecast"]
        with trio.fail_after(SOON_S):
            while not services.client.statistics().connected:  # noqa: ASYNC110 it tells nobody
                await trio.sleep(0.005)
        yield running_app.test_client(), services


async def problem(response: Any) -> dict[str, Any]:
    """The body of an error, which has the form of RFC 9457."""
    assert response.headers["Content-Type"] == "application/problem+json"
    body = json.loads(await response.get_data())
    assert body["status"] == response.status_code
    assert body["title"]
    return body


# -- streams


@pytest.mark.parametrize(
    ("path", "at_message"),
    [("/v1/sse/left", 0), ("/v1/sse/left", 1), ("/v1/sse/left", 2), ("/healthz", 0), ("/healthz", 1)],
)
@pytest.mark.parametrize("in_group", [False, True])
async def test_under_a_foreign_server_a_client_that_has_left_is_no_error(
    settings: MakeSettings, path: str, at_message: int, in_group: bool
) -> None:
    """ASGI HTTP specification 2.4: `send` on a closed connection raises an OSError; from a nursery of the
    server or of a middleware it comes in a group."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        if len(sent) == at_message:
            closed = BrokenPipeError("closed")
            raise ExceptionGroup("", [closed]) if in_group else closed
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"x")],
        "server": (HOST, 1),
        "client": (HOST, 2),
        "extensions": {},
        "state": {},
    }
    async with running(settings(heartbeat_interval_s=0.5)) as (client, services):
        with trio.fail_after(SOON_S):
            await client.app(scope, trio.sleep_forever, send)
        assert len(sent) == at_message
        assert services.hub.statistics().clients == 0


def test_a_stream_has_exactly_the_promised_headers(server: AppServer, producer: Producer) -> None:
    with open_stream(server, producer.topic) as stream:
        assert stream.response.status == 200
        headers = {name.lower(): value for name, value in stream.response.getheaders()}
    headers.pop("date")
    assert headers == {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "private, no-store, no-transform",
        "x-content-type-options": "nosniff",
        "x-accel-buffering": "no",
        "access-control-allow-origin": "*",
        "access-control-expose-headers": "Retry-After",
        "transfer-encoding": "chunked",
        "connection": "close",
    }


def test_a_stream_without_a_cursor_starts_at_the_newest_event(server: AppServer, producer: Producer) -> None:
    newest = producer.publish("old")
    with open_stream(server, producer.topic) as stream:
        first = stream.first()
        assert (first.last_event_id, first.data) == (newest, None)
        event_id = producer.publish("new")
        message = stream.message()
        assert message.last_event_id == event_id
        assert envelope(message) == ("argument_updated", {"id": "new", "reason": "edited"})


@pytest.mark.parametrize(
    ("query", "header"),
    [
        ("", "{second}"),
        ("?lastEventId={second}", None),
        ("?lastEventId={first}", "{second}"),
        ("?lastEventId={first}&lastEventId={second}", None),
        ("?lastEventId=nonsense", "{second}"),
        ("?lastEventId={second}", ""),
    ],
    ids=["header", "query", "header-before-query", "last-of-two", "header-before-bad-query", "empty-header"],
)
def test_a_cursor_comes_from_the_header_or_else_the_query(
    server: AppServer, producer: Producer, query: str, header: str | None
) -> None:
    ids = dict(zip(("first", "second", "third"), (producer.publish(str(n)) for n in range(3)), strict=True))
    headers = {} if header is None else {"Last-Event-ID": header.format(**ids)}
    with open_stream(server, producer.topic + query.format(**ids), headers) as stream:
        first = stream.first()
        assert (first.last_event_id, first.data) == (ids["second"], None)
        assert stream.message().last_event_id == ids["third"]


def test_an_empty_header_alone_is_no_cursor(server: AppServer, producer: Producer) -> None:
    newest = producer.publish()
    with open_stream(server, producer.topic, {"Last-Event-ID": ""}) as stream:
        first = stream.first()
        assert (first.last_event_id, first.data) == (newest, None)


@pytest.mark.parametrize("cursor", ["nonsense", "1-2-3", "-1", "99999999999999999999-0", "1-1; DROP"])
def test_a_cursor_that_does_not_parse_is_answered_with_reload(
    server: AppServer, producer: Producer, cursor: str
) -> None:
    newest = producer.publish()
    with open_stream(server, producer.topic, {"Last-Event-ID": cursor}) as stream:
        first = stream.first()
        assert (first.last_event_id, first.data) == ("", None)
        reload = stream.message()
        assert envelope(reload) == ("reload_required", {"reason": "invalid_id"})
        assert reload.last_event_id == newest, "reconnecting does not lead here again"


def test_compact_replays_only_the_newest_event_of_each_resource(
    server: AppServer, producer: Producer
) -> None:
    cursor = producer.publish("before")
    for resource_id in ("a", "b", "a"):
        newest = producer.publish(resource_id)
    with open_stream(server, f"{producer.topic}?catchup=compact&lastEventId={cursor}") as stream:
        stream.first()
        replayed = [stream.message(), stream.message()]
        assert [envelope(message)[1]["id"] for message in replayed] == ["b", "a"]
        assert replayed[-1].last_event_id == newest


@pytest.mark.parametrize("topic", INVALID_TOPIC_IDS)
async def test_a_stream_of_an_invalid_topic_is_refused(settings: MakeSettings, topic: str) -> None:
    response = await client_of(settings()).get(f"/v1/sse/{quote(topic)}")
    assert response.status_code == 422
    assert "letters, digits" in (await problem(response))["detail"]


@pytest.mark.parametrize("topic", ["..", "%2e%2e", "a%20b"])
def test_an_invalid_topic_is_refused_over_real_http(server: AppServer, topic: str) -> None:
    with open_stream(server, topic) as stream:
        assert stream.response.status == 422
        assert stream.response.getheader("Content-Type") == "application/problem+json"


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("catchup=x", "catchup='x': use `all` or `compact`"),
        ("live=x", "live='x': use `true` or `false`"),
        ("live=true&live=x", "live='x': use `true` or `false`"),
        ("live=", "live='': use `true` or `false`"),
        ("live=False", "live='False': use `true` or `false`"),
        ("live=" + "x" * 99, f"live='{'x' * 40}': use `true` or `false`"),
    ],
)
async def test_an_unknown_value_in_the_query_is_refused(
    settings: MakeSettings, query: str, detail: str
) -> None:
    response = await client_of(settings()).get(f"/v1/sse/a?{query}")
    assert response.status_code == 422
    assert (await problem(response))["detail"] == detail


@pytest.mark.parametrize(
    ("query", "id_line"),
    [
        ("", ""),
        ("?live=true", ""),
        ("?live=false", ""),
        ("?lastEventId=7-0", "id: 7-0\n"),
        ("?lastEventId=7&live=false", "id: 7-0\n"),
        ("?lastEventId=nonsense", ""),
    ],
)
@both_ways
def test_a_client_too_many_is_sent_away_to_retry(
    server: AppServer, producer: Producer, query: str, id_line: str, headers: dict[str, str]
) -> None:
    """An error status would end a browser's EventSource for good; and its cursor is not taken from it."""
    with open_stream(server, producer.topic) as one, open_stream(server, producer.topic) as two:
        one.first()
        two.first()
        with open_stream(server, producer.topic + query, headers) as refused:
            assert refused.response.status == 200
            assert refused.response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
            # To the end, which is clean: http.client raises where the last chunk is missing.
            assert refused.response.read().decode() == (
                f"retry: {FULL_RETRY_MS}\nevent: position\n{id_line}"
                'data: {"event":"position","data":{}}\n\n'
            )
        event_id = producer.publish()
        assert one.message().last_event_id == event_id
    with open_stream(server, producer.topic) as again:
        again.first()


# -- an answer instead of a stream


def read_answer(server: AppServer, path: str) -> list[Message]:
    """All of it, to the end, which is clean: http.client raises where the last chunk is missing."""
    with open_stream(server, path) as stream:
        assert stream.response.status == 200
        first, *messages = Parser().feed(stream.response.read())
    assert RETRY_MS <= (first.retry_ms or 0) <= 2 * RETRY_MS
    return [first._replace(retry_ms=None), *messages]


def test_an_answer_without_a_cursor_is_the_position(server: AppServer, producer: Producer) -> None:
    newest = producer.publish()
    assert read_answer(server, f"{producer.topic}?live=false") == [Message(newest, None, None)]


def test_asking_again_from_the_last_id_brings_everything_once(server: AppServer, producer: Producer) -> None:
    (position,) = read_answer(server, f"{producer.topic}?live=false")
    cursor = position.last_event_id
    published: list[str] = []
    told: list[str] = []
    deadline_s = time.monotonic() + SOON_S
    # The tail may be a moment behind what was published: then the next answer brings it.
    while len(published) < 20 or len(told) < len(published):
        assert time.monotonic() < deadline_s
        if len(published) < 20:
            published += [producer.publish(str(number)) for number in range(2)]
        first, *events = read_answer(server, f"{producer.topic}?live=false&lastEventId={cursor}")
        assert (first.last_event_id, first.data) == (cursor, None)
        told += [message.last_event_id for message in events]
        cursor = told[-1] if told else cursor
    assert told == published


@pytest.mark.parametrize(("cursor", "reason"), [("nonsense", "invalid_id"), ("1-1", "trimmed")])
def test_an_answer_may_be_to_reload(server: AppServer, producer: Producer, cursor: str, reason: str) -> None:
    newest = producer.publish()
    (first, reload) = read_answer(server, f"{producer.topic}?live=false&lastEventId={cursor}")
    assert first == Message("" if cursor == "nonsense" else cursor, None, None)
    assert envelope(reload) == ("reload_required", {"reason": reason})
    assert reload.last_event_id == newest
    assert read_answer(server, f"{producer.topic}?live=false&lastEventId={newest}") == [
        Message(newest, None, None)
    ]


def test_an_answer_may_be_compact(server: AppServer, producer: Producer) -> None:
    cursor = producer.publish("before")
    for resource_id in ("a", "b", "a"):
        producer.publish(resource_id)
    messages = read_answer(server, f"{producer.topic}?live=false&catchup=compact&lastEventId={cursor}")
    assert [envelope(message)[1]["id"] for message in messages[1:]] == ["b", "a"]


# -- the cursor


async def test_nothing_falls_between_a_cursor_and_the_stream_that_starts_from_it(
    settings: MakeSettings, server: AppServer, producer: Producer
) -> None:
    async with running(settings()) as (client, _):
        newest = producer.publish("before")
        response = await client.get(f"/v1/topics/{producer.topic}/cursor")
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.get_json() == {"topic": producer.topic, "cursor": newest}
        missed = producer.publish("between")
        with open_stream(server, f"{producer.topic}?lastEventId={newest}") as stream:
            stream.first()
            assert stream.message().last_event_id == missed


async def test_a_topic_nobody_published_to_has_a_cursor_too(
    settings: MakeSettings, server: AppServer, producer: Producer
) -> None:
    async with running(settings()) as (client, _):
        cursor = (await (await client.get(f"/v1/topics/{producer.topic}/cursor")).get_json())["cursor"]
        first_ever = producer.publish()
        with open_stream(server, f"{producer.topic}?lastEventId={cursor}") as stream:
            assert stream.first().data is None
            assert stream.message().last_event_id == first_ever


@pytest.mark.parametrize("topic", INVALID_TOPIC_IDS)
async def test_a_cursor_of_an_invalid_topic_is_refused(settings: MakeSettings, topic: str) -> None:
    response = await client_of(settings()).get(f"/v1/topics/{quote(topic)}/cursor")
    assert response.status_code == 422
    await problem(response)


# -- publishing


VALID = {"event": "argument_updated", "data": {"id": "42", "reason": "edited"}}


async def post(client: Client, body: object, topic: str = "a", token: str | None = TOKEN) -> Any:
    """`body`: bytes as they are, anything else as JSON."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(f"/v1/topics/{quote(topic)}/events", data=data, headers=headers)


async def test_publishing_appends_the_event_and_answers_with_its_id(
    settings: MakeSettings, redis: redis_py.Redis
) -> None:
    async with running(settings()) as (client, _):
        response = await post(client, VALID)
    assert response.status_code == 201
    ((event_id, fields),) = redis.xrange(stream_key("a"))
    assert await response.get_json() == {"id": event_id.decode()}
    assert json.loads(fields[PAYLOAD_FIELD]) == VALID


async def test_publishing_is_off_without_a_token_and_says_how_to_turn_it_on(settings: MakeSettings) -> None:
    response = await post(client_of(settings(publish_token=None)), VALID)
    assert response.status_code == 403
    assert "set STALECAST_PUBLISH_TOKEN" in (await problem(response))["detail"]


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, "Bearer ÿ"],
)
async def test_a_wrong_token_is_refused(settings: MakeSettings, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await client_of(settings()).post("/v1/topics/a/events", json=VALID, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="stalecast"'
    assert TOKEN not in (await problem(response))["detail"]


async def test_the_scheme_of_the_token_is_case_insensitive(
    settings: MakeSettings, redis: redis_py.Redis
) -> None:
    """RFC 9110, section 11.1."""
    async with running(settings()) as (client, _):
        response = await client.post(
            "/v1/topics/a/events", json=VALID, headers={"Authorization": f"bEARER {TOKEN}"}
        )
        assert response.status_code == 201


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"", "not JSON", id="empty"),
        pytest.param(b"{", "not JSON", id="cut"),
        pytest.param(b"\xff\xfe\xfd", "not JSON", id="not-text"),
        pytest.param(b"[" * 10_000, "not JSON", id="deep"),
        pytest.param(b'{"event": ' + b"9" * 5000 + b"}", "not JSON", id="endless-number"),
        pytest.param([], "JSON object", id="array"),
        pytest.param(None, "JSON object", id="null"),
        pytest.param({}, "`event` must be", id="no-fields"),
        pytest.param({"event": "argument_updated"}, "`data` an object", id="no-data"),
        pytest.param({"event": 1, "data": {}}, "`event` must be a string", id="event-is-a-number"),
        pytest.param({"event": "argument_updated", "data": []}, "`data` an object", id="data-is-an-array"),
        pytest.param(VALID | {"more": 1}, "unknown field 'more'", id="unknown-field"),
        pytest.param(VALID | {"event": "unknown"}, "argument_updated, reload_required", id="unknown-event"),
        pytest.param(VALID | {"event": "\ud800"}, "unknown event", id="surrogate-event"),
        pytest.param(VALID | {"data": {"reason": "edited"}}, "data.id", id="no-id"),
        pytest.param(VALID | {"data": {"id": "1"}}, "data.reason", id="no-reason"),
        pytest.param(
            VALID | {"data": {"id": "1", "reason": "r", "text": "secret"}}, "data.text", id="more-data"
        ),
        pytest.param(VALID | {"data": {"id": "", "reason": "r"}}, "data.id", id="empty-id"),
        pytest.param(VALID | {"data": {"id": True, "reason": "r"}}, "data.id", id="bool-id"),
        pytest.param(VALID | {"data": {"id": 2**53, "reason": "r"}}, "data.id", id="id-beyond-double"),
        pytest.param(VALID | {"data": {"id": float("nan"), "reason": "r"}}, "data.id", id="nan-id"),
        pytest.param(VALID | {"data": {"id": "\ud800", "reason": "r"}}, "data.id", id="surrogate-id"),
        pytest.param(VALID | {"data": {"id": "1", "reason": "r" * 257}}, "data.reason", id="long-reason"),
        pytest.param(
            {"event": "reload_required", "data": {"id": "1", "reason": "r"}}, "data.id", id="reload"
        ),
    ],
)
async def test_a_body_that_is_no_event_is_refused(
    settings: MakeSettings, redis: redis_py.Redis, body: object, says: str
) -> None:
    response = await post(client_of(settings()), body)
    assert response.status_code == 422
    detail = (await problem(response))["detail"]
    assert says in detail
    assert "secret" not in detail, "refused data is not echoed"
    assert not redis.exists(stream_key("a"))


@pytest.mark.parametrize("token", ["grün", "voilà", "Ångström ÿ", "пароль", "鍵", "ä€"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_token_beyond_ascii_matches_however_clients_send_it(token: str, encoding: str) -> None:
    try:
        sent = token.encode(encoding)
    except UnicodeEncodeError:
        # No client can; one that drops what it cannot write has another token.
        assert not _is_token(token.encode(encoding, "ignore").decode("latin-1"), token)
        return
    for received in (sent, b" " + sent + b"\t"):
        assert _is_token(received.decode("latin-1"), token)
    for received in (b"", sent[:-1], sent + b"x", sent + b"\xa0", sent.upper() + sent):
        assert not _is_token(received.decode("latin-1"), token)


def test_a_token_beyond_ascii_comes_through_the_server(redis_server: RedisServer, tmp_path: Path) -> None:
    settings = {"STALECAST_PUBLISH_TOKEN": "voilà-mes-clés\r\n"}
    with run_app(tmp_path, redis_url=redis_server.url, settings=settings) as app_server:
        for sent in ("voilà-mes-clés".encode(), "voilà-mes-clés".encode("latin-1"), b"voila-mes-cles"):
            connection = HTTPConnection(HOST, app_server.port, timeout=READ_TIMEOUT_S)
            body = b'{"event": "argument_updated", "data": {"id": "1", "reason": "r"}}'
            headers = {"Authorization": b"Bearer " + sent}
            connection.request("POST", "/v1/topics/token/events", body, headers)
            assert connection.getresponse().status == (401 if sent == b"voila-mes-cles" else 201)
            connection.close()
        assert "voil" not in app_server.output()


async def test_an_event_beyond_the_limit_is_refused(settings: MakeSettings, redis: redis_py.Redis) -> None:
    large = VALID | {"data": {"id": "1" * 100, "reason": "r"}}
    response = await post(client_of(settings(max_event_bytes=64)), large)
    assert response.status_code == 422
    assert "STALECAST_MAX_EVENT_BYTES" in (await problem(response))["detail"]
    assert not redis.exists(stream_key("a"))


async def test_a_body_far_beyond_the_limit_is_not_read(settings: MakeSettings) -> None:
    response = await post(client_of(settings()), b" " * (1 << 20))
    assert response.status_code == 413
    await problem(response)


@pytest.mark.parametrize("topic", INVALID_TOPIC_IDS)
async def test_publishing_to_an_invalid_topic_is_refused(
    settings: MakeSettings, redis: redis_py.Redis, topic: str
) -> None:
    response = await post(client_of(settings()), VALID, topic)
    assert response.status_code == 422
    assert "letters, digits" in (await problem(response))["detail"]
    assert not redis.keys("topic:*")


async def test_publishing_while_redis_is_away_is_answered_503(settings: MakeSettings, tmp_path: Path) -> None:
    with run_redis(tmp_path) as redis:
        async with running(settings(redis_url=redis.url, redis_timeout_s=0.5)) as (client, _):
            redis.kill()
            response = await post(client, VALID)
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "1"
            await problem(response)


# -- health


async def test_healthz_needs_no_redis(settings: MakeSettings) -> None:
    response = await client_of(settings(redis_url="redis://127.0.0.1:1")).get("/healthz")
    assert (response.status_code, await response.get_json()) == (200, {"status": "ok"})


async def test_readyz_says_that_streams_can_be_served(settings: MakeSettings) -> None:
    async with running(settings()) as (client, _):
        response = await client.get("/readyz")
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"
        assert await response.get_json() == {"ready": True, "reason": None, "clients": 0, "topics": 0}


async def test_readyz_says_that_redis_is_away_and_when_it_is_back(
    settings: MakeSettings, tmp_path: Path
) -> None:
    with run_redis(tmp_path) as redis:
        async with running(settings(redis_url=redis.url)) as (client, _):
            redis.kill()
            response = await client.get("/readyz")
            assert response.status_code == 503
            readiness = await response.get_json()
            assert not readiness["ready"]
            assert readiness["reason"].startswith("redis: ")
            redis.start()
            with trio.fail_after(SOON_S):
                while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 as a platform asks
                    await trio.sleep(0.02)


async def test_readyz_does_not_wait_for_a_redis_that_hangs(settings: MakeSettings, tmp_path: Path) -> None:
    with run_redis(tmp_path) as redis:
        async with running(settings(redis_url=redis.url)) as (client, _):
            with redis.paused(), trio.fail_after(3):
                response = await client.get("/readyz")
            assert response.status_code == 503
            assert (await response.get_json())["reason"] == "redis: no answer"


@pytest.mark.parametrize("password", [None, "wrong"])
async def test_answers_tell_strangers_nothing_about_redis(
    settings: MakeSettings, tmp_path: Path, password: str | None
) -> None:
    """Neither where it is, nor as whom we come, nor its own words; the log has them."""
    with run_redis(tmp_path, password=password) as redis:
        url = f"redis://someuser:somepassword@{HOST}:{redis.port}"
        if password is None:
            redis.kill()
        app = create_app(settings(redis_url=url, redis_timeout_s=0.5))
        async with app.test_app() as running_app:
            client = running_app.test_client()
            answers = [
                await client.get("/readyz"),
                await client.get("/v1/topics/a/cursor"),
                await client.post(
                    "/v1/topics/a/events",
                    headers={"Authorization": f"Bearer {TOKEN}"},
                    json={"event": "argument_updated", "data": {"id": "1", "reason": "r"}},
                ),
            ]
            for response in answers:
                assert response.status_code in (502, 503)
                body = await response.get_data(as_text=True)
                assert "edis" in body
                for secret in (HOST, str(redis.port), "someuser", "somepassword", "Errno", "refused", "tcp"):
                    assert secret not in body, body


async def test_a_refusal_of_redis_is_told_without_its_words(
    settings: MakeSettings, redis: redis_py.Redis
) -> None:
    redis.set(stream_key("wrong"), "no stream")
    async with running(settings()) as (client, _):
        response = await client.get("/v1/topics/wrong/cursor")
        assert response.status_code == 502
        assert "Operation against a key" not in (await problem(response))["detail"]


async def test_readyz_says_that_the_server_drains(settings: MakeSettings) -> None:
    async with running(settings()) as (client, services):
        await services.hub.drain(1)
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert (await response.get_json())["reason"] == "draining"


# -- the description and the pages


async def test_openapi_describes_every_public_route(settings: MakeSettings) -> None:
    response = await client_of(settings(demo=True)).get("/openapi.json")
    description = await response.get_json()
    assert description["openapi"].startswith("3.1")
    operations = {
        (method, path) for path, item in description["paths"].items() for method in item if method != "head"
    }
    assert operations == {
        ("get", "/v1/sse/{topic_id}"),
        ("get", "/v1/topics/{topic_id}/cursor"),
        ("post", "/v1/topics/{topic_id}/events"),
        ("get", "/healthz"),
        ("get", "/readyz"),
    }
    publish = description["paths"]["/v1/topics/{topic_id}/events"]["post"]
    assert publish["security"] == [{"publishToken": []}]
    assert set(publish["responses"]) >= {"201", "401", "422"}
    assert description["components"]["securitySchemes"]["publishToken"]["scheme"] == "bearer"
    stream = description["paths"]["/v1/sse/{topic_id}"]["get"]
    parameters = {parameter["name"]: parameter["schema"] for parameter in stream["parameters"]}
    assert set(parameters) == {"topic_id", "lastEventId", "catchup", "live"}
    assert (parameters["live"]["type"], parameters["live"]["default"]) == ("boolean", True)


async def test_openapi_names_the_types_that_are_sent(settings: MakeSettings) -> None:
    description = await (await client_of(settings()).get("/openapi.json")).get_json()
    stream = description["paths"]["/v1/sse/{topic_id}"]["get"]["responses"]
    assert list(stream["200"]["content"]) == ["text/event-stream"]
    for path in description["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status.startswith("4"):
                    assert list(response["content"]) == ["application/problem+json"]


async def test_openapi_describes_what_is_sent_and_answered(settings: MakeSettings) -> None:
    description = await (await client_of(settings()).get("/openapi.json")).get_json()
    publish = description["paths"]["/v1/topics/{topic_id}/events"]["post"]
    body = _schema(description, publish["requestBody"])
    assert set(body["properties"]) == set(body["required"]) == {"event", "data"}
    assert set(_schema(description, publish["responses"]["201"])["properties"]) == {"id"}
    assert {"title", "status", "detail"} <= set(
        _schema(description, publish["responses"]["422"])["properties"]
    )
    cursor = description["paths"]["/v1/topics/{topic_id}/cursor"]["get"]
    assert set(_schema(description, cursor["responses"]["200"])["properties"]) == {"topic", "cursor"}


def _schema(description: Any, described: Any) -> Any:
    """The schema of a body, where it stands or where it refers to."""
    (content,) = described["content"].values()
    schema = content["schema"]
    return _at(description, schema["$ref"]) if "$ref" in schema else schema


class _Page(HTMLParser):
    """The inline blocks of a page, and whatever a strict policy would stop."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.blocks: dict[str, list[str]] = {"script": [], "style": []}
        self.stopped: list[str] = []
        self._inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.stopped += [f"<{tag} {name}>" for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "action"):
            target = attributes.get(name)
            if target is not None and not target.startswith(("#", "data:", "/", "https://")):
                self.stopped.append(f"<{tag} {name}={target}>")
        if (tag == "script" and "src" in attributes) or attributes.get("rel") == "stylesheet":
            self.stopped.append(f"<{tag}>")
        # A data block is not executed, so no policy stops it.
        if tag in self.blocks and attributes.get("type") != "application/json":
            self._inside = tag
            self.blocks[tag].append("")

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.blocks[self._inside][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = None


def assert_page_is_let_through_by_its_policy(response: Any, html: str) -> None:
    policy = dict(
        directive.strip().split(" ", 1)
        for directive in response.headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    page = _Page(html)
    assert not page.stopped
    for tag, blocks in page.blocks.items():
        assert blocks
        hashes = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
        assert policy[f"{tag}-src"].split() == [f"'sha256-{digest}'" for digest in hashes]


@pytest.mark.parametrize("path", ["/docs", "/"])
async def test_a_page_is_served_with_a_policy_that_lets_only_itself_through(
    settings: MakeSettings, path: str
) -> None:
    response = await client_of(settings(demo=True)).get(path)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert_page_is_let_through_by_its_policy(response, await response.get_data(as_text=True))


@pytest.mark.parametrize("demo", [None, False])
async def test_there_is_no_demo_page_unless_it_is_asked_for(
    settings: MakeSettings, demo: bool | None
) -> None:
    response = await client_of(settings(demo=demo)).get("/")
    assert response.status_code == 404
    await problem(response)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost:8000"},
        {"Host": "127.0.0.1:8000"},
        {"Host": "evil.example:8000"},  # a stranger's name that leads to 127.0.0.1
        {"Host": "localhost", "X-Forwarded-For": "1.2.3.4"},
    ],
)
async def test_the_demo_page_holds_no_token_whoever_asks_for_it(
    settings: MakeSettings, headers: dict[str, str]
) -> None:
    client = client_of(settings(demo=True, publish_token=SecretStr("its-token")))
    response = await client.get("/", headers=headers | {"Origin": "https://evil.example"})
    html = await response.get_data(as_text=True)
    assert "its-token" not in html + str(response.headers)
    assert _demo_config(html) == {"eventTypes": ["argument_updated", "reload_required"]}
    assert "Access-Control-Allow-Origin" not in response.headers


def _demo_config(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="config">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


# -- errors and CORS


async def test_errors_of_the_framework_have_the_same_form(settings: MakeSettings) -> None:
    client = client_of(settings())
    missing = await client.get("/nowhere")
    assert missing.status_code == 404
    await problem(missing)
    wrong_method = await client.post("/v1/sse/a")
    assert wrong_method.status_code == 405
    await problem(wrong_method)
    # RFC 9110, section 15.5.6: a 405 must say what is allowed.
    assert {"GET", "HEAD"} <= set(wrong_method.headers.get("Allow", "").split(", "))


PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "last-event-id",
}


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", "/v1/sse/a?catchup=x", "/v1/topics/../cursor"])
async def test_any_origin_may_read_by_default(settings: MakeSettings, path: str) -> None:
    """Errors too: a page that may not read them cannot tell what is wrong."""
    response = await client_of(settings()).get(path, headers={"Origin": "https://app.example"})
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in response.headers
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("path", ["/v1/sse/a", "/v1/topics/a/events", "/v1/topics/a/cursor"])
async def test_a_preflight_allows_what_clients_send(settings: MakeSettings, path: str) -> None:
    response = await client_of(settings()).options(path, headers=PREFLIGHT)
    assert response.status_code in (200, 204)
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "cache-control", "content-type", "last-event-id"} <= set(allowed)
    assert {"GET", "POST"} <= set(response.headers["Access-Control-Allow-Methods"].split(", "))
    assert int(response.headers["Access-Control-Max-Age"]) > 0


async def test_only_listed_origins_may_read_if_there_is_a_list(settings: MakeSettings) -> None:
    client = client_of(settings(cors_allow_origins="https://app.example, https://other.example"))
    for origin in ("https://app.example", "https://other.example"):
        response = await client.get("/healthz", headers={"Origin": origin})
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert response.headers["Vary"] == "Origin"
    for origin in ("https://evil.example", "https://app.example.evil.example", "null", None):
        headers = {} if origin is None else {"Origin": origin}
        response = await client.get("/healthz", headers=headers)
        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.headers["Vary"] == "Origin", "or a cache would give this answer to a listed one"
    refused = await client.options("/v1/sse/a", headers=PREFLIGHT | {"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in refused.headers
    assert "Access-Control-Allow-Headers" not in refused.headers
    allowed = await client.options("/v1/sse/a", headers=PREFLIGHT)
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Access-Control-Allow-Headers" in allowed.headers
    assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    for preflight in (refused, allowed):
        varies = ", ".join(preflight.headers.getlist("Vary")).split(", ")
        assert {"Origin", "Access-Control-Request-Headers", "Access-Control-Request-Method"} == set(varies)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("HEAD", "/v1/sse/a", 200),
        ("GET", "/nowhere", 404),
        ("PUT", "/v1/sse/a", 405),
        ("GET", "/v1/sse/a?live=x", 422),
        ("GET", "/v1/sse/a%20b", 422),
        ("POST", "/v1/topics/a/events", 401),
        ("GET", "/v1/topics/a/cursor", 503),
        ("GET", "/readyz", 503),
    ],
)
async def test_every_answer_tells_a_listed_origin_the_same(
    settings: MakeSettings, method: str, path: str, status: int
) -> None:
    """Credentials included, and when to ask again: a page that may not read an error knows nothing."""
    client = client_of(
        settings(
            redis_url="redis://127.0.0.1:1",
            redis_timeout_s=0.1,
            publish_token="secret",
            cors_allow_origins="HTTPS://App.Example:443/",
        )
    )
    response = await client.open(path, method=method, headers={"Origin": "https://app.example"})
    assert response.status_code == status
    assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    assert response.headers["Access-Control-Expose-Headers"] == "Retry-After"
    assert response.headers.getlist("Vary") == ["Origin"]


async def test_an_ordinary_options_request_is_no_preflight(settings: MakeSettings) -> None:
    response = await client_of(settings()).options("/v1/sse/a", headers={"Origin": "https://app.example"})
    assert "Access-Control-Allow-Methods" not in response.headers


# -- requests for streams that are not ordinary ones: the route's, over real HTTP


@contextmanager
def ask(
    server: AppServer, method: str, path: str, headers: dict[str, str] | None = None
) -> Iterator[HTTPResponse]:
    connection = HTTPConnection(HOST, server.port, timeout=READ_TIMEOUT_S)
    try:
        connection.request(method, path, headers=headers or {})
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_stream_can_only_be_got(server: AppServer, producer: Producer, method: str) -> None:
    with ask(server, method, f"/v1/sse/{producer.topic}") as response:
        assert response.status == 405
        assert response.getheader("Content-Type") == "application/problem+json"
        assert "GET" in (response.getheader("Allow") or "")
        assert json.loads(response.read())["status"] == 405


def test_head_says_what_get_would(server: AppServer, producer: Producer) -> None:
    path = f"/v1/sse/{producer.topic}"
    with ask(server, "HEAD", path) as head, ask(server, "GET", path) as get:
        assert head.status == get.status == 200
        assert head.read() == b""
        for name in ("Content-Type", "Cache-Control", "X-Accel-Buffering", "Access-Control-Allow-Origin"):
            assert head.getheader(name) == get.getheader(name) is not None


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("/v1/sse/a?catchup=x", "`all` or `compact`"),
        ("/v1/sse/a?catchup=", "`all` or `compact`"),
        ("/v1/sse/a?live=x", "`true` or `false`"),
        ("/v1/sse/.?catchup=all", "letters, digits"),
        ("/v1/sse/" + "x" * 129, "letters, digits"),
    ],
    ids=["catchup", "empty-catchup", "live", "dot", "129-characters"],
)
def test_what_is_wrong_with_a_request_for_a_stream_is_said_over_real_http(
    server: AppServer, path: str, detail: str
) -> None:
    with ask(server, "GET", path) as response:
        assert response.status == 422
        assert response.getheader("Content-Type") == "application/problem+json"
        assert detail in json.loads(response.read())["detail"]


@pytest.mark.parametrize(
    "encode", [str, lambda topic: f"%{ord(topic[0]):02x}{topic[1:]}"], ids=["as-is", "pct"]
)
def test_a_topic_may_be_percent_encoded(
    server: AppServer, producer: Producer, encode: Callable[[str], str]
) -> None:
    cursor = producer.publish("before")
    event_id = producer.publish("after")
    with open_stream(server, f"{encode(producer.topic)}?lastEventId={cursor.replace('-', '%2D')}") as stream:
        first = stream.first()
        assert (first.last_event_id, first.data) == (cursor, None)
        assert stream.message().last_event_id == event_id


def test_a_full_server_refuses_many_and_says_so_in_a_line_or_two(
    tmp_path: Path, producer: Producer, redis_server: RedisServer
) -> None:
    with run_app(tmp_path, redis_url=redis_server.url, settings={"STALECAST_MAX_CLIENTS": "1"}) as server:
        with open_stream(server, producer.topic) as stream:
            assert stream.message()
            for _ in range(200):
                with open_stream(server, producer.topic) as refused:
                    assert f"retry: {FULL_RETRY_MS}\n" in refused.response.read().decode()
        assert 1 <= server.output().count("stream_refused") <= 2


def test_what_a_client_sends_does_not_fill_the_log(
    tmp_path: Path, producer: Producer, redis_server: RedisServer
) -> None:
    with run_app(tmp_path, redis_url=redis_server.url) as server:
        long = "\xff" * 8000
        before = len(server.output())
        with open_stream(
            server, producer.topic, headers={"Last-Event-ID": long, "User-Agent": long}
        ) as stream:
            assert stream.message()
        assert len(server.output()) - before < 3000


async def test_openapi_knows_topic_ids_and_event_names(settings: MakeSettings) -> None:
    client = client_of(settings())
    response = await client.get("/openapi.json")
    description = json.loads(await response.get_data())
    for path, methods in description["paths"].items():
        for method in methods.values():
            for parameter in method.get("parameters", []):
                if parameter["name"] == "topic_id":
                    pattern = re.compile(parameter["schema"]["pattern"])
                    assert pattern.search("a.b:c~1"), path
                    assert not any(pattern.search(bad) for bad in ("", ".", "..", "a/b", "a" * 129, "\u00e9"))
    publish = description["paths"]["/v1/topics/{topic_id}/events"]["post"]["requestBody"]
    names = publish["content"]["application/json"]["schema"]["properties"]["event"]["enum"]
    assert "argument_updated" in names


async def test_openapi_has_what_streams_carry(settings: MakeSettings) -> None:
    description = await (await client_of(settings()).get("/openapi.json")).get_json()
    envelope = description["components"]["schemas"]["SseEnvelope"]
    events = {}
    for member in envelope["oneOf"]:
        properties = _at(description, member["$ref"])["properties"]
        events[properties["event"]["const"]] = set(_at(description, properties["data"]["$ref"])["properties"])
    assert events == {"argument_updated": {"id", "reason"}, "reload_required": {"reason"}, "position": set()}
    for reference in envelope["discriminator"]["mapping"].values():
        assert _at(description, reference)


def _at(document: Any, reference: str) -> Any:
    for step in reference.split("/")[1:]:
        document = document[step]
    return document


async def test_openapi_is_made_once(settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(settings())
    first = await (await client.get("/openapi.json")).get_data()
    monkeypatch.setattr("app.web._OpenApi.schema", None)
    assert await (await client.get("/openapi.json")).get_data() == first


@pytest.mark.parametrize(
    "path",
    ["/v1//sse/42", "/healthz/", "/docs/", "//evil.example/..", "/v1/sse/", "/v1/sse//42"],
)
async def test_nobody_is_redirected_to_a_host_that_the_client_named(
    settings: MakeSettings, path: str
) -> None:
    response = await client_of(settings()).get(path, headers={"Host": "evil.example"})
    assert response.status_code == 404
    assert "location" not in response.headers
    assert b"evil" not in await response.get_data()
