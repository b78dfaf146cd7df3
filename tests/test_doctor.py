"""The doctor against a server that is healthy save for one thing."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
from servers import HOST, free_port, make_certificate
from test_client import Exchange, ScriptedServer, run_http

from app.client import InvalidRequest
from app.doctor import (
    DOCTOR_TOPIC,
    UNPARSABLE_ID,
    Check,
    Fail,
    Finding,
    Limits,
    Notice,
    Outcome,
    Pass,
    Subject,
    Warn,
    check_connection_limit,
    check_cors,
    check_delivery,
    check_first_bytes,
    check_head,
    check_headers,
    check_idle,
    check_last_event_id,
    check_preflight,
    check_reachable,
    check_ready,
    check_stream,
    examine,
    judge,
)
from app.publish import InvalidTopicId
from app.streams.ids import StreamId
from app.streams.sse import position_block

ORIGIN = "https://app.example"
TOKEN = "secret"
# Short enough to wait for, long enough for a thread to be scheduled.
LIMITS = Limits(patience_s=0.5, first_bytes_s=0.2, delivery_s=0.2, heartbeat_s=0.3)
IDLE_S = 0.5
LATE_S = 0.3
POLL_S = 0.005

_CORS = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "Authorization, last-event-id"}


@dataclass(frozen=True)
class Behaviour:
    """Healthy as it stands; a test replaces one thing."""

    healthz: tuple[int, dict[str, str], bytes] = (200, {}, b'{"status": "ok"}')
    readyz: tuple[int, dict[str, str], bytes] = (200, {}, b'{"ready": true, "clients": 1, "topics": 1}')
    stream_status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    compresses: bool = False
    holds_head: bool = False
    first_after_s: float = 0.0
    first: bytes = position_block(StreamId(1, 0), 2000)
    sends_away: bool = False
    reload_reason: str | None = "invalid_id"
    head_status: int | None = 200
    cors: dict[str, str] = field(default_factory=lambda: _CORS)
    preflight_status: int = 200
    publish_status: int = 201
    event_after_s: float | None = 0.0
    heartbeat_s: float | None = 0.1
    chatter_s: float | None = None
    cut_after_s: float | None = None


class FakeServer:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.published = threading.Event()
        self.paths: list[str] = []

    def __call__(self, exchange: Exchange) -> None:
        is_stream = exchange.path.startswith("/v1/sse/")
        self.paths.append(f"{exchange.command} {exchange.path}")
        match exchange.command, exchange.path:
            case "GET", "/healthz":
                exchange.answer(*self.behaviour.healthz)
            case "GET", "/readyz":
                exchange.answer(*self.behaviour.readyz)
            case "GET", _ if is_stream:
                self._stream(exchange)
            case "HEAD", _ if is_stream and self.behaviour.head_status is not None:
                exchange.answer(self.behaviour.head_status)
            case "HEAD", _:
                exchange.wait_gone()
            case "OPTIONS", _:
                exchange.answer(self.behaviour.preflight_status, self.behaviour.cors)
            case "POST", _:
                self._publish(exchange)
            case _:
                exchange.answer(404)

    def _stream(self, exchange: Exchange) -> None:
        behaviour = self.behaviour
        if behaviour.stream_status != 200:
            exchange.answer(behaviour.stream_status)
            return
        if behaviour.holds_head:
            exchange.wait_gone()
            return
        headers = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            **behaviour.cors,
            **behaviour.headers,
        }
        if behaviour.compresses and "gzip" in exchange.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
        exchange.open(headers)
        time.sleep(behaviour.first_after_s)
        first = behaviour.first
        if behaviour.reload_reason is not None and exchange.headers.get("Last-Event-ID") == UNPARSABLE_ID:
            envelope = {"event": "reload_required", "data": {"reason": behaviour.reload_reason}}
            first = b"retry: 2000\n\nid: 1-0\ndata: %b\n\n" % json.dumps(envelope).encode()
        if first:
            exchange.chunk(first)
        if behaviour.sends_away:
            exchange.end()
            return
        self._keep(exchange)

    def _keep(self, exchange: Exchange) -> None:
        """Returns when the stream is to be cut. The client's leaving breaks a write."""
        behaviour = self.behaviour
        now_s = opened_s = beaten_s = said_s = time.monotonic()
        delivered = False
        while now_s < opened_s + (behaviour.cut_after_s or 5):
            if behaviour.heartbeat_s is not None and now_s - beaten_s > behaviour.heartbeat_s:
                exchange.chunk(b":\n\n")
                beaten_s = now_s
            if behaviour.chatter_s is not None and now_s - said_s > behaviour.chatter_s:
                exchange.chunk(b"id: 1-1\ndata: {}\n\n")
                said_s = now_s
            if self.published.is_set() and not delivered and behaviour.event_after_s is not None:
                delivered = True
                time.sleep(behaviour.event_after_s)
                exchange.chunk(b"id: 1-1\ndata: {}\n\nid: 2-0\ndata: {}\n\n")
            time.sleep(POLL_S)
            now_s = time.monotonic()

    def _publish(self, exchange: Exchange) -> None:
        if exchange.headers.get("Authorization") != f"Bearer {TOKEN}":
            exchange.answer(401)
            return
        exchange.answer(self.behaviour.publish_status, {}, b'{"id": "2-0"}')
        self.published.set()


