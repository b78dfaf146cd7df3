"""File descriptors: as many as the system gives, and never the last ones for clients.

Whoever connects takes a descriptor, also who never sends a request. At the limit those go first that have
been waiting longest without a request under way; where there are none, the newcomer is turned away. So there
is always one for Redis, and `accept` never fails for want of one, which would keep everybody waiting.
"""

import resource
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

import structlog
import trio

from app.logging import OurWords
from app.settings import Settings

# For Redis (a connection for each group of topics, and some that are being made anew), listeners, logs,
# Trio's own, and connections that were told to go and are not gone yet.
RESERVED_DESCRIPTORS: Final = 128
# Of a process that may have next to none: half of them, rather than no client at all.
RESERVED_SHARE_AT_MOST: Final = 0.5
# Looking for connections without a request means looking at all of them: not for each newcomer.
CUT_AT_ONCE: Final = 64
LOOK_AGAIN_AFTER_S: Final = 0.1

_log = structlog.get_logger("stalecast.process")


def raise_limit() -> int:
    """Takes the soft limit (`ulimit -n`) to the hard one; how many descriptors the process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # Some systems name a hard limit that they do not grant.
            return soft
    return hard


def connections_limit(descriptors: int) -> int:
    """How many connections may be open at a time, of so many descriptors."""
    return descriptors - int(min(RESERVED_DESCRIPTORS, descriptors * RESERVED_SHARE_AT_MOST))


def prepare(settings: Settings) -> int:
    """At start; returns the limit of connections, and says so where it is in the way of the settings."""
    descriptors = raise_limit()
    limit = connections_limit(descriptors)
    if limit < settings.max_clients:
        _log.warning(
            "too_few_descriptors",
            hard_limit=descriptors,
            connections_limit=limit,
            max_clients=settings.max_clients,
            hint=OurWords(
                "STALECAST_MAX_CLIENTS cannot be reached: raise the hard limit (ulimit -Hn, LimitNOFILE=) to "
                f"{settings.max_clients + RESERVED_DESCRIPTORS}, or lower STALECAST_MAX_CLIENTS"
            ),
        )
    return limit


class Cuttable(Protocol):
    @property
    def is_idle(self) -> bool:
        """No request is under way: it has sent none yet, or the last one is answered."""
        ...

    def abort(self) -> None:
        """Closes its socket at once."""
        ...


T = TypeVar("T", bound=Cuttable)


class Connections(Generic[T]):
    """All that are open, oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.cut = 0
        self._open: dict[T, None] = {}
        self._idle: list[T] = []
        self._look_again_at_s = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[T]:
        return iter(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def admit(self, connection: T) -> bool:
        """Takes it in, if need be in the place of one without a request. False: there is no room."""
        if len(self._open) >= self.limit and not self._cut_one():
            return False
        self._open[connection] = None
        return True

    def discard(self, connection: T) -> None:
        self._open.pop(connection, None)

    def _cut_one(self) -> bool:
        while True:
            while self._idle:
                connection = self._idle.pop()
                if connection in self._open and connection.is_idle:
                    del self._open[connection]
                    connection.abort()
                    self.cut += 1
                    return True
            now_s = trio.current_time()
            if now_s < self._look_again_at_s:
                return False
            for connection in self._open:
                if connection.is_idle:
                    self._idle.append(connection)
                    if len(self._idle) == CUT_AT_ONCE:
                        break
            self._idle.reverse()  # the oldest last
            if not self._idle:
                self._look_again_at_s = now_s + LOOK_AGAIN_AFTER_S
                return False
