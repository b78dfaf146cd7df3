"""An event as the server holds it: decoded once, encoded once, shared by every subscriber."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from app.contracts import ContractViolation, Registry, decode
from app.publish import PAYLOAD_FIELD
from app.streams import sse
from app.streams.ids import StreamId


class Event(NamedTuple):
    """`conflation_key` is None where every event counts; two events of a topic with equal keys are
    idempotent, so the newer one stands for both. `block` is the SSE block."""

    id: StreamId
    conflation_key: Hashable | None
    block: bytes


def from_entry(
    event_id: StreamId, fields: Sequence[bytes], registry: Registry, max_event_bytes: int
) -> Event:
    """Decode a stream entry (`fields` alternate name and value, as Redis returns them).

    Raises ContractViolation for an entry that some foreign writer shaped otherwise.
    """
    if len(fields) != 2 or fields[0] != PAYLOAD_FIELD:
        raise ContractViolation("the entry must have exactly the field `payload`", [])
    if len(fields[1]) > max_event_bytes:
        raise ContractViolation(f"the payload has {len(fields[1])} bytes, the limit is {max_event_bytes}", [])
    envelope = decode(fields[1])
    key = (envelope.event, envelope.resource_id) if registry.is_conflatable(envelope.event) else None
    return Event(event_id, key, sse.event_block(event_id, envelope.json))


def reload_event(position: StreamId, reason: str) -> Event:
    return Event(position, None, sse.reload_block(position, reason))
