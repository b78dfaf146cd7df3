"""A TCP proxy in the test's own process, for what happens between us and Redis: a NAT that forgets a
connection, a balancer that leads elsewhere, a Redis that is slow, half open or away."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import trio
from servers import HOST


class TcpProxy:
    """Started with `await nursery.start(proxy.run)`; `port` is its own."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        """`port`: any free one."""
        self.target_port = target_port  # of connections from now on
        self.port = port
        self.accepted = 0
        self.refuses = False  # connections from now on end at once
        # By up to so much each piece comes later, each way, so that connections overtake one another.
        self.slowness_s = 0.0
        self._held: trio.Event | None = None
        self._scopes: set[trio.CancelScope] = set()
        self._silent: set[trio.CancelScope] = set()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    async def run(self, task_status: trio.TaskStatus[Self] = trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(self.port, host=HOST)
        self.port = listener.socket.getsockname()[1]
        task_status.started(self)
        await trio.serve_listeners(self._serve, [listener])

    def forget(self) -> None:
        """The connections there are now stay open and carry nothing any more, either way."""
        self._silent |= self._scopes

    def cut(self) -> None:
        """End the connections there are now."""
        for scope in self._scopes:
            scope.cancel()

    def hold(self) -> None:
        """Connections are accepted and stay open; what comes on them waits until `release`."""
        self._held = trio.Event()

    def release(self) -> None:
        if self._held is not None:
            self._held.set()
            self._held = None

    @contextmanager
    def leading_to(self, port: int) -> Iterator[None]:
        before, self.target_port = self.target_port, port
        yield
        self.target_port = before

    async def _serve(self, near: trio.SocketStream) -> None:
        self.accepted += 1
        if self.refuses:
            await trio.aclose_forcefully(near)
            return
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with (
                    near,
                    await trio.open_tcp_stream(HOST, self.target_port) as far,
                    trio.open_nursery() as nursery,
                ):
                    nursery.start_soon(self._carry, near, far, scope)
                    nursery.start_soon(self._carry, far, near, scope)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                self._scopes.discard(scope)
                self._silent.discard(scope)

    async def _carry(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            async for received in source:
                if self.slowness_s:
                    await trio.sleep(random.random() * self.slowness_s)
                while self._held is not None:
                    await self._held.wait()
                if scope not in self._silent:
                    await sink.send_all(received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        if scope not in self._silent:
            scope.cancel()
