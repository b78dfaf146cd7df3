"""The routes. What a stream does is in app/streams; what may be published is in app/contracts.py."""

# quart-schema's decorators accept more kinds of model than are installed here:
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
import base64
import hashlib
import hmac
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final, TypeVar

import structlog
from pydantic import BaseModel, Field, RootModel
from quart import Response, request
from quart.typing import ResponseReturnValue
from quart_schema import (
    Info,
    QuartSchema,
    document_querystring,
    document_request,
    document_response,
    hide,
    security_scheme,
    tag,
)
from quart_schema.openapi import OpenAPIProvider
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter
from werkzeug.routing.converters import BaseConverter

from app import __version__
from app.contracts import ContractViolation
from app.cors import Cors
from app.logging import LimitedLog, cut
from app.problem import PROBLEM_TYPE, problem_json
from app.publish import TOPIC_ID_PATTERN, InvalidTopicId, publish_topic_event, stream_key
from app.redis_connection import RedisRefused, RedisUnavailable
from app.services import Services, public_reason
from app.serving import Begin, EventStream, StreamConnection, offer_streams
from app.settings import Settings
from app.stream_request import PATH_PREFIX, Catchup, StreamRequest, choose_cursor, read_query
from app.streams import sse
from app.streams.hub import HubFull
from app.streams.ids import StreamId
from app.streams.reading import read_newest
from app.streams.subscriber import Subscriber
from app.streams.wire import Wire

STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # private, no-store: a cache that joins requests would give one client another's stream, or one that has
    # ended; some heed only the one, some only the other. no-transform: proxies that compress also buffer.
    "Cache-Control": "private, no-store, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
# When the server is full, a browser's EventSource must not get an error status: it would give up for good.
FULL_RETRY_MS: Final = 30_000
# Of an error's text: an application may have many event types, and an unknown one is told of all of them.
DETAIL_LIMIT_CHARS: Final = 1000
# Around the event: field names, whitespace, escapes.
BODY_OVERHEAD: Final = 4
# What is slower holds a connection rather than sends a body.
BODY_LEAST_BYTES_PER_S: Final = 1000

_log = structlog.get_logger("stalecast.web")
_limited_log = LimitedLog(_log)

Choice = TypeVar("Choice", bound=str)


class StreamQuery(BaseModel):
    lastEventId: str | None = Field(  # noqa: N815 the name is the wire's
        None,
        description="Where to resume, for a page's first connect. Of more than one the last counts; the "
        "header Last-Event-ID wins.",
    )
    catchup: Catchup = Field(
        "all", description="`compact` replays only the newest event of each (event, id)."
    )
    live: bool = Field(
        True,
        description="`false` ends the response where it would go live. Ask again from the last `id:` that it "
        "brought: nothing is skipped. Where the server drains, is full, or cannot read the topic, that is "
        "the cursor you sent; without one there is no `id:`.",
    )


class Cursor(BaseModel):
    topic: str
    cursor: str = Field(
        description="The position now: read your data after asking for it, then connect from it."
    )


class EventToPublish(BaseModel):
    event: str = Field(description="A registered event type.", examples=["argument_updated"])
    data: dict[str, Any] = Field(
        description="Exactly `id` and `reason`.", examples=[{"id": "42", "reason": "edited"}]
    )


class Published(BaseModel):
    id: str = Field(description="The stream id of the event.")


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    ready: bool
    reason: str | None = Field(description="What stands in the way.")
    warnings: list[str] = Field([], description="What should be mended, though streams can be served.")
    clients: int
    topics: int


