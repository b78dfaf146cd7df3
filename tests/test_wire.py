"""Both wires keep one protocol: every byte in order, a bound on peers that take none, a name for each end."""

import errno
import itertools
import os
import socket
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from app.streams.sse import chunk
from app.streams.wire import (
    STUCK_SPREAD,
    UNASKED_LIMIT_BYTES,
    AsgiWire,
    ClientGone,
    ClientStuck,
    DirectWire,
)

STUCK_TIMEOUT_S = 30.0
# Far more than the kernel takes for a peer that does not read (4 KB of send buffer, doubled by Linux).
LARGE_BYTES = 1 << 20
SMALL_BUFFER_BYTES = 4096


async def _socket_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """A server's end with a small send buffer, and its client's. A unix socket delivers at once, so that a
    clock which jumps never jumps over data on its way."""
    server, client = trio.socket.socketpair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES)
    return trio.SocketStream(server), trio.SocketStream(client)


async def _tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        return await listener.accept(), client


async def _read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = await stream.receive_some(size - len(received))
        assert part, f"the stream ended after {len(received)} of {size} bytes"
        received += part
    return received


def _fill(stream: trio.SocketStream) -> int:
    """Write until the kernel takes no more; returns how many bytes it took."""
    taken = 0
    while True:
        try:
            taken += os.write(stream.socket.fileno(), b"x" * SMALL_BUFFER_BYTES)
        except BlockingIOError:
            return taken


# -- DirectWire


async def test_direct_sends_a_chunk_as_it_is() -> None:
    server, client = await _socket_pair()
    async with server, client:
        await DirectWire(server, STUCK_TIMEOUT_S).write(chunk(b":\n"))
        assert await client.receive_some() == b"2\r\n:\n\r\n"


async def test_direct_sends_what_is_left_of_a_chunk() -> None:
    server, client = await _socket_pair()
    async with client:
        async with server:
            await DirectWire(server, STUCK_TIMEOUT_S).write(memoryview(b"the tail")[4:])
        assert await _read_exactly(client, 4) == b"tail"
        assert await client.receive_some() == b""


@pytest.mark.parametrize("free_bytes", [0, 1, 50, 1000, 1 << 20])
async def test_direct_sends_two_chunks_one_after_the_other(free_bytes: int) -> None:
    server, client = await _socket_pair()
    first, then = chunk(b"a" * 500), chunk(os.urandom(LARGE_BYTES))
    async with server, client, trio.open_nursery() as nursery:
        filled = 0
        if free_bytes < LARGE_BYTES:
            filled = _fill(server)
            await _read_exactly(client, free_bytes)
        nursery.start_soon(DirectWire(server, STUCK_TIMEOUT_S).write, first, then)
        await trio.testing.wait_all_tasks_blocked()
        expected = b"x" * max(0, filled - free_bytes) + first + then
        assert await _read_exactly(client, len(expected)) == expected


async def test_direct_copies_nothing_of_what_it_waits_with(autojump_clock: trio.testing.MockClock) -> None:
    shared = chunk(os.urandom(LARGE_BYTES))
    pairs = [await _socket_pair() for _ in range(20)]
    wires = [DirectWire(server, STUCK_TIMEOUT_S) for server, _ in pairs]
    async with trio.open_nursery() as nursery:
        tracemalloc.start()
        try:
            for wire in wires:
                nursery.start_soon(wire.write, b"head", shared)
            await trio.testing.wait_all_tasks_blocked()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            nursery.cancel_scope.cancel()
    for stream in itertools.chain(*pairs):
        await stream.aclose()
    assert held < LARGE_BYTES


async def test_direct_continues_after_short_writes() -> None:
    server, client = await _socket_pair()
    data = os.urandom(LARGE_BYTES)
    expected = chunk(data)
    async with server, client, trio.open_nursery() as nursery:
        nursery.start_soon(DirectWire(server, STUCK_TIMEOUT_S).write, expected)
        await trio.testing.wait_all_tasks_blocked()
        assert await _read_exactly(client, len(expected)) == expected


async def test_direct_raises_stuck_when_no_byte_is_taken(autojump_clock: trio.testing.MockClock) -> None:
    server, client = await _socket_pair()
    async with server, client:
        started_s = trio.current_time()
        with pytest.raises(ClientStuck):
            await DirectWire(server, STUCK_TIMEOUT_S).write(b"x" * LARGE_BYTES)
        waited_s = trio.current_time() - started_s
        assert STUCK_TIMEOUT_S <= waited_s <= STUCK_TIMEOUT_S * STUCK_SPREAD


