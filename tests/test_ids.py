"""Positions: what parses, how they order, and the range that names a data set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.streams.ids import BEGINNING, ORIGIN_SEQ_MAX, ORIGIN_SEQ_MIN, InvalidStreamId, StreamId, origin

MAX_PART = 2**64 - 1

parts = st.one_of(st.integers(0, MAX_PART), st.sampled_from([0, 1, 2**32, 2**53, 2**63, MAX_PART]))
ids = st.builds(StreamId, parts, parts)


@given(ids)
def test_an_id_survives_being_printed_and_parsed(stream_id):
    assert StreamId.parse(str(stream_id)) == stream_id
    assert StreamId.parse(bytes(stream_id)) == stream_id
    assert str(stream_id).encode() == bytes(stream_id) == b"%d-%d" % (stream_id.ms, stream_id.seq)


@given(parts)
def test_milliseconds_alone_mean_sequence_zero(ms):
    assert StreamId.parse(str(ms)) == StreamId(ms, 0)


@given(ids, ids)
def test_ids_order_as_pairs_of_integers(one, other):
    assert (one < other) == ((one.ms, one.seq) < (other.ms, other.seq))
    assert one >= BEGINNING


def test_order_is_not_the_order_of_the_texts():
    assert StreamId.parse("9-9") < StreamId.parse("9-10") < StreamId.parse("10-0")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("0-0", StreamId(0, 0)),
        ("007-01", StreamId(7, 1)),
        ("18446744073709551615-18446744073709551615", StreamId(MAX_PART, MAX_PART)),
        ("00000000000000000001-0", StreamId(1, 0)),  # 20 digits
    ],
)
def test_redis_spellings_parse(text, parsed):
    assert StreamId.parse(text) == parsed
    assert StreamId.parse(text.encode()) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "1-", "-1", "1--1", "1-2-3", "+1", "+1-1", "-1-1", "1-+1", "$", "+", "*", "1-*", ">",
        " 1-1", "1-1 ", "1-1\n", "\n1-1", "1 -1", "1\0", "1_0-1", "0x1-1", "1e3", "1.0-1", "a-b", "null",
        "\u0661-\u0661",  # Arabic-Indic digits
        "\uff11-0",  # a full-width digit
        "\u00b2-0",  # superscript two: str.isdigit() says yes
        "1\u20131",  # an en dash
        "\ud800",  # a lone surrogate, as a header may carry it
        "1" * 21, "1-" + "1" * 21, "0" * 21,  # 21 digits, whatever they are worth
        "18446744073709551616", "0-18446744073709551616", "99999999999999999999-0",  # 20 digits, over 64 bits
        "1" * 1_000_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidStreamId) as refused:
        StreamId.parse(text)
    assert len(str(refused.value)) < 400  # an attacker's megabyte does not go to the log

    with pytest.raises(InvalidStreamId):
        StreamId.parse(text.encode("utf-8", "replace"))


@given(st.text(max_size=12))
def test_a_text_parses_or_is_refused_and_never_fails_otherwise(text):
    try:
        parsed = StreamId.parse(text)
    except InvalidStreamId:
        return
    assert set(text) <= set("0123456789-")
    assert [int(part) for part in text.split("-")] == [*parsed][: text.count("-") + 1]


@given(st.binary(max_size=12))
def test_bytes_parse_or_are_refused_and_never_fail_otherwise(received):
    try:
        parsed = StreamId.parse(received)
    except InvalidStreamId:
        return
    assert StreamId.parse(bytes(parsed)) == parsed


@given(st.one_of(st.none(), st.integers(0, 2**52 - 1)))
def test_an_origin_is_told_from_entries_and_reads_from_the_beginning(epoch):
    position = origin(epoch)

    assert position.is_origin
    assert position.read_after == BEGINNING
    assert position > BEGINNING
    assert StreamId.parse(str(position)) == position
    assert position.seq < 2**53  # exact in JavaScript


@given(st.integers(0, 2**52 - 1), st.integers(0, 2**52 - 1))
def test_two_data_sets_have_two_origins(one, other):
    # Every epoch that reading.epoch_command draws (52 bits) has an origin of its own.
    assert (origin(one) == origin(other)) == (one == other)


@pytest.mark.parametrize(
    ("stream_id", "is_origin"),
    [
        (BEGINNING, False),
        (StreamId(0, 1), False),
        (StreamId(0, ORIGIN_SEQ_MIN - 1), False),
        (StreamId(0, ORIGIN_SEQ_MIN), True),
        (StreamId(0, ORIGIN_SEQ_MAX), True),
        (StreamId(0, ORIGIN_SEQ_MAX + 1), False),
        (StreamId(0, MAX_PART), False),
        (StreamId(1, ORIGIN_SEQ_MIN), False),
    ],
)
def test_the_range_of_origins(stream_id, is_origin):
    assert stream_id.is_origin == is_origin


@given(ids.filter(lambda stream_id: not stream_id.is_origin))
def test_an_entrys_id_reads_from_itself(stream_id):
    assert stream_id.read_after == stream_id
