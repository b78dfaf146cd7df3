"""Reading with proof: snapshots and pages, the same on every server."""

from contextlib import suppress

import hiredis
import pytest

from app.redis_connection import RedisRefused, RedisUnavailable
from app.streams.ids import BEGINNING, StreamId, origin
from app.streams.reading import (
    EPOCH_KEY,
    examine,
    parse_entries,
    parse_snapshot,
    parse_streams,
    read_after,
    read_newest,
)
from app.streams.resume import Live, Reload, Replay, Snapshot, absent, decide

KEY = "topic:events:a"
EXAMINED = "topic:events:readiness"


def at(number: int) -> StreamId:
    return StreamId(number, 0)


def fill(writer, *numbers: int) -> None:
    for number in numbers:
        writer.xadd(KEY, {"payload": f"n{number}"}, id=f"{number}-0")


def ids(entries) -> list[int]:
    return [entry[0].ms for entry in entries]


# -- on a server


async def test_a_topic_without_a_stream(client):
    page = await read_after(client, KEY, at(5), 10)

    assert page.stream == absent(page.stream.epoch)
    assert page.stream.position == origin(page.stream.epoch)
    assert (page.entry_present, page.entries) == (False, [])


async def test_the_snapshot_of_a_stream(client, writer):
    fill(writer, 1, 2, 3, 4, 5)
    writer.xdel(KEY, "3-0")
    writer.xtrim(KEY, maxlen=3, approximate=False)

    page = await read_newest(client, KEY, 0)

    assert page.stream == Snapshot(
        epoch=page.stream.epoch,
        length=3,
        first=at(2),
        last_generated=at(5),
        entries_added=5,
        max_deleted=at(3),
    )
    assert page.entries == []


async def test_a_stream_that_was_emptied_is_not_a_new_one(client, writer):
    fill(writer, 1, 2)
    writer.xtrim(KEY, maxlen=0, approximate=False)

    stream = (await read_newest(client, KEY, 10)).stream

    assert (stream.length, stream.first, stream.last_generated) == (0, None, at(2))
    assert stream.position == at(2)


async def test_a_stream_that_was_only_created(client, writer):
    writer.xgroup_create(KEY, "workers", id="$", mkstream=True)

    stream = (await read_newest(client, KEY, 10)).stream

    assert stream.is_unwritten
    assert stream.is_complete
    assert stream.position == origin(stream.epoch)


async def test_a_page_begins_behind_the_cursor_and_says_whether_that_is_there(client, writer):
    fill(writer, 1, 2, 3, 4, 5)

    page = await read_after(client, KEY, at(2), 2)
    assert (page.entry_present, ids(page.entries)) == (True, [3, 4])
    assert page.entries[0][1] == [b"payload", b"n3"]

    page = await read_after(client, KEY, at(4), 2)
    assert (page.entry_present, ids(page.entries)) == (True, [5])

    page = await read_after(client, KEY, at(5), 2)
    assert (page.entry_present, page.entries) == (True, [])

    page = await read_after(client, KEY, StreamId(2, 1), 2)
    assert (page.entry_present, ids(page.entries)) == (False, [3, 4])


async def test_pages_from_an_origin_begin_with_the_first_entry(client, writer):
    position = (await read_newest(client, KEY, 0)).stream.position
    fill(writer, 1, 2, 3)

    page = await read_after(client, KEY, position, 2)

    assert ids(page.entries) == [1, 2]
    assert decide(position, page.stream, entry_present=page.entry_present) == Replay(position, at(3))


async def test_pages_follow_each_other_without_a_gap(client, writer):
    fill(writer, *range(1, 24))
    cursor, read = at(1), []
    while True:
        page = await read_after(client, KEY, cursor, 5)
        assert page.entry_present
        if not page.entries:
            break
        read += ids(page.entries)
        cursor = page.entries[-1][0]

    assert read == list(range(2, 24))
    assert decide(cursor, page.stream, entry_present=True) == Live(at(23))


async def test_trimming_between_two_pages_shows(client, writer):
    fill(writer, *range(1, 11))
    page = await read_after(client, KEY, at(1), 3)
    cursor = page.entries[-1][0]
    writer.xtrim(KEY, minid="7-0", approximate=False)

    page = await read_after(client, KEY, cursor, 3)

    assert not page.entry_present
    decision = decide(cursor, page.stream, entry_present=page.entry_present)
    assert decision == Reload("trimmed", at(10))


async def test_the_newest_entries_come_oldest_first(client, writer):
    fill(writer, 1, 2, 3, 4)

    assert ids((await read_newest(client, KEY, 3)).entries) == [2, 3, 4]
    assert ids((await read_newest(client, KEY, 9)).entries) == [1, 2, 3, 4]