async def test_those_who_stopped_together_are_not_cut_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cut_s: list[float] = []

    async def get_stuck() -> None:
        server, client = await _socket_pair()
        async with server, client:
            with pytest.raises(ClientStuck):
                await DirectWire(server, STUCK_TIMEOUT_S).write(b"x" * LARGE_BYTES)
        cut_s.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(get_stuck)
    assert len(set(cut_s)) == len(cut_s)


async def test_direct_lets_a_slow_client_take_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """The bound is on standing still, not on the whole."""
    server, client = await _socket_pair()
    data = b"x" * SMALL_BUFFER_BYTES * 16
    expected = chunk(data)

    async def read_slowly() -> bytes:
        received = b""
        while len(received) < len(expected):
            await trio.sleep(STUCK_TIMEOUT_S * 0.9)
            received += await client.receive_some()
        return received

    async with server, client:
        started_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(DirectWire(server, STUCK_TIMEOUT_S).write, expected)
            assert await read_slowly() == expected
        assert trio.current_time() - started_s > 2 * STUCK_TIMEOUT_S


async def test_direct_raises_gone_when_the_peer_has_closed() -> None:
    server, client = await _socket_pair()
    async with server:
        await client.aclose()
        with pytest.raises(ClientGone):
            await DirectWire(server, STUCK_TIMEOUT_S).write(chunk(b":\n\n"))


async def test_direct_raises_gone_when_the_server_has_closed() -> None:
    server, client = await _socket_pair()
    async with client:
        wire = DirectWire(server, STUCK_TIMEOUT_S)
        await server.aclose()
        with pytest.raises(ClientGone):
            await wire.write(chunk(b":\n\n"))


async def test_direct_raises_gone_when_closed_while_it_waits(nursery: trio.Nursery) -> None:
    server, client = await _socket_pair()
    raised = trio.Event()

    async def write() -> None:
        with pytest.raises(ClientGone):
            await DirectWire(server, STUCK_TIMEOUT_S).write(chunk(b":\n\n"))
        raised.set()

    async with client:
        _fill(server)
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        server.socket.close()
        with trio.fail_after(5):
            await raised.wait()


async def test_direct_never_writes_to_the_next_owner_of_its_descriptor() -> None:
    """The number of a closed socket is the next connection's."""
    server, client = await _socket_pair()
    wire = DirectWire(server, STUCK_TIMEOUT_S)
    number = server.socket.fileno()
    assert wire.send_nowait is not None
    assert wire.send_nowait(b"taken") == 5
    await server.aclose()
    reused, reader = socket.socketpair()
    with reused, reader:
        reader.setblocking(False)
        async with client:
            assert reused.fileno() == number, "the kernel gives out the lowest free number"
            with pytest.raises(OSError, match="Bad file descriptor"):
                wire.send_nowait(b"id: 1-0\n\n")
            with pytest.raises(ClientGone):
                await wire.write(chunk(b"id: 1-0\n\n"))
            with pytest.raises(BlockingIOError):
                reader.recv(1)


async def test_direct_takes_what_it_can_without_waiting() -> None:
    server, client = await _socket_pair()
    async with server, client:
        send_nowait = DirectWire(server, STUCK_TIMEOUT_S).send_nowait
        assert send_nowait is not None
        taken = send_nowait(b"x" * LARGE_BYTES)
        assert 0 < taken < LARGE_BYTES
        with pytest.raises(BlockingIOError):
            send_nowait(b"x" * LARGE_BYTES)
        assert await _read_exactly(client, taken) == b"x" * taken


async def test_direct_abort_sends_a_reset_and_drops_what_waits() -> None:
    server, client = await _tcp_pair()
    async with client:
        _fill(server)
        DirectWire(server, STUCK_TIMEOUT_S).abort()
        assert server.socket.fileno() == -1
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError) as broken:  # noqa: PT012
            while await client.receive_some():
                pass  # what had arrived before
        assert isinstance(broken.value.__cause__, ConnectionResetError)


async def test_direct_sleeps_until_the_client_says_something_or_leaves() -> None:
    server, client = await _tcp_pair()
    async with server:
        wire = DirectWire(server, STUCK_TIMEOUT_S)
        async with client:
            await client.send_all(b"GET / HTTP/1.1")
            await wire.wait_input()
            with trio.move_on_after(0.05) as nothing_new:
                await wire.wait_input()
            assert nothing_new.cancelled_caught
        with pytest.raises(ClientGone):
            await wire.wait_input()


async def test_direct_bounds_what_a_client_may_say() -> None:
    server, client = await _tcp_pair()
    async with server, client, trio.open_nursery() as nursery:
        wire = DirectWire(server, STUCK_TIMEOUT_S)
        nursery.start_soon(client.send_all, b"x" * (UNASKED_LIMIT_BYTES + 1))
        with pytest.raises(ClientGone, match="talks"):  # noqa: PT012 how many reads that takes is the kernel's
            with trio.fail_after(5):
                while True:
                    await wire.wait_input()


