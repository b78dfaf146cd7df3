"""What stands between a browser and a deployed server: asked from outside, one thing a check.

A check opens its own connection, asks as a browser would, and returns what it found with what to do about it.
None relies on the server's word where the wire can tell: most of what breaks streams (buffering, compression,
stripped headers, idle time-outs) is done by something in between, and the server cannot see it.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final

from app.client import (
    CONNECT_TIMEOUT_S,
    Location,
    NotAnEventStream,
    Response,
    ServerNotTrusted,
    ServerRefused,
    ServerSilent,
    ServerUnreachable,
    endpoint,
    feed,
    json_object,
    media_type,
    one_line,
    open_stream,
    publish,
    require_event_stream,
    send,
    stream_url,
)
from app.settings import HEARTBEAT_INTERVAL_LONGEST_S, HEARTBEAT_INTERVAL_S
from app.streams.sse import Message, Parser

# One topic for all runs: a monitor that publishes every minute leaves one bounded stream, not one a run.
DOCTOR_TOPIC: Final = "stalecast-doctor"
DOCTOR_EVENT: Final = "argument_updated"
# Parses as no stream id, so a server that receives it has to say so.
UNPARSABLE_ID: Final = "doctor"
# What browsers offer. A proxy compresses only for those who do.
BROWSER_ENCODINGS: Final = "gzip, deflate, br, zstd"

_BUFFERING: Final = (
    "something before the server buffers: in nginx set `proxy_buffering off` for /v1/sse/, or do not ignore "
    "the header X-Accel-Buffering; on a CDN turn buffering and compression off for this path"
)
_IDLE: Final = (
    "raise the idle time-out of what stands before the server (nginx: proxy_read_timeout) above the "
    "heartbeat interval, or lower STALECAST_HEARTBEAT_INTERVAL_S; if a deploy just took place, run this again"
)
_CORS: Final = (
    "set STALECAST_CORS_ALLOW_ORIGINS, and let nothing before the server remove or repeat its header"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as healthy."""

    # How long a check waits for what should come at once, to tell a late answer from none.
    patience_s: float = 10.0
    # The server itself waits up to 1 s for Redis before it opens a stream without a position.
    first_bytes_s: float = 2.0
    delivery_s: float = 1.0
    # The longest interval a server should have, its rounding (1/15), and some for the way.
    heartbeat_s: float = HEARTBEAT_INTERVAL_LONGEST_S + 5
    # What the least patient client libraries wait for a byte: okhttp-eventsource, httpx and others.
    read_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Subject:
    """The server to look at. `origin`: a page's, e.g. https://app.example. `idle_s`: how long to watch an
    idle stream."""

    url: str
    topic: str = DOCTOR_TOPIC
    origin: str | None = None
    token: str | None = None
    idle_s: float = 35.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Pass:
    text: str


@dataclass(frozen=True, slots=True)
class Warn:
    """Streams work, but not as well as they could, or it could not be told."""

    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Fail:
    """Some client will not get its events, or get them late."""

    text: str
    remedy: str


