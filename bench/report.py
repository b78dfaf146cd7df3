"""Figures as people and as machines read them."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from redis import Redis

from bench import processes
from bench.load import Receipts

NS_PER_MS = 1_000_000
THREE_DIGITS = 100  # from here on decimals say nothing
VERSIONED = ("stalecast", "trio", "hypercorn", "quart", "quart-trio", "h11", "redis", "hiredis")


@dataclass(slots=True)
class Outcome:
    """What a scenario found: rows to print, and everything that breaks a promise."""

    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    notes: list[str] = field(default_factory=list[str])
    violations: list[str] = field(default_factory=list[str])

    def check(self, label: str, receipts: Receipts) -> None:
        """Losses and duplicates are violations, and so is whatever makes the count of them meaningless."""
        for name in ("lost", "repeated", "reloads", "cut"):
            count = getattr(receipts, name)
            if count:
                self.violations.append(f"{label}: {name} {count}")


def percentile(ordered: Sequence[int], share: float) -> int:
    """Nearest rank: a value that was measured, never one between two."""
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def latency_row(receipts: Receipts) -> dict[str, Any]:
    ordered = sorted(receipts.latencies_ns)
    row: dict[str, Any] = {}
    for name, share in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("max_ms", 1.0)):
        row[name] = percentile(ordered, share) / NS_PER_MS if ordered else None
    row["span_ms"] = median(receipts.spans_ns) / NS_PER_MS if receipts.spans_ns else None
    row |= {"receipts": len(ordered), "lost": receipts.lost, "repeated": receipts.repeated}
    row |= {"lag_ms": receipts.lag_ns / NS_PER_MS, "busy": receipts.busy}
    row["late_ms"] = receipts.publish_late_ns / NS_PER_MS
    return row


def ratio_row(ours: Mapping[str, Any], limit: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: ours[name] / limit[name] if ours[name] and limit[name] else None for name in names}


def environment(redis_url: str, command: str) -> dict[str, Any]:
    with Redis.from_url(redis_url) as client:
        info: dict[str, Any] = client.info("server")  # pyright: ignore[reportAssignmentType] sync client, typed for both
    versions = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    server_name = "valkey" if "valkey_version" in info else "redis-server"
    versions[server_name] = info.get("valkey_version", info.get("redis_version", "?"))
    return {
        "command": command,
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "server_cpu": processes.SERVER_CPU,
            "load_cpu": processes.LOAD_CPU,
        },
        "versions": versions,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def print_environment(found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        text = value if isinstance(value, str) else ", ".join(f"{key} {item}" for key, item in value.items())
        print(f"{name + ':':<10}{text}")
    print()
    sys.stdout.flush()


def print_outcome(outcome: Outcome) -> None:
    names = list(dict.fromkeys(name for row in outcome.rows for name in row))
    table = [names, *([_text(row.get(name)) for name in names] for row in outcome.rows)]
    widths = [max(len(line[at]) for line in table) for at in range(len(names))]
    for line in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for note in outcome.notes:
        print(note)
    for violation in outcome.violations:
        print(f"VIOLATION {violation}")


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= THREE_DIGITS else f"{value:.3g}"
    return str(value)
