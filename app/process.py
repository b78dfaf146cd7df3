"""Processes: one worker, or several under a supervisor.

The supervisor owns the listening socket, hands it to every worker, forwards signals, starts a crashed worker
again, and lets each worker drain for as long as it needs within the limit. It serves nothing itself.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Final

import structlog
import trio
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]

from app import descriptors
from app.children import end, spawn, wait_exit
from app.listening import url_of
from app.redis_connection import Backoff
from app.services import Services
from app.serving import configure, hypercorn_config, tune_gc
from app.settings import Settings
from app.startup import LISTENER_FD_VARIABLE
from app.web import create_app

# What a process ends with that cannot serve as it is configured: starting it again would not help.
CONFIGURATION_STATUS: Final = 2
# After the drain time a worker has this long to close what is left and end.
END_GRACE_S: Final = 3.0
# A worker that ran this long and then crashed was healthy: it is started again without delay.
HEALTHY_AFTER_S: Final = 10.0

_log = structlog.get_logger("stalecast.process")


# Ctrl-C, Ctrl-\\, and what platforms and service managers send.
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# By default each of these would end the process or halt it, without a word to its clients. Operators of other
# servers send them by habit: to read settings or open logs anew, to add or take workers.
_IGNORED_SIGNALS: Final = (
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


class Signals:
    """What this process is told. To be opened before the first client, and kept open until the last is
    gone."""

    def __init__(self, received: AsyncIterator[int], *, hangup_stops: bool) -> None:
        self._received = received
        self._stopping = trio.Event()
        self._hangup_stops = hangup_stops

    async def wait_told_to_stop(self) -> None:
        await self._stopping.wait()

    async def run(self) -> None:
        """Until cancelled. The first signal to stop counts; further ones change nothing, because tools and
        platforms send a group and its members the same one twice."""
        async for number in self._received:
            name = signal.Signals(number).name
            if number in _STOP_SIGNALS or (number == signal.SIGHUP and self._hangup_stops):
                if self._stopping.is_set():
                    _log.info(
                        "already_stopping", signal=name, hint="SIGKILL would cut the clients that are left"
                    )
                else:
                    _log.info("stopping", signal=name)
                    self._stopping.set()
            elif number == signal.SIGHUP:
                # Replacing workers one after the other is a deploy's business.
                _log.info("hangup_ignored", hint="settings are read at start: deploy a new process instead")
            else:
                _log.info("signal_ignored", signal=name)


@contextmanager
def open_signals() -> Generator[Signals]:
    # `nohup` has SIGHUP ignored; otherwise it tells a process on a terminal that the terminal is gone, which
    # is one way to end what runs there. Elsewhere it means "read your configuration".
    hangup_stops = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    with trio.open_signal_receiver(*_STOP_SIGNALS, *_IGNORED_SIGNALS) as received:
        yield Signals(received, hangup_stops=hangup_stops)


def _has_terminal() -> bool:
    return any(os.isatty(stream.fileno()) for stream in (sys.__stdin__, sys.__stderr__) if stream is not None)


async def run_worker(settings: Settings, listener: socket.socket) -> int:
    """Serve on `listener` until told to stop, then drain. Returns the process's exit status."""
    configure(settings, descriptors.prepare(settings))
    app = create_app(settings)
    services: Services = app.extensions["stalecast"]
    url = url_of(listener, is_tls=settings.tls_certfile is not None)
    config = hypercorn_config(settings, [f"fd://{listener.detach()}"])
    with open_signals() as signals:

        async def serve_it(task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED) -> None:
            await serve(app, config, shutdown_trigger=signals.wait_told_to_stop, task_status=task_status)  # pyright: ignore[reportArgumentType]
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(signals.run)
            await nursery.start(serve_it)
            tune_gc()
            _log.info("serving", pid=os.getpid(), url=url)
    return 1 if services.failed else 0


class Supervisor:
    """`run` returns when every worker has ended after a signal, or when one says that it cannot serve as it
    is configured."""

    def __init__(self, workers: int, argv: list[str], listener: socket.socket, drain_s: float) -> None:
        self._workers = workers
        self._argv = argv
        self._listener = listener
        self._drain_s = drain_s
        self._stop = trio.Event()
        self._started_s: dict[int, float] = {}
        self._status = 0

    async def run(self) -> int:
        """Returns 0, 1 when a worker had to be killed, or CONFIGURATION_STATUS."""
        with open_signals() as signals:
            async with trio.open_nursery() as told:
                told.start_soon(signals.run)
                told.start_soon(self._stop_when_told, signals)
                async with trio.open_nursery() as nursery:
                    for index in range(self._workers):
                        nursery.start_soon(self._keep, index)
                told.cancel_scope.cancel()
        return self._status

    async def _stop_when_told(self, signals: Signals) -> None:
        await signals.wait_told_to_stop()
        self._end_all()

    def _end_all(self) -> None:
        # Nobody accepts any more: refuse at once rather than let clients wait in the backlog.
        self._listener.close()
        self._stop.set()

    async def _keep(self, index: int) -> None:
        """Run worker `index`, again and again, until told to stop; then let it drain."""
        backoff = Backoff(first_s=0.5, limit_s=30.0)
        while not self._stop.is_set():
            started_s = trio.current_time()
            fd = self._listener.fileno()
            try:
                child = spawn(self._argv, pass_fds=(fd,), env={**os.environ, LISTENER_FD_VARIABLE: str(fd)})
            except OSError as error:  # too many processes or descriptors now: the others go on serving
                delay_s = backoff.next_s()
                _log.error("worker_not_started", worker=index, error=str(error), again_in_s=round(delay_s, 2))
                with trio.move_on_after(delay_s):
                    await self._stop.wait()
                continue
            self._started_s[index] = started_s
            _log.info("worker_started", worker=index, pid=child.pid)
            await self._wait_exit_or_stop(child)
            if self._stop.is_set():
                if not await end(child, within_s=self._drain_s + END_GRACE_S):
                    _log.error("worker_killed", worker=index, after_s=self._drain_s + END_GRACE_S)
                    self._status = self._status or 1
                return
            del self._started_s[index]
            if child.returncode == CONFIGURATION_STATUS and not self._others_are_healthy():
                _log.error("worker_misconfigured", worker=index, hint="its own words are above")
                self._status = CONFIGURATION_STATUS
                self._end_all()
                return
            if trio.current_time() - started_s > HEALTHY_AFTER_S:
                backoff.reset()
            delay_s = backoff.next_s()
            _log.error(
                "worker_crashed", worker=index, status=child.returncode, restart_in_s=round(delay_s, 2)
            )
            with trio.move_on_after(delay_s):
                await self._stop.wait()

    def _others_are_healthy(self) -> bool:
        """Then the mistake came later (a certificate that is just being replaced), and the clients of the
        others are not to suffer for it."""
        now_s = trio.current_time()
        return any(now_s - started_s > HEALTHY_AFTER_S for started_s in self._started_s.values())

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
