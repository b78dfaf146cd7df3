"""The checker's own reader: what an event stream must not contain, it must see."""

from __future__ import annotations

import pytest

from .oracle import Position, Retry
from .wire import StreamReader, WrongBytes

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
DATA = b'data: {"event":"position","data":{}}\n\n'


def read(*blocks: bytes) -> list[object]:
    reader = StreamReader()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in blocks)
    return list(reader.feed(HEAD + chunks, 1.0))


def test_a_position_is_read_with_or_without_an_id() -> None:
    assert read(b"retry: 5\nevent: position\nid: 1-0\n" + DATA, b":\n", b"event: position\n" + DATA) == [
        Retry(1.0),
        Position(1.0, "1-0"),
    ]


@pytest.mark.parametrize(
    "block",
    [
        b"retry: 5\n\n",
        b"id: 1-0\n\n",
        b":\n\n",
        b"event: position\nid: 1-0\n\n",
        b"id: 1-0\n" + DATA,
        DATA,
        b'event: position\nid: 1-0\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n',
        b'event: position\nid: 1-0\ndata: {"event":"position","data":{"id":"1"}}\n\n',
        b'event: other\nid: 1-0\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n',
    ],
)
def test_what_some_client_would_pass_over_or_stumble_on_is_wrong(block: bytes) -> None:
    with pytest.raises(WrongBytes):
        read(block)
