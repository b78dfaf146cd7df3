"""An SSE service on sse-starlette, uvicorn and redis-py, as their own documentation would have it built.

One hub reads Redis for everyone: a blocking XREAD over all topics that somebody watches. It puts each event
into the queue of each client, whose generator yields it to `EventSourceResponse`. A client registers before
it asks Redis for what it missed, so an event is in the answer, in the queue, or in both; of the queue it then
takes only what is newer. Only the hub moves a topic's position.

    python -m bench.peers.sse_starlette_server --port 8002 --redis-url redis://127.0.0.1:6379
"""

# redis-py leaves parts of its types unsaid:
# pyright: reportUnknownMemberType=false
from __future__ import annotations

import argparse
import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import uvicorn
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.typing import KeyT, StreamIdT
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route

from bench import wire

BACKLOG_CONNECTIONS = 4096  # Linux's usual net.core.somaxconn: more is cut down to it
GRACEFUL_SHUTDOWN_S = 1
HEARTBEAT_S = 15
HIGHEST_PORT = 65535
LINE_END = "\n"  # the library's own default is \r\n: more bytes than the other sides send
STREAM_ID = re.compile(r"\d+-\d+")

# Clients that resume wait for one of these, however many come at once.
REPLAY_CONNECTIONS = 50
BLOCK_MS = 5000
WAKE_AGAIN_S = 0.002
RECONNECT_S = 0.5
# XREAD wants a key even while nobody watches anything. This one does not exist.
NO_TOPIC: dict[KeyT, StreamIdT] = {"bench:no-topic": "0-0"}

log = logging.getLogger("bench.sse_starlette")


class Queued(NamedTuple):
    order: tuple[int, int]
    event: ServerSentEvent


Queue = asyncio.Queue[Queued]


@dataclass(slots=True, eq=False)
class Topic:
    key: str
    position: str = ""  # known once it is opened
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    queues: set[Queue] = field(default_factory=set[Queue])


class Hub:
    def __init__(self, redis_url: str) -> None:
        # Without retries: a connection that is replaced unseen has another client id, and could not be woken.
        # Without a timeout: the default would end each read that waits for longer.
        self._reader = Redis.from_url(
            redis_url,
            decode_responses=True,
            single_connection_client=True,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
        self._reader_id = 0
        # Not from the pool, where it would stand in line behind those who resume.
        self._control = Redis.from_url(redis_url, decode_responses=True)
        self._pool = Redis.from_pool(
            BlockingConnectionPool.from_url(
                redis_url, decode_responses=True, max_connections=REPLAY_CONNECTIONS, timeout=None
            )
        )
        self._topics: dict[str, Topic] = {}
        self._positions: dict[KeyT, StreamIdT] = {}  # of the opened topics, as XREAD takes them
        self._new: list[Topic] = []
        self._joined = asyncio.Event()

    def join(self, name: str) -> tuple[Topic, Queue]:
        key = wire.topic_key(name)
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(key)
            self._new.append(topic)
            self._joined.set()
        # Unbounded: here an event is late rather than lost, and a run ends before memory does. A service
        # that meets strangers would bound it and close who falls behind.
        queue = Queue()
        topic.queues.add(queue)
        return topic, queue

    def leave(self, topic: Topic, queue: Queue) -> None:
        topic.queues.discard(queue)
        if not topic.queues:
            del self._topics[topic.key]
            self._positions.pop(topic.key, None)

    async def read_after(self, topic: Topic, cursor: str) -> list[tuple[str, dict[str, str]]]:
        found: Any = await self._pool.xrange(topic.key, min=f"({cursor}")
        return found

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._wake())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in (self._reader, self._control, self._pool):
            await client.aclose()

    async def _read(self) -> None:
        while True:
            try:
                self._reader_id = await self._reader.client_id()
                while True:
                    while self._new:
                        await self._open(list(self._new))
                    reply: Any = await self._reader.xread(self._positions or NO_TOPIC, block=BLOCK_MS)
                    self._fan_out(reply)
            except RedisError as error:
                log.warning("Redis cannot be read, next try in %g s: %s", RECONNECT_S, error)
                await asyncio.sleep(RECONNECT_S)

    async def _open(self, topics: list[Topic]) -> None:
        """A new topic starts at its newest event."""
        async with self._control.pipeline(transaction=False) as pipeline:
            for topic in topics:
                pipeline.xrevrange(topic.key, count=1)
            replies = await pipeline.execute()
        del self._new[: len(topics)]
        for topic, newest in zip(topics, replies, strict=True):
            if self._topics.get(topic.key) is topic:  # not all who watched it have left meanwhile
                topic.position = self._positions[topic.key] = newest[0][0] if newest else "0-0"
                topic.opened.set()

    async def _wake(self) -> None:
        """Ends the read under way as soon as there is a new topic. An UNBLOCK that overtakes the XREAD it is
        meant for does nothing, so it is repeated until the reader has seen the topic."""
        while True:
            await self._joined.wait()
            self._joined.clear()
            while self._new:
                with suppress(RedisError):
                    await self._control.client_unblock(self._reader_id)
                await asyncio.sleep(WAKE_AGAIN_S)

    def _fan_out(self, reply: Any) -> None:
        for key, entries in reply:
            topic = self._topics.get(key)
            if topic is None or key not in self._positions:
                continue  # everyone left while it was read; who came back since starts from a later position
            topic.position = self._positions[key] = entries[-1][0]
            for stream_id, fields in entries:
                queued = Queued(order(stream_id), as_event(stream_id, fields))
                for queue in topic.queues:
                    queue.put_nowait(queued)


