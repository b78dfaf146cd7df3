"""Standard error, written to without ever waiting for whoever reads it.

A pipe that nobody reads is full after 64 KB, a halted terminal at once: a write would then stop the event
loop, and with it every client. So lines that cannot go now wait, up to a limit, and a thread that exists only
meanwhile sends them on; beyond the limit they are counted.

O_NONBLOCK belongs to the open file description, which the shell and other processes may share. So a pipe or a
terminal is opened anew through /proc/self/fd (proc(5)), and a socket is told with each send. Where that
cannot be, poll(2) is asked before each piece that a pipe takes whole.
"""

import os
import select
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

# A burst of some thousand clients that come back, faster than the reader is woken; some 600 KB.
LINES_LIMIT: Final = 2000
# Of the time that a platform gives a process to end, which the drain has used already.
EXIT_FLUSH_S: Final = 1.0
# Where poll(2) says that something can be written, and it cannot.
_RETRY_S: Final = 0.05

_Put = Callable[[bytes], int]


class LogOutput:
    """`told_lost`: called when there is room again after lines were lost; asks `take_lost` how many."""

    def __init__(self, fd: int, told_lost: Callable[[], None] = lambda: None) -> None:
        """Raises OSError where `fd` is not open."""
        self._fd, self._put = _open(fd)
        self._told_lost = told_lost
        self._waiting: deque[bytes] = deque()
        self.lost = 0  # lines, of which nobody was told yet
        self._sent_bytes = 0
        self._lock = threading.Lock()  # of whoever writes
        self._sender: threading.Thread | None = None
        self._ending = False
        os.register_at_fork(after_in_child=self._begin_anew)

    def write(self, line: bytes) -> None:
        """Never waits, raises nothing. May be called by any thread, also from within itself (a collection of
        garbage that logs)."""
        if len(self._waiting) >= LINES_LIMIT:
            self.lost += 1
            return
        self._waiting.append(line)
        self._send()

    def take_lost(self) -> int:
        """How many were lost since this was last asked; 0 also as long as there is little room."""
        if len(self._waiting) > LINES_LIMIT // 2:
            return 0
        lost, self.lost = self.lost, 0
        return lost

    def flush(self, within_s: float = EXIT_FLUSH_S) -> None:
        """At the process's end: wait until all is written, but no longer than this."""
        self._ending = True
        end_at_s = time.monotonic() + within_s
        self._send_until(end_at_s)
        if self.lost:
            self._told_lost()
            self._send_until(end_at_s)

    def _send_until(self, end_at_s: float) -> None:
        self._send()
        while self._waiting and (left_s := end_at_s - time.monotonic()) > 0:
            self._wait_writable(left_s)
            self._send()

    def _send(self) -> None:
        # Whoever holds the lock sends what others have added, and looks again once it is given back.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                if not self._send_waiting():
                    self._leave_to_thread()
                    return
            finally:
                self._lock.release()

    def _send_waiting(self) -> bool:
        """Whether all went."""
        while self._waiting:
            line = self._waiting[0]
            try:
                sent = self._put(line)
            except BlockingIOError:
                return False
            except OSError:
                sent = len(line)  # nobody takes it: the terminal was closed, the disk is full, `| head` ended
            self._sent_bytes += sent
            if sent < len(line):
                self._waiting[0] = line[sent:]
            else:
                self._waiting.popleft()
        return True

    def _leave_to_thread(self) -> None:
        if self._sender is not None or self._ending:
            return
        self._sender = threading.Thread(target=self._send_later, name="log", daemon=True)
        try:
            self._sender.start()
        except RuntimeError:  # no more threads: the next line tries again
            self._sender = None

    def _send_later(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._sender = None
                    break
            before = self._sent_bytes
            self._wait_writable(None)
            self._send()
            if self._sent_bytes == before:
                time.sleep(_RETRY_S)
        self._send()  # who wrote a line while this one held the lock has left it
        if self.lost:
            self._told_lost()

    def _wait_writable(self, timeout_s: float | None) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        poll.poll(None if timeout_s is None else timeout_s * 1000)

    def _begin_anew(self) -> None:
        """In a forked child, which has no thread but one, and whose parent sends what waits."""
        self._waiting.clear()
        self.lost, self._lock, self._sender = 0, threading.Lock(), None


def _open(fd: int) -> tuple[int, _Put]:
    """A descriptor to wait for, and what writes as much as goes now or raises BlockingIOError."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):  # systemd's journal
        sock = socket.socket(fileno=os.dup(fd))
        return sock.fileno(), lambda line: sock.send(line, socket.MSG_DONTWAIT)
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        return fd, partial(os.write, fd)  # a file, or /dev/null: both take all at once
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # no /proc, or a terminal that is another user's
        return fd, partial(_put_guarded, fd)
    return own, partial(os.write, own)


def _put_guarded(fd: int, line: bytes) -> int:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError
    return os.write(fd, line[: select.PIPE_BUF])
