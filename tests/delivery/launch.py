"""`python -m tests.delivery.launch [BUG] serve ...`: the server as the checker runs it.

What is rare on a quiet machine is made frequent: a fan-out yields after each write, and now and then the
kernel takes only a part of a write, or nothing. `/checker` tells what a process still holds. With a BUG of
planted.py the server has that bug, too. All of it replaces names of `app` before the command line starts;
the product has no hook for it. Workers are started by the same command.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import quart_trio
import trio

from app import cli, process
from app.settings import Settings
from app.streams import hub, wire

from .holdings import STATISTICS_PATH, Holdings
from .planted import BUGS

# Of the writes to a socket: how many it takes in part, and as many not at all.
SHORT_SHARE = 0.04


def yield_within_fan_outs() -> None:
    """A dozen clients are fewer than the product writes to in one go."""
    assert hub.WRITES_BETWEEN_YIELDS > 1
    hub.WRITES_BETWEEN_YIELDS = 1


def shorten_writes() -> None:
    """A socket may take less than it is given, whoever reads at its other end."""
    begin = wire.DirectWire.__init__

    def begin_short(self: wire.DirectWire, stream: trio.SocketStream, stuck_timeout_s: float) -> None:
        begin(self, stream, stuck_timeout_s)
        send = self.send_nowait
        assert send is not None

        def send_some(data: bytes | memoryview) -> int:
            drawn = random.random()
            if drawn < SHORT_SHARE:
                raise BlockingIOError
            return send(data[: random.randint(1, len(data))] if drawn < 2 * SHORT_SHARE else data)

        self.send_nowait = send_some

    wire.DirectWire.__init__ = begin_short


def tell_holdings() -> None:
    create = process.create_app

    def create_telling(settings: Settings) -> quart_trio.QuartTrio:
        app = create(settings)

        @app.get(STATISTICS_PATH)
        async def holdings() -> dict[str, Any] | tuple[str, int]:
            services = app.extensions["stalecast"]
            if not services.client.statistics().connected:
                return "it has yet to make its connection to Redis, and the tasks of that", 503
            statistics = services.hub.statistics()
            tasks = sorted(task.name for task in _tasks_below(trio.lowlevel.current_root_task()))
            return asdict(Holdings(os.getpid(), statistics.clients, statistics.topics, tasks))

        return app

    process.create_app = create_telling


def _tasks_below(task: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries if task is not None else ():
        for child in nursery.child_tasks:
            yield child
            yield from _tasks_below(child)


def main() -> None:
    bug = [sys.argv.pop(1)] if sys.argv[1] in BUGS else []
    assert callable(cli.worker_argv)
    cli.worker_argv = lambda: [sys.executable, "-m", "tests.delivery.launch", *bug, "worker"]
    yield_within_fan_outs()
    shorten_writes()
    tell_holdings()
    for one in bug:
        BUGS[one]()
    cli.main()


if __name__ == "__main__":
    main()
