"""The command line: `stalecast serve | publish | tail | schema | doctor`."""

import json
import os
import secrets
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Final, NoReturn, Self, cast

import structlog
import trio
import typer
from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry
from typer.exceptions import TyperException

from app import client, startup
from app.contracts import ContractViolation, InvalidEventType, load_registry
from app.cors import InvalidOrigin, parse_origin
from app.doctor import DOCTOR_TOPIC, Fail, Finding, Notice, Outcome, Pass, Subject, Warn, examine
from app.embedded import EmbeddedStoreError, embedded_store, recorded_url
from app.listening import CannotListen, Listener, is_loopback, parse_address, url_of
from app.logging import OurWords, configure_early_logging, configure_logging, take_over_process
from app.process import CONFIGURATION_STATUS, Supervisor, inherited_listener, run_worker, worker_argv
from app.publish import InvalidTopicId, publish_topic_event_sync
from app.redis_connection import Address, InvalidRedisUrl
from app.settings import Settings, clean_token
from app.startup import Misconfigured
from app.streams.ids import InvalidStreamId, StreamId
from app.tls import UnusableCertificate

cli = typer.Typer(
    name="stalecast",
    help="Tells web clients what went stale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DEFAULT_URL: Final = "http://127.0.0.1:8000"
# 128 + SIGINT, as shells and other followers (`kubectl logs -f`) have it.
INTERRUPTED_STATUS: Final = 130
# More than any machine has cores: a slip of the pen.
WORKERS_LIMIT: Final = 1024

_log = structlog.get_logger("stalecast.cli")


# Commands that log, rather than talk to whoever typed them.
_SERVING: Final = frozenset({"serve", "worker"})


def main() -> None:
    """Exit status 2: what was asked for cannot be done as configured. 1: it cannot be done now."""
    if not _SERVING.isdisjoint(sys.argv[1:2]):
        configure_early_logging()
        take_over_process()
    try:
        # Not `cli()`, which would have uncaught exceptions printed in its own way.
        sys.exit(typer.main.get_command(cli).main(standalone_mode=False))
    except TyperException as error:
        _fail(error.format_message(), error.exit_code)
    except typer.Abort:
        sys.exit(INTERRUPTED_STATUS)
    except (Misconfigured, InvalidRedisUrl, InvalidEventType, UnusableCertificate) as error:
        _fail(str(error))
    except (CannotListen, EmbeddedStoreError) as error:
        _fail(str(error))
    except (InvalidTopicId, ContractViolation, client.InvalidRequest) as error:
        _fail(str(error))
    except (client.ServerNotTrusted, client.NotAnEventStream) as error:
        _fail(str(error))
    except client.ServerRefused as error:
        _fail(str(error), 1 if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR else 2)
    except client.ServerUnreachable as error:
        _fail(str(error), 1)


def _fail(text: str, status: int = CONFIGURATION_STATUS) -> NoReturn:
    if not _SERVING.isdisjoint(sys.argv[1:2]):
        _log.critical("cannot_serve", error=OurWords(text))
    else:
        typer.secho(f"stalecast: {text}", err=True, fg="red")
    sys.exit(status)


@cli.command()
def serve(
    host: Annotated[
        str, typer.Option(envvar="HOST", help="Address to listen on, or unix:/path for a socket file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", min=0, max=65535, help="0: any free one.")] = 8000,
    workers: Annotated[
        int, typer.Option(envvar="WEB_CONCURRENCY", min=1, max=WORKERS_LIMIT, help="Processes; one a core.")
    ] = 1,
    uds: Annotated[
        str | None, typer.Option(help="Listen on this unix socket, for a proxy on this machine.")
    ] = None,
    embedded: Annotated[
        bool, typer.Option(help="Without REDIS_URL bring an embedded Valkey, or refuse to serve.")
    ] = True,
) -> None:
    """Serve streams. Without REDIS_URL it brings an embedded Valkey, for trying out."""
    settings = startup.read_settings()
    configure_logging(settings)
    startup.warn(settings)
    is_tls = startup.check(settings)
    if settings.redis_url is None and not embedded:
        raise Misconfigured(
            "REDIS_URL is not set: set it to a Redis 7 or newer that all instances share, e.g. "
            "redis://:password@host:6379/0. (With --no-embedded no store is brought along: on a platform its "
            "data would be lost at each restart, and no two instances would have the same.)"
        )
    listener = Listener.open(parse_address(host, port, uds), settings)
    try:
        status = trio.run(_serve, settings, listener.socket, workers, is_tls)
    finally:
        listener.remove_file()
    sys.exit(status)


async def _serve(settings: Settings, listener: socket.socket, workers: int, is_tls: bool) -> int:
    if settings.redis_url is not None:
        return await _serve_with_redis(settings, listener, workers, is_tls)
    async with embedded_store() as store_url:
        settings = _with_embedded_store(settings, store_url, listener, is_tls=is_tls)
        return await _serve_with_redis(settings, listener, workers, is_tls)


def _with_embedded_store(
    settings: Settings, store_url: str, listener: socket.socket, *, is_tls: bool
) -> Settings:
    """The settings for trying it out; workers find them in their environment."""
    changes: dict[str, Any] = {"redis_url": store_url}
    os.environ["REDIS_URL"] = store_url
    if not is_loopback(listener):
        _log.warning(
            "embedded_store_for_others",
            hint="other machines may connect, so there is no demo page and no token for it. The store is for "
            "trying out: set REDIS_URL to serve in earnest",
        )
    elif settings.demo is not False:
        changes["demo"] = True
        os.environ["STALECAST_DEMO"] = "true"
        if settings.publish_token is None:
            # For whoever reads this log, and nobody else: a proxy on this machine may let anybody in.
            token = secrets.token_urlsafe(16)
            changes["publish_token"] = SecretStr(token)
            os.environ["STALECAST_PUBLISH_TOKEN"] = token
            link = f"{url_of(listener, is_tls=is_tls)}/#token={token}"
            _log.info("demo_page", open=link, hint="this link may publish: keep it to yourself")
    return settings.model_copy(update=changes)


async def _serve_with_redis(settings: Settings, listener: socket.socket, workers: int, is_tls: bool) -> int:
    url = url_of(listener, is_tls=is_tls)
    _log.info("listening", url=url, workers=workers, demo=bool(settings.demo))
    if workers == 1:
        return await run_worker(settings, listener)
    return await Supervisor(workers, worker_argv(), listener, settings.drain_s).run()


@cli.command(hidden=True)
def worker() -> None:
    """One worker of a supervisor, on the socket that it inherited."""
    settings = startup.read_settings()
    configure_logging(settings)
    startup.check(settings)
    try:
        listener = inherited_listener()
    except (KeyError, ValueError, OSError):
        raise Misconfigured("`worker` is started by `stalecast serve`, which hands it a listener") from None
    sys.exit(trio.run(run_worker, settings, listener))


@cli.command()
def publish(
    topic: Annotated[str, typer.Argument(help="The topic's id.")],
    reason: Annotated[str, typer.Option(help="Why, as a short word.")],
    event: Annotated[str, typer.Option(help="A registered event type.")] = "argument_updated",
    resource_id: Annotated[
        str | None, typer.Option("--id", help="What went stale, as a string; none for reload_required.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help=f"Publish through this server, not into Redis (last resort: {DEFAULT_URL})."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="STALECAST_PUBLISH_TOKEN", help="The server's publish token.")
    ] = None,
) -> None:
    """Append an event and print its stream id.

    Straight into Redis if REDIS_URL is set, or if a server with an embedded
    store runs in this directory; otherwise, or with --url, through a server.
    """
    data = {"reason": reason} if resource_id is None else {"id": resource_id, "reason": reason}
    settings = _settings_for_command()
    if url is None and (redis_url := settings.redis_url or _running_store(settings)) is not None:
        typer.echo(_publish_into_redis(redis_url, settings, topic, event, data))
    else:
        typer.echo(client.publish(url or DEFAULT_URL, topic, event, data, _sendable(token)))


def _sendable(token: str | None) -> str | None:
    """Raises Misconfigured."""
    try:
        return token and clean_token(token)
    except ValueError as error:
        raise Misconfigured(f"the token cannot be sent: {error}") from None


def _settings_for_command() -> Settings:
    """Raises Misconfigured. What is doubtful is told in passing."""
    for unknown in startup.unknown_variables(os.environ):
        meant = f"; {unknown.nearest} was meant?" if unknown.nearest else ""
        typer.secho(f"stalecast: nothing reads {unknown.name}{meant}", err=True, fg="yellow")
    return startup.read_settings()


def _publish_into_redis(url: str, settings: Settings, topic: str, event: str, data: dict[str, Any]) -> str:
    registry = load_registry(settings.events_module)
    where = Address.from_url(url)
    try:
        with _redis_client(url, settings) as connection:
            return publish_topic_event_sync(
                connection,
                topic,
                event,
                data,
                registry=registry,
                maxlen=settings.stream_maxlen,
                max_event_bytes=settings.max_event_bytes,
            )
    except (AuthenticationError, NoPermissionError) as error:
        _fail(f"Redis at {where} does not let this user publish: {error}")
    except RedisError as error:
        _fail(f"Redis at {where}: {error}", 1)


def _running_store(settings: Settings) -> str | None:
    """The embedded store of a server in this directory; None if what is recorded there was left behind."""
    url = recorded_url()
    if url is None:
        return None
    try:
        with _redis_client(url, settings) as connection:
            connection.ping()  # pyright: ignore[reportUnknownMemberType] redis-py leaves its **kwargs untyped
    except (RedisError, ValueError):
        return None
    return url


def _redis_client(url: str, settings: Settings) -> Redis:
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType] redis-py leaves its **kwargs untyped
        url,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        # Who asked sees the error, and may ask again.
        retry=Retry(NoBackoff(), 0),
    )


