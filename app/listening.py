"""Where a server listens: an address and port, or a unix socket for a proxy on the same machine."""

import errno
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from app.serving import create_listener
from app.settings import Settings

UNIX_PREFIX: Final = "unix:"
# Who may connect to a port of 127.0.0.1 may connect here; the folder's permissions can say less.
SOCKET_FILE_MODE: Final = 0o666
# Asked whether somebody listens on a socket file; on the same machine it is answered at once.
_PROBE_TIMEOUT_S: Final = 1.0
_FIRST_FREE_PORT: Final = 1024


class CannotListen(Exception):
    """The address or path cannot be used, as it was given or now; the text says what to do."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixPath:
    path: str


def parse_address(host: str, port: int, uds: str | None) -> TcpAddress | UnixPath:
    """What HOST, PORT and --uds say. Raises CannotListen."""
    host = host.strip()
    if uds is None and host.startswith(UNIX_PREFIX):
        uds = host.removeprefix(UNIX_PREFIX)
    if uds is not None:
        path = uds.strip()
        if path.startswith("//"):
            path = "/" + path.lstrip("/")
        if not path:
            raise CannotListen("the path of the unix socket is missing: write --uds /run/stalecast/http.sock")
        return UnixPath(os.path.abspath(path))
    if "/" in host:
        raise CannotListen(f"{host!r} is no address: write 127.0.0.1, 0.0.0.0, ::1 or unix:/path")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare:
        try:
            ipaddress.IPv6Address(bare)
        except ValueError:
            raise CannotListen(
                f"{host!r} is no address: a port is given with --port (or PORT), not with the host"
            ) from None
    return TcpAddress(bare, port)


@dataclass(frozen=True, slots=True)
class Listener:
    """An open listener, to be closed with `close`, which also takes a socket file away that is still ours."""

    socket: socket.socket
    file: "_SocketFile | None" = None

    @classmethod
    def open(cls, address: TcpAddress | UnixPath, settings: Settings) -> Self:
        """Raises CannotListen."""
        match address:
            case TcpAddress(host, port):
                try:
                    return cls(create_listener(host, port, settings))
                except (OSError, ValueError) as error:  # ValueError: a name that no DNS could hold
                    raise CannotListen(_explain(error, host, port)) from error
            case UnixPath(path):
                return cls(*_listen_on(path, settings.backlog_limit_connections))

    def remove_file(self) -> None:
        """Once nobody listens any more. A file that a successor has put in its place stays."""
        if self.file is not None:
            self.file.remove()


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can connect, and that directly. A unix socket is there for a proxy, so what
    it serves may be meant for the world."""
    if listener.family == socket.AF_UNIX:
        return False
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def url_of(listener: socket.socket, *, is_tls: bool) -> str:
    """Where it listens, as one would write it; of a unix socket, as nginx would."""
    scheme = "https" if is_tls else "http"
    if listener.family == socket.AF_UNIX:
        return f"{scheme}://{UNIX_PREFIX}{listener.getsockname()}"
    host, port, *_ = listener.getsockname()
    if listener.family == socket.AF_INET6:
        host = f"[{host.replace('%', '%25')}]"  # RFC 6874
    return f"{scheme}://{host}:{port}"


def _explain(error: OSError | ValueError, host: str, port: int) -> str:
    code = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = f"cannot listen on {where}: {reason}"
    if code == errno.EADDRINUSE:
        return (
            text
            + f"; another server has this port (`ss -ltnp` says which): stop it, or use --port {port + 1}"
        )
    if code in (errno.EACCES, errno.EPERM) and 0 < port < _FIRST_FREE_PORT:
        return text + f"; ports below {_FIRST_FREE_PORT} are root's: use --port 8000 behind a proxy"
    if code == errno.EADDRNOTAVAIL:
        return text + "; this machine has no such address: 0.0.0.0 or :: stands for all that it has"
    if isinstance(error, socket.gaierror | UnicodeError):
        return text + "; --host (or HOST) is an address or a name of this machine"
    return text


# -- unix sockets


@dataclass(frozen=True, slots=True)
class _SocketFile:
    path: str
    made: tuple[int, int, int]

    @classmethod
    def of(cls, path: str) -> Self:
        return cls(path, _made(path))

    def remove(self) -> None:
        # The number of an inode is soon given again, so somebody is also asked for.
        with suppress(OSError):
            if _made(self.path) == self.made and not _is_listened_on(self.path):
                os.unlink(self.path)


def _made(path: str) -> tuple[int, int, int]:
    found = os.stat(path, follow_symlinks=False)
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _is_listened_on(path: str) -> bool:
    """Raises OSError where that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
    return True


def _listen_on(path: str, backlog: int) -> tuple[socket.socket, _SocketFile]:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear_away(path)
        listener.bind(path)
        os.chmod(path, SOCKET_FILE_MODE)
        file = _SocketFile.of(path)
        listener.listen(backlog)
        listener.setblocking(False)
        listener.set_inheritable(True)
    except (OSError, ValueError) as error:
        listener.close()
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CannotListen(
            f"cannot listen on {UNIX_PREFIX}{path}: {reason}; the folder must exist, this user must be "
            "allowed to write there, and the path must be short (about 100 characters)"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener, file


def _clear_away(path: str) -> None:
    """A socket file stays behind where a server was killed. Raises CannotListen if it is more than that."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"cannot listen on {UNIX_PREFIX}{path}: something else is there; use another path")
    if _is_listened_on(path):
        raise CannotListen(
            f"cannot listen on {UNIX_PREFIX}{path}: another server listens there; stop it, or use another "
            "path"
        )
    os.unlink(path)
