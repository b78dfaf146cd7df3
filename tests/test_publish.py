"""Publishing: one entry, whichever way it is appended."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contracts import ContractViolation, EventType, Invalidation, builtin_registry, decode
from app.publish import (
    InvalidTopicId,
    append_command,
    publish_topic_event,
    publish_topic_event_on,
    publish_topic_event_sync,
    stream_key,
)

DATA = {"id": "42", "reason": "edited"}
ENTRY = {b"payload": b'{"event":"argument_updated","data":{"id":"42","reason":"edited"}}'}
KEY = "topic:events:a"


def entries(writer) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return [(entry[0], entry[1]) for entry in writer.xrange(KEY)]


# -- three forms


async def test_from_trio(client, writer):
    event_id = await publish_topic_event(client, "a", "argument_updated", DATA)

    assert entries(writer) == [(event_id.encode(), ENTRY)]


def test_over_redis_py(writer):
    event_id = publish_topic_event_sync(writer, "a", "argument_updated", DATA)

    assert entries(writer) == [(event_id.encode(), ENTRY)]


def test_in_a_transaction_of_the_applications_own(writer):
    with writer.pipeline(transaction=True) as pipeline:
        pipeline.set("document:42", "edited")
        publish_topic_event_on(pipeline, "a", "argument_updated", DATA)
        assert entries(writer) == []
        _, event_id = pipeline.execute()

    assert entries(writer) == [(event_id, ENTRY)]
    assert writer.get("document:42") == b"edited"


def test_a_transaction_that_fails_publishes_nothing(writer):
    with writer.pipeline(transaction=True) as pipeline:
        pipeline.watch("document:42")
        writer.set("document:42", "edited by somebody else")
        pipeline.multi()
        publish_topic_event_on(pipeline, "a", "argument_updated", DATA)
        with pytest.raises(Exception, match=r"[Ww]atched"):
            pipeline.execute()

    assert entries(writer) == []


def test_old_events_are_trimmed_about_the_limit(writer):
    with writer.pipeline(transaction=False) as pipeline:
        for _ in range(1000):
            publish_topic_event_on(pipeline, "a", "argument_updated", DATA, maxlen=100)
        pipeline.execute()

    # Redis trims whole nodes of up to 100 entries.
    assert 100 <= writer.xlen(KEY) <= 220


# -- the command


def test_the_command_is_one_xadd():
    command = append_command("a", "argument_updated", DATA, maxlen=7)

    assert command == ("XADD", KEY, "MAXLEN", "~", 7, "*", b"payload", ENTRY[b"payload"])


def test_an_applications_own_type_goes_through_its_registry():
    registry = builtin_registry()
    registry.register(EventType("page_moved", Invalidation))

    assert decode(append_command("a", "page_moved", DATA, registry=registry)[-1]).event == "page_moved"
    with pytest.raises(ContractViolation):
        append_command("a", "page_moved", DATA)


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_counts_the_encoded_event(over):
    size = len(append_command("a", "argument_updated", {"id": "é" * 50, "reason": "r"})[-1])

    if over:
        with pytest.raises(ContractViolation, match=f"takes {size} bytes, the limit is {size - 1}"):
            append_command("a", "argument_updated", {"id": "é" * 50, "reason": "r"}, max_event_bytes=size - 1)
    else:
        append_command("a", "argument_updated", {"id": "é" * 50, "reason": "r"}, max_event_bytes=size)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)


@given(texts, texts)
def test_what_the_limit_lets_pass_every_reader_accepts(resource_id, reason):
    """A reader holds the payload as it lies in the stream to the same limit."""
    payload = append_command("a", "argument_updated", {"id": resource_id, "reason": reason})[-1]

    assert len(payload) <= 4096
    assert json.loads(decode(payload).json)["data"] == {"id": resource_id, "reason": reason}


# -- topic ids


@pytest.mark.parametrize("topic_id", ["a", "a" * 128, "Ab.1_2:3~4-5", "...", ".a", "a..", "-", "~", "123"])
def test_topic_ids_that_name_a_stream(topic_id):
    assert stream_key(topic_id) == f"topic:events:{topic_id}"


@pytest.mark.parametrize(
    "topic_id",
    [
        "", ".", "..", "a" * 129, "a b", "a/b", "a\n", "\na", "a\0", "ä", "\u0661", "{a}", "a*", "a?", "a#",
        "a%20", "a\\b", "a,b", "\u200b",
    ],
)  # fmt: skip
def test_topic_ids_that_do_not(topic_id):
    with pytest.raises(InvalidTopicId):
        stream_key(topic_id)
    with pytest.raises(InvalidTopicId):
        append_command(topic_id, "argument_updated", DATA)


def test_a_refused_event_appends_nothing(writer):
    with pytest.raises(ContractViolation):
        publish_topic_event_sync(writer, "a", "argument_updated", {**DATA, "title": "the thing itself"})

    assert entries(writer) == []
