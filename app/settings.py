"""Every knob, with its unit in its name. Read from the environment (STALECAST_*), checked at start-up.

What a variable alone can get wrong is refused here. app/startup.py looks further: at files, at what does not
go together, and at variables that are none of these.
"""

import os
from functools import cached_property
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticUseDefault
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.cors import ANY, parse_origin

# With 1/15 of it, by which a heartbeat may be late, below the 5 s after which some client libraries (httpx,
# okhttp-eventsource, launchdarkly-eventsource) take a silent stream for dead. 5000 idle clients cost 1.9% of
# a core at 4 s and 0.4% at 15 s.
HEARTBEAT_INTERVAL_S: Final = 4.0
# Longer than this, and proxies and browsers' clients (client.py, client/) may take a silent stream for dead.
HEARTBEAT_INTERVAL_LONGEST_S: Final = 15.0
ENV_PREFIX: Final = "STALECAST_"
# An empty variable is as good as none, save here: no origin at all is something one may want.
_MEANT_WHEN_EMPTY: Final = "cors_allow_origins"
# By unit: more than this, or less, is a slip of the pen, and near to where C code overflows. (What is told to
# a browser in ms may be doubled, and its timer takes 31 bits.)
_MOST: Final = {"_per_s": 1e6, "_s": 86_400.0, "_ms": 86_400_000, "_bytes": 1 << 44, "": 1_000_000_000}
_LEAST_S: Final = 0.001
# What a file or an editor leaves around a token; no header could carry it.
_BLANKS: Final = " \t\r\n\v\f"
_LEVEL_NAMES: Final = {"warn": "warning", "critical": "error", "fatal": "error"}


