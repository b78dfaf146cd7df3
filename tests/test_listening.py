"""Where a server listens: what HOST, PORT and --uds may say, and what becomes of a socket file."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app import listening
from app.listening import CannotListen, Listener, TcpAddress, UnixPath, is_loopback, parse_address, url_of
from app.settings import Settings

SETTINGS = Settings(redis_url="redis://127.0.0.1")


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Short enough for a socket address."""
    folder = Path(os.path.realpath(os.environ.get("TMPDIR", "/tmp"))) / f"stalecast-test-{os.getpid()}"
    folder.mkdir()
    try:
        yield str(folder / "http.sock")
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()


@pytest.mark.parametrize(
    ("host", "uds", "address"),
    [
        ("127.0.0.1", None, TcpAddress("127.0.0.1", 80)),
        (" localhost\n", None, TcpAddress("localhost", 80)),
        ("::", None, TcpAddress("::", 80)),
        ("[::1]", None, TcpAddress("::1", 80)),
        ("unix:/run/x.sock", None, UnixPath("/run/x.sock")),
        ("unix:///run/x.sock", None, UnixPath("/run/x.sock")),
        ("127.0.0.1", "/run/x.sock", UnixPath("/run/x.sock")),
        ("127.0.0.1", "x.sock", UnixPath(f"{os.getcwd()}/x.sock")),
    ],
)
def test_an_address_is_written_in_any_usual_way(
    host: str, uds: str | None, address: TcpAddress | UnixPath
) -> None:
    assert parse_address(host, 80, uds) == address


@pytest.mark.parametrize(
    ("host", "uds", "words"),
    [
        ("http://0.0.0.0", None, "write 127.0.0.1"),
        ("/run/x.sock", None, "unix:/path"),
        ("0.0.0.0:8000", None, "--port"),
        ("[::1]:8000", None, "--port"),
        ("unix:", None, "path of the unix socket is missing"),
        ("127.0.0.1", " ", "path of the unix socket is missing"),
    ],
)
def test_what_is_no_address_is_told(host: str, uds: str | None, words: str) -> None:
    with pytest.raises(CannotListen, match=words):
        parse_address(host, 80, uds)


@pytest.mark.parametrize(
    ("host", "loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:{port}"),
        ("127.9.9.9", True, "http://127.9.9.9:{port}"),
        ("localhost", True, "http://127.0.0.1:{port}"),
        ("::1", True, "http://[::1]:{port}"),
        ("0.0.0.0", False, "http://0.0.0.0:{port}"),
        ("0", False, "http://0.0.0.0:{port}"),
        ("::", False, "http://[::]:{port}"),
        ("::ffff:127.0.0.1", True, "http://[::ffff:127.0.0.1]:{port}"),
    ],
)
def test_a_listener_says_where_it_really_listens(host: str, loopback: bool, url: str) -> None:
    try:
        listener = Listener.open(parse_address(host, 0, None), SETTINGS).socket
    except CannotListen:
        if ":" not in host:
            raise
        pytest.skip("no IPv6 here")
    with listener:
        assert url_of(listener, is_tls=False) == url.format(port=listener.getsockname()[1])
        assert listener.getsockname()[1] != 0
        assert url_of(listener, is_tls=True).startswith("https://")
        assert is_loopback(listener) is loopback


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(CannotListen, match=r"ss -ltnp.*--port"),
    ):
        Listener.open(TcpAddress("127.0.0.1", other.getsockname()[1]), SETTINGS)


@pytest.mark.parametrize(
    ("error", "port", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), 80, "are root's"),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), 8000, "no such address"),
        (socket.gaierror(-2, "Name or service not known"), 8000, "--host"),
        (UnicodeError("label empty or too long"), 8000, "--host"),
        (OSError(errno.EMFILE, "Too many open files"), 8000, "Too many open files"),
    ],
)
def test_why_an_address_cannot_be_used_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, port: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(listening, "create_listener", refuse)
    with pytest.raises(CannotListen, match=words):
        Listener.open(TcpAddress("a", port), SETTINGS)


# -- unix sockets


def connect(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


def test_a_socket_file_is_there_for_every_user_and_goes_with_its_server(path: str) -> None:
    listener = Listener.open(UnixPath(path), SETTINGS)
    with listener.socket:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
        assert url_of(listener.socket, is_tls=False) == f"http://unix:{path}"
        assert not is_loopback(listener.socket)  # it is there for a proxy
        connect(path).close()
    listener.remove_file()
    assert not os.path.exists(path)


def test_what_a_killed_server_left_is_replaced(path: str) -> None:
    Listener.open(UnixPath(path), SETTINGS).socket.close()
    with Listener.open(UnixPath(path), SETTINGS).socket:
        connect(path).close()


def test_a_successors_file_stays(path: str) -> None:
    first = Listener.open(UnixPath(path), SETTINGS)
    first.socket.close()  # as at the beginning of a drain
    second = Listener.open(UnixPath(path), SETTINGS)
    with second.socket:
        first.remove_file()
        connect(path).close()
        # It may have the same inode, and the same time.
        replace(first, file=second.file).remove_file()
        connect(path).close()


def test_a_socket_that_is_in_use_is_not_taken_away(path: str) -> None:
    with Listener.open(UnixPath(path), SETTINGS).socket:
        with pytest.raises(CannotListen, match="another server listens there"):
            Listener.open(UnixPath(path), SETTINGS)
        connect(path).close()


def test_what_is_no_socket_stays(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(CannotListen, match="something else is there"):
        Listener.open(UnixPath(path), SETTINGS)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("bad", ["/no/such/folder/x.sock", "/tmp/" + "x" * 120])
def test_a_path_that_cannot_be_used_is_told(bad: str) -> None:
    with pytest.raises(CannotListen, match="the folder must exist"):
        Listener.open(UnixPath(bad), SETTINGS)