class Problem(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class StreamBody(RootModel[str]):
    """Server-Sent Events: first a block `event: position` with `retry:` and the position as its `id:`, then
    events, and `:` as heartbeats."""


class _OpenApi(OpenAPIProvider):
    """quart-schema writes application/json for every body, of which two of ours have another type, and it
    cannot know what a topic id or an event's name may be, nor what streams carry."""

    def schema(self) -> dict[str, Any]:
        described = super().schema()
        services: Services = self._app.extensions["stalecast"]
        # With definitions of its own: an application's models may be called as one of ours is.
        envelope = services.registry.json_schema(at="#/components/schemas/SseEnvelope")
        del envelope["$schema"]  # for a whole document: this one is OpenAPI 3.1
        described["components"].setdefault("schemas", {})["SseEnvelope"] = envelope
        return described

    def build_request_body(self, model: Any, source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        described, components = super().build_request_body(model, source)
        if model is EventToPublish:
            services: Services = self._app.extensions["stalecast"]
            properties = described["content"]["application/json"]["schema"]["properties"]
            properties["event"]["enum"] = [kind.name for kind in services.registry]
        return described, components

    def build_path_parameter(self, name: str, converter: BaseConverter) -> dict[str, Any]:
        described = super().build_path_parameter(name, converter)
        if name == "topic_id":
            described["schema"]["pattern"] = f"^{TOPIC_ID_PATTERN}$"
        return described

    def build_response_object(self, model: Any, headers_model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        described, components = super().build_response_object(model, headers_model)
        content_type = _CONTENT_TYPES.get(model)
        if content_type is not None:
            described["content"] = {content_type: described["content"]["application/json"]}
        return described, components


_CONTENT_TYPES: Final[dict[Any, str]] = {Problem: PROBLEM_TYPE, StreamBody: "text/event-stream"}


class _Schema(QuartSchema):
    openapi_provider_class = _OpenApi
    _document: bytes | None = None

    @hide
    async def openapi(self) -> ResponseReturnValue:
        if self._document is None:  # once: it takes 4 ms, and anybody may ask
            self._document = json.dumps(self.openapi_provider.schema()).encode()
        return self._document, 200, {"Content-Type": "application/json"}


@dataclass
class HttpError(Exception):
    """Answered as problem+json."""

    status: HTTPStatus
    detail: str
    headers: dict[str, str] | None = None


class _Application(QuartTrio):
    def create_url_adapter(self, request: Any) -> MapAdapter | None:
        """Routes go by path and method alone. Quart would ask the Host, too, and fail before any handler of
        errors where that can be no name of one (`.`, a label of 64 letters)."""
        if request is None:
            return super().create_url_adapter(request)
        return self.url_map.bind(
            "localhost",
            script_name=request.root_path,
            url_scheme=request.scheme,
            default_method=request.method,
            path_info=request.path,
        )


def create_app(settings: Settings) -> QuartTrio:
    """The ASGI application. Raises InvalidRedisUrl, InvalidEventType, or ValueError without a Redis."""
    services = Services(settings)
    app = _Application("app", static_folder=None)
    app.asgi_http_class = StreamConnection
    # `//` is no `/`: a redirect would name the host that the client has named, and no TLS behind a proxy.
    app.url_map.merge_slashes = False
    body_limit_bytes = settings.max_event_bytes * BODY_OVERHEAD
    app.config["MAX_CONTENT_LENGTH"] = body_limit_bytes
    app.config["BODY_TIMEOUT"] = settings.request_head_timeout_s + body_limit_bytes / BODY_LEAST_BYTES_PER_S
    app.extensions["stalecast"] = services
    _Schema(
        app,
        info=Info("Stalecast", __version__, description="Resumable invalidation streams."),
        swagger_ui_path=None,
        redoc_ui_path=None,
        scalar_ui_path=None,
        security_schemes={"publishToken": {"type": "http", "scheme": "bearer"}},
    )
    _add_lifespan(app, services)
    streams = Streams(services)
    _add_stream_routes(app, services, streams)
    _add_publish_route(app, services)
    _add_health_routes(app, services)
    _add_pages(app, services)
    _add_errors(app)
    _add_cors(app, settings)
    offer_streams(app, streams)
    return app


def _add_lifespan(app: QuartTrio, services: Services) -> None:
    @app.before_serving
    async def start() -> None:
        await app.nursery.start(services.run)

    @app.after_serving
    async def stop() -> None:
        services.stop()


class Streams:
    """What answers a request for a stream, from Quart's route or straight from the connection."""

    def __init__(self, services: Services) -> None:
        self._hub = services.hub
        cors = Cors(services.settings.cors_origins)
        self._fields = _encode_fields({**STREAM_HEADERS, **cors.headers(None)})
        self._fields_by_origin = {
            origin: _encode_fields({**STREAM_HEADERS, **cors.headers(origin)}) for origin in cors.origins
        }

    def fields(self, origin: str | None) -> bytes:
        return self._fields if origin is None else self._fields_by_origin.get(origin, self._fields)

    def refuse(self, asked: StreamRequest) -> bytes | None:
        return self._refusal(asked) if self._hub.is_full else None

    def _refusal(self, asked: StreamRequest) -> bytes:
        _limited_log.warning(
            "stream_refused", clients=self._hub.clients, hint="as many as STALECAST_MAX_CLIENTS are connected"
        )
        return sse.position_block(StreamId.readable(asked.last_event_id), FULL_RETRY_MS)

    async def open(self, asked: StreamRequest, begin: Begin) -> Subscriber | None:
        """Raises InvalidTopicId."""

        async def begin_and_log(first: bytes, then: bytes = b"") -> Wire:
            # Not before: clients that leave again before their first byte would fill the log.
            wire = await begin(first, then)
            log = _log.info if asked.live else _log.debug  # who polls asks every few seconds
            log(
                "stream_opened", topic=asked.topic_id, cursor=asked.last_event_id,
                user_agent=asked.user_agent,
            )  # fmt: skip
            return wire

        try:
            subscriber = Subscriber(
                self._hub, asked.topic_id, asked.last_event_id, begin_and_log, asked.catchup, live=asked.live
            )
        except HubFull:
            wire = await begin(self._refusal(asked))
            await wire.end()
            return None
        return subscriber


def _encode_fields(headers: dict[str, str]) -> bytes:
    return "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def _add_stream_routes(app: QuartTrio, services: Services, streams: Streams) -> None:
    # Requests in the ordinary shape do not come this far: the connection (serving.py) has `streams` answer.
    @app.get(f"{PATH_PREFIX}<topic_id>")
    @tag(["streams"])
    @document_querystring(StreamQuery)
    @document_response(StreamBody)
    @document_response(Problem, 422)
    async def stream(topic_id: str) -> Response:
        """Follow a topic as Server-Sent Events.

        Without Last-Event-ID the stream starts at the newest event. With it, exactly what was appended after
        it follows, or `reload_required` if that cannot be proven complete. The first block sets the last
        event id. With `live=false` the response ends once that is told.
        """
        stream_key(topic_id)  # an invalid topic id is refused before anything is promised
        if request.method == "HEAD":
            return Response(b"", headers=STREAM_HEADERS)
        query = read_query(request.query_string.decode("utf-8", "replace"))
        catchup: Catchup = _choose(query, "catchup", "all", "compact")
        live = _choose(query, "live", "true", "false") == "true"
        cursor = choose_cursor(request.headers.get("Last-Event-ID"), query.get("lastEventId"))
        user_agent = request.headers.get("User-Agent", "")
        asked = StreamRequest(topic_id, cursor, catchup, live, request.headers.get("Origin"), user_agent)
        return EventStream(partial(streams.open, asked), STREAM_HEADERS, live=live)

    @app.get("/v1/topics/<topic_id>/cursor")
    @tag(["streams"])
    @document_response(Cursor)
    @document_response(Problem, 422)
    @document_response(Problem, 503)
    async def cursor(topic_id: str) -> ResponseReturnValue:
        """The position now.

        Ask for it, read your data, then connect with `lastEventId`: nothing falls between.
        """
        page = await read_newest(services.client, stream_key(topic_id), 0)
        answer = Cursor(topic=topic_id, cursor=str(page.stream.position))
        return answer.model_dump(), 200, {"Cache-Control": "no-store"}


def _choose(query: dict[str, str], name: str, default: Choice, other: Choice) -> Choice:
    """What the query says. Raises HttpError for anything but these two."""
    value = query.get(name, default)
    for choice in (default, other):
        if value == choice:
            return choice
    raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}={value[:40]!r}: use `{default}` or `{other}`")


def _add_publish_route(app: QuartTrio, services: Services) -> None:
    settings = services.settings

    @app.post("/v1/topics/<topic_id>/events")
    @tag(["publishing"])
    @security_scheme([{"publishToken": []}])
    @document_request(EventToPublish)
    @document_response(Published, 201)
    @document_response(Problem, 401)
    @document_response(Problem, 403)
    @document_response(Problem, 413)
    @document_response(Problem, 422)
    @document_response(Problem, 503)
    async def publish(topic_id: str) -> ResponseReturnValue:
        """Append an event.

        Answers with its stream id once Redis has it. After a 503 it may or may not have been appended;
        appending an invalidation again is harmless.
        """
        stream_key(topic_id)
        _authorize(settings)
        body = _json_object(await request.get_data())
        unknown = set(body) - {"event", "data"}
        if unknown:
            raise HttpError(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                f"unknown field {sorted(unknown)[0]!r}: send `event` and `data`",
            )
        if not isinstance(body.get("event"), str) or not isinstance(body.get("data"), dict):
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "`event` must be a string and `data` an object")
        event_id = await publish_topic_event(
            services.client,
            topic_id,
            body["event"],
            body["data"],
            registry=services.registry,
            maxlen=settings.stream_maxlen,
            max_event_bytes=settings.max_event_bytes,
        )
        return Published(id=event_id).model_dump(), 201


def _authorize(settings: Settings) -> None:
    if settings.publish_token is None:
        raise HttpError(
            HTTPStatus.FORBIDDEN,
            "publishing over HTTP is off: set STALECAST_PUBLISH_TOKEN on the server to a secret of your "
            "choice and send it as `Authorization: Bearer <secret>`",
        )
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    expected = settings.publish_token.get_secret_value()
    if scheme.lower() != "bearer" or not _is_token(token, expected):
        raise HttpError(
            HTTPStatus.UNAUTHORIZED,
            "send the server's STALECAST_PUBLISH_TOKEN as `Authorization: Bearer <secret>`",
            {"WWW-Authenticate": 'Bearer realm="stalecast"'},
        )


def _is_token(received: str, expected: str) -> bool:
    # Header fields are bytes, which Quart reads as latin-1. Clients write what is not ASCII as UTF-8 (curl,
    # Go) or as latin-1 (browsers, requests).
    sent = received.strip(" \t").encode("latin-1", "replace")
    spellings = [expected.encode()]
    with suppress(UnicodeEncodeError):
        spellings.append(expected.encode("latin-1"))
    return any(hmac.compare_digest(sent, spelling) for spelling in spellings)


def _json_object(body: bytes | str) -> dict[str, Any]:
    try:
        decoded: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is not JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "the body must be a JSON object")
    return decoded  # pyright: ignore[reportUnknownVariableType]


