"""What may travel: strict where events are published, tolerant where they are read."""

import json
import sys
import textwrap
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from app.contracts import (
    ContractViolation,
    EventType,
    Invalidation,
    InvalidEventType,
    Registry,
    ReloadData,
    builtin_registry,
    decode,
    load_registry,
)
from app.streams import sse
from app.streams.ids import StreamId

MAX_INT = 2**53 - 1
VALID = {"id": "42", "reason": "edited"}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
resource_ids = st.one_of(texts, st.integers(-MAX_INT, MAX_INT))


# -- publishing


@given(resource_ids, texts)
def test_what_is_published_is_what_is_read(resource_id, reason):
    encoded = builtin_registry().encode("argument_updated", {"id": resource_id, "reason": reason})
    envelope = decode(encoded)

    assert json.loads(encoded) == {"event": "argument_updated", "data": {"id": resource_id, "reason": reason}}
    assert (envelope.event, envelope.resource_id) == ("argument_updated", resource_id)
    assert type(envelope.resource_id) is type(resource_id)
    assert json.loads(envelope.json) == json.loads(encoded)
    assert b"\n" not in encoded + envelope.json
    assert b"\r" not in encoded + envelope.json


def test_the_envelope_is_compact():
    assert builtin_registry().encode("argument_updated", VALID) == (
        b'{"event":"argument_updated","data":{"id":"42","reason":"edited"}}'
    )
    assert builtin_registry().encode("reload_required", {"reason": "imported"}) == (
        b'{"event":"reload_required","data":{"reason":"imported"}}'
    )


@pytest.mark.parametrize(
    ("data", "location"),
    [
        ({}, "data.id"),
        ({"id": "1"}, "data.reason"),
        ({"reason": "r"}, "data.id"),
        ({"id": None, "reason": "r"}, "data.id"),
        ({"id": "", "reason": "r"}, "data.id"),
        ({"id": "1", "reason": ""}, "data.reason"),
        ({"id": "1", "reason": None}, "data.reason"),
        ({"id": "1", "reason": 1}, "data.reason"),
        ({"id": "x" * 257, "reason": "r"}, "data.id"),
        ({"id": "1", "reason": "r" * 257}, "data.reason"),
        ({"id": MAX_INT + 1, "reason": "r"}, "data.id"),
        ({"id": -MAX_INT - 1, "reason": "r"}, "data.id"),
        ({"id": 1.5, "reason": "r"}, "data.id"),
        ({"id": 1.0, "reason": "r"}, "data.id"),
        ({"id": True, "reason": "r"}, "data.id"),
        ({"id": ["1"], "reason": "r"}, "data.id"),
        ({"id": {"a": 1}, "reason": "r"}, "data.id"),
        ({"id": "1", "reason": "r", "title": "the thing itself"}, "data.title"),
        ({"id": "1", "reason": "r", "Id": "2"}, "data.Id"),
        ("text", "data"),
        (None, "data"),
        ([], "data"),
    ],
)
def test_publishing_anything_but_id_and_reason_is_refused(data, location):
    with pytest.raises(ContractViolation) as refused:
        builtin_registry().encode("argument_updated", data)

    assert any(where.startswith(location) for where, _ in refused.value.errors)
    assert location in str(refused.value)


@pytest.mark.parametrize("data", [{}, {"reason": ""}, {"id": "1", "reason": "r"}])
def test_a_reload_has_a_reason_and_no_id(data):
    with pytest.raises(ContractViolation):
        builtin_registry().encode("reload_required", data)


def test_a_lone_surrogate_is_the_producers_fault():
    # What json.loads makes of "\ud800" in a request's body: text that no encoder of UTF-8 takes.
    with pytest.raises(ContractViolation):
        builtin_registry().encode("argument_updated", {"id": "\ud800", "reason": "r"})


def test_an_unknown_type_is_refused_with_the_known_ones():
    with pytest.raises(ContractViolation, match=r"'nope'.*argument_updated, reload_required.*EVENTS_MODULE"):
        builtin_registry().encode("nope", VALID)


# -- reading


def test_reading_accepts_types_that_this_server_does_not_know():
    envelope = decode(b'{"event":"of_a_newer_producer","data":{"id":7,"reason":"r"}}')

    assert (envelope.event, envelope.resource_id) == ("of_a_newer_producer", 7)


def test_reading_prints_any_spelling_on_one_line():
    pretty = b' {\n "data" : {"reason" : "r\\n",\r\n "id":"\\u00e9\\u2028"},\n "event": "e" }\n'

    assert decode(pretty).json == '{"event":"e","data":{"id":"é\u2028","reason":"r\\n"}}'.encode()


