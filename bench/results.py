"""What a run found, as values and as a file: one `Leg` for each visit to each side, nothing averaged away.

Only this file knows the layout of `bench/results/*.json`. Everything that is shown (table, plots, report,
comparison) is worked out from legs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Leg:
    """One visit: one side, one size, one round, a server process of its own."""

    size: Mapping[str, int | str]  # what the scenario varied: {"subscribers": 1000}
    side: str
    round: int
    figures: Mapping[str, float]  # by name; the name ends in its unit (bench/figures.py)
    histogram: str | None = None  # every latency in us: HdrHistogram V2, compressed, base64


@dataclass(frozen=True, slots=True)
class Skipped:
    side: str
    why: str
    install: str | None  # the command that makes it available, if that is what is missing


@dataclass(slots=True)
class Result:
    scenario: str
    quick: bool
    rounds: int
    command: str = ""
    started_at: str = ""  # ISO 8601, UTC
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    legs: list[Leg] = field(default_factory=list[Leg])
    skipped: list[Skipped] = field(default_factory=list[Skipped])
    notes: list[str] = field(default_factory=list[str])
    violations: list[str] = field(default_factory=list[str])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


class UnreadableResult(Exception):
    """The file is not a result of this bench, or of another version of it."""


def read(path: Path) -> Result:
    """Raises `UnreadableResult` or OSError."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if found.pop("format") != FORMAT:
            raise UnreadableResult(f"{path}: another version of the bench wrote it; run that scenario again")
        found["legs"] = [Leg(**leg) for leg in found["legs"]]
        found["skipped"] = [Skipped(**skipped) for skipped in found["skipped"]]
        return Result(**found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableResult(f"{path}: not a result of this bench ({error!r})") from error
