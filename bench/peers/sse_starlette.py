"""sse-starlette on uvicorn: what most Python services that send events are made of."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from bench.peers.side import HEARTBEAT_S, PIP_INSTALL, Side
from bench.processes import SERVER_CPU, Server, free_port


class SseStarlette(Side):
    name = "sse-starlette"
    install = PIP_INSTALL
    # Import names by the names that they are installed under.
    modules: ClassVar[Mapping[str, str]] = {
        "sse-starlette": "sse_starlette",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "uvloop": "uvloop",
        "httptools": "httptools",
        "redis": "redis",
    }

    def missing(self) -> str | None:
        absent = [package for package, module in self.modules.items() if find_spec(module) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def versions(self) -> dict[str, str]:
        return {package: metadata.version(package) for package in self.modules}

    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        port = free_port()
        module = "bench.peers.sse_starlette_server"
        arguments = ["--port", str(port), "--redis-url", redis_url, "--heartbeat-s", str(heartbeat_s)]
        return Server(self.name, port, [sys.executable, "-m", module, *arguments], {}, SERVER_CPU)
