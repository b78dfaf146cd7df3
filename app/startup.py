"""What the operator said, looked at as a whole before anything is served.

Every process that serves comes through here, and the supervisor of several does so before it starts the
first: a mistake is told once, by the process that somebody watches, with the variable's name and the remedy.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from pydantic import ValidationError

from app.contracts import load_registry
from app.logging import OurWords
from app.redis_connection import Address
from app.settings import ENV_PREFIX, HEARTBEAT_INTERVAL_LONGEST_S, Settings
from app.tls import check_certificate, doubts_about

# How `serve` tells its workers what they cannot know; not the operator's.
LISTENER_FD_VARIABLE: Final = "STALECAST_LISTENER_FD"
# Where an application finds its server; the example in client/ has it.
CLIENT_VARIABLE: Final = "STALECAST_URL"
# What `serve` reads without our prefix, and what people call it.
_PLATFORM_VARIABLES: Final = {
    "HOST": ("HOST", "BIND", "ADDRESS"),
    "PORT": ("PORT",),
    "WEB_CONCURRENCY": ("WEB_CONCURRENCY", "WORKERS", "CONCURRENCY", "PROCESSES"),
}
# Of a name behind the prefix, and of a whole name: a few letters wrong, or one.
_LIKENESS: Final = 0.65
_WHOLE_LIKENESS: Final = 0.9
# 16 random letters and digits are 95 bits; what people think of in fewer is found by trying.
TOKEN_LEAST_CHARS: Final = 16
# Below it, all clients of a server that is away ask for it many times a second.
_RETRY_LEAST_MS: Final = 200

_log = structlog.get_logger("stalecast.startup")


class Misconfigured(Exception):
    """Settings that cannot be served with; the operator's fault."""


def read_settings(**overrides: Any) -> Settings:
    """From the environment. Raises Misconfigured, whose text names each variable and holds no value."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [_told(detail["loc"], detail["msg"]) for detail in error.errors(include_input=False)]
        raise Misconfigured("the environment cannot be used:\n  " + "\n  ".join(lines)) from None


def check(settings: Settings) -> bool:
    """All that a worker needs, short of Redis itself, which may come later. Returns whether TLS is served.
    Raises InvalidRedisUrl, InvalidEventType or UnusableCertificate."""
    load_registry(settings.events_module)
    if settings.redis_url is not None:
        Address.from_url(settings.redis_url)
    return check_certificate(settings.tls_certfile, settings.tls_keyfile)


def warn(settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
    """Log what is probably not meant, though it can be served with."""
    for unknown in unknown_variables(environment):
        # Not refused: a variable of a later release must not break a rollback to this one.
        _log.warning("unknown_variable", name=unknown.name, did_you_mean=unknown.nearest)
    for doubt in doubts(settings):
        _log.warning("doubtful_setting", hint=OurWords(doubt))


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """One that nobody reads, and the name that was probably meant."""

    name: str
    nearest: str | None


def unknown_variables(environment: Mapping[str, str]) -> Iterator[UnknownVariable]:
    """Names like ours that are none of ours; of other names only those that miss one of ours by a letter."""
    internal = {LISTENER_FD_VARIABLE, CLIENT_VARIABLE}
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields} | internal
    # What was meant, by what may have been written.
    settings = {name: name for name in known - internal}
    aliases = {ENV_PREFIX + alias: name for name, also in _PLATFORM_VARIABLES.items() for alias in also}
    by_suffix = {name.removeprefix(ENV_PREFIX): meant for name, meant in (settings | aliases).items()}
    for name in sorted(environment):
        upper = name.upper()
        if upper in known:
            continue
        if upper.startswith(ENV_PREFIX):
            suffix = upper.removeprefix(ENV_PREFIX)
            near = difflib.get_close_matches(suffix, by_suffix, 1, _LIKENESS)
            near = near or [long for long in by_suffix if suffix and suffix in long]
            yield UnknownVariable(name, by_suffix[near[0]] if near else None)
        elif near := difflib.get_close_matches(upper, settings, 1, _WHOLE_LIKENESS):
            yield UnknownVariable(name, near[0])


def doubts(settings: Settings) -> Iterator[str]:
    """What goes together badly, each with its reason."""
    token = settings.publish_token
    if token is not None and len(token.get_secret_value()) < TOKEN_LEAST_CHARS:
        yield (
            f"STALECAST_PUBLISH_TOKEN is shorter than {TOKEN_LEAST_CHARS} characters, so it can be found by "
            "trying: draw one, e.g. with `openssl rand -base64 24`"
        )
    if settings.heartbeat_interval_s > HEARTBEAT_INTERVAL_LONGEST_S:
        yield (
            f"STALECAST_HEARTBEAT_INTERVAL_S={settings.heartbeat_interval_s:g}: clients and proxies take a "
            f"stream for dead that is silent for much more than {HEARTBEAT_INTERVAL_LONGEST_S:g} s"
        )
    if settings.retry_ms < _RETRY_LEAST_MS:
        yield (
            f"STALECAST_RETRY_MS={settings.retry_ms}: while no server answers, each client asks for it "
            f"{1000 / max(settings.retry_ms, 1):,.0f} times a second"
        )
    if settings.first_bytes_timeout_s >= settings.redis_timeout_s:
        yield (
            f"STALECAST_FIRST_BYTES_TIMEOUT_S={settings.first_bytes_timeout_s:g} is not below "
            f"STALECAST_REDIS_TIMEOUT_S={settings.redis_timeout_s:g}: a client waits for its first byte as "
            "long as Redis is given to answer at all"
        )
    if settings.tls_certfile is not None and settings.tls_keyfile is not None:
        yield from doubts_about(settings.tls_certfile, datetime.now(UTC))
    if settings.window_limit_events > settings.stream_maxlen:
        yield (
            f"STALECAST_WINDOW_LIMIT_EVENTS={settings.window_limit_events} is more than "
            f"STALECAST_STREAM_MAXLEN={settings.stream_maxlen}: memory would hold events that Redis has "
            "dropped"
        )


def _told(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]) if location else "?"
    field = Settings.model_fields.get(name.lower().removeprefix(ENV_PREFIX.lower()))
    variable = name if field is None or name.isupper() else ENV_PREFIX + name.upper()
    about = f" ({name}: {field.description})" if field is not None and field.description else ""
    return f"{variable}: {message.removeprefix('Value error, ')}{about}"
