"""The limit: a bare loop in Python (`limit_server.py`) shows how close the others are to what is possible."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from bench.peers.side import HEARTBEAT_S, Side
from bench.ports import free_port
from bench.processes import SERVER_CPU, Server


class Limit(Side):
    name = "limit"
    install = ""
    leaves_out: ClassVar[Mapping[str, str]] = {
        "topics": "it serves one topic",
        "resume": "it has no replay",
        "slow": "it closes a client that cannot take a whole write",
    }

    def missing(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version()}

    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        port = free_port()
        module = "bench.peers.limit_server"
        command = [sys.executable, "-m", module, "--port", str(port), "--redis-url", redis_url]
        return Server(self.name, port, command, {}, SERVER_CPU)
