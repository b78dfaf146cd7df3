"""From a stream entry to the one block of bytes that every subscriber shares."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contracts import ContractViolation, EventType, Invalidation, builtin_registry
from app.streams.event import from_entry, reload_event
from app.streams.ids import StreamId
from app.streams.sse import Parser

REGISTRY = builtin_registry()
ID = StreamId(12, 3)
LIMIT_BYTES = 4096


def payload(event: str = "argument_updated", **data: object) -> bytes:
    return json.dumps({"event": event, "data": data}).encode()


def read(raw: bytes, registry=REGISTRY, max_event_bytes: int = LIMIT_BYTES):
    return from_entry(ID, [b"payload", raw], registry, max_event_bytes)


def test_an_entry_becomes_one_block():
    event = read(payload(id="42", reason="edited"))

    assert event.id == ID
    assert event.block == (
        b'id: 12-3\ndata: {"event":"argument_updated","data":{"id":"42","reason":"edited"}}\n\n'
    )


def test_pretty_printed_json_becomes_one_line():
    raw = json.dumps({"event": "argument_updated", "data": {"id": "a\nb", "reason": "r"}}, indent=4).encode()
    assert raw.count(b"\n") > 4

    (message,) = Parser().feed(read(raw).block)

    assert "\n" not in message.data
    assert json.loads(message.data) == json.loads(raw)


@pytest.mark.parametrize("character", ["\r", "\n", "\r\n", "\0", "\u2028", "\u2029", "\x85", "\ufeff", "😀"])
def test_no_character_breaks_out_of_the_data_field(character):
    raw = payload(id=f"x{character}y", reason=f"{character}id: 9-9")

    (message,) = Parser().feed(read(raw).block)

    assert message.last_event_id == "12-3"
    assert json.loads(message.data) == json.loads(raw)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(st.one_of(texts, st.integers(-(2**53) + 1, 2**53 - 1)), texts, st.sampled_from([None, 0, 2]))
def test_what_was_appended_is_what_a_client_reads(resource_id, reason, indent):
    envelope = {"event": "argument_updated", "data": {"id": resource_id, "reason": reason}}

    (message,) = Parser().feed(read(json.dumps(envelope, indent=indent).encode()).block)

    assert message.last_event_id == "12-3"
    assert json.loads(message.data) == envelope


@pytest.mark.parametrize(
    "fields",
    [
        (),
        [b"payload"],
        [b"Payload", payload(id="1", reason="r")],
        [b"data", payload(id="1", reason="r")],
        [b"payload", payload(id="1", reason="r"), b"more"],
        [b"more", payload(id="1", reason="r")],
        [b"payload", payload(id="1", reason="r"), b"payload", payload(id="1", reason="r")],
        [b"payload", b""],
        [b"payload", b"not json"],
        [b"payload", b"\xff\xfe"],
        [b"payload", b"[" * 2000],
        [b"payload", payload(id="1", reason="r", body="the thing itself")],
    ],
)
def test_an_entry_of_a_foreign_shape_is_refused(fields):
    with pytest.raises(ContractViolation):
        from_entry(ID, fields, REGISTRY, LIMIT_BYTES)


@pytest.mark.parametrize("more", [[b"more", b"1"], [b"\xff\x00", b""], [b"v", b"2", b"v", b"3"]])
def test_fields_that_are_not_known_are_passed_over(more):
    raw = payload(id="1", reason="r")
    for fields in ([b"payload", raw, *more], [*more, b"payload", raw]):
        assert from_entry(ID, fields, REGISTRY, LIMIT_BYTES) == read(raw)


def test_the_limit_is_on_the_payload_as_it_was_appended():
    raw = payload(id="1", reason="r")

    assert read(raw, max_event_bytes=len(raw)).id == ID
    with pytest.raises(ContractViolation, match=f"{len(raw)} bytes, the limit is {len(raw) - 1}"):
        read(raw, max_event_bytes=len(raw) - 1)


def test_equal_events_about_equal_resources_conflate():
    assert (
        read(payload(id="1", reason="a")).conflation_key == read(payload(id="1", reason="b")).conflation_key
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (payload(id="1", reason="r"), payload(id="2", reason="r")),
        (payload(id="1", reason="r"), payload(id=1, reason="r")),
    ],
)
def test_different_resources_do_not_conflate(one, other):
    assert read(one).conflation_key != read(other).conflation_key


def test_different_events_about_one_resource_do_not_conflate():
    registry = builtin_registry()
    registry.register(EventType("argument_deleted", Invalidation))

    updated = read(payload("argument_updated", id="1", reason="r"), registry)
    deleted = read(payload("argument_deleted", id="1", reason="r"), registry)

    assert updated.conflation_key != deleted.conflation_key


@pytest.mark.parametrize("name", ["reload_required", "of_a_newer_producer", "not_conflatable"])
def test_events_that_all_count_have_no_conflation_key(name):
    registry = builtin_registry()
    registry.register(EventType("not_conflatable", Invalidation, conflatable=False))

    assert read(payload(name, reason="r"), registry).conflation_key is None


def test_a_reload_of_our_own_looks_like_one_that_was_appended():
    assert reload_event(ID, "trimmed").block == read(payload("reload_required", reason="trimmed")).block
    assert reload_event(ID, "trimmed").conflation_key is None
