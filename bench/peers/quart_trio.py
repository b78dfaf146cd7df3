"""Quart-Trio on Hypercorn, both as they come: what Stalecast would be without its own way of sending."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from bench.peers.side import PythonPeer


class QuartTrioGenerator(PythonPeer):
    name = "quart-trio"
    module = "bench.peers.quart_trio_server"
    packages: ClassVar[Mapping[str, str]] = {
        "quart": "quart",
        "quart-trio": "quart_trio",
        "hypercorn": "hypercorn",
    }