@contextmanager
def run_fake(behaviour: Behaviour) -> Iterator[tuple[FakeServer, Subject]]:
    fake = FakeServer(behaviour)
    with run_http(fake) as server:
        yield fake, Subject(server.url, idle_s=IDLE_S, limits=LIMITS)


def outcome_of(check: Check, **changes: object) -> Outcome:
    with run_fake(replace(Behaviour(), **changes)) as (_, subject):
        return judge(check, subject)


cors = partial(check_cors, origin=ORIGIN)
preflight = partial(check_preflight, origin=ORIGIN)
delivery = partial(check_delivery, token=TOKEN)


def test_nothing_is_found_at_a_healthy_server() -> None:
    with run_fake(Behaviour()) as (fake, subject):
        subject = replace(subject, origin=ORIGIN, token=TOKEN, topic="orders")
        items = list(examine(subject))

    outcomes = {item.check: item.outcome for item in items if isinstance(item, Finding)}
    assert isinstance(outcomes.pop("connections"), Warn)  # it is plain HTTP
    assert list(outcomes) == [
        "reachable", "ready", "stream", "headers", "first bytes", "last-event-id", "head",
        "cors", "preflight", "delivery", "idle",
    ]  # fmt: skip
    assert all(isinstance(outcome, Pass) for outcome in outcomes.values()), outcomes
    # The wait is announced before it begins.
    assert isinstance(items[-2], Notice)
    assert "0.5 s" in items[-2].text
    assert f"POST /v1/topics/{DOCTOR_TOPIC}/events" in fake.paths
    assert "GET /v1/sse/orders" in fake.paths


def test_nothing_is_published_and_no_origin_is_checked_unasked() -> None:
    with run_fake(Behaviour()) as (fake, subject):
        checks = [item.check for item in examine(subject) if isinstance(item, Finding)]

    assert not {"cors", "preflight", "delivery"} & set(checks)
    assert not [path for path in fake.paths if path.startswith(("POST", "OPTIONS"))]


BROKEN: list[tuple[Check, dict[str, object], type[Outcome], str]] = [
    (check_reachable, {"healthz": (301, {"Location": "https://x.example/"}, b"")}, Fail, "redirects"),
    (check_reachable, {"healthz": (404, {}, b"")}, Warn, "gives 404"),
    (check_reachable, {"healthz": (200, {}, b"<html>")}, Warn, "not the server's own"),
    (check_ready, {"readyz": (503, {}, b'{"ready": false, "reason": "redis: away"}')}, Fail, "redis: away"),
    (check_ready, {"readyz": (404, {}, b"")}, Warn, "gives 404"),
    (check_ready, {"readyz": (200, {}, b"<html>")}, Warn, "gives 200"),
    (check_stream, {"stream_status": 502}, Fail, "502 Bad Gateway"),
    (check_stream, {"headers": {"Content-Type": "text/html"}}, Fail, "text/html"),
    (check_stream, {"headers": {"Content-Type": "text/event-stream"}}, Warn, "without UTF-8"),
    (check_stream, {"headers": {"Content-Type": "text/event-stream; charset=latin1"}}, Warn, "without UTF-8"),
    (check_stream, {"holds_head": True}, Fail, "not even the head"),
    (check_headers, {"compresses": True}, Fail, "compressed"),
    (check_headers, {"headers": {"Cache-Control": "no-cache"}}, Warn, "no-transform"),
    (check_headers, {"headers": {"Content-Length": "100000"}}, Fail, "Content-Length"),
    (check_first_bytes, {"first_after_s": LATE_S}, Fail, "the first bytes take"),
    (check_first_bytes, {"first_after_s": 1.0, "heartbeat_s": None}, Fail, "no first bytes"),
    (check_first_bytes, {"first": b"", "heartbeat_s": 0.1}, Fail, "no first bytes"),
    (check_first_bytes, {"holds_head": True}, Fail, "no first bytes"),
    (check_first_bytes, {"first": b"retry: 2000\n\n"}, Fail, "no position"),
    (check_first_bytes, {"first": b"retry: 30000\n\n", "sends_away": True}, Fail, "ends at once"),
    (check_first_bytes, {"first": b"id: 1-0\n\n"}, Warn, "no retry"),
    (check_last_event_id, {"reload_reason": None}, Fail, "does not reach"),
    (check_last_event_id, {"reload_reason": "trimmed"}, Fail, "reason 'trimmed'"),
    (check_head, {"head_status": None}, Fail, "no answer"),
    (check_head, {"head_status": 405}, Warn, "405"),
    (cors, {"cors": {}}, Fail, "no Access-Control-Allow-Origin"),
    (cors, {"cors": _CORS | {"Access-Control-Allow-Origin": "https://b.example"}}, Fail, "b.example"),
    (cors, {"cors": _CORS | {"Access-Control-Allow-Origin": f"{ORIGIN}, *"}}, Fail, "cannot read"),
    (preflight, {"cors": {}}, Fail, "no Access-Control-Allow-Origin"),
    (preflight, {"cors": {"Access-Control-Allow-Origin": "*"}}, Fail, "without Last-Event-ID"),
    (preflight, {"preflight_status": 405}, Fail, "405"),
    (delivery, {"event_after_s": LATE_S}, Fail, "after it was accepted"),
    (delivery, {"event_after_s": None}, Fail, "has not come"),
    (delivery, {"event_after_s": None, "chatter_s": 0.1}, Fail, "has not come"),
    (delivery, {"publish_status": 403}, Fail, "403 Forbidden"),
    (delivery, {"cut_after_s": 0.1, "event_after_s": None}, Fail, "cut inside"),
    (partial(check_delivery, token="wrong"), {}, Fail, "401 Unauthorized"),
    (check_idle, {"heartbeat_s": None}, Fail, "no heartbeat"),
    (check_idle, {"cut_after_s": 0.2}, Fail, "cut after 0.2 s"),
    (check_idle, {"sends_away": True}, Fail, "ended after 0.0 s"),
    (check_idle, {"heartbeat_s": None, "chatter_s": 0.1}, Warn, "events kept it busy"),
]


