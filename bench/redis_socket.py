"""A plain blocking socket to Redis, logged in and on its database: the cheapest way to speak to it."""

from __future__ import annotations

import socket
from typing import Any

import hiredis
from redis.connection import parse_url

CONNECT_TIMEOUT_S = 5
READ_BYTES = 65536
DEFAULT_PORT = 6379


def open_redis(redis_url: str) -> socket.socket:
    """Takes `redis://` and `unix://` URLs. Raises `hiredis.HiredisError` if Redis refuses the login."""
    options: dict[str, Any] = dict(parse_url(redis_url))
    if "path" in options:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(CONNECT_TIMEOUT_S)
        sock.connect(options["path"])
    else:
        address = (options.get("host", "127.0.0.1"), options.get("port", DEFAULT_PORT))
        sock = socket.create_connection(address, CONNECT_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if options.get("password"):
        ask(sock, "AUTH", options.get("username") or "default", options["password"])
    if options.get("db"):
        ask(sock, "SELECT", options["db"])
    return sock


def pack(*command: str | bytes | int) -> bytes:
    packed: bytes = hiredis.pack_command(command)  # pyright: ignore its stub knows tuples of one item only
    return packed


def ask(sock: socket.socket, *command: str | bytes | int) -> Any:
    """One command, one reply, waiting for it."""
    sock.sendall(pack(*command))
    reader = hiredis.Reader()
    while (reply := reader.gets()) is False:
        data = sock.recv(READ_BYTES)
        if not data:
            raise ConnectionError("Redis closed the connection")
        reader.feed(data)
    if isinstance(reply, hiredis.HiredisError):
        raise reply
    return reply
