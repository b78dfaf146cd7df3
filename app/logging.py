"""structlog: JSON for machines, colours for a terminal, one line an event.

What peers send ends up here: every value is cut (`cut`), and what they can cause at any rate is told at a
bounded one (`LimitedLog`).

A process that serves has everything else end here, too: what libraries log, warnings, and exceptions that
nobody caught.
"""

import atexit
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from types import TracebackType
from typing import Any, Final, TextIO
from weakref import WeakSet

import structlog

from app.log_output import LogOutput
from app.settings import ENV_PREFIX, Settings

# Longer than any id, address or error of ours; a client's cursor alone may have 16 kB.
VALUE_LIMIT_CHARS: Final = 240
# A traceback quotes what the failing call was given.
TRACEBACK_LIMIT_CHARS: Final = 16_384
# What clients can cause is told at once when it is new, and then this often: often enough to see it go on.
LIMITED_INTERVAL_S: Final = 10.0
# Kinds of line that a log tells apart. Code has so many places that raise; beyond that they share one count.
KINDS_LIMIT: Final = 64

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_log = structlog.get_logger("stalecast.process")


def cut(text: str, limit_chars: int = VALUE_LIMIT_CHARS) -> str:
    """What a peer may have sent, for people to read: visible ASCII (the rest escaped, so that no terminal
    obeys it and no encoding multiplies it), and no longer than `limit_chars` with how much was left out."""
    if len(text) <= limit_chars and text.isascii() and text.isprintable():
        return text
    visible = "".join(
        # No escape is shorter than what it stands for: what is behind the limit is never looked at.
        character if character.isascii() and character.isprintable() else ascii(character)[1:-1]
        for character in text[:limit_chars]
    )
    if len(text) <= limit_chars and len(visible) <= limit_chars:
        return visible
    left_out = f"... ({len(text)} characters)"
    return visible[: max(0, limit_chars - len(left_out))] + left_out


class OurWords(str):
    """A text that no peer has a part in, to be logged in full: what an operator has to do."""

    __slots__ = ()


def _cut_values(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in line.items():
        if isinstance(value, str) and not isinstance(value, OurWords):
            if len(value) > VALUE_LIMIT_CHARS or not value.isascii() or not value.isprintable():
                line[name] = cut(value)
        elif isinstance(value, bytes):
            line[name] = cut(value.decode("latin-1"))
    return line


def _cut_traceback(_logger: object, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    exception: object = line.get("exception")
    if isinstance(exception, str) and len(exception) > TRACEBACK_LIMIT_CHARS:
        # The end says what went wrong.
        line["exception"] = "... " + exception[-TRACEBACK_LIMIT_CHARS:]
    return line


def configure_logging(settings: Settings) -> None:
    _configure(settings.log_format, _LEVELS[settings.log_level])


def configure_early_logging(environment: Mapping[str, str] = os.environ) -> None:
    """For what goes wrong before there are settings."""
    _configure(environment.get(f"{ENV_PREFIX}LOG_FORMAT", "auto").strip().lower(), logging.INFO)


def _configure(log_format: str, level: int) -> None:
    as_json = log_format == "json" or (log_format != "console" and not _is_terminal())
    rendered: list[Any] = (
        [structlog.processors.format_exc_info, _cut_traceback, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.processors.StackInfoRenderer(), structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _cut_values,
            *rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=True,
    )


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # started with 2>&-, or closed since
        return False


class _Lines:
    """A log that nobody takes any more (the terminal was closed, the disk is full, `| head` has ended) must
    not end what is logged about, nor halt it where nobody reads: then lines are lost."""

    def msg(self, message: str) -> None:
        file: TextIO | None = sys.stderr  # None: started with 2>&-
        if file is None:
            return
        try:
            if file is not sys.__stderr__:  # a test's
                file.write(message + "\n")
                file.flush()
                return
            output = _standard_error()
            if output.lost:
                _tell_lost()
            output.write(f"{message}\n".encode(file.encoding, "backslashreplace"))
        except (OSError, ValueError):
            pass

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


@cache
def _standard_error() -> LogOutput:
    assert sys.__stderr__ is not None
    output = LogOutput(sys.__stderr__.fileno(), _tell_lost)
    atexit.register(output.flush)
    return output


def _tell_lost() -> None:
    if lines := _standard_error().take_lost():
        _log.warning("log_lines_lost", lines=lines, hint="whoever reads the log did not, or not fast enough")


def take_over_process() -> None:
    """Have what others print or log become lines of this log. For processes that are ours alone."""
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.INFO, force=True)
    logging.captureWarnings(True)

    def uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
        else:
            _log.critical("crashed", error=repr(error), exc_info=(kind, error, traceback))

    def uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
        error = args.exc_value or args.exc_type()
        uncaught(args.exc_type, error, args.exc_traceback)

    def unraisable(args: Any) -> None:
        error = args.exc_value
        _log.error("exception_ignored", error=repr(error), source=repr(args.object), exc_info=error)

    sys.excepthook = uncaught
    threading.excepthook = uncaught_in_thread
    sys.unraisablehook = unraisable


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # A name is given when its level is one of the five.
        level = max((level for level in _LEVELS.values() if level <= record.levelno), default=logging.DEBUG)
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 the caller's arguments do not fit its words
            text = str(record.msg)
        structlog.get_logger(record.name).log(
            level, text.strip(), logger=record.name, exc_info=record.exc_info or None
        )


@dataclass(slots=True)
class _Told:
    """Of one kind of line: when it was logged last, and what came since."""

    at_s: float
    times: int = 0
    level: int = logging.WARNING
    values: dict[str, Any] = field(default_factory=dict[str, Any])


class LimitedLog:
    """For lines that peers can cause as often as they like: of each event the first is logged at once, then
    one line every `interval_s`, with how many there were since as `times` and the newest one's values.

    `flush_limited_logs` tells what is left when nothing follows; somebody has to call it now and then.
    """

    def __init__(
        self,
        logger: Any,
        interval_s: float = LIMITED_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._clock = clock
        self._told: dict[tuple[str, Hashable], _Told] = {}
        _limited_logs.add(self)

    def warning(self, event: str, **values: Any) -> None:
        self.log(logging.WARNING, event, **values)

    def log(self, level: int, event: str, *, kind: Hashable = None, **values: Any) -> None:
        """`kind`: what else is told apart, of one event; beyond `KINDS_LIMIT` what is new is not."""
        key = (event, kind)
        if key not in self._told and len(self._told) >= KINDS_LIMIT:
            key = (event, None)
        now_s = self._clock()
        told = self._told.setdefault(key, _Told(-math.inf))
        told.times += 1
        told.level, told.values = level, values
        self._tell_if_due(event, told, now_s)

    def flush(self) -> None:
        """Tell what has been held back for long enough."""
        now_s = self._clock()
        for (event, _), told in list(self._told.items()):
            if told.times:
                self._tell_if_due(event, told, now_s)

    def _tell_if_due(self, event: str, told: _Told, now_s: float) -> None:
        if now_s - told.at_s < self._interval_s:
            return
        times, values = told.times, told.values
        told.at_s, told.times, told.values = now_s, 0, {}
        if times > 1:
            values = {**values, "times": times}
        self._logger.log(told.level, event, **values)


_limited_logs: "WeakSet[LimitedLog]" = WeakSet()


def flush_limited_logs() -> None:
    for limited in list(_limited_logs):
        limited.flush()