def _add_health_routes(app: QuartTrio, services: Services) -> None:
    @app.get("/healthz")
    @tag(["operation"])
    @document_response(Health)
    async def healthz() -> ResponseReturnValue:
        """The process answers. Restart it if not."""
        return {"status": "ok"}

    @app.get("/readyz")
    @tag(["operation"])
    @document_response(Readiness)
    @document_response(Readiness, 503)
    async def readyz() -> ResponseReturnValue:
        """Streams can be served: Redis is reachable, and the process is not draining."""
        reason = await services.wait_ready()
        statistics = services.hub.statistics()
        readiness = Readiness(
            ready=reason is None,
            reason=reason,
            warnings=services.readiness_warnings,
            clients=statistics.clients,
            topics=statistics.topics,
        )
        body = readiness.model_dump(exclude=set() if readiness.warnings else {"warnings"})
        return body, 200 if reason is None else 503, {"Cache-Control": "no-store"}


def _add_pages(app: QuartTrio, services: Services) -> None:
    settings = services.settings
    docs = files("app.pages").joinpath("docs.html").read_text()

    @app.get("/docs")
    @hide
    async def docs_page() -> Response:
        return _page(docs)

    if not settings.demo:
        return
    # The same for everybody: nothing in a request proves that it comes from this machine's user (nginx passes
    # on strangers' requests with its own address and a loopback Host). The token is in the link that `serve`
    # prints, behind the `#`, which no browser sends.
    config = {"eventTypes": [kind.name for kind in services.registry]}
    template = files("app.pages").joinpath("demo.html").read_text()
    demo = template.replace("__STALECAST_DEMO__", json.dumps(config).replace("<", "\\u003c"))

    @app.get("/")
    @hide
    async def demo_page() -> Response:
        return _page(demo)


