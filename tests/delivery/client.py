"""One client on plain sockets: it follows its plan, then stays connected until the round ends.

It keeps its history as the oracle wants it, and does what an EventSource does with `id:`: the last one it has
completely received is the cursor of its next connection.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections import Counter
from random import Random

import trio

from .oracle import ClientHistory, Connection, End, Item, Position, Retry, StreamId, Violation, parse_id
from .plan import FUTURE, GARBAGE, ClientPlan, Cursor, Cut, Stall, Stint, Transport
from .processes import HOST, Pair
from .wire import READ_BYTES, Exchange, WrongBytes

SMALL_BUFFER_BYTES = 2048  # the kernel doubles it
RETRY_S = 0.02
LOOK_S = 0.05  # how soon a silent client learns that the faults are over
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time to linger: close() sends RST

_STAY = Stint(0, Cursor.LAST, math.inf, Cut.CLOSE, None)


class Client:
    def __init__(self, name: str, plan: ClientPlan, topic: str, pair: Pair) -> None:
        self.name = name
        self.plan = plan
        self.statuses: Counter[int] = Counter()
        self.wrong: list[Violation] = []
        self._topic = topic
        self._pair = pair
        self._random = Random(plan.seed)
        self._connections: list[Connection] = []
        self._given: list[str] = []
        self._now: _Conversation | None = None
        self._staying = False
        self._goal: StreamId = (0, 0)
        self._reached = trio.Event()

    @property
    def history(self) -> ClientHistory:
        return ClientHistory(self.name, self._connections)

    @property
    def received(self) -> int:
        """How often it was moved on, or back."""
        return len(self._given)

    async def wait_reached(self, id_: StreamId) -> None:
        """Until the client's cursor is at `id_` or beyond it. One waiter at a time."""
        self._goal, self._reached = id_, trio.Event()
        self._look_at_goal()
        await self._reached.wait()

    def _look_at_goal(self) -> None:
        if self._given and (parse_id(self._given[-1]) or (0, 0)) >= self._goal:
            self._reached.set()

    def note_drain(self, *, secure: bool) -> None:
        """That server is about to be told to stop."""
        if self.plan.kind.polls:
            return  # its answers end by themselves
        now = self._now
        if now is not None and now.transport.is_secure == secure and now.items and now.stalled_s is None:
            now.drained = True

    def stay(self) -> None:
        """The faults are over: no more cuts."""
        self._staying = True

    async def run(self) -> None:
        """Runs until cancelled."""
        for stint in self.plan.stints:
            if self._staying:
                break
            await trio.sleep(stint.after_s)
            await self._hold(stint)
        while True:
            await self._hold(_STAY)
            await trio.sleep(RETRY_S)

    async def _hold(self, stint: Stint) -> None:
        sock = trio.socket.socket()
        slow = stint.stall is not None and stint.stall.small_buffer
        transport = self._random.choice(self.plan.kind.transports)
        cursor = self._choose(stint.cursor)
        exchange = Exchange(self._topic, cursor, self.plan.kind, transport, self._pair.tls_context)
        self._now = _Conversation(exchange, transport, cursor, time.monotonic(), slow)
        try:
            if self._now.slow:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
            await sock.connect((HOST, self._pair.server(secure=transport.is_secure).port))
            with trio.move_on_after(stint.hold_s) as cut:
                await self._read(sock, self._now, stint.stall, cut)
        except WrongBytes as error:
            self.wrong.append(Violation("wrong_bytes", self.name, len(self._connections), str(error)))
        except OSError:
            self._now.end = End.BROKEN
        finally:
            self._record(self._now)
            self._now = None
            if stint.cut is Cut.RESET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.close()
        if not self._connections or self._connections[-1].end is End.BROKEN:
            await trio.sleep(RETRY_S)

    async def _read(
        self, sock: trio.socket.SocketType, now: _Conversation, stall: Stall | None, cut: trio.CancelScope
    ) -> None:
        stall_at_s = math.inf if stall is None else now.opened_s + stall.after_s
        while True:
            if self._staying:
                if now.slow:
                    return  # would take seconds to catch up, by window probes; a fresh socket does not
                cut.deadline = math.inf
            if stall is not None and time.monotonic() >= stall_at_s:
                now.stall()
                await trio.sleep(stall.for_s)
                stall_at_s = math.inf
            await self._say(sock, now.exchange)
            with trio.move_on_after(min(max(stall_at_s - time.monotonic(), 0), LOOK_S)):
                data = await sock.recv(READ_BYTES)
                items = now.exchange.feed(data, time.monotonic())
                now.items += items
                # A position that says back what no server ever gave is no place to be at.
                self._given += [
                    item.id
                    for item in items
                    if not isinstance(item, Retry)
                    and not (isinstance(item, Position) and item.id == now.cursor not in self._given)
                ]
                self._look_at_goal()
                if not data or now.exchange.complete:  # a connection may be kept for the next question
                    now.end = End.CLEAN if now.exchange.complete else End.BROKEN
                    return

    @staticmethod
    async def _say(sock: trio.socket.SocketType, exchange: Exchange) -> None:
        if output := exchange.take_output():
            # A few hundred bytes: more than a socket takes at once would be a fault of the checker's.
            assert await sock.send(output) == len(output)

    def _choose(self, cursor: Cursor) -> str | None:
        match cursor:
            case Cursor.GARBAGE:
                return self._random.choice(GARBAGE)
            case Cursor.FUTURE:
                return self._random.choice(FUTURE)
            case Cursor.OLD if self._given:
                return self._random.choice(self._given)
            case Cursor.LAST if self._given:
                return self._given[-1]
            case _:
                return None

    def _record(self, now: _Conversation) -> None:
        if now.exchange.status is not None:
            self.statuses[now.exchange.status] += 1
        if now.exchange.status == 200:
            self._connections.append(now.connection())


class _Conversation:
    """A connection that is still open."""

    def __init__(
        self, exchange: Exchange, transport: Transport, cursor: str | None, opened_s: float, slow: bool
    ) -> None:
        self.exchange = exchange
        self.transport = transport
        self.slow = slow
        self.cursor = cursor
        self.opened_s = opened_s
        self.items: list[Item] = []
        self.end = End.CUT
        self.stalled_s = opened_s if slow else None  # a small buffer is as good as a stall
        self.drained = False

    def stall(self) -> None:
        if self.stalled_s is None:
            self.stalled_s = time.monotonic()
        self.drained = False

    def connection(self) -> Connection:
        return Connection(
            self.cursor, self.opened_s, tuple(self.items), self.end, self.stalled_s, self.drained
        )
