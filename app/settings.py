"""Every knob, with its unit in its name. Read from the environment (STALECAST_*), checked at start-up."""

from functools import cached_property
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.cors import ANY, parse_origin

# With 1/15 of it, by which a heartbeat may be late, below the 5 s after which some client libraries (httpx,
# okhttp-eventsource, launchdarkly-eventsource) take a silent stream for dead. 5000 idle clients cost 1.9% of
# a core at 4 s and 0.4% at 15 s.
HEARTBEAT_INTERVAL_S: Final = 4.0
# Longer than this, and proxies and browsers' clients (client.py, client/) may take a silent stream for dead.
HEARTBEAT_INTERVAL_LONGEST_S: Final = 15.0


class Settings(BaseSettings):
    """Raises pydantic.ValidationError when a variable cannot be used; the CLI turns that into plain words."""

    model_config = SettingsConfigDict(
        env_prefix="STALECAST_",
        extra="ignore",
        populate_by_name=True,
        allow_inf_nan=False,
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
    tail_read_limit_events: int = Field(500, ge=1, description="Events of a topic that one XREAD returns.")

    # -- publishing
    publish_token: SecretStr | None = Field(None, description="Bearer token of POST /v1/topics/{id}/events.")
    stream_maxlen: int = Field(1000, ge=1, description="Events a topic keeps for replay (XADD MAXLEN ~).")
    max_event_bytes: int = Field(4096, ge=64, description="Largest event accepted, as JSON.")
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
    backlog_limit_events: int = Field(
        256, ge=1, description="Events that may wait for a client that is behind."
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
        ["*"],
        description="Origins that may read streams, separated by commas, and with credentials; `*` for all, "
        "without.",
    )
    demo: bool | None = Field(
        None, description="Serve the demo page at /. Default: with the embedded store only."
    )
    demo_token: bool = Field(False, description="The token was drawn for the demo page, which may show it.")
    keep_alive_timeout_s: float = Field(
        75.0, gt=0, description="An idle HTTP connection is closed after this."
    )
    request_head_timeout_s: float = Field(
        10.0, gt=0, description="A new connection must send a request in this."
    )
    backlog_limit_connections: int = Field(
        4096, ge=1, description="Connections that may wait to be accepted."
    )
    tls_certfile: str | None = None
    tls_keyfile: str | None = None

    # -- process
    drain_s: float = Field(
        25.0, gt=0, description="Time to send all clients away on SIGTERM (platforms kill at 30)."
    )
    drain_rate_clients_per_s: float = Field(500.0, gt=0, description="Fastest pace of sending clients away.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @field_validator("redis_url", "publish_token", "events_module", "demo", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return None if value == "" else value  # `STALECAST_PUBLISH_TOKEN=` means none, not the empty token

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