Outcome = Pass | Warn | Fail
Check = Callable[[Subject], Outcome]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to say between the checks."""

    text: str


def examine(subject: Subject) -> Iterator[Finding | Notice]:
    """Run the checks, each finding as soon as it is there. Stops where the rest would only repeat a failure.

    Raises InvalidRequest or InvalidTopicId; what servers and networks do is a finding.
    """
    stream_url(subject.url, subject.topic)
    for name, check in _GATES:
        finding = Finding(name, judge(check, subject))
        yield finding
        if isinstance(finding.outcome, Fail) and check is not check_ready:
            yield Notice("the other checks are left out")
            return
    for name, check in _CHECKS:
        yield Finding(name, judge(check, subject))
    if subject.origin is not None:
        yield Finding("cors", judge(partial(check_cors, origin=subject.origin), subject))
        yield Finding("preflight", judge(partial(check_preflight, origin=subject.origin), subject))
    if subject.token is not None:
        yield Finding("delivery", judge(partial(check_delivery, token=subject.token), subject))
    yield Notice(f"watching an idle stream for {subject.idle_s:g} s ...")
    yield Finding("idle", judge(check_idle, subject))


def judge(check: Check, subject: Subject) -> Outcome:
    """The boundary: what a check does not expect is a failure of the server or of the way to it."""
    try:
        return check(subject)
    except ServerNotTrusted as error:
        return Fail(str(error), "renew the certificate, or send its whole chain")
    except ServerRefused as error:
        return Fail(
            str(error), "a browser's EventSource gives up at this; see the server's and the proxy's log"
        )
    except NotAnEventStream as error:
        return Fail(str(error), "route /v1/ to the server, unchanged")
    except ServerUnreachable as error:
        return Fail(str(error), "see the log of the server and of what stands before it")


# -- is it there


def check_reachable(subject: Subject) -> Outcome:
    started_s = time.monotonic()
    try:
        with _get(subject, "/healthz") as response:
            answer = json_object(response.read_all())
    except ServerUnreachable as error:
        return Fail(str(error), "is it running, and do name, port and firewall let you through?")
    if HTTPStatus.MULTIPLE_CHOICES <= response.status < HTTPStatus.BAD_REQUEST:
        target = one_line(response.header("Location"))
        return Fail(f"/healthz redirects to {target}", "give doctor, and your pages, the final URL")
    if response.status != HTTPStatus.OK or answer.get("status") != "ok":
        return Warn(
            f"something answers, but /healthz gives {response.status} and not the server's own words",
            "right if only /v1/ is routed to the server; otherwise check the URL and its path",
        )
    return Pass(f"/healthz answers in {_ms(time.monotonic() - started_s)}")


def check_ready(subject: Subject) -> Outcome:
    with _get(subject, "/readyz") as response:
        answer = json_object(response.read_all())
    reason = one_line(str(answer.get("reason", "")))
    match response.status:
        case HTTPStatus.OK if answer.get("ready") is True:
            return Pass(f"ready, {answer.get('clients')} clients on {answer.get('topics')} topics")
        case HTTPStatus.SERVICE_UNAVAILABLE if reason:
            return Fail(f"not ready: {reason}", "see REDIS_URL and the server's log; `draining` is a deploy")
        case status:
            return Warn(f"/readyz gives {status}", "right if only /v1/ is routed to the server")


def check_stream(subject: Subject) -> Outcome:
    """Status, type and charset, with the same headers as a browser."""
    try:
        response = _open(subject, {"Accept-Encoding": BROWSER_ENCODINGS})
    except ServerSilent as error:
        return Fail(f"{error}, not even the head of the answer", _BUFFERING)
    with response:
        if response.status != HTTPStatus.OK:
            require_event_stream(response)
        content_type = one_line(response.header("Content-Type"))
    if media_type(content_type) != "text/event-stream":
        return Fail(f"Content-Type is {content_type!r}", "route /v1/ to the server, unchanged")
    if "charset=utf-8" not in content_type.lower().replace('"', "").replace(" ", ""):
        return Warn(f"Content-Type is {content_type!r}, without UTF-8", "something rewrites Content-Type")
    return Pass(f"200 {content_type}")


# -- does something in between touch it


def check_headers(subject: Subject) -> Outcome:
    with _open(subject, {"Accept-Encoding": BROWSER_ENCODINGS}) as response:
        coding = one_line(response.header("Content-Encoding"))
        length = one_line(response.header("Content-Length"))
        cache_control = one_line(response.header("Cache-Control"))
    if coding.lower() not in ("", "identity"):
        return Fail(
            f"the stream is compressed (Content-Encoding: {coding}): events wait in the compressor",
            "turn compression off for text/event-stream (nginx: not in gzip_types; CDN: a rule for /v1/sse/)",
        )
    if length:
        return Fail(f"the stream has a Content-Length of {length}: it was buffered as a whole", _BUFFERING)
    if "no-transform" not in cache_control.lower():
        return Warn(
            f"Cache-Control is {cache_control!r}, without no-transform",
            "something rewrites Cache-Control; what follows it may compress or cache the stream",
        )
    return Pass(f"Cache-Control: {cache_control}; no Content-Encoding")


def check_first_bytes(subject: Subject) -> Outcome:
    started_s = time.monotonic()
    retry_seen = False
    try:
        with _open(subject) as response:
            require_event_stream(response)
            for message in _messages(response, Parser(), started_s + subject.limits.patience_s):
                retry_seen = retry_seen or message.retry_ms is not None
                if message.last_event_id:
                    break
            else:
                return Fail(
                    "the stream ends at once",
                    "the server is full (STALECAST_MAX_CLIENTS) or draining; its log says which",
                )
    except ServerSilent:
        waited = f"within {subject.limits.patience_s:g} s"
        if retry_seen:
            return Fail(
                f"the stream opens, but no position comes {waited}",
                "the server waits for Redis: see /readyz and its log",
            )
        return Fail(f"no first bytes {waited}", _BUFFERING)
    took_s = time.monotonic() - started_s
    if took_s > subject.limits.first_bytes_s:
        return Fail(f"the first bytes take {_ms(took_s)}", _BUFFERING)
    if not retry_seen:
        return Warn("the first bytes hold no retry:", "something other than the server shapes the stream")
    return Pass(f"retry: and position after {_ms(took_s)}")


def check_last_event_id(subject: Subject) -> Outcome:
    """The header by which clients resume: with one that cannot be parsed the server must say `invalid_id`."""
    with _open(subject, last_event_id=UNPARSABLE_ID) as response:
        require_event_stream(response)
        for message in _messages(response, Parser(), time.monotonic() + subject.limits.patience_s):
            match json_object((message.data or "").encode()):
                case {"event": "reload_required", "data": {"reason": "invalid_id"}}:
                    return Pass("Last-Event-ID reaches the server")
                case {"event": "reload_required", "data": {"reason": reason}}:
                    return Fail(
                        f"Last-Event-ID: {UNPARSABLE_ID} is answered with reason {one_line(str(reason))!r}",
                        "something rewrites Last-Event-ID on the way to the server",
                    )
                case _ if message.last_event_id:
                    break  # a position: the server thinks that this client is new
                case _:
                    pass
    return Fail(
        "Last-Event-ID does not reach the server: clients that come back miss events and do not know it",
        "let the request header Last-Event-ID through whatever stands before the server",
    )


def check_head(subject: Subject) -> Outcome:
    """Uptime monitors and `curl -I` send it; a HEAD that is treated as a stream pins a connection."""
    started_s = time.monotonic()
    url = stream_url(subject.url, subject.topic)
    try:
        with send("HEAD", url, {}, answer_timeout_s=subject.limits.patience_s) as response:
            response.read_all(subject.limits.patience_s)
    except ServerSilent as error:
        return Fail(
            str(error), "HEAD must end at once; what stands before the server makes it a GET or holds it"
        )
    if response.status != HTTPStatus.OK:
        return Warn(f"HEAD is answered with {response.status}", "allow HEAD, or have monitors ask /healthz")
    return Pass(f"HEAD answers in {_ms(time.monotonic() - started_s)}")


def check_connection_limit(subject: Subject) -> Outcome:
    """Over HTTP/1.1 browsers open six connections a host, all tabs together: a seventh stream waits."""
    remedy = "serve it over HTTPS with HTTP/2 (a proxy may do that), or share one stream between all tabs"
    location = Location.parse(subject.url)
    if not location.is_secure:
        return Warn("plain HTTP, so HTTP/1.1: browsers allow six connections a host", remedy)
    protocol = _negotiated_protocol(location)
    if protocol != "h2":
        return Warn(f"ALPN chooses {protocol or 'nothing'}: browsers allow six connections a host", remedy)
    return Pass("HTTP/2 is offered: many streams share one connection")


def _negotiated_protocol(location: Location) -> str | None:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection((location.host, location.port), CONNECT_TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=location.host) as secure,
        ):
            return secure.selected_alpn_protocol()
    except OSError as error:
        raise ServerUnreachable(f"{location}: no TLS: {one_line(str(error))}") from error


# -- pages of another origin


def check_cors(subject: Subject, origin: str) -> Outcome:
    """What a browser demands of the answer to an EventSource on a page of `origin`."""
    with _open(subject, {"Origin": origin}) as response:
        allowed = one_line(response.header("Access-Control-Allow-Origin"))
    if allowed not in ("*", origin):
        return Fail(_disallowed(origin, allowed), _CORS)
    return Pass(f"Access-Control-Allow-Origin: {allowed}")


def check_preflight(subject: Subject, origin: str) -> Outcome:
    """EventSource sends none; clients on `fetch` do, as soon as they send Last-Event-ID."""
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "last-event-id",
    }
    url = stream_url(subject.url, subject.topic)
    with send("OPTIONS", url, asked, answer_timeout_s=subject.limits.patience_s) as response:
        allowed = one_line(response.header("Access-Control-Allow-Origin"))
        headers = one_line(response.header("Access-Control-Allow-Headers"))
    if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
        return Fail(f"OPTIONS is answered with {response.status}", "let OPTIONS through to the server")
    if allowed not in ("*", origin):
        return Fail(_disallowed(origin, allowed), _CORS)
    if not {"*", "last-event-id"} & {name.strip().lower() for name in headers.split(",")}:
        return Fail(
            f"Access-Control-Allow-Headers is {headers!r}, without Last-Event-ID",
            "let the server answer OPTIONS itself: clients on `fetch` cannot resume otherwise",
        )
    return Pass("OPTIONS allows Last-Event-ID")


def _disallowed(origin: str, allowed: str) -> str:
    if not allowed:
        return f"no Access-Control-Allow-Origin: pages of {origin} cannot read the stream"
    return f"Access-Control-Allow-Origin is {allowed!r}: pages of {origin} cannot read the stream"


# -- over time


def check_delivery(subject: Subject, token: str) -> Outcome:
    """One small event from end to end: what buffers small writes shows here."""
    patience_s = subject.limits.patience_s
    parser = Parser()
    with _open(subject, topic=DOCTOR_TOPIC) as response:
        require_event_stream(response)
        for message in _messages(response, parser, time.monotonic() + patience_s):
            if message.last_event_id:
                break
        data = {"id": "doctor", "reason": "doctor"}
        try:
            event_id = publish(subject.url, DOCTOR_TOPIC, DOCTOR_EVENT, data, token)
        except ServerRefused as error:
            return Fail(f"the test event is not accepted: {error}", "give doctor the server's publish token")
        published_s = time.monotonic()
        try:
            for message in _messages(response, parser, published_s + patience_s):
                if message.data is not None and message.last_event_id == event_id:
                    break
            else:
                return Fail("the stream ended before the test event came", _IDLE)
        except ServerSilent:
            return Fail(f"the test event {event_id} has not come after {patience_s:g} s", _BUFFERING)
        late_s = time.monotonic() - published_s
    if late_s > subject.limits.delivery_s:
        return Fail(f"the test event comes {_ms(late_s)} after it was accepted", _BUFFERING)
    return Pass(f"the test event comes within {_ms(late_s)} after it was accepted")


def check_idle(subject: Subject) -> Outcome:
    """Heartbeats come through, and nothing cuts a stream for being idle."""
    opened_s = last_byte_s = time.monotonic()
    comments, events, longest_s = 0, 0, 0.0
    parser = Parser()
    with _open(subject) as response:
        require_event_stream(response)
        while (remaining_s := opened_s + subject.idle_s - time.monotonic()) > 0:
            try:
                received = response.read_some(remaining_s)
            except ServerSilent:
                break
            except ServerUnreachable as error:
                return Fail(f"cut after {time.monotonic() - opened_s:.1f} s: {error}", _IDLE)
            now_s = time.monotonic()
            if not received:
                return Fail(f"ended after {now_s - opened_s:.1f} s", _IDLE)
            events += sum(message.data is not None for message in feed(parser, received))
            if parser.comments > comments:
                comments = parser.comments
                longest_s = max(longest_s, now_s - last_byte_s)
            last_byte_s = now_s
    silent_s = time.monotonic() - last_byte_s
    if silent_s > subject.limits.heartbeat_s:
        return Fail(
            f"no heartbeat for {silent_s:.1f} s",
            "something holds small writes back, or STALECAST_HEARTBEAT_INTERVAL_S is set very long: clients "
            "and proxies take a silent line for dead",
        )
    if not comments:
        why = "events kept it busy" if events else f"{subject.idle_s:g} s is too short"
        return Warn(f"no heartbeat seen: {why}", "watch a quiet topic (--topic) for longer (--idle-s)")
    read_timeout_s = subject.limits.read_timeout_s
    if longest_s > read_timeout_s:
        return Warn(
            f"no cut in {subject.idle_s:g} s, but up to {longest_s:.1f} s without a heartbeat",
            f"clients with a read time-out of {read_timeout_s:g} s (okhttp-eventsource, httpx) are cut: "
            f"set STALECAST_HEARTBEAT_INTERVAL_S to {HEARTBEAT_INTERVAL_S:g}, or raise theirs",
        )
    return Pass(f"no cut in {subject.idle_s:g} s; a heartbeat after at most {longest_s:.1f} s of silence")


# Without these nothing else can work (save readiness, which may pass while one looks).
_GATES: Final[tuple[tuple[str, Check], ...]] = (
    ("reachable", check_reachable),
    ("ready", check_ready),
    ("stream", check_stream),
)
_CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("headers", check_headers),
    ("first bytes", check_first_bytes),
    ("last-event-id", check_last_event_id),
    ("head", check_head),
    ("connections", check_connection_limit),
)


def _get(subject: Subject, path: str) -> Response:
    return send("GET", endpoint(subject.url, path), {}, answer_timeout_s=subject.limits.patience_s)


def _open(
    subject: Subject,
    headers: dict[str, str] | None = None,
    *,
    topic: str | None = None,
    last_event_id: str = "",
) -> Response:
    url = stream_url(subject.url, topic or subject.topic)
    return open_stream(url, last_event_id, headers, answer_timeout_s=subject.limits.patience_s)


def _messages(response: Response, parser: Parser, deadline_s: float) -> Iterator[Message]:
    """What the stream brings until it ends cleanly. Raises ServerSilent at the deadline."""
    while True:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:  # something comes, but not what is waited for
            raise ServerSilent("the stream does not bring what it should")
        received = response.read_some(remaining_s)
        if not received:
            return
        yield from feed(parser, received)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
