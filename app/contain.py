"""One connection's fault is its own: what becomes of an exception that nothing nearer has caught.

Whatever a connection, or one request on it, raises ends here, as one line of log. What peers cause often is
gathered: the first line at once, then one each 10 s that says how many there were.
"""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Final

import structlog
import trio

# One peer can cause so many lines as it likes; nobody reads more than these.
LOG_INTERVAL_S: Final = 10.0
# Kinds that are counted apart. Code has so many places that raise; beyond that they share one count.
KINDS_LIMIT: Final = 64
# An exception's text may hold whatever a peer has sent.
DETAIL_LIMIT_CHARACTERS: Final = 200

_log = structlog.get_logger("stalecast.connection")


@dataclass(slots=True)
class _Count:
    due_s: float
    passed_over: int = 0


@dataclass(slots=True)
class LogLimit:
    """The first of a kind is logged, then one each `interval_s` with the number since."""

    interval_s: float = LOG_INTERVAL_S
    _counts: dict[object, _Count] = field(default_factory=dict[object, _Count])

    def admit(self, kind: object, now_s: float) -> int:
        """How many to report now, this one included; 0: this one is counted for a later line."""
        if kind not in self._counts and len(self._counts) >= KINDS_LIMIT:
            kind = None
        count = self._counts.setdefault(kind, _Count(now_s))
        if now_s < count.due_s:
            count.passed_over += 1
            return 0
        number, count.passed_over = count.passed_over + 1, 0
        count.due_s = now_s + self.interval_s
        return number


_limit = LogLimit()


def report(what: str, error: BaseException, **about: str) -> None:
    """Log one line about an exception, or a group of them, that ended `what` ("connection", "request").

    A peer that broke its connection is no news. Raises nothing.
    """
    expected = _PEER_LEFT if what == "connection" else ()
    news = [leaf for leaf in _leaves(error) if not isinstance(leaf, expected)]
    if not news:
        return
    leaf = news[0]
    where = _where(leaf)
    count = _limit.admit((what, type(leaf), where), trio.current_time())
    if count:
        _write(
            f"{what}_failed",
            error=type(leaf).__name__,
            detail=cut(repr(leaf)),
            where=where,
            others=len(news) - 1,
            count=count,
            **{name: cut(value) for name, value in about.items()},
        )


def report_refused(reason: str, **about: str) -> None:
    """Log that a connection was ended because its peer asks for more than anybody needs. Raises nothing."""
    count = _limit.admit(("refused", reason), trio.current_time())
    if count:
        _write("connection_refused", reason=reason, count=count, **about)


def cut(text: str) -> str:
    """One line of printable ASCII of a bounded length, for a log."""
    text = text[:DETAIL_LIMIT_CHARACTERS]
    return "".join(one if " " <= one <= "~" else ascii(one)[1:-1] for one in text)[:DETAIL_LIMIT_CHARACTERS]


# ssl.SSLError is an OSError. BusyResourceError is none of these: it would be a mistake of ours.
_PEER_LEFT: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            yield from _leaves(inner)  # pyright: ignore[reportUnknownArgumentType]
    else:
        yield error


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f"{PurePath(frames[0].filename).name}:{frames[0].lineno}" if frames else ""


def _write(event: str, **fields: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads the log any more: no reason to end
        _log.error(event, **fields)
