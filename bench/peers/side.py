"""What every side of a comparison tells the bench: how to start it, publish to it and subscribe to it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from bench.ports import free_port
from bench.processes import SERVER_CPU, Server
from bench.publisher import DEFAULT_REASON, Publisher, RedisPublisher

PIP_INSTALL = "pip install --require-hashes -r requirements-bench.txt"
HEARTBEAT_S = 15  # every side is told to send one this often, so that all do the same work


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a subscriber speaks to a side."""

    path_prefix: str = "/v1/sse/"  # the topic follows
    # The start of a line of the stream's first block: with that block a subscriber counts as connected.
    greeting_mark: bytes = b"\nid:"


class Side(ABC):
    name: ClassVar[str]
    install: ClassVar[str]  # the command that makes it available
    dialect: ClassVar[Dialect] = Dialect()
    # Scenarios in which it has no part, by name, and why.
    leaves_out: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def missing(self) -> str | None:
        """What is not installed, in words; None when it can run."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Of what its speed depends on, by name; only asked when nothing is missing."""

    @abstractmethod
    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        """Starts it on a free port, with one process that serves, on the server's core; does not wait until
        it is ready. `folder` is empty and its own for as long as it runs."""

    def publisher(self, redis_url: str, server: Server, reason: bytes = DEFAULT_REASON) -> Publisher:
        return RedisPublisher(redis_url, reason)


class PythonPeer(Side):
    """One whose server is a module of ours that takes --port, --redis-url and --heartbeat-s."""

    install = PIP_INSTALL
    module: ClassVar[str]
    packages: ClassVar[Mapping[str, str]]  # import names by the names that they are installed under

    def missing(self) -> str | None:
        absent = [package for package, name in self.packages.items() if find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    def versions(self) -> dict[str, str]:
        return {package: metadata.version(package) for package in self.packages}

    def start(self, redis_url: str, folder: Path, heartbeat_s: int = HEARTBEAT_S) -> Server:
        port = free_port()
        arguments = ["--port", str(port), "--redis-url", redis_url, "--heartbeat-s", str(heartbeat_s)]
        return Server(self.name, port, [sys.executable, "-m", self.module, *arguments], {}, SERVER_CPU)
