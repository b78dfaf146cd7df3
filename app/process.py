"""Processes: one worker, or several under a supervisor.

The supervisor owns the listening socket, hands it to every worker, forwards signals, starts a crashed worker
again, and lets each worker drain for as long as it needs within the limit. It serves nothing itself.
"""

import ctypes
import os
import signal
import socket
import sys
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio
from hypercorn.trio import serve

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
_PR_SET_PDEATHSIG: Final = 1

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


@dataclass(slots=True)
class _Worker:
    index: int
    process: trio.Process | None = None


class Supervisor:
    """`run` returns when every worker has ended after a signal."""

    def __init__(self, workers: int, argv: list[str], listener: socket.socket, drain_s: float) -> None:
        self._workers = [_Worker(index) for index in range(workers)]
        self._argv = argv
        self._listener = listener
        self._drain_s = drain_s
        self._stopping = False

    async def run(self) -> int:
        """Returns 0, or 1 when a worker had to be killed."""
        killed = False
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                for worker in self._workers:
                    nursery.start_soon(self._keep, worker, nursery.cancel_scope)
                async for number in signals:
                    if number == signal.SIGHUP:
                        # One after the other would need a second listener; a reload is a deploy's business.
                        _log.info("hangup_ignored", hint="deploy a new process instead")
                        continue
                    break
                self._stopping = True
                _log.info("stopping", signal=signal.Signals(number).name, workers=len(self._workers))
                # Nobody accepts any more: refuse at once rather than let clients wait in the backlog.
                self._listener.close()
                for worker in self._workers:
                    _signal(worker, signal.SIGTERM)
                with trio.move_on_after(self._drain_s + END_GRACE_S):
                    while any(_is_running(worker) for worker in self._workers):
                        await trio.sleep(0.05)
                for worker in self._workers:
                    if _is_running(worker):
                        _log.error("worker_killed", worker=worker.index, after_s=self._drain_s + END_GRACE_S)
                        _signal(worker, signal.SIGKILL)
                        killed = True
                nursery.cancel_scope.cancel()
        return 1 if killed else 0

    async def _keep(self, worker: _Worker, _scope: trio.CancelScope) -> None:
        backoff = Backoff(first_s=0.5, limit_s=30.0)
        while not self._stopping:
            started_s = trio.current_time()
            fd = self._listener.fileno()
            worker.process = await trio.lowlevel.open_process(
                self._argv,
                pass_fds=(fd,),
                env={**os.environ, LISTENER_FD_VARIABLE: str(fd)},
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
            _log.info("worker_started", worker=worker.index, pid=worker.process.pid)
            status = await worker.process.wait()
            if self._stopping:
                return
            if trio.current_time() - started_s > HEALTHY_AFTER_S:
                backoff.reset()
            delay_s = backoff.next_s()
            _log.error("worker_crashed", worker=worker.index, status=status, restart_in_s=round(delay_s, 2))
            await trio.sleep(delay_s)


def _is_running(worker: _Worker) -> bool:
    return worker.process is not None and worker.process.poll() is None


def _signal(worker: _Worker, number: signal.Signals) -> None:
    if worker.process is not None and worker.process.poll() is None:
        worker.process.send_signal(number)


def die_with_parent(parent_pid: int) -> None:
    """For `preexec_fn`: have the kernel end this child when its parent ends, however that happens (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it ended before we asked
        os._exit(1)


def worker_argv() -> list[str]:
    return [sys.executable, "-m", "app", "worker"]


def inherited_listener() -> socket.socket:
    """The supervisor's socket, in a worker. Raises KeyError when this is no worker."""
    return socket.socket(fileno=int(os.environ[LISTENER_FD_VARIABLE]))
