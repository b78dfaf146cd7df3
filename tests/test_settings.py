"""Settings: what the environment may say, and what is refused at start-up rather than found out later."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.client import SILENCE_TIMEOUT_S
from app.doctor import Limits
from app.settings import HEARTBEAT_INTERVAL_LONGEST_S, Settings
from app.streams.hub import LOOKS_PER_INTERVAL


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    for field in Settings.model_fields:
        monkeypatch.delenv(f"STALECAST_{field.upper()}", raising=False)


@pytest.mark.parametrize("name", ["REDIS_URL", "STALECAST_REDIS_URL"])
def test_redis_is_found_under_both_names(monkeypatch, name):
    monkeypatch.setenv(name, "redis://somewhere")

    assert Settings().redis_url == "redis://somewhere"


def test_our_own_name_wins_over_the_platforms(monkeypatch):
    monkeypatch.setenv("REDIS_URL", "redis://platform")
    monkeypatch.setenv("STALECAST_REDIS_URL", "redis://ours")

    assert Settings().redis_url == "redis://ours"


def test_without_anything_the_defaults_hold():
    settings = Settings()

    assert settings.redis_url is None
    assert settings.publish_token is None
    assert settings.cors_origins == {"*"}
    # Platforms kill 30 s after SIGTERM.
    assert settings.drain_s < 30


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("https://a.example", {"https://a.example"}),
        (" https://a.example , https://b.example,", {"https://a.example", "https://b.example"}),
        ("*", {"*"}),
        ("HTTPS://A.example:443/, https://b.example/", {"https://a.example", "https://b.example"}),
        ("", set()),
    ],
)
def test_origins_are_separated_by_commas(monkeypatch, value, origins):
    monkeypatch.setenv("STALECAST_CORS_ALLOW_ORIGINS", value)

    assert Settings().cors_origins == origins


@pytest.mark.parametrize(
    "value", ["a.example", "https://*.example", "https://a.example/app", "null", "https://a https://b", "* *"]
)
def test_an_origin_that_can_never_match_is_refused(monkeypatch, value):
    monkeypatch.setenv("STALECAST_CORS_ALLOW_ORIGINS", value)

    with pytest.raises(ValidationError, match="cors_allow_origins"):
        Settings()


def test_every_number_has_a_unit_in_its_name():
    units = (
        "_s",
        "_ms",
        "_bytes",
        "_mb",
        "_events",
        "_clients",
        "_topics",
        "_calls",
        "_connections",
        "_maxlen",
    )
    for name, field in Settings.model_fields.items():
        if field.annotation in (int, float):
            assert name.endswith((*units, "_clients_per_s")) or name == "max_clients", name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEARTBEAT_INTERVAL_S", "0"),
        ("HEARTBEAT_INTERVAL_S", "-1"),
        ("HEARTBEAT_INTERVAL_S", "soon"),
        ("HEARTBEAT_INTERVAL_S", "nan"),
        ("STUCK_TIMEOUT_S", "inf"),
        ("STUCK_TIMEOUT_S", "nan"),
        ("DRAIN_S", "nan"),
        ("DRAIN_S", "0"),
        ("STREAM_MAXLEN", "0"),
        ("BACKLOG_LIMIT_EVENTS", "0"),
        ("MAX_CLIENTS", "0"),
        ("MAX_EVENT_BYTES", "1"),
        ("REPLAY_PAGE_EVENTS", "0"),
        ("LOG_LEVEL", "loud"),
        ("DEMO", "perhaps"),
    ],
)
def test_a_value_that_cannot_work_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(f"STALECAST_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_the_token_is_not_printed(monkeypatch):
    monkeypatch.setenv("STALECAST_PUBLISH_TOKEN", "s3cr3t")

    settings = Settings()

    assert "s3cr3t" not in f"{settings!r} {settings}"
    assert settings.publish_token is not None
    assert settings.publish_token.get_secret_value() == "s3cr3t"


def test_an_empty_token_is_no_token(monkeypatch):
    """`STALECAST_PUBLISH_TOKEN=` in a .env file must not let `Authorization: Bearer ` publish."""
    monkeypatch.setenv("STALECAST_PUBLISH_TOKEN", "")

    try:
        token = Settings().publish_token
    except ValidationError:
        return
    assert token is None


# -- heartbeats: who sends them and who waits for them

CLIENT = Path(__file__).resolve().parents[1] / "client" / "src"


def constant(file: str, name: str) -> float:
    """Of the package for browsers, in seconds."""
    found = re.search(rf"\b{name} = ([0-9_]+)", (CLIENT / file).read_text())
    assert found is not None
    return int(found[1]) / 1000


def test_heartbeats_come_before_the_least_patient_library_gives_up():
    longest_silence_s = Settings().heartbeat_interval_s * (1 + 1 / LOOKS_PER_INTERVAL)

    assert longest_silence_s < Limits().read_timeout_s - 0.5  # and some for the way


def test_our_own_clients_bear_the_rarest_heartbeats():
    rarest_s = HEARTBEAT_INTERVAL_LONGEST_S * (1 + 1 / LOOKS_PER_INTERVAL)
    doubt_s = constant("polling.ts", "doubtMs")

    assert rarest_s < Limits().heartbeat_s < SILENCE_TIMEOUT_S
    # A browser's client doubts the stream, and polls beside it, before it cuts it.
    assert rarest_s < doubt_s < constant("core/transport.ts", "DEFAULT_SILENCE_MS") == SILENCE_TIMEOUT_S
