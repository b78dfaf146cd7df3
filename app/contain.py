"""One connection's fault is its own: what becomes of an exception that nothing nearer has caught.

Whatever a connection, or one request on it, raises ends here, as one line of log; what peers cause often is
gathered (`LimitedLog`).
"""

import contextlib
import inspect
import logging
import traceback
from collections.abc import Hashable, Iterator
from pathlib import PurePath
from typing import Any, Final

import structlog
import trio

from app.logging import LimitedLog, cut

_limited_log = LimitedLog(structlog.get_logger("stalecast.connection"))


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
    _write(
        f"{what}_failed",
        (type(leaf), where),
        error=type(leaf).__name__,
        detail=cut(repr(leaf)),
        where=where,
        others=len(news) - 1,
        **{name: cut(value) for name, value in about.items()},
    )


def report_refused(reason: str, **about: str) -> None:
    """Log that a connection was ended because its peer asks for more than anybody needs. Raises nothing."""
    _write("connection_refused", reason, reason=reason, **about)


def forget_frames(error: BaseException | None) -> None:
    """Of an exception that was dealt with. From Python 3.12 on some stay in a circle with a frame of theirs
    (contextlib's), and so does what they came by, until the collector comes: OpenSSL's part of a connection
    that was reset."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # Only a function's, which has ended or says that it runs: to clear a coroutine that waits is to
            # end it, in the midst of its cancel scopes.
            if not frame.f_code.co_flags & _MAY_WAIT:
                with contextlib.suppress(RuntimeError):
                    frame.clear()
        error = error.__cause__ or error.__context__


_MAY_WAIT: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

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


def _write(event: str, kind: Hashable, **values: Any) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody reads the log any more: no reason to end
        _limited_log.log(logging.ERROR, event, kind=kind, **values)