class Settings(BaseSettings):
    """Raises pydantic.ValidationError when a variable cannot be used, without the variable's value in its
    text; startup.py turns that into plain words."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # -- Redis
    redis_url: str | None = Field(
        None,
        validation_alias=AliasChoices("STALECAST_REDIS_URL", "REDIS_URL", "redis_url"),
        description="redis://, rediss:// or unix://. Without it, `stalecast serve` runs an embedded Valkey.",
    )
    redis_timeout_s: float = Field(5.0, gt=0, description="How long Redis may take to connect or to answer.")
    redis_waiting_limit_calls: int = Field(20_000, ge=1, description="Calls that may wait for Redis at once.")
    tail_group_limit_topics: int = Field(64, ge=1, description="Topics that one blocking XREAD names.")
    tail_limit_connections: int = Field(
        16,
        ge=1,
        description="Redis connections for live reading; with more topics, each one reads more of them.",
    )
    tail_read_limit_events: int = Field(500, ge=1, description="Events of a topic that one XREAD returns.")

    # -- publishing
    publish_token: SecretStr | None = Field(None, description="Bearer token of POST /v1/topics/{id}/events.")
    stream_maxlen: int = Field(1000, ge=1, description="Events a topic keeps for replay (XADD MAXLEN ~).")
    max_event_bytes: int = Field(4096, ge=64, le=1 << 20, description="Largest event accepted, as JSON.")
    events_module: str | None = Field(
        None, description="Python module whose `register(registry)` adds types."
    )

    # -- streams
    retry_ms: int = Field(2000, ge=0, description="Least reconnect delay; up to twice that, drawn a client.")
    heartbeat_interval_s: float = Field(
        HEARTBEAT_INTERVAL_S,
        gt=0,
        description="A silent stream gets a comment this often. Clients expect one within 15 s.",
    )
    replay_page_events: int = Field(200, ge=1, description="Events that one replay read asks Redis for.")
    window_limit_events: int = Field(256, ge=0, description="Newest events of a topic kept in memory.")
    windows_limit_mb: int = Field(
        256, ge=1, description="Memory that the newest events of all topics may take, for each worker."
    )
    backlog_limit_events: int = Field(
        256, ge=1, description="Events that may wait for a client that is behind."
    )
    unreadable_gather_s: float = Field(
        1.0,
        ge=0,
        description="After an entry that cannot be read (a foreign writer's), its topic pauses this long, so "
        "that many of them become one `reload_required`.",
    )
    stuck_timeout_s: float = Field(30.0, gt=0, description="A client that takes no byte this long is cut.")
    topic_linger_s: float = Field(
        10.0, ge=0, description="A topic is still read this long after its last client."
    )
    max_clients: int = Field(
        10_000, ge=1, description="Streams per worker; further ones are sent away to retry."
    )
    first_bytes_timeout_s: float = Field(
        1.0, gt=0, description="If Redis takes longer, the stream opens without a position and gets it later."
    )

    # -- HTTP
    cors_allow_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=lambda: [] if _is_set_to_nothing(_MEANT_WHEN_EMPTY) else ["*"],
        description="Origins that may read streams, separated by commas, and with credentials; `*` for all, "
        "without.",
    )
    demo: bool | None = Field(
        None, description="Serve the demo page at /. Default: with the embedded store only."
    )
    keep_alive_timeout_s: float = Field(
        # Heroku's router keeps its connections 90 s, an AWS load balancer 60 s. Whoever closes first may cut
        # a request that is on its way, so it should be they.
        100.0,
        gt=0,
        description="An idle HTTP connection is closed after this.",
    )
    request_head_timeout_s: float = Field(
        10.0, gt=0, description="A new connection must send a request in this."
    )
    backlog_limit_connections: int = Field(
        4096, ge=1, description="Connections that may wait to be accepted."
    )
    tls_certfile: str | None = Field(None, description="PEM: the server's certificate and its chain.")
    tls_keyfile: str | None = Field(None, description="PEM: its private key, without a passphrase.")

    # -- process
    drain_s: float = Field(
        25.0, gt=0, description="Time to send all clients away on SIGTERM (platforms kill at 30)."
    )
    drain_rate_clients_per_s: float = Field(500.0, gt=0, description="Fastest pace of sending clients away.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged: this, and what is worse."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: console on a terminal, else json."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _default_if_blank(cls, value: object, info: ValidationInfo) -> object:
        # `STALECAST_PUBLISH_TOKEN=` means none, not the empty token; `STALECAST_MAX_CLIENTS=` the default
        if isinstance(value, str) and not value.strip() and info.field_name != _MEANT_WHEN_EMPTY:
            raise PydanticUseDefault
        return value

    @field_validator("*")
    @classmethod
    def _within_reason(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, int | float) and not isinstance(value, bool):
            name = info.field_name or ""
            unit = next(unit for unit in _MOST if name.endswith(unit))
            if value > _MOST[unit]:
                raise ValueError(f"more than {_MOST[unit]:,.0f} cannot be meant")
            if unit == "_s" and 0 < value < _LEAST_S:
                raise ValueError(f"less than {_LEAST_S:g} s cannot be meant")
        return value

    @field_validator("publish_token", mode="before")
    @classmethod
    def _as_sendable(cls, value: object) -> object:
        return clean_token(value) if isinstance(value, str) else value

    @field_validator("redis_url", "events_module", "tls_certfile", "tls_keyfile", mode="before")
    @classmethod
    def _without_line_end(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value  # "$(cat file)", or a file with CRLF

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        name = value.strip().lower()
        return _LEVEL_NAMES.get(name, name)

    @field_validator("cors_allow_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @cached_property
    def cors_origins(self) -> frozenset[str]:
        return frozenset(self.cors_allow_origins)

    @field_validator("cors_allow_origins")
    @classmethod
    def _as_browsers_send_them(cls, value: list[str]) -> list[str]:
        return [origin if origin == ANY else parse_origin(origin) for origin in value]


def _is_set_to_nothing(name: str) -> bool:
    variable = ENV_PREFIX + name.upper()
    return any(key.upper() == variable and not value.strip() for key, value in os.environ.items())


def clean_token(text: str) -> str:
    """The token as a header can carry it: without the line end that `$(cat file)` or a file with CRLF leaves.
    Raises ValueError, whose text does not hold the token, where one would have to guess what was meant."""
    token = text.strip(_BLANKS)
    for position, char in enumerate(token, start=1):
        if "\ud800" <= char <= "\udfff":
            raise ValueError(f"character {position} is not UTF-8: save the token as UTF-8, or use ASCII")
        if not char.isprintable():
            raise ValueError(
                f"character {position} cannot be seen or sent (U+{ord(char):04X}): a token is one line of "
                "printable characters"
            )
    return token