def test_reading_an_event_without_an_id():
    envelope = decode(b'{"event":"reload_required","data":{"reason":"r"}}')

    assert envelope.resource_id is None
    assert envelope.json == b'{"event":"reload_required","data":{"reason":"r"}}'


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b'{"event":"e"}',
        b'{"data":{"id":"1","reason":"r"}}',
        b'{"event":"e","data":{"id":"1"}}',
        b'{"event":"e","data":{"id":"1","reason":"r","body":"the thing itself"}}',
        b'{"event":"e","data":{"id":"1","reason":"r"},"extra":1}',
        b'{"event":"","data":{"id":"1","reason":"r"}}',
        b'{"event":"a b","data":{"id":"1","reason":"r"}}',
        b'{"event":"a\\n","data":{"id":"1","reason":"r"}}',
        b'{"event":"' + b"e" * 65 + b'","data":{"id":"1","reason":"r"}}',
        b'{"event":1,"data":{"id":"1","reason":"r"}}',
        b'{"event":"e","data":{"id":true,"reason":"r"}}',
        b'{"event":"e","data":{"id":1.5,"reason":"r"}}',
        b'{"event":"e","data":{"id":9007199254740992,"reason":"r"}}',
        b'{"event":"e","data":{"id":"1","reason":"r"}} trailing',
        b'{"event":"e","data":{"id":"\xff","reason":"r"}}',
        b'{"event":"e","data":{"id":"\\ud800","reason":"r"}}',
        b'{"event":"e","data":{"id":"' + b"x" * 257 + b'","reason":"r"}}',
        b'{"event":"position","data":{}}',
        b'{"event":"position","data":{"reason":"r"}}',
        b'{"event":"position","data":{"id":"1","reason":"r"}}',
        b'{ "event" : "position","data":{"id":"1","reason":"r"}}',
        b'{"event":"positio\\u006e","data":{"id":"1","reason":"r"}}',
        b"[" * 100_000,
        b'{"event":' * 100_000,
    ],
)
def test_reading_refuses_everything_else(payload):
    with pytest.raises(ContractViolation):
        decode(payload)


@given(st.binary(max_size=60))
def test_reading_never_fails_otherwise(payload):
    try:
        decode(payload)
    except ContractViolation:
        return
    raise AssertionError("random bytes are no envelope")


# -- the registry


