"""What a server under test tells of itself: launch.py has it answer, processes.py asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

STATISTICS_PATH = "/checker"


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one process held when it was asked. `tasks`: Trio's, by the names of their functions."""

    pid: int
    clients: int
    topics: int
    tasks: Sequence[str]

    def beyond(self, idle_tasks: Counter[str]) -> str:
        """What it holds more than one that has nothing to do; empty if nothing."""
        more = Counter(self.tasks) - idle_tasks
        held = {
            "clients": self.clients,
            "topics": self.topics,
            **{f"task {name}": n for name, n in more.items()},
        }
        return ", ".join(f"{count} {name}" for name, count in held.items() if count)
