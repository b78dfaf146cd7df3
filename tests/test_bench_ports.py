"""The ports that the bench starts its servers on."""

import socket
import sys

import pytest

from app.serving import create_listener
from app.settings import Settings
from bench.ports import HOST, RESERVED_LIMIT, free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port is not reserved")


def test_a_free_port_refuses_until_its_server_listens_and_again_when_that_is_gone() -> None:
    port = free_port()
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with create_listener(HOST, port, Settings(_env_file=None)):
            socket.create_connection((HOST, port)).close()


def test_a_free_port_is_given_to_nobody_else() -> None:
    """Neither to a server that takes any port, nor to an outgoing connection."""
    free = {free_port() for _ in range(RESERVED_LIMIT)}
    assert len(free) == RESERVED_LIMIT
    with socket.create_server((HOST, 0)) as listener:
        for port in free:
            with socket.socket() as sock, pytest.raises(OSError, match="in use"):
                sock.bind((HOST, port))
        taken = set()
        for _ in range(500):
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((HOST, 0))
                taken.add(sock.getsockname()[1])
        for _ in range(200):
            with socket.create_connection(listener.getsockname()) as connection:
                taken.add(connection.getsockname()[1])
                listener.accept()[0].close()
    assert not taken & free