class Narrow(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reason: Literal["moved", "renamed"]
    id: Annotated[int, Field(ge=1)]


@pytest.mark.parametrize("name", ["a", "a" * 64, "Ab_1.2:3-4"])
def test_names_that_can_be_registered(name):
    registry = Registry()
    registry.register(EventType(name, Invalidation))

    assert [kind.name for kind in registry] == [name]
    assert decode(registry.encode(name, VALID)).event == name


@pytest.mark.parametrize("name", ["", "a" * 65, "a b", "a\n", "ä", "a/b", 'a"b', "a\u2028"])
def test_names_that_cannot(name):
    with pytest.raises(InvalidEventType, match="event name"):
        Registry().register(EventType(name, Invalidation))


@pytest.mark.parametrize("name", ["argument_updated", "reload_required"])
def test_a_name_is_registered_once(name):
    with pytest.raises(InvalidEventType, match="already registered"):
        builtin_registry().register(EventType(name, Invalidation))


class WithBody(Invalidation):
    body: str


class WithOptionalBody(Invalidation):
    body: str | None = None


class WithoutReason(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: str


class Tolerant(BaseModel):
    id: str
    reason: str


class ExtraAllowed(Invalidation):
    model_config = ConfigDict(extra="allow")


@pytest.mark.parametrize(
    "model", [WithBody, WithOptionalBody, WithoutReason, Tolerant, ExtraAllowed, BaseModel]
)
def test_a_model_that_would_let_more_travel_is_refused(model):
    with pytest.raises(InvalidEventType, match=r"id.*reason|extra='forbid'"):
        Registry().register(EventType("e", model))


class NestedId(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: dict[str, str]
    reason: str


class UnboundedId(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: float
    reason: str


class WithComputedBody(Invalidation):
    @computed_field
    def body(self) -> str:
        return "the thing itself"


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (NestedId, {"id": {"body": "the thing itself"}, "reason": "r"}),
        (UnboundedId, {"id": 1.5, "reason": "r"}),
        (UnboundedId, {"id": 2**60, "reason": "r"}),
        (WithComputedBody, VALID),
    ],
)
def test_what_no_reader_would_accept_is_never_published(model, data):
    """Else the producer is told 201 and every server skips the entry: a silent gap."""
    registry = Registry()
    try:
        registry.register(EventType("e", model))
        encoded = registry.encode("e", data)
    except (InvalidEventType, ContractViolation):
        return
    decode(encoded)


def test_a_model_may_narrow_what_its_type_takes():
    registry = Registry()
    registry.register(EventType("page_moved", Narrow))

    assert registry.encode("page_moved", {"id": 3, "reason": "moved"}) == (
        b'{"event":"page_moved","data":{"reason":"moved","id":3}}'
    )
    with pytest.raises(ContractViolation, match=r"data\.reason"):
        registry.encode("page_moved", {"id": 3, "reason": "burnt"})


def test_only_types_registered_as_such_conflate():
    registry = builtin_registry()
    registry.register(EventType("kept_whole", Invalidation, conflatable=False))

    assert registry.is_conflatable("argument_updated")
    assert not registry.is_conflatable("reload_required")
    assert not registry.is_conflatable("kept_whole")
    assert not registry.is_conflatable("of_a_newer_producer")


# -- the schema


def full_registry() -> Registry:
    registry = builtin_registry()
    registry.register(EventType("page.moved", Narrow))
    registry.register(EventType("page_moved", Invalidation))
    return registry


@given(resource_ids, texts)
def test_the_schemas_union_accepts_what_is_published(resource_id, reason):
    adapter = full_registry().envelope_adapter()

    for event, data in [
        ("argument_updated", {"id": resource_id, "reason": reason}),
        ("reload_required", {"reason": reason}),
        ("page.moved", {"id": 1, "reason": "renamed"}),
    ]:
        adapter.validate_json(full_registry().encode(event, data))


@pytest.mark.parametrize(
    "envelope",
    [
        {"event": "nope", "data": VALID},
        {"event": "argument_updated", "data": {"reason": "r"}},
        {"event": "reload_required", "data": VALID},
        {"event": "argument_updated", "data": VALID, "extra": 1},
        {"data": VALID},
    ],
)
def test_the_schemas_union_refuses_the_rest(envelope):
    with pytest.raises(ValidationError):
        full_registry().envelope_adapter().validate_python(envelope)


def test_the_json_schema_names_every_type():
    schema = full_registry().json_schema()
    definitions = schema["$defs"]
    by_event = {event: ref.rsplit("/", 1)[1] for event, ref in schema["discriminator"]["mapping"].items()}

    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(by_event) == {
        *("argument_updated", "reload_required", "page.moved", "page_moved"),
        "position",
    }
    # "page.moved" and "page_moved" have schemas of their own, though their class names are alike.
    assert len(set(by_event.values())) == len(by_event)
    for event, name in by_event.items():
        assert definitions[name]["properties"]["event"]["const"] == event
        assert definitions[name]["additionalProperties"] is False
    json.dumps(schema)


def test_a_position_is_known_to_readers_and_the_servers_alone_to_say():
    adapter = builtin_registry().envelope_adapter()
    (_, data) = sse.position_block(StreamId(1, 0), 1000).decode().rstrip().rsplit("data: ", 1)

    adapter.validate_json(data)
    for more in ({"id": "1"}, {"reason": "r"}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"event": "position", "data": more})
    registry = builtin_registry()
    with pytest.raises(InvalidEventType, match="the server's own"):
        registry.register(EventType("position", Invalidation))
    for data in ({}, VALID):
        with pytest.raises(ContractViolation, match="cannot be published"):
            registry.encode("position", data)
    assert "position" not in [kind.name for kind in registry]
    registry.register(EventType("positions", Invalidation))
    assert decode(registry.encode("positions", VALID)).event == "positions"


def test_a_registry_of_one_type_has_a_schema_too():
    registry = Registry()
    registry.register(EventType("only", ReloadData))

    assert registry.envelope_adapter().validate_python({"event": "only", "data": {"reason": "r"}})


# -- an application's own module


@pytest.fixture
def events_module(tmp_path, monkeypatch):
    """Writes the module `its_events`; returns its name."""

    def write(source: str) -> str:
        (tmp_path / "its_events.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "its_events", raising=False)
        return "its_events"

    yield write
    sys.modules.pop("its_events", None)


def test_an_application_adds_its_own_types(events_module):
    name = events_module(
        """
        from app.contracts import EventType, Invalidation

        def register(registry):
            registry.register(EventType("page_moved", Invalidation))
        """
    )

    assert {kind.name for kind in load_registry(name)} == {
        "argument_updated",
        "reload_required",
        "page_moved",
    }
    assert {kind.name for kind in load_registry(None)} == {"argument_updated", "reload_required"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "defines no function `register"),
        ("register = 1", "defines no function `register"),
        ("import nowhere_to_be_found", "cannot be imported.*nowhere_to_be_found"),
        (
            "from app.contracts import *\ndef register(r): r.register(EventType('a b', Invalidation))",
            "event name 'a b'",
        ),
        ("def register(:", "cannot be imported"),
        ("raise RuntimeError('no database')", "cannot be imported.*no database"),
    ],
)
def test_a_bad_module_is_named_with_what_is_wrong(events_module, source, says):
    with pytest.raises(InvalidEventType, match=says):
        load_registry(events_module(source))


@pytest.mark.parametrize("name", ["no_such_module_at_all", "app.no_such", "", ".relative", "a b"])
def test_a_module_that_is_not_there_is_named(name):
    with pytest.raises(InvalidEventType, match="cannot be imported"):
        load_registry(name)