@cli.command()
def tail(
    topic: Annotated[str, typer.Argument(help="The topic's id.")],
    last_event_id: Annotated[str | None, typer.Option(help="Resume after this stream id.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Follow a topic on a running server, and reconnect as a browser does.

    The latency is the time here minus the time in the stream id, which is
    Redis's: the two clocks must agree. Of a replayed event it is the age.
    """
    show = _as_json if as_json else _as_columns
    try:
        for item in client.follow(client.stream_url(url, topic), last_event_id):
            match item:
                case client.Connected(resumed_after):
                    typer.echo(f"connected{f', after {resumed_after}' if resumed_after else ''}", err=True)
                case client.Received():
                    typer.echo(show(_Shown.of(item, time.time())))
                case client.Disconnected(why, retry_in_s):
                    typer.echo(f"disconnected: {why}; again in {retry_in_s:.1f} s", err=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What `tail` shows of an event. `envelope` is empty where the data is none."""

    time_s: float
    stream_id: str
    envelope: dict[str, Any]
    data: str
    latency_ms: int | None

    @classmethod
    def of(cls, received: client.Received, now_s: float) -> Self:
        envelope = client.json_object(received.data.encode())
        latency_ms = None
        # The id of a reload_required is where to resume, which may be long ago.
        if envelope.get("event") != "reload_required":
            with suppress(InvalidStreamId):
                latency_ms = round(now_s * 1000) - StreamId.parse(received.last_event_id).ms
        return cls(now_s, received.last_event_id, envelope, received.data, latency_ms)

    @property
    def inner(self) -> dict[str, Any]:
        data = self.envelope.get("data")
        return cast(dict[str, Any], data) if isinstance(data, dict) else {}


def _as_json(shown: _Shown) -> str:
    return json.dumps(
        {
            "time": datetime.fromtimestamp(shown.time_s).astimezone().isoformat(timespec="milliseconds"),
            "stream_id": shown.stream_id,
            "event": shown.envelope.get("event"),
            "id": shown.inner.get("id"),
            "reason": shown.inner.get("reason"),
            "latency_ms": shown.latency_ms,
        }
    )


def _as_columns(shown: _Shown) -> str:
    clock = datetime.fromtimestamp(shown.time_s).astimezone().strftime("%H:%M:%S.%f")[:-3]
    latency = "" if shown.latency_ms is None else f"{shown.latency_ms} ms"
    columns = [clock, f"{client.one_line(shown.stream_id):<17}"]
    if shown.envelope:
        columns.append(client.one_line(str(shown.envelope.get("event"))))
        columns += [f"{name}={client.one_line(str(shown.inner[name]))}" for name in shown.inner]
    else:
        columns.append(client.one_line(shown.data))
    return "  ".join([*columns, latency]).rstrip()


@cli.command()
def doctor(
    url: Annotated[str, typer.Argument(help="The deployed server, as browsers reach it.")],
    topic: Annotated[str, typer.Option(help="The topic to open.")] = DOCTOR_TOPIC,
    origin: Annotated[
        str | None,
        typer.Option(help="Also check that pages of this origin may read, e.g. https://app.example"),
    ] = None,
    token: Annotated[
        str | None, typer.Option(help=f"Also publish one event to {DOCTOR_TOPIC} and see it arrive.")
    ] = None,
    idle_s: Annotated[float, typer.Option(min=0, help="How long to watch an idle stream.")] = 35.0,
) -> None:
    """Say what stands between browsers and a deployed server. Exit status 1 if any check fails."""
    failed = False
    try:
        origin = origin and parse_origin(origin)
    except InvalidOrigin as error:
        _fail(str(error))
    for item in examine(Subject(url, topic, origin, _sendable(token), idle_s)):
        match item:
            case Notice(text):
                typer.echo(text, err=True)
            case Finding(check, outcome):
                typer.echo(_verdict(check, outcome))
                failed = failed or isinstance(outcome, Fail)
    sys.exit(1 if failed else 0)


def _verdict(check: str, outcome: Outcome) -> str:
    match outcome:
        case Pass(text):
            verdict = typer.style("PASS", fg="green")
        case Warn(found, remedy):
            verdict, text = typer.style("WARN", fg="yellow"), f"{found}; {remedy}"
        case Fail(found, remedy):
            verdict, text = typer.style("FAIL", fg="red"), f"{found}; {remedy}"
    return f"{verdict}  {check:<13}  {text}"


@cli.command()
def schema() -> None:
    """Print the JSON Schema of every event a client may receive."""
    typer.echo(json.dumps(load_registry(_settings_for_command().events_module).json_schema(), indent=2))