@pytest.mark.parametrize(
    ("check", "changes", "kind", "words"),
    BROKEN,
    ids=[f"{words}-{i}" for i, (*_, words) in enumerate(BROKEN)],
)
def test_a_check_finds_what_it_names(
    check: Check, changes: dict[str, object], kind: type[Outcome], words: str
) -> None:
    outcome = outcome_of(check, **changes)

    assert isinstance(outcome, kind), outcome
    assert words in outcome.text


def test_other_origins_that_are_named_are_fine() -> None:
    assert outcome_of(cors, cors={"Access-Control-Allow-Origin": ORIGIN}) == Pass(
        f"Access-Control-Allow-Origin: {ORIGIN}"
    )
    allowed = {"Access-Control-Allow-Origin": ORIGIN, "Access-Control-Allow-Headers": "*"}
    assert isinstance(outcome_of(preflight, cors=allowed), Pass)


def test_the_heartbeat_interval_is_measured() -> None:
    outcome = outcome_of(check_idle, heartbeat_s=0.2)

    assert isinstance(outcome, Pass)
    assert "at most 0.2 s" in outcome.text


def test_heartbeats_too_rare_for_impatient_libraries_are_told() -> None:
    with run_fake(Behaviour(heartbeat_s=0.2)) as (_, subject):
        outcome = check_idle(replace(subject, limits=replace(LIMITS, read_timeout_s=0.05)))

    assert isinstance(outcome, Warn)
    assert "without a heartbeat" in outcome.text
    assert "STALECAST_HEARTBEAT_INTERVAL_S to 4" in outcome.remedy


def test_too_short_a_look_decides_nothing() -> None:
    with run_fake(Behaviour(heartbeat_s=None)) as (_, subject):
        outcome = check_idle(replace(subject, idle_s=0.1))

    assert isinstance(outcome, Warn)
    assert "too short" in outcome.text


def test_it_stops_where_nothing_answers() -> None:
    items = list(examine(Subject(f"http://{HOST}:{free_port()}")))

    assert len(items) == 2
    assert isinstance(items[0], Finding)
    assert isinstance(items[0].outcome, Fail)
    assert "refused" in items[0].outcome.text
    assert isinstance(items[1], Notice)


def test_it_stops_where_no_stream_opens_but_not_where_readiness_fails() -> None:
    with run_fake(Behaviour(stream_status=404, readyz=(503, {}, b'{"reason": "draining"}'))) as (_, subject):
        checks = [item.check for item in examine(subject) if isinstance(item, Finding)]

    assert checks == ["reachable", "ready", "stream"]


def test_what_cannot_be_asked_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest):
        list(examine(Subject("example.com")))
    with pytest.raises(InvalidTopicId):
        list(examine(Subject("http://127.0.0.1:1", topic="a/b")))


@pytest.mark.parametrize(("offered", "kind"), [(["h2", "http/1.1"], Pass), (["http/1.1"], Warn), ([], Warn)])
def test_http2_is_seen_by_alpn(
    offered: list[str], kind: type[Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("the openssl command is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)
    if offered:
        context.set_alpn_protocols(offered)
    with run_tls(context) as server:
        subject = Subject(server.url.replace("http:", "https:"), limits=LIMITS)
        # Its authority is not known yet.
        (finding, _) = examine(subject)
        assert isinstance(finding, Finding)
        assert isinstance(finding.outcome, Fail)
        assert "certificate" in finding.outcome.text
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certfile))
        assert isinstance(check_connection_limit(subject), kind)


@contextmanager
def run_tls(context: ssl.SSLContext) -> Iterator[ScriptedServer]:
    with run_http(FakeServer(Behaviour())) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server
