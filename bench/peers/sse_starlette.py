"""sse-starlette on uvicorn: what most Python services that send events are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench.peers.side import PythonPeer


class SseStarlette(PythonPeer):
    name = "sse-starlette"
    module = "bench.peers.sse_starlette_server"
    packages: ClassVar[Mapping[str, str]] = {
        "sse-starlette": "sse_starlette",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
        "uvloop": "uvloop",
        "httptools": "httptools",
        "redis": "redis",
    }
