"""Child processes that never outlive us: how they are started, waited for and told to end.

On Linux the kernel sends a child SIGTERM when the *thread* that forked it ends (prctl(2), PR_SET_PDEATHSIG).
So children are forked by the main thread, which ends with the process; Trio's own `open_process` forks in a
worker thread that is gone ten seconds later.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import trio

_PR_SET_PDEATHSIG: Final = 1
# Where the kernel cannot tell us (macOS has no pidfd), we look this often.
_LOOK_INTERVAL_S: Final = 0.05


def spawn(
    argv: Sequence[str], *, pass_fds: Sequence[int] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that shares our standard streams. Call it from the main thread. Raises OSError.

    In a session of its own: Ctrl-C, or a platform that signals the whole group, must not end a store that the
    drain still needs. We tell each child when to end.
    """
    return subprocess.Popen(  # noqa: S603 our own commands
        list(argv),
        pass_fds=pass_fds,
        env=env,
        start_new_session=True,
        preexec_fn=partial(_end_with_parent, os.getpid()),
    )


def _end_with_parent(parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it ended before we asked
            os._exit(1)


async def wait_exit(child: subprocess.Popen[bytes]) -> int:
    """Wait for the child's end; returns its status (negative: the signal). May be cancelled and repeated."""
    if hasattr(os, "pidfd_open") and child.poll() is None:
        pidfd = os.pidfd_open(child.pid)
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
    while (status := child.poll()) is None:  # noqa: ASYNC110 nobody tells us
        await trio.sleep(_LOOK_INTERVAL_S)
    return status


async def end(child: subprocess.Popen[bytes], *, within_s: float) -> bool:
    """SIGTERM, then SIGKILL after `within_s`; shielded. Returns whether it ended by itself."""
    ended_by_itself = True
    with trio.CancelScope(shield=True):
        if child.poll() is None:
            child.terminate()
        with trio.move_on_after(within_s) as patience:
            await wait_exit(child)
        if patience.cancelled_caught:
            ended_by_itself = False
            child.kill()
            await wait_exit(child)
    return ended_by_itself
