"""Publishing: the only file that knows where a topic's events are stored and in which form.

One body, three forms: on Trio, over a synchronous `redis.Redis`, and onto a redis-py pipeline, so that an
application can append its invalidation in the same MULTI as its own writes.
"""

import re
from typing import Any, Final, Protocol

from app.contracts import ContractViolation, Registry, builtin_registry

STREAM_KEY_PREFIX: Final = "topic:events:"
PAYLOAD_FIELD: Final = b"payload"
DEFAULT_STREAM_MAXLEN: Final = 1000
DEFAULT_MAX_EVENT_BYTES: Final = 4096

# Not dots alone: browsers and proxies read those as path steps.
TOPIC_ID_PATTERN: Final = r"(?!\.{1,2}$)[A-Za-z0-9_.:~-]{1,128}"  # also as JSON Schema reads it
_TOPIC_ID = re.compile(TOPIC_ID_PATTERN, re.ASCII)


class InvalidTopicId(ValueError):
    """A topic id that cannot name a stream; the caller's fault."""


def stream_key(topic_id: str) -> str:
    """The Redis key of a topic's stream. Raises InvalidTopicId."""
    if not _TOPIC_ID.fullmatch(topic_id):
        raise InvalidTopicId(
            f"topic id {topic_id[:140]!r}: use 1 to 128 letters, digits, '_', '.', ':', '~' or '-'"
        )
    return STREAM_KEY_PREFIX + topic_id


def append_command(
    topic_id: str,
    event: str,
    data: dict[str, Any],
    *,
    registry: Registry | None = None,
    maxlen: int | None = DEFAULT_STREAM_MAXLEN,
    max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES,
    entry_id: str = "*",
) -> tuple[str | bytes | int, ...]:
    """The XADD that appends one event; `maxlen` None trims nothing. Raises InvalidTopicId or
    ContractViolation.

    `MAXLEN ~`: Redis trims whole nodes, so a stream holds up to about a hundred entries more than `maxlen`
    (https://redis.io/docs/latest/commands/xadd/).
    """
    payload = (registry or _BUILTIN).encode(event, data)
    if len(payload) > max_event_bytes:
        raise ContractViolation(
            f"the event takes {len(payload)} bytes, the limit is {max_event_bytes} "
            "(STALECAST_MAX_EVENT_BYTES); send the id of what changed, not the change",
            [],
        )
    trim = () if maxlen is None else ("MAXLEN", "~", maxlen)
    return ("XADD", stream_key(topic_id), *trim, entry_id, PAYLOAD_FIELD, payload)


class TrioExecutor(Protocol):
    async def execute(self, *command: str | bytes | int) -> Any: ...


class SyncExecutor(Protocol):
    """What `redis.Redis` and its pipelines have in common."""

    def execute_command(self, *args: Any, **options: Any) -> Any: ...


async def publish_topic_event(
    redis: TrioExecutor, topic_id: str, event: str, data: dict[str, Any], **options: Any
) -> str:
    """Append an event from Trio; returns its stream id.

    Raises InvalidTopicId, ContractViolation, or RedisUnavailable. After RedisUnavailable, and when cancelled,
    the event may or may not have been appended; appending it again is harmless, since an invalidation says
    only that something is stale. `options` are those of `append_command`.
    """
    reply = await redis.execute(*append_command(topic_id, event, data, **options))
    return _text(reply)


def publish_topic_event_sync(
    redis: SyncExecutor, topic_id: str, event: str, data: dict[str, Any], **options: Any
) -> str:
    """Append an event over a synchronous `redis.Redis`; returns its stream id. Errors are redis-py's own,
    InvalidTopicId and ContractViolation."""
    return _text(redis.execute_command(*append_command(topic_id, event, data, **options)))


def publish_topic_event_on(
    pipeline: SyncExecutor, topic_id: str, event: str, data: dict[str, Any], **options: Any
) -> None:
    """Queue an event on a redis-py pipeline. With `transaction=True` it is appended exactly when the
    application's own writes are; its id is among the results of `pipeline.execute()`."""
    pipeline.execute_command(*append_command(topic_id, event, data, **options))


def _text(reply: Any) -> str:
    return reply.decode() if isinstance(reply, bytes) else str(reply)


_BUILTIN = builtin_registry()
