"""What is logged is bounded, whatever a peer sends and however often."""

import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from app.logging import (
    KINDS_LIMIT,
    VALUE_LIMIT_CHARS,
    LimitedLog,
    configure_logging,
    cut,
    flush_limited_logs,
)
from app.settings import Settings


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("", 60, ""),
        ("1763900000000-0", 60, "1763900000000-0"),
        ("Mozilla/5.0 (X11; Linux)", 60, "Mozilla/5.0 (X11; Linux)"),
        ("a\nb", 60, "a\\nb"),
        ("\x1b[2J", 60, "\\x1b[2J"),
        ("\x9b2J", 60, "\\x9b2J"),
        ("\u202eabc", 60, "\\u202eabc"),
        ("Zo\xeb", 60, "Zo\\xeb"),
        ("x" * 30, 21, "xx... (30 characters)"),
        ("\xff" * 20, 21, "\\x... (20 characters)"),
    ],
)
def test_what_peers_send_is_made_visible_and_cut(text, limit, expected):
    assert cut(text, limit) == expected


@given(st.text(), st.integers(30, 300))
def test_nothing_exceeds_the_limit_or_reaches_a_terminal(text, limit):
    shown = cut(text, limit)

    assert len(shown) <= limit
    assert shown.isascii()
    assert shown.isprintable()


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("value", ["\xff" * 16_000, b"\xff" * 16_000, "\x1b]0;x" * 4000, "9" * 16_000])
def test_a_line_is_short_whatever_a_client_sent(capsys, log_format, value):
    configure_logging(Settings(log_format=log_format))

    structlog.get_logger("x").info("stream_opened", cursor=value, user_agent=value)

    (line,) = capsys.readouterr().err.splitlines()
    assert len(line.encode()) < 4 * VALUE_LIMIT_CHARS
    assert "\x1b]" not in line
    assert "16000" in line or "20000" in line


class _TooMuch(Exception):
    def __str__(self) -> str:
        return "x" * 100_000 + " the reason"


def test_a_traceback_keeps_its_end(capsys):
    configure_logging(Settings(log_format="json"))

    structlog.get_logger("x").error("failed", exc_info=_TooMuch())

    line = capsys.readouterr().err
    assert len(line) < 20_000
    assert json.loads(line)["exception"].endswith(" the reason")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_first_is_told_at_once_and_then_how_many_there_were():
    clock = Clock()
    with capture_logs() as lines:
        limited = LimitedLog(structlog.get_logger("x"), interval_s=10, clock=clock)
        for number in range(1000):
            limited.warning("stream_refused", number=number)
        clock.now_s += 9.9
        limited.warning("stream_refused", number=1000)
        limited.flush()
        limited.warning("another", number=0)
        clock.now_s += 0.2
        limited.warning("stream_refused", number=1001)
        limited.warning("stream_refused", number=1002)

    told = [(line["event"], line["number"], line.get("times")) for line in lines]
    assert told == [("stream_refused", 0, None), ("another", 0, None), ("stream_refused", 1001, 1001)]


def test_kinds_are_told_apart_until_there_are_too_many():
    clock = Clock()
    with capture_logs() as lines:
        limited = LimitedLog(structlog.get_logger("x"), interval_s=10, clock=clock)
        for _ in range(3):
            for kind in range(10 * KINDS_LIMIT):
                limited.log(logging.ERROR, "failed", kind=kind, number=kind)
        clock.now_s += 10
        limited.flush()

    first, later = lines[: KINDS_LIMIT + 1], lines[KINDS_LIMIT + 1 :]
    assert [line["number"] for line in first] == list(range(KINDS_LIMIT + 1))
    assert [line["times"] for line in later] == [2] * KINDS_LIMIT + [27 * KINDS_LIMIT - 1]
    assert {line["log_level"] for line in lines} == {"error"}
    assert len(limited._told) == KINDS_LIMIT + 1


def test_what_nothing_follows_is_told_all_the_same():
    clock = Clock()
    with capture_logs() as lines:
        limited = LimitedLog(structlog.get_logger("x"), interval_s=10, clock=clock)
        for number in range(5):
            limited.warning("stream_refused", number=number)
        clock.now_s += 10
        flush_limited_logs()
        flush_limited_logs()

    told = [(line["number"], line.get("times")) for line in lines if line["event"] == "stream_refused"]
    assert told == [(0, None), (4, 4)]
