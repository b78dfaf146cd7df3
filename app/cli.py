"""The command line: `stalecast serve | publish | tail | schema | doctor`."""

import json
import os
import secrets
import socket
import sys
from typing import Annotated, Any

import structlog
import trio
import typer
from pydantic import SecretStr, ValidationError

from app.contracts import InvalidEventType, load_registry
from app.embedded import EmbeddedStoreError, embedded_store
from app.logging import configure_logging
from app.process import Supervisor, inherited_listener, run_worker, worker_argv
from app.redis_connection import InvalidRedisUrl
from app.serving import create_listener
from app.settings import Settings

cli = typer.Typer(
    name="stalecast",
    help="Tells web clients what went stale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_log = structlog.get_logger("stalecast.cli")


def main() -> None:
    """Exit status 2: what was asked for cannot be done as configured."""
    try:
        cli()
    except (InvalidRedisUrl, InvalidEventType, EmbeddedStoreError) as error:
        _fail(str(error))


def _fail(text: str) -> None:
    typer.secho(f"stalecast: {text}", err=True, fg="red")
    sys.exit(2)


def _settings(**overrides: Any) -> Settings:
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        _fail(
            "the environment holds settings that cannot be used (STALECAST_ + name):\n  " + "\n  ".join(lines)
        )
        raise AssertionError from None


@cli.command()
def serve(
    host: Annotated[str, typer.Option(envvar="HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="PORT", min=0, max=65535)] = 8000,
    workers: Annotated[int, typer.Option(envvar="WEB_CONCURRENCY", min=1, help="Processes; one a core.")] = 1,
) -> None:
    """Serve streams. Without REDIS_URL it brings an embedded Valkey."""
    settings = _settings()
    configure_logging(settings)
    try:
        listener = create_listener(host, port, settings)
    except OSError as error:
        _fail(f"cannot listen on {host}:{port}: {error.strerror}")
        return
    sys.exit(trio.run(_serve, settings, listener, workers))


async def _serve(settings: Settings, listener: socket.socket, workers: int) -> int:
    if settings.redis_url is not None:
        return await _serve_with_redis(settings, listener, workers)
    async with embedded_store() as url:
        changes: dict[str, Any] = {"redis_url": url}
        if settings.demo is None:
            changes["demo"] = True
        if settings.publish_token is None:
            # For trying it out: the demo page, which this same process serves, may publish.
            changes |= {"publish_token": SecretStr(secrets.token_urlsafe(16)), "demo_token": True}
        settings = settings.model_copy(update=changes)
        os.environ["REDIS_URL"] = url
        os.environ["STALECAST_DEMO"] = str(settings.demo)
        if settings.demo_token and settings.publish_token is not None:
            os.environ["STALECAST_PUBLISH_TOKEN"] = settings.publish_token.get_secret_value()
            os.environ["STALECAST_DEMO_TOKEN"] = "true"  # noqa: S105 a flag
        return await _serve_with_redis(settings, listener, workers)


async def _serve_with_redis(settings: Settings, listener: socket.socket, workers: int) -> int:
    host, port, *_ = listener.getsockname()
    scheme = "https" if settings.tls_certfile else "http"
    _log.info("listening", url=f"{scheme}://{host}:{port}", workers=workers, demo=bool(settings.demo))
    if workers == 1:
        return await run_worker(settings, listener)
    return await Supervisor(workers, worker_argv(), listener, settings.drain_s).run()


@cli.command(hidden=True)
def worker() -> None:
    """One worker of a supervisor, on the socket that it inherited."""
    settings = _settings()
    configure_logging(settings)
    try:
        listener = inherited_listener()
    except KeyError:
        _fail("`worker` is started by `stalecast serve`")
        return
    sys.exit(trio.run(run_worker, settings, listener))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of every event a client may receive."""
    typer.echo(json.dumps(load_registry(_settings().events_module).json_schema(), indent=2))
