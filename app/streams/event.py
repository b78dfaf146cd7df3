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

    Fields that are not known here are passed over: a newer writer may add some. Raises ContractViolation for
    an entry without a payload, or whose payload some foreign writer shaped otherwise.
    """
    is_plain = len(fields) == 2 and fields[0] == PAYLOAD_FIELD  # as nearly every one
    payload = fields[1] if is_plain else _find_payload(fields)
    if len(payload) > max_event_bytes:
        raise ContractViolation(f"the payload has {len(payload)} bytes, the limit is {max_event_bytes}", [])
    envelope = decode(payload)
    key = (envelope.event, envelope.resource_id) if registry.is_conflatable(envelope.event) else None
    return Event(event_id, key, sse.event_block(event_id, envelope.json))


def _find_payload(fields: Sequence[bytes]) -> bytes:
    payloads = [
        value for name, value in zip(fields[::2], fields[1::2], strict=False) if name == PAYLOAD_FIELD
    ]
    if len(fields) % 2 or len(payloads) != 1:
        raise ContractViolation("the entry must have the field `payload`, once", [])
    return payloads[0]


def reload_event(position: StreamId, reason: str) -> Event:
    return Event(position, None, sse.reload_block(position, reason))
