"""Processes: one worker, or several under a supervisor.

The supervisor owns the listening socket, hands it to every worker, forwards signals, starts a crashed worker
again, and lets each worker drain for as long as it needs within the limit. It serves nothing itself.
"""

import os
import signal
import socket
import subprocess
import sys
from typing import Final

import structlog
import trio
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]

from app.children import end, spawn, wait_exit
from app.redis_connection import Backoff
from app.services import Services
from app.serving import configure, hypercorn_config, tune_gc
from app.settings import Settings
from app.web import create_app

LISTENER_FD_VARIABLE: Final = "STALECAST_LISTENER_FD"
# After the drain time a worker has this long to close what is left and end.
END_GRACE_S: Final = 3.0
# A worker that ran this long and then crashed was healthy: it is started again without delay.
HEALTHY_AFTER_S: Final = 10.0

_log = structlog.get_logger("stalecast.process")


async def run_worker(settings: Settings, listener: socket.socket) -> int:
    """Serve on `listener` until SIGTERM or SIGINT, then drain. Returns the process's exit status."""
    configure(settings)
    app = create_app(settings)
    services: Services = app.extensions["stalecast"]
    config = hypercorn_config(settings, [f"fd://{listener.detach()}"])
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

        async def wait_told_to_stop() -> None:
            async for number in signals:
                _log.info("stopping", signal=signal.Signals(number).name)
                return

        async def serve_it(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
            await serve(app, config, shutdown_trigger=wait_told_to_stop, task_status=task_status)  # pyright: ignore[reportArgumentType]

        async with trio.open_nursery() as nursery:
            binds = await nursery.start(serve_it)
            tune_gc()
            _log.info("serving", pid=os.getpid(), binds=binds)
    return 1 if services.failed else 0


class Supervisor:
    """`run` returns when every worker has ended after a signal."""

    def __init__(self, workers: int, argv: list[str], listener: socket.socket, drain_s: float) -> None:
        self._workers = workers
        self._argv = argv
        self._listener = listener
        self._drain_s = drain_s
        self._stop = trio.Event()
        self._all_in_time = True

    async def run(self) -> int:
        """Returns 0, or 1 when a worker had to be killed."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                for index in range(self._workers):
                    nursery.start_soon(self._keep, index)
                while (number := await anext(signals)) == signal.SIGHUP:
                    # Replacing workers one after the other is a deploy's business.
                    _log.info("hangup_ignored", hint="deploy a new process instead")
                _log.info("stopping", signal=signal.Signals(number).name, workers=self._workers)
                # Nobody accepts any more: refuse at once rather than let clients wait in the backlog.
                self._listener.close()
                self._stop.set()
        return 0 if self._all_in_time else 1

    async def _keep(self, index: int) -> None:
        """Run worker `index`, again and again, until told to stop; then let it drain."""
        backoff = Backoff(first_s=0.5, limit_s=30.0)
        while not self._stop.is_set():
            started_s = trio.current_time()
            fd = self._listener.fileno()
            child = spawn(self._argv, pass_fds=(fd,), env={**os.environ, LISTENER_FD_VARIABLE: str(fd)})
            _log.info("worker_started", worker=index, pid=child.pid)
            await self._wait_exit_or_stop(child)
            if self._stop.is_set():
                if not await end(child, within_s=self._drain_s + END_GRACE_S):
                    _log.error("worker_killed", worker=index, after_s=self._drain_s + END_GRACE_S)
                    self._all_in_time = False
                return
            if trio.current_time() - started_s > HEALTHY_AFTER_S:
                backoff.reset()
            delay_s = backoff.next_s()
            _log.error(
                "worker_crashed", worker=index, status=child.returncode, restart_in_s=round(delay_s, 2)
            )
            with trio.move_on_after(delay_s):
                await self._stop.wait()

    async def _wait_exit_or_stop(self, child: subprocess.Popen[bytes]) -> None:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await self._stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            await wait_exit(child)
            nursery.cancel_scope.cancel()


def worker_argv() -> list[str]:
    return [sys.executable, "-m", "app", "worker"]


def inherited_listener() -> socket.socket:
    """The supervisor's socket, in a worker. Raises KeyError when this is no worker."""
    return socket.socket(fileno=int(os.environ[LISTENER_FD_VARIABLE]))