def order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = stream_id.partition("-")
    return int(milliseconds), int(sequence)


def as_event(stream_id: str, fields: dict[str, str]) -> ServerSentEvent:
    return ServerSentEvent(fields["payload"], id=stream_id, sep=LINE_END)


async def stream(hub: Hub, name: str, cursor: str | None) -> AsyncGenerator[ServerSentEvent]:
    topic, queue = hub.join(name)
    try:
        await topic.opened.wait()
        position = cursor or topic.position
        yield ServerSentEvent(id=position, sep=LINE_END)
        if cursor is not None:
            for position, fields in await hub.read_after(topic, cursor):
                yield as_event(position, fields)
        seen = order(position)
        while True:
            queued = await queue.get()
            if queued.order > seen:
                yield queued.event
    finally:
        hub.leave(topic, queue)


def create_app(hub: Hub, heartbeat_s: int) -> Starlette:
    async def sse(request: Request) -> EventSourceResponse:
        cursor = request.headers.get("last-event-id")
        if cursor is not None and not STREAM_ID.fullmatch(cursor):
            raise HTTPException(400, "Last-Event-ID is not the id of an event")
        events = stream(hub, request.path_params["topic"], cursor)
        return EventSourceResponse(events, ping=heartbeat_s, sep=LINE_END)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with hub.running():
            yield

    return Starlette(routes=[Route(wire.SSE_PATH_PREFIX + "{topic}", sse)], lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description="SSE with sse-starlette on uvicorn.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--redis-url", default="redis://127.0.0.1:6379")
    parser.add_argument("--heartbeat-s", type=int, default=HEARTBEAT_S)
    options = parser.parse_args()
    if not 0 < options.port <= HIGHEST_PORT:
        parser.error(f"--port must be from 1 to {HIGHEST_PORT}")
    if options.heartbeat_s < 1:
        parser.error("--heartbeat-s must be 1 or more")
    try:
        parse_url(options.redis_url)
    except ValueError as error:
        parser.error(f"--redis-url: {error}")
    uvicorn.run(
        create_app(Hub(options.redis_url), options.heartbeat_s),
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        backlog=BACKLOG_CONNECTIONS,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
