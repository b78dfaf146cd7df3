"""Quart-Trio on Hypercorn, both as they come: what Stalecast would be without its own way of sending."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from bench.peers.side import HEARTBEAT_S, PIP_INSTALL, Side
from bench.processes import SERVER_CPU, Server, free_port


class QuartTrioGenerator(Side):
    name = "quart-trio"
    install = PIP_INSTALL
    # Import names by the names that they are installed under.
    modules: ClassVar[Mapping[str, str]] = {
        "quart": "quart",
        "quart-trio": "quart_trio",
        "hypercorn": "hypercorn",
    }

    def missing(self) -> str | None:
        absent = [package for package, module in self.modules.items() if find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def versions(self) -> dict[str, str]:
        return {package: metadata.version(package) for package in self.modules}

    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        port = free_port()
        module = "bench.peers.quart_trio_server"
        arguments = ["--port", str(port), "--redis-url", redis_url, "--heartbeat-s", str(heartbeat_s)]
        return Server(self.name, port, [sys.executable, "-m", module, *arguments], {}, SERVER_CPU)
