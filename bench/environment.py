"""The machine and the versions that figures belong to."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redis import Redis

from bench import processes

CPU_INFO = Path("/proc/cpuinfo")


def describe(redis_url: str, side_versions: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The machine, and the versions of what speed depends on: the sides' own, Python and the Redis that runs.

    Raises redis.RedisError."""
    machine = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "server_cpu": processes.SERVER_CPU,
        "load_cpu": processes.LOAD_CPU,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],  # ulimit -n
    }
    versions = {"python": platform.python_version(), **side_versions}
    with Redis.from_url(redis_url) as client:
        info: dict[str, Any] = client.info("server")  # pyright: ignore[reportAssignmentType] sync client, typed for both
    if "valkey_version" in info:
        versions["valkey-server"] = info[
            "valkey_version"
        ]  # its redis_version is the one that it stands in for
    else:
        versions["redis-server"] = info.get("redis_version", "?")
    return machine, versions


def _cpu_model() -> str:
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
