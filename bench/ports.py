"""Ports for servers that are about to be started."""

import socket
import sys
from collections import deque
from typing import Final

HOST: Final = "127.0.0.1"
# A measurement starts fewer servers; what is older has long been bound, or is not needed any more.
RESERVED_LIMIT: Final = 64

_reserved: deque[socket.socket] = deque()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on and that the kernel gives to nobody else meanwhile.

    A socket of ours stays bound to it, without listening. On Linux a server that sets SO_REUSEADDR, as all
    do, may bind it all the same, now and when it is started again; whoever asks for port 0, or connects from
    a port of the kernel's choice, gets another one. Elsewhere the port is only likely to stay free.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((HOST, 0))
    port = int(sock.getsockname()[1])
    if sys.platform != "linux":
        sock.close()
        return port
    _reserved.append(sock)
    if len(_reserved) > RESERVED_LIMIT:
        _reserved.popleft().close()
    return port
