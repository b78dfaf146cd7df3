"""An SSE service on Quart-Trio and Hypercorn without any change to either: a generator that yields events.

One hub reads Redis for everyone: a blocking XREAD over all topics that somebody watches. It sends each event
into the memory channel of each client, whose generator yields it to Quart. A client registers before it asks
Redis for what it missed, so an event is in the answer, in the channel, or in both; of the channel it then
takes only what is newer. Only the hub moves a topic's position.

No Redis client for Trio is maintained, so the one of Stalecast is used here too.

    python -m bench.peers.quart_trio_server --port 8003 --redis-url redis://127.0.0.1:6379
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import hiredis
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart import Response, abort, make_response, request
from quart_trio import QuartTrio

from app.redis_connection import (
    Address,
    Client,
    Connection,
    InvalidRedisUrl,
    RedisRefused,
    RedisUnavailable,
    connect,
    raise_if_unavailable,
)
from bench import wire

BACKLOG_CONNECTIONS = 4096  # Linux's usual net.core.somaxconn: more is cut down to it
GRACEFUL_TIMEOUT_S = 1
HEARTBEAT_S = 15
HIGHEST_PORT = 65535
HEARTBEAT = b":\n\n"
STREAM_ID = re.compile(r"\d+-\d+")

CHANNEL_LIMIT_EVENTS = 1000
REPLAYS_AT_ONCE = 50  # bounds the memory of the answers
REDIS_TIMEOUT_S = 10.0
WAITING_LIMIT_CALLS = 10_000
BLOCK_MS = 5000
WAKE_AGAIN_S = 0.002
RECONNECT_S = 0.5
# XREAD wants a key even while nobody watches anything. This one does not exist.
NO_TOPIC = {b"bench:no-topic": b"0-0"}

log = logging.getLogger("bench.quart_trio")


@dataclass(frozen=True, slots=True)
class Event:
    stream_id: bytes
    order: tuple[int, int]
    block: bytes


Inbox = trio.MemoryReceiveChannel[Event]
Outbox = trio.MemorySendChannel[Event]


@dataclass(slots=True, eq=False)
class Topic:
    key: bytes
    position: bytes = b""  # known once it is opened
    opened: trio.Event = field(default_factory=trio.Event)
    clients: dict[Inbox, Outbox] = field(default_factory=dict[Inbox, Outbox])


class Hub:
    """Started with `nursery.start_soon(hub.run)`."""

    def __init__(self, address: Address, client: Client) -> None:
        self._address = address
        self._client = client
        self._reader_id = 0
        self._replays = trio.CapacityLimiter(REPLAYS_AT_ONCE)
        self._topics: dict[bytes, Topic] = {}
        self._positions: dict[bytes, bytes] = {}  # of the opened topics
        self._new: list[Topic] = []
        self._joined = trio.Event()

    def join(self, name: str) -> tuple[Topic, Inbox]:
        key = wire.topic_key(name).encode()
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(key)
            self._new.append(topic)
            self._joined.set()
        outbox, inbox = trio.open_memory_channel[Event](CHANNEL_LIMIT_EVENTS)
        topic.clients[inbox] = outbox
        return topic, inbox

    def leave(self, topic: Topic, inbox: Inbox) -> None:
        del topic.clients[inbox]
        if not topic.clients:
            del self._topics[topic.key]
            self._positions.pop(topic.key, None)

    async def read_after(self, topic: Topic, cursor: bytes) -> list[Event]:
        """Raises RedisUnavailable or RedisRefused."""
        async with self._replays:
            found: Any = await self._client.execute("XRANGE", topic.key, b"(" + cursor, "+")
        return [as_event(stream_id, fields) for stream_id, fields in found]

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            nursery.start_soon(self._wake)

    async def _read(self) -> None:
        while True:
            try:
                async with await connect(
                    self._address, name="bench-quart-trio", timeout_s=REDIS_TIMEOUT_S
                ) as connection:
                    self._reader_id = connection.client_id
                    while True:
                        await self._read_once(connection)
            except RedisUnavailable as error:
                log.warning("Redis cannot be read, next try in %g s: %s", RECONNECT_S, error)
                await trio.sleep(RECONNECT_S)

    async def _read_once(self, connection: Connection) -> None:
        while self._new:
            await self._open(connection, list(self._new))
        positions = self._positions or NO_TOPIC
        (reply,) = await connection.call(
            ["XREAD", "BLOCK", BLOCK_MS, "STREAMS", *positions.keys(), *positions.values()]
        )
        raise_if_error(reply)
        # A map in RESP3, pairs in RESP2, nothing when it was unblocked or timed out.
        pairs: Any = reply.items() if isinstance(reply, dict) else reply or ()
        for key, entries in pairs:
            self._fan_out(key, entries)

    async def _open(self, connection: Connection, topics: list[Topic]) -> None:
        """A new topic starts at its newest event."""
        replies = await connection.call(*[["XREVRANGE", topic.key, "+", "-", "COUNT", 1] for topic in topics])
        for reply in replies:
            raise_if_error(reply)
        del self._new[: len(topics)]
        for topic, newest in zip(topics, replies, strict=True):
            if self._topics.get(topic.key) is topic:  # not all who watched it have left meanwhile
                topic.position = self._positions[topic.key] = newest[0][0] if newest else b"0-0"
                topic.opened.set()

    async def _wake(self) -> None:
        """Ends the read under way as soon as there is a new topic. An UNBLOCK that overtakes the XREAD it is
        meant for does nothing, so it is repeated until the reader has seen the topic."""
        while True:
            await self._joined.wait()
            self._joined = trio.Event()
            while self._new:
                try:
                    await self._client.execute("CLIENT", "UNBLOCK", self._reader_id)
                except RedisUnavailable:
                    log.debug("no wake-up while Redis is away: the reader will start anew")
                await trio.sleep(WAKE_AGAIN_S)

    def _fan_out(self, key: bytes, entries: list[tuple[bytes, list[bytes]]]) -> None:
        topic = self._topics.get(key)
        if topic is None or key not in self._positions:
            return  # everyone left while it was read; who came back since starts from a later position
        topic.position = self._positions[key] = entries[-1][0]
        outboxes = list(topic.clients.values())
        for stream_id, fields in entries:
            event = as_event(stream_id, fields)
            for outbox in outboxes:
                try:
                    outbox.send_nowait(event)
                except trio.WouldBlock:
                    # Waiting would hold up everyone, dropping would lose the event. So the channel ends, and
                    # when the client gets there it reads on from Redis, which still has what follows.
                    outbox.close()
                except trio.ClosedResourceError:
                    continue  # ended above, or at an earlier read


def raise_if_error(reply: Any) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise_if_unavailable([reply])
        raise RedisRefused(f"Redis answered: {reply}")


def order(stream_id: bytes) -> tuple[int, int]:
    milliseconds, _, sequence = stream_id.partition(b"-")
    return int(milliseconds), int(sequence)


def as_event(stream_id: bytes, fields: list[bytes]) -> Event:
    """Encoded once for all clients. `fields` are `payload` and one line of JSON."""
    return Event(stream_id, order(stream_id), b"id: %b\ndata: %b\n\n" % (stream_id, fields[1]))


async def receive(inbox: Inbox, heartbeat_s: int) -> Event | None:
    """None when it is time for a heartbeat. Raises EndOfChannel for a client that fell too far behind."""
    # Here and not in the generator, where a cancel scope would be left open over a yield.
    with trio.move_on_after(heartbeat_s):
        return await inbox.receive()
    return None


async def stream(hub: Hub, name: str, cursor: bytes | None, heartbeat_s: int) -> AsyncGenerator[bytes]:
    while True:  # once, and again each time that it fell behind
        topic, inbox = hub.join(name)
        try:
            await topic.opened.wait()
            resumes, cursor = cursor is not None, cursor or topic.position
            yield b"id: %b\n\n" % cursor
            if resumes:
                for event in await hub.read_after(topic, cursor):
                    yield event.block
                    cursor = event.stream_id
            seen = order(cursor)
            while True:
                event = await receive(inbox, heartbeat_s)
                if event is None:
                    yield HEARTBEAT
                elif event.order > seen:
                    yield event.block
                    cursor = event.stream_id
        except trio.EndOfChannel:
            continue
        finally:
            hub.leave(topic, inbox)


def create_app(hub: Hub, heartbeat_s: int) -> QuartTrio:
    app = QuartTrio(__name__)

    @app.get(wire.SSE_PATH_PREFIX + "<topic>")
    async def sse(topic: str) -> Response:  # pyright: ignore[reportUnusedFunction] Quart calls it
        cursor = request.headers.get("Last-Event-ID")
        if cursor is not None and not STREAM_ID.fullmatch(cursor):
            abort(400, "Last-Event-ID is not the id of an event")
        response = await make_response(
            stream(hub, topic, cursor.encode() if cursor else None, heartbeat_s),
            {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"},
        )
        assert isinstance(response, Response)
        response.timeout = None
        return response

    return app


async def wait_told_to_stop() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


async def run(port: int, address: Address, heartbeat_s: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.worker_class = "trio"
    config.backlog = BACKLOG_CONNECTIONS
    config.accesslog = None
    config.loglevel = "WARNING"
    config.graceful_timeout = GRACEFUL_TIMEOUT_S
    client = Client(address, timeout_s=REDIS_TIMEOUT_S, waiting_limit=WAITING_LIMIT_CALLS)
    hub = Hub(address, client)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        nursery.start_soon(hub.run)
        await serve(create_app(hub, heartbeat_s), config, shutdown_trigger=wait_told_to_stop)
        nursery.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description="SSE with Quart-Trio on Hypercorn.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis-url", default="redis://127.0.0.1:6379")
    parser.add_argument("--heartbeat-s", type=int, default=HEARTBEAT_S)
    options = parser.parse_args()
    if not 0 < options.port <= HIGHEST_PORT:
        parser.error(f"--port must be from 1 to {HIGHEST_PORT}")
    if options.heartbeat_s < 1:
        parser.error("--heartbeat-s must be 1 or more")
    try:
        address = Address.from_url(options.redis_url)
    except InvalidRedisUrl as error:
        parser.error(f"--redis-url: {error}")
    trio.run(run, options.port, address, options.heartbeat_s)


if __name__ == "__main__":
    main()