async def test_direct_raises_gone_when_the_server_closes_a_sleeping_one(nursery: trio.Nursery) -> None:
    server, client = await _tcp_pair()
    async with client:
        wire = DirectWire(server, STUCK_TIMEOUT_S)
        nursery.start_soon(_close_when_all_sleep, server)
        with pytest.raises(ClientGone):
            await wire.wait_input()


async def _close_when_all_sleep(stream: trio.SocketStream) -> None:
    await trio.testing.wait_all_tasks_blocked()
    await stream.aclose()


async def test_direct_ends_with_the_last_chunk() -> None:
    server, client = await _socket_pair()
    async with server, client:
        await DirectWire(server, STUCK_TIMEOUT_S).end()
        assert await client.receive_some() == b"0\r\n\r\n"


async def test_direct_abort_of_a_closed_connection_does_nothing() -> None:
    server, client = await _tcp_pair()
    async with client:
        wire = DirectWire(server, STUCK_TIMEOUT_S)
        await server.aclose()
        wire.abort()
        wire.abort()
        assert await client.receive_some() == b"", "closed in order, not reset"


# -- AsgiWire


Send = Callable[[dict[str, Any]], Awaitable[None]]


def _asgi_wire(send: Send, aborted: list[bool] | None = None) -> AsgiWire:
    return AsgiWire(send, lambda: aborted.append(True) if aborted is not None else None, STUCK_TIMEOUT_S)


async def test_asgi_sends_data_unframed_and_keeps_the_body_open() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    wire = _asgi_wire(send)
    await wire.write(chunk(b":\n\n"))
    assert sent == [{"type": "http.response.body", "body": b":\n\n", "more_body": True}]
    assert wire.send_nowait is None, "nothing may be written past the server"


async def test_asgi_ends_the_body() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await _asgi_wire(send).end()
    assert sent == [{"type": "http.response.body", "body": b"", "more_body": False}]


async def test_asgi_sends_two_chunks_as_one_message() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await _asgi_wire(send).write(chunk(b"one\n"), chunk(b"two\r\n\n"))
    assert [message["body"] for message in sent] == [b"one\ntwo\r\n\n"]


async def test_asgi_waits_for_a_slow_send(autojump_clock: trio.testing.MockClock) -> None:
    async def send(message: dict[str, Any]) -> None:
        await trio.sleep(STUCK_TIMEOUT_S * 0.9)

    await _asgi_wire(send).write(chunk(b":\n\n"))


async def test_asgi_raises_stuck_when_send_stands_still(autojump_clock: trio.testing.MockClock) -> None:
    async def send(message: dict[str, Any]) -> None:
        await trio.sleep_forever()

    started_s = trio.current_time()
    with pytest.raises(ClientStuck):
        await _asgi_wire(send).write(chunk(b":\n\n"))
    assert trio.current_time() - started_s == pytest.approx(STUCK_TIMEOUT_S)


async def test_asgi_raises_gone_when_send_says_that_the_connection_is_closed() -> None:
    """ASGI HTTP specification 2.4: `send` on a closed connection raises a subclass of OSError."""

    async def send(message: dict[str, Any]) -> None:
        raise OSError(errno.EPIPE, "closed")

    with pytest.raises(ClientGone):
        await _asgi_wire(send).write(chunk(b":\n\n"))


@pytest.mark.parametrize(
    "closed",
    [
        ExceptionGroup("", [OSError(errno.EPIPE, "closed")]),
        ExceptionGroup("", [ConnectionResetError(), ExceptionGroup("", [BrokenPipeError()])]),
    ],
)
async def test_asgi_raises_gone_also_when_send_says_so_from_a_nursery(closed: Exception) -> None:
    async def send(message: dict[str, Any]) -> None:
        raise closed

    with pytest.raises(ClientGone):
        await _asgi_wire(send).write(chunk(b":\n\n"))


async def test_asgi_hides_no_other_error_in_a_group() -> None:
    async def send(message: dict[str, Any]) -> None:
        raise ExceptionGroup("two", [BrokenPipeError(), ValueError("a mistake")])

    with pytest.raises(ExceptionGroup, match="two"):
        await _asgi_wire(send).write(chunk(b":\n\n"))


async def test_asgi_abort_is_the_servers() -> None:
    async def send(message: dict[str, Any]) -> None:
        raise AssertionError(message)

    aborted: list[bool] = []
    _asgi_wire(send, aborted).abort()
    assert aborted == [True]
