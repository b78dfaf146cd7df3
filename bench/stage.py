"""What every scenario needs: who takes part, how large to be, fresh topics, and a place for what is found."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import ClassVar, Protocol

from redis import Redis

from bench import latency
from bench.load import Load, LoadFailed, Receipts
from bench.peers.side import HEARTBEAT_S, Side
from bench.processes import Server, ServerFailed, running
from bench.publisher import DEFAULT_REASON, Publisher
from bench.results import Leg, Result, Skipped

NS_PER_MS = 1_000_000
UNLINK_KEYS = 1000

Size = Mapping[str, int | str]


class Progress(Protocol):
    def expect(self, legs: int) -> None: ...
    def begin(self, text: str) -> None: ...
    def end(self) -> None: ...


@dataclass(slots=True)
class Stage:
    """`rounds` is how often each side is visited, in turn: A B A B is two."""

    paired: ClassVar[bool] = (
        False  # two builds of one server (bench/against.py): rounds matter more than detail
    )

    redis_url: str
    quick: bool
    rounds: int
    sides: Sequence[Side]
    progress: Progress
    result: Result
    _prefix: str = field(default_factory=lambda: f"load-{secrets.token_hex(4)}-")
    _topics: list[str] = field(default_factory=list[str])
    _visited: list[tuple[Size, str, int]] = field(default_factory=list[tuple[Size, str, int]])

    # -- who, in which order

    def taking_part(self) -> list[Side]:
        """The sides that have a part in this scenario; the others are noted."""
        parts: list[Side] = []
        for side in self.sides:
            why = side.leaves_out.get(self.result.scenario)
            if why is None:
                parts.append(side)
            else:
                self.result.skipped.append(Skipped(side.name, why, None))
        return parts

    @contextmanager
    def leg(self, size: Size, side: Side, round_: int) -> Generator[None]:
        """A peer that breaks down is noted and the run goes on; its leg has no figures."""
        text = f"{self.result.scenario}: {_words(size)}, {side.name}, round {round_ + 1} of {self.rounds}"
        self.progress.begin(text)
        try:
            yield
        except (ServerFailed, LoadFailed) as error:
            if side is self.sides[0]:
                raise
            self.result.notes.append(
                f"{side.name}, {_words(size)}, round {round_ + 1}: not measured: {error}"
            )
        finally:
            self.progress.end()

    def visits(self, sizes: Sequence[Size], sides: Sequence[Side]) -> Iterator[tuple[Size, int, Side]]:
        """Interleaved: a machine that slows down meanwhile slows all of them."""
        self.progress.expect(len(sizes) * self.rounds * len(sides))
        for size in sizes:
            for round_ in range(self.rounds):
                for side in sides:
                    self._visited.append((dict(size), side.name, round_))
                    yield size, round_, side

    def unmeasured(self) -> list[str]:
        """Visits that left no leg with a figure, in words."""
        measured = [(leg.size, leg.side, leg.round) for leg in self.result.legs if leg.figures]
        return [
            f"{side}, {_words(size)}, round {round_ + 1}"
            for size, side, round_ in self._visited
            if (size, side, round_) not in measured
        ]

    # -- what a leg needs

    def new_topic(self) -> str:
        topic = f"{self._prefix}{len(self._topics)}"
        self._topics.append(topic)
        return topic

    def forget_topics(self) -> None:
        """The Redis may be somebody's own: leave nothing of ours in it."""
        self._topics.clear()
        with Redis.from_url(self.redis_url) as client:
            # Not by the names of our streams: nchan keeps keys of its own for each topic.
            keys: list[bytes] = list(client.scan_iter(match=f"*{self._prefix}*", count=UNLINK_KEYS))
            for at in range(0, len(keys), UNLINK_KEYS):
                client.unlink(*keys[at : at + UNLINK_KEYS])

    @contextmanager
    def server(self, side: Side, heartbeat_s: int = HEARTBEAT_S) -> Generator[Server]:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            running(side.start(self.redis_url, Path(folder), heartbeat_s)) as server,
        ):
            yield server

    @contextmanager
    def publisher(self, side: Side, server: Server, reason: bytes = DEFAULT_REASON) -> Generator[Publisher]:
        publisher = side.publisher(self.redis_url, server, reason)
        try:
            yield publisher
        finally:
            publisher.close()

    @contextmanager
    def load(self, side: Side, server: Server) -> Generator[Load]:
        with Load(server.port, side.dialect) as load:
            yield load

    # -- what was found

    def record(
        self,
        size: Size,
        side: Side,
        round_: int,
        figures: Mapping[str, float],
        receipts: Receipts | None = None,
    ) -> None:
        """A leg with violations has no figures."""
        if receipts is not None:
            figures = {**delivery_figures(receipts), **figures}
            if not self.check(size, side, round_, receipts):
                return
            if receipts.saturated:
                self.result.notes.append(
                    f"{side.name}, {_words(size)}, round {round_ + 1}: the load was the limit, not the server"
                )
        encoded = latency.encode(receipts.histogram) if receipts is not None and receipts.received else None
        self.result.legs.append(Leg(dict(size), side.name, round_, dict(figures), encoded))

    def check(self, size: Size, side: Side, round_: int, receipts: Receipts) -> bool:
        """Losses and duplicates are violations, and so is whatever makes the count of them meaningless."""
        broken = [
            f"{side.name}, {_words(size)}, round {round_ + 1}: {name} {count}"
            for name in ("lost", "repeated", "reloads", "cut")
            if (count := getattr(receipts, name))
        ]
        self.result.violations += broken
        return not broken


def _words(size: Size) -> str:
    return ", ".join(f"{value} {name}" for name, value in size.items())


def delivery_figures(receipts: Receipts) -> dict[str, float]:
    if not receipts.received:
        return {}
    return {
        **latency.percentiles(receipts.histogram),
        "span_ms": median(receipts.spans_ns) / NS_PER_MS,
        "receipts": float(receipts.received),
        "late_ms": receipts.publish_late_ns / NS_PER_MS,
        "lag_ms": receipts.lag_ns / NS_PER_MS,
        "busy": receipts.busy,
    }


def steady(topic: str, events: int, interval_s: float) -> list[tuple[float, str]]:
    """A plan for `Load.run`: one event every `interval_s`."""
    return [(at * interval_s, topic) for at in range(events)]
