"""How bytes reach one client: two small implementations of one protocol.

`DirectWire` writes pre-framed chunks to the client's socket, past the HTTP server, which has put the
connection into chunked transfer coding and writes nothing itself while the stream lasts. `AsgiWire` hands
everything to ASGI `send` and serves whatever has no such socket (TLS, HTTP/2, HTTP/1.0, another server).
"""

import contextlib
import errno
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, cast

import trio

from app.streams.sse import LAST_CHUNK, unchunk

# A client of an event stream has nothing to say. What it sends all the same (a pipelined request) is passed
# over, up to here.
UNASKED_LIMIT_BYTES: Final = 1 << 16
STUCK_SPREAD: Final = 1.1

# SO_LINGER with 0 s: close() drops what the kernel still holds and sends RST. A client that does not read
# would otherwise keep its send buffer alive long after we let go of it.
_ABORT = struct.pack("ii", 1, 0)


SendNowait = Callable[[bytes | memoryview], int]


class ClientGone(Exception):
    """The client closed, or the connection broke; nobody's fault."""


class ClientStuck(Exception):
    """The client took no byte for the set time."""


class Wire(Protocol):
    """`send_nowait` takes bytes without waiting and says how many it took; BlockingIOError: none, any other
    OSError: the client is gone. It is None where that is not possible."""

    send_nowait: SendNowait | None

    async def write(self, frame: bytes | memoryview, then: bytes = b"") -> None:
        """Send a chunk as `sse.chunk` makes it, or what is left of one that was begun; and `then`, another.
        Nothing is copied: a client that does not read holds what others hold as well.

        Raises ClientGone or ClientStuck. If cancelled, the stream may stand inside a chunk: nothing may be
        written any more.
        """
        ...

    async def wait_input(self) -> None:
        """Sleeps. Where the connection can tell, it returns when the client has sent something nobody asked
        for (which is thrown away), and raises ClientGone when the client has left."""
        ...

    async def end(self) -> None:
        """The stream ends cleanly: nothing may be written afterwards. Raises as `write`."""
        ...

    def abort(self) -> None:
        """Drop the connection now, with everything that was not sent."""
        ...


class DirectWire:
    __slots__ = ("_stream", "_stuck_timeout_s", "_unasked_bytes", "send_nowait")

    def __init__(self, stream: trio.SocketStream, stuck_timeout_s: float) -> None:
        self._stream = stream
        self._stuck_timeout_s = stuck_timeout_s
        self._unasked_bytes = 0
        # The method of the socket object inside Trio's, not a descriptor number: once the socket is closed it
        # raises, while the number may by then be somebody else's socket. One call in C; measured per write it
        # is also less than os.write (5.6 against 8.3 us at 1000 clients, with asking for the number each
        # time).
        self.send_nowait: SendNowait | None = stream.socket._sock.send  # pyright: ignore

    async def write(self, frame: bytes | memoryview, then: bytes = b"") -> None:
        sent = 0
        if then:
            try:
                sent = cast(int, self._stream.socket._sock.sendmsg((frame, then)))  # pyright: ignore
            except BlockingIOError:
                pass
            except OSError as error:
                raise ClientGone(os.strerror(error.errno or errno.EPIPE)) from error
        if sent < len(frame):
            await self._write_all(memoryview(frame)[sent:])
        if then:
            begun = max(0, sent - len(frame))
            del frame
            await self._write_all(memoryview(then)[begun:])

    async def wait_input(self) -> None:
        sock = self._stream.socket
        try:
            await trio.lowlevel.wait_readable(sock)
            received = cast(bytes, sock._sock.recv(UNASKED_LIMIT_BYTES))  # pyright: ignore
        except BlockingIOError:
            return
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise ClientGone("closed") from error
        self._unasked_bytes += len(received)
        if not received:
            raise ClientGone("closed")
        if self._unasked_bytes > UNASKED_LIMIT_BYTES:
            raise ClientGone("it talks instead of listening")

    async def end(self) -> None:
        await self._write_all(memoryview(LAST_CHUNK))

    async def _write_all(self, remaining: memoryview) -> None:
        sock, send = self._stream.socket, self.send_nowait
        assert send is not None
        while remaining:
            try:
                sent = send(remaining)
            except BlockingIOError:
                await self._wait_writable(sock)
            except OSError as error:
                raise ClientGone(os.strerror(error.errno or errno.EPIPE)) from error
            else:
                remaining = remaining[sent:]

    async def _wait_writable(self, sock: Any) -> None:
        try:
            # Drawn: clients that stopped together must not be cut together, in one long pause for all others.
            with trio.fail_after(self._stuck_timeout_s * random.uniform(1.0, STUCK_SPREAD)):  # noqa: S311
                await trio.lowlevel.wait_writable(sock)
        except trio.TooSlowError:
            raise ClientStuck(f"no byte taken for {self._stuck_timeout_s:g} s") from None
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise ClientGone("closed") from error

    def abort(self) -> None:
        sock = self._stream.socket
        if sock.fileno() != -1:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._stream.socket.close()


async def send_or_gone(send: Callable[[Any], Awaitable[None]], message: Any) -> None:
    """Raises ClientGone for what the ASGI specification (HTTP, 2.4) has `send` raise on a closed connection:
    an OSError, or a group of it from a server or a middleware that sends from a nursery of its own."""
    try:
        await send(message)
    except OSError as error:
        raise ClientGone("closed") from error
    except ExceptionGroup as group:
        if group.split(OSError)[1] is not None:
            raise
        raise ClientGone("closed") from group


class AsgiWire:
    __slots__ = ("_abort", "_send", "_stuck_timeout_s", "send_nowait")

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        abort: Callable[[], None],
        stuck_timeout_s: float,
    ) -> None:
        self._send = send
        self._abort = abort
        self._stuck_timeout_s = stuck_timeout_s
        self.send_nowait: SendNowait | None = None

    async def write(self, frame: bytes | memoryview, then: bytes = b"") -> None:
        data = unchunk(bytes(frame)) + (unchunk(then) if then else b"")
        del frame, then  # what is sent waits here and in the server: that is enough
        await self._send_body(data, more_body=True)

    async def wait_input(self) -> None:
        await trio.sleep_forever()  # the request's task is cancelled when the client leaves

    async def end(self) -> None:
        await self._send_body(b"", more_body=False)

    async def _send_body(self, data: bytes, *, more_body: bool) -> None:
        try:
            with trio.fail_after(self._stuck_timeout_s):
                await send_or_gone(
                    self._send, {"type": "http.response.body", "body": data, "more_body": more_body}
                )
        except trio.TooSlowError:
            raise ClientStuck(f"nothing taken for {self._stuck_timeout_s:g} s") from None

    def abort(self) -> None:
        self._abort()
