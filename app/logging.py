"""structlog: JSON for machines, colours for a terminal, one line an event.

A process that serves has everything else end here, too: what libraries log, warnings, and exceptions that
nobody caught.
"""

import logging
import os
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, TextIO

import structlog

from app.settings import ENV_PREFIX, Settings

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

_log = structlog.get_logger("stalecast.process")


def configure_logging(settings: Settings) -> None:
    _configure(settings.log_format, _LEVELS[settings.log_level])


def configure_early_logging(environment: Mapping[str, str] = os.environ) -> None:
    """For what goes wrong before there are settings."""
    _configure(environment.get(f"{ENV_PREFIX}LOG_FORMAT", "auto").strip().lower(), logging.INFO)


def _configure(log_format: str, level: int) -> None:
    as_json = log_format == "json" or (log_format != "console" and not _is_terminal())
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if as_json else structlog.processors.StackInfoRenderer(),
            renderer,
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
    not end what is logged about: then lines are lost."""

    def msg(self, message: str) -> None:
        file: TextIO | None = sys.stderr  # None: started with 2>&-
        if file is None:
            return
        try:
            file.write(message + "\n")
            file.flush()
        except (OSError, ValueError):
            pass

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


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
