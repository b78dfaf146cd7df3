"""better-sse on Node, with ioredis: an application of both (`better-sse/server.mjs`) over our own streams."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from bench.peers.side import HEARTBEAT_S, Side
from bench.ports import free_port
from bench.processes import SERVER_CPU, Server

PACKAGE = Path(__file__).parent / "better-sse"
LIBRARIES = ("better-sse", "ioredis")


class BetterSse(Side):
    name = "better-sse"
    install = "npm ci --prefix bench/peers/better-sse"

    def missing(self) -> str | None:
        if shutil.which("node") is None:
            return "node is not installed"
        for library in LIBRARIES:
            if not _manifest(library).exists():
                return f"{library} is not in {PACKAGE / 'node_modules'}"
        return None

    def versions(self) -> dict[str, str]:
        node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
        libraries = {library: json.loads(_manifest(library).read_text())["version"] for library in LIBRARIES}
        return {"node": node.strip().removeprefix("v"), **libraries}

    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        port = free_port()
        options = ["--port", str(port), "--redis-url", redis_url, "--heartbeat-s", str(heartbeat_s)]
        command = ["node", str(PACKAGE / "server.mjs"), *options]
        return Server(self.name, port, command, {"NODE_ENV": "production"}, SERVER_CPU)


def _manifest(library: str) -> Path:
    return PACKAGE / "node_modules" / library / "package.json"