def _page(html: str) -> Response:
    return Response(
        html,
        mimetype="text/html",
        headers={
            "Content-Security-Policy": _content_security_policy(html),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def _content_security_policy(html: str) -> str:
    """Nothing but the page's own inline blocks, by their hashes, and requests to this server."""

    def hashes(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {hashes('script')}; style-src {hashes('style')}"
    )


def _add_errors(app: QuartTrio) -> None:
    @app.errorhandler(HTTPException)
    async def of_http(error: HTTPException) -> Response:
        if error.response is not None or error.code is None:
            return error.get_response()  # type: ignore[return-value]  # a redirect
        headers = {name: value for name, value in error.get_headers() if name != "Content-Type"}
        return _problem(HTTPStatus(error.code), error.description or "", headers)

    @app.errorhandler(HttpError)
    async def of_ours(error: HttpError) -> Response:
        return _problem(error.status, error.detail, error.headers)

    @app.errorhandler(InvalidTopicId)
    async def of_topic(error: InvalidTopicId) -> Response:
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    @app.errorhandler(ContractViolation)
    async def of_contract(error: ContractViolation) -> Response:
        return _problem(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))

    @app.errorhandler(RedisUnavailable)
    async def of_redis(error: RedisUnavailable) -> Response:
        return _problem(HTTPStatus.SERVICE_UNAVAILABLE, public_reason(error), {"Retry-After": "1"})

    @app.errorhandler(RedisRefused)
    async def of_refusal(error: RedisRefused) -> Response:
        _limited_log.warning("redis_refused", error=str(error))
        return _problem(HTTPStatus.BAD_GATEWAY, public_reason(error))


def _problem(status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> Response:
    # What a client sent is quoted in some of them.
    return Response(
        problem_json(status, cut(detail, DETAIL_LIMIT_CHARS)),
        status.value,
        {**(headers or {}), "Content-Type": PROBLEM_TYPE},
    )


def _add_cors(app: QuartTrio, settings: Settings) -> None:
    cors = Cors(settings.cors_origins)

    @app.after_request
    async def allow(response: Response) -> Response:
        if "Content-Security-Policy" in response.headers:
            return response  # a page: for people
        origin = request.headers.get("Origin")
        headers = dict(cors.headers(origin))
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            fields = request.headers.get("Access-Control-Request-Headers", "")
            preflight = cors.preflight_headers(origin, fields)
            headers["Vary"] = ", ".join(one["Vary"] for one in (headers, preflight) if "Vary" in one)
            headers = {**preflight, **headers}
        for name, value in headers.items():
            response.headers.add(name, value)
        return response
