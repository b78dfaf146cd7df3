"""Stalecast itself."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from app import __version__
from bench.peers.side import HEARTBEAT_S, Side
from bench.ports import free_port
from bench.processes import REPOSITORY, SERVER_CPU, Server

# Stalecast listens before it serves: connections wait, and would count as slow.
READY_PATH = "/readyz"
VERSIONED = ("trio", "hypercorn", "quart", "quart-trio", "h11", "hiredis")


class Stalecast(Side):
    name = "stalecast"
    install = "pip install --require-hashes -r requirements.txt"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """`settings`: STALECAST_* variables."""
        self._settings = dict(settings or {})

    def missing(self) -> str | None:
        return None  # the bench is part of it

    def versions(self) -> dict[str, str]:
        return {"stalecast": __version__, **{name: metadata.version(name) for name in VERSIONED}}

    def start(
        self,
        redis_url: str,
        folder: Path,
        heartbeat_s: int = HEARTBEAT_S,
        *,
        port: int | None = None,
        workers: int = 1,
    ) -> Server:
        port = port or free_port()
        arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
        environment = {"REDIS_URL": redis_url, "STALECAST_HEARTBEAT_INTERVAL_S": str(heartbeat_s)}
        command, folder_of_source = self._command(arguments)
        environment |= self._settings
        return Server(self.name, port, command, environment, SERVER_CPU, READY_PATH, folder=folder_of_source)

    def _command(self, arguments: Sequence[str]) -> tuple[list[str], Path]:
        """And where its source is."""
        return [sys.executable, "-m", "app", *arguments], REPOSITORY
