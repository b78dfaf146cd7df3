"""What every scenario needs: where Redis is, how large to be, and topics that no other run has used."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from redis import Redis

from bench import wire
from bench.load import Load, Receipts
from bench.processes import LIMIT, Server, running, start_limit, start_stalecast
from bench.publisher import DEFAULT_REASON, Publisher
from bench.report import Outcome, latency_row, ratio_row

UNLINK_KEYS = 1000
RATIO = "ratio"


@dataclass(slots=True)
class Stage:
    """`rounds` is how often a comparison visits each side: A B A B is two."""

    redis_url: str
    quick: bool
    rounds: int
    outcome: Outcome = field(default_factory=Outcome)
    _run_id: str = field(default_factory=lambda: secrets.token_hex(4))
    _topics: list[str] = field(default_factory=list[str])

    def new_topic(self) -> str:
        topic = f"load-{self._run_id}-{len(self._topics)}"
        self._topics.append(topic)
        return topic

    def forget_topics(self) -> None:
        """The Redis may be somebody's own: leave nothing of ours in it."""
        keys = [wire.topic_key(topic) for topic in self._topics]
        with Redis.from_url(self.redis_url) as client:
            for at in range(0, len(keys), UNLINK_KEYS):
                client.unlink(*keys[at : at + UNLINK_KEYS])

    @contextmanager
    def server(self, kind: str, settings: Mapping[str, str] | None = None) -> Generator[Server]:
        start = start_limit(self.redis_url) if kind == LIMIT else start_stalecast(self.redis_url, settings)
        with running(start) as server:
            yield server

    @contextmanager
    def publisher(self, reason: bytes = DEFAULT_REASON) -> Generator[Publisher]:
        publisher = Publisher(self.redis_url, reason)
        try:
            yield publisher
        finally:
            publisher.close()

    @contextmanager
    def load(self, server: Server) -> Generator[Load]:
        load = Load(server.port)
        try:
            yield load
        finally:
            load.close()

    def compare(
        self, label: Mapping[str, object], receipts: Mapping[str, Receipts], ratios: Sequence[str]
    ) -> None:
        """One row a side, the first over the second below them, and every broken promise."""
        rows = {side: latency_row(found) for side, found in receipts.items()}
        for side, row in rows.items():
            self.outcome.rows.append({**label, "side": side, **row})
            self.outcome.check(" ".join([*(str(value) for value in label.values()), side]), receipts[side])
        ours, other = rows.values()
        self.outcome.rows.append({**label, "side": RATIO, **ratio_row(ours, other, ratios)})


def steady(topic: str, events: int, interval_s: float) -> list[tuple[float, str]]:
    """A plan for `Load.run`: one event every `interval_s`."""
    return [(at * interval_s, topic) for at in range(events)]
