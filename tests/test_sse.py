"""The wire format: exact bytes out, and a parser that does not care how they arrive."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.streams import sse
from app.streams.ids import StreamId
from app.streams.sse import Message, Parser

ID = StreamId(1700000000000, 7)


def parse(received: bytes, *splits: int) -> list[Message]:
    """Feed `received` cut at the given offsets."""
    parser, messages, start = Parser(), [], 0
    for end in [*sorted(splits), len(received)]:
        messages += parser.feed(received[start:end])
        start = end
    return messages


# -- what the server writes


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (sse.event_block(ID, b'{"a":1}'), b'id: 1700000000000-7\ndata: {"a":1}\n\n'),
        (sse.event_block(StreamId(0, 0), b""), b"id: 0-0\ndata: \n\n"),
        (
            sse.position_block(ID),
            b'event: position\nid: 1700000000000-7\ndata: {"event":"position","data":{}}\n\n',
        ),
        (
            sse.position_block(ID, 2500),
            b'retry: 2500\nevent: position\nid: 1700000000000-7\ndata: {"event":"position","data":{}}\n\n',
        ),
        (
            sse.position_block(None, 0),
            b'retry: 0\nevent: position\ndata: {"event":"position","data":{}}\n\n',
        ),
        (
            sse.reload_block(ID, "trimmed"),
            b'id: 1700000000000-7\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n',
        ),
        (sse.HEARTBEAT, b":\n"),
        (sse.chunk(b"x"), b"1\r\nx\r\n"),
        (sse.chunk(b"y" * 4096), b"1000\r\n" + b"y" * 4096 + b"\r\n"),
    ],
)
def test_blocks_are_these_bytes(block, expected):
    assert block == expected


def test_a_stream_of_all_blocks_reads_back():
    stream = b"".join(
        [
            sse.position_block(None, 1000),
            sse.position_block(StreamId(5, 0)),
            sse.HEARTBEAT,
            sse.event_block(StreamId(6, 0), b'{"n":1}'),
            sse.HEARTBEAT,
            sse.reload_block(StreamId(9, 1), "overflow"),
        ]
    )
    parser = Parser()

    messages = list(parser.feed(stream))

    assert messages[:3] == [
        Message("", None, 1000),
        Message("5-0", None, None),
        Message("6-0", '{"n":1}', None),
    ]
    assert messages[3].last_event_id == "9-1"
    assert json.loads(messages[3].data or "") == {"event": "reload_required", "data": {"reason": "overflow"}}
    assert len(messages) == 4
    assert parser.comments == 2


# -- what a client reads

TABLE: list[tuple[str, bytes, list[Message]]] = [
    ("LF", b"id: 1-0\ndata: x\n\n", [Message("1-0", "x", None)]),
    ("CR LF", b"id: 1-0\r\ndata: x\r\n\r\n", [Message("1-0", "x", None)]),
    ("CR", b"id: 1-0\rdata: x\r\r\n", [Message("1-0", "x", None)]),
    ("all line ends in one block", b"id: 1-0\rdata: x\r\ndata: y\n\r\n", [Message("1-0", "x\ny", None)]),
    ("a byte order mark", b"\xef\xbb\xbfdata: x\n\n", [Message("", "x", None)]),
    ("a second byte order mark is text", b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\ndata: y\n\n",
     [Message("", "y", None)]),
    ("a comment", b": hello\ndata: x\n\n", [Message("", "x", None)]),
    ("a comment between fields", b"data: x\n:\ndata: y\n\n", [Message("", "x\ny", None)]),
    ("data on several lines", b"data: x\ndata:\ndata: y\n\n", [Message("", "x\n\ny", None)]),
    ("data without a value", b"data\n\n", [Message("", "", None)]),
    ("one space is dropped, only one", b"data:  x\n\ndata:y\n\n",
     [Message("", " x", None), Message("", "y", None)]),
    ("a colon in the value", b"data: a:b: c\n\n", [Message("", "a:b: c", None)]),
    ("an id survives blocks", b"id: 1-0\ndata: x\n\ndata: y\n\n",
     [Message("1-0", "x", None), Message("1-0", "y", None)]),
    ("an id alone moves the cursor", b"id: 1-0\n\n", [Message("1-0", None, None)]),
    ("an empty id clears it", b"id: 1-0\n\nid\n\n", [Message("1-0", None, None), Message("", None, None)]),
    ("an id with NUL is ignored", b"id: 1-0\n\nid: 2\x00-0\ndata: x\n\n",
     [Message("1-0", None, None), Message("1-0", "x", None)]),
    ("retry", b"retry: 1500\n\n", [Message("", None, 1500)]),
    ("retry of other than digits", b"retry: 1s\nretry: -1\nretry: +1\nretry: \nretry: 1.5\n\n", []),
    ("retry in other digits", "retry: \u0661\nretry: \u00b2\n\n".encode(), []),
    ("unknown fields", b"event: x\nfoo: bar\nid : 1\nDATA: x\n\n", []),
    ("a block with a name of its own is not for onmessage", b"event: position\nid: 1-0\ndata: x\n\n",
     [Message("1-0", None, None)]),
    ("the name of one block is not the next one's", b"event: position\ndata: x\n\nid: 1-0\ndata: y\n\n",
     [Message("1-0", "y", None)]),
    ("the name that every block has", b"event: message\ndata: x\n\nevent\ndata: y\n\n",
     [Message("", "x", None), Message("", "y", None)]),
    ("a position without an id leaves the cursor", b"id: 1-0\n\nretry: 5\nevent: position\ndata: x\n\n",
     [Message("1-0", None, None), Message("1-0", None, 5)]),
    ("a comment right before a block", b":\n:\nid: 1-0\ndata: x\n\n", [Message("1-0", "x", None)]),
    ("empty blocks", b"\n\n\r\n\r\n", []),
    ("an unfinished block", b"data: x\n", []),
    ("an unfinished line", b"data: x\n\ndata: y", [Message("", "x", None)]),
    ("a malformed text", b"data: \xff\n\n", [Message("", "\ufffd", None)]),
    ("line separators of Unicode are text", "data: a\u2028b\u2029c\x85d\x0be\n\n".encode(),
     [Message("", "a\u2028b\u2029c\x85d\x0be", None)]),
]  # fmt: skip
STREAMS = [(received, expected) for _, received, expected in TABLE]
NAMES = [name for name, *_ in TABLE]


@pytest.mark.parametrize(("received", "expected"), STREAMS, ids=NAMES)
def test_the_parser_reads(received, expected):
    assert parse(received) == expected


@pytest.mark.parametrize(("received", "expected"), STREAMS, ids=NAMES)
def test_byte_by_byte_it_reads_the_same(received, expected):
    assert parse(received, *range(len(received))) == expected


@pytest.mark.parametrize(("received", "expected"), STREAMS, ids=NAMES)
def test_cut_in_two_anywhere_it_reads_the_same(received, expected):
    for split in range(len(received) + 1):
        assert parse(received, split) == expected, split


line_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)
line_ends = st.sampled_from(["\n", "\r", "\r\n"])
fields = st.one_of(
    line_texts,
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["data", "id", "retry", "event", ""]),
        st.sampled_from([":", ": ", ""]),
        line_texts,
    ),
    st.just(""),
)


@given(st.lists(st.tuples(fields, line_ends)), st.booleans(), st.data())
def test_how_the_bytes_are_cut_never_matters(lines, with_bom, data):
    received = b"\xef\xbb\xbf" * with_bom + "".join(line + end for line, end in lines).encode()
    splits = data.draw(st.lists(st.integers(0, len(received)), max_size=10))

    assert parse(received, *splits) == parse(received)


@given(
    st.lists(
        st.tuples(
            st.builds(StreamId, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)),
            line_texts,
            st.booleans(),
        )
    ),
    st.data(),
)
def test_what_the_server_encodes_a_client_reads(events, data):
    stream, expected = b"", []
    for stream_id, payload, after_heartbeat in events:
        stream += sse.HEARTBEAT * after_heartbeat + sse.event_block(stream_id, payload.encode())
        expected.append(Message(str(stream_id), payload, None))
    splits = data.draw(st.lists(st.integers(0, len(stream)), max_size=5))

    # Between "data: " and the text nothing is lost, not even a space that the text begins with.
    assert parse(stream, *splits) == expected


def test_comments_are_counted_and_dispatch_nothing():
    parser = Parser()

    assert list(parser.feed(b":\n\n: x\n\n:\r\n\r\n")) == []
    assert parser.comments == 3


def test_a_parser_goes_on_from_the_id_it_is_given():
    parser = Parser(last_event_id="4-2")

    assert list(parser.feed(b"data: x\n\n")) == [Message("4-2", "x", None)]
    assert parser.last_event_id == "4-2"


def test_messages_already_read_come_out_before_an_endless_line_is_refused():
    messages = Parser(block_limit_bytes=100).feed(b"data: x\n\n" + b"y" * 101)

    assert next(messages) == Message("", "x", None)
    with pytest.raises(ValueError, match="exceeds 100 bytes"):
        next(messages)


def test_a_line_within_the_limit_is_read_however_it_arrives():
    parser = Parser(block_limit_bytes=100)
    line = b"data: " + b"y" * 94

    messages = [message for byte in line + b"\n\n" for message in parser.feed(bytes([byte]))]

    assert messages == [Message("", "y" * 94, None)]


def test_a_block_of_many_lines_is_bounded_too():
    parser = Parser(block_limit_bytes=100)
    messages = (message for _ in range(1000) for message in parser.feed(b"data: yyyyyyyyyy\n"))

    with pytest.raises(ValueError, match="exceeds 100 bytes"):
        list(messages)


@given(st.binary(min_size=1, max_size=5000))
def test_a_chunk_holds_its_length_and_its_bytes(data):
    size, _, rest = sse.chunk(data).partition(b"\r\n")

    assert int(size, 16) == len(data)
    assert rest == data + b"\r\n"