async def test_the_epoch_stands_until_the_data_is_wiped(client, writer):
    first = (await read_newest(client, KEY, 0)).stream.epoch
    assert first is not None
    assert int(writer.get(EPOCH_KEY)) == first

    assert (await read_after(client, "topic:events:other", at(1), 1)).stream.epoch == first

    writer.flushall()
    second = (await read_newest(client, KEY, 0)).stream.epoch
    assert second not in (None, first)


async def test_a_key_of_another_type_is_refused(client, writer):
    writer.set(KEY, "no stream")

    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await read_newest(client, KEY, 10)
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await read_after(client, KEY, at(1), 10)


async def test_a_full_redis_is_at_worst_unavailable(client, writer, needs_real_server):
    """It refuses writes, and Redis even a MULTI of reads: not for ever, so nobody is sent away for it."""
    fill(writer, 1, 2)
    writer.config_set("maxmemory", "1")
    try:
        with suppress(RedisUnavailable):
            assert ids((await read_after(client, KEY, at(1), 10)).entries) == [2]
    finally:
        writer.config_set("maxmemory", "0")

    assert ids((await read_after(client, KEY, at(1), 10)).entries) == [2]


def put_nothing(writer) -> None:
    pass


def put_entries(writer) -> None:
    writer.xadd(EXAMINED, {"payload": "x"}, id="0-1")
    writer.xadd(EXAMINED, {"payload": "y"}, id="7-0")


def put_an_emptied_stream(writer) -> None:
    put_entries(writer)
    writer.xtrim(EXAMINED, maxlen=0, approximate=False)


def put_another_type(writer) -> None:
    writer.rpush(EXAMINED, "x")


def put_a_foreign_epoch(writer) -> None:
    writer.set(EPOCH_KEY, "abc")


@pytest.mark.parametrize(
    "put", [put_nothing, put_entries, put_an_emptied_stream, put_another_type, put_a_foreign_epoch]
)
async def test_an_examination_changes_nothing(client, writer, put, request):
    """Whoever asks `/readyz` asks for it, every few seconds."""
    if put is put_another_type and request.node.callspec.params["shared_redis_url"] == "fakeredis":
        pytest.skip("fakeredis ends the connection")
    await examine(client)  # an epoch that is missing is all that it makes
    assert writer.keys() == [EPOCH_KEY.encode()]
    fill(writer, 1, 2, 3)
    put(writer)
    before = everything(writer)

    for _ in range(3):
        assert (await examine(client)).obstacles == []

    assert everything(writer) == before


def everything(writer) -> dict[bytes, tuple[bytes, int]]:
    """Every key's content (of a stream also its counters), and how long it lives."""
    return {key: (writer.dump(key), writer.pttl(key)) for key in writer.scan_iter()}


# -- replies, also of servers that are not here


def test_maps_and_lists_are_read_alike():
    fields = [
        b"length", 1, b"radix-tree-keys", 1, b"last-generated-id", b"7-0", b"max-deleted-entry-id", b"0-0",
        b"entries-added", 3, b"first-entry", [b"7-0", [b"payload", b"x"]],
    ]  # fmt: skip
    expected = Snapshot(5, 1, at(7), at(7), 3, BEGINNING)

    assert parse_snapshot(fields, 5) == expected
    assert parse_snapshot(dict(zip(fields[::2], fields[1::2], strict=True)), 5) == expected

    entries = [[b"7-0", [b"payload", b"x"]]]
    assert parse_streams([[b"a", entries]]) == parse_streams({b"a": entries})
    assert parse_streams({b"a": entries}) == {"a": [(at(7), [b"payload", b"x"])]}


def test_redis_before_7_has_no_counters():
    stream = parse_snapshot(
        [b"length", 0, b"last-generated-id", b"7-0", b"groups", 0, b"first-entry", None], None
    )

    assert stream == Snapshot(None, 0, None, at(7), None, None)
    assert not stream.is_complete


def test_an_entry_deleted_while_it_was_read_has_no_fields():
    assert parse_entries([[b"7-0", None]]) == [(at(7), ())]
    assert parse_entries(None) == []


def test_a_read_that_timed_out_brought_nothing():
    assert parse_streams(None) == {}
    assert parse_streams([]) == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", RedisRefused),
        ("NOPERM this user has no permissions", RedisRefused),
        ("LOADING Redis is loading the dataset in memory", RedisUnavailable),
        ("UNBLOCKED the stream key no longer exists", RedisUnavailable),
        ("CLUSTERDOWN The cluster is down", RedisUnavailable),
    ],
)
def test_error_replies_to_a_read_are_told_apart(text, error):
    with pytest.raises(error, match=text.split()[0]):
        parse_streams(hiredis.ReplyError(text))
