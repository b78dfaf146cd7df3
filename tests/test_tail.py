"""Live reading: everything in order, or the loss is told; one contract for every server."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import hiredis
import pytest
import trio
from redis import Redis
from servers import redis_client, run_redis, valkey_binary, wait_for
from structlog.testing import capture_logs

from app.publish import stream_key
from app.redis_connection import Address, Client, Command, Connection, RedisRefused, connect
from app.streams.ids import BEGINNING, StreamId
from app.streams.reading import EPOCH_COMMAND, Entry, parse_epoch, read_newest, snapshot_command
from app.streams.resume import Snapshot
from app.streams.tail import MARK_SEQ, PROBED_TOPICS, Group, Tails

TIMEOUT_S = 5.0
# Far below the 5 s for which a read blocks: whoever waits for that fails.
SOON_S = 1.5


class Watched:
    """A topic that notes what the tail tells it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = stream_key(name)
        self.position = BEGINNING
        self.epoch: int | None = None
        self.added_at_position: int | None = None
        self.delivered: list[StreamId] = []
        self.losses: list[tuple[StreamId, bool]] = []
        self.rewinds: list[StreamId] = []
        self.refusals: list[RedisRefused] = []

    async def open(self, client: Client) -> None:
        stream = (await read_newest(client, self.key, 0)).stream
        self.position, self.epoch = stream.position, stream.epoch
        self.added_at_position = stream.entries_added

    async def deliver(self, entries: list[Entry]) -> None:
        assert entries
        self.delivered += [entry[0] for entry in entries]
        self.position = entries[-1][0]

    async def lose(self, stream: Snapshot, *, forced: bool) -> None:
        self.losses.append((stream.position, forced))
        self.position, self.epoch = stream.position, stream.epoch

    def rewind(self, stream: Snapshot) -> None:
        self.rewinds.append(stream.position)

    async def refuse(self, error: RedisRefused) -> None:
        self.refusals.append(error)

    async def wait_delivered(self, *expected: StreamId) -> None:
        await wait_for(lambda: len(self.delivered) >= len(expected) or self.losses, SOON_S)
        assert self.delivered == list(expected)
        assert self.losses == []

    async def wait_lost(self, position: StreamId, *, forced: bool) -> None:
        await wait_for(lambda: self.losses, SOON_S)
        assert self.losses == [(position, forced)]


StartTails = Callable[..., Awaitable[Tails]]
Watch = Callable[..., Awaitable[Watched]]


@pytest.fixture
def start_tails(redis_url, client, nursery) -> StartTails:
    async def start(group_limit_topics: int = 64, read_limit_events: int = 500) -> Tails:
        tails = Tails(
            Address.from_url(redis_url),
            client,
            group_limit_topics=group_limit_topics,
            read_limit_events=read_limit_events,
            timeout_s=TIMEOUT_S,
        )
        await nursery.start(tails.run)
        return tails

    return start


@pytest.fixture
async def tails(start_tails) -> Tails:
    return await start_tails()


@pytest.fixture
def watch(client) -> Watch:
    """Opens a topic and returns when it is being read."""

    async def watch(tails: Tails, name: str) -> Watched:
        topic = Watched(name)
        await topic.open(client)
        reads = tails.statistics().reads
        tails.watch(topic)
        await wait_for(lambda: is_read(tails, topic, reads))
        return topic

    def is_read(tails: Tails, topic: Watched, reads: int) -> bool:
        statistics = tails.statistics()
        return statistics.connected_groups == statistics.groups and (
            statistics.topics == 1 or statistics.reads > reads or topic.delivered != []
        )

    return watch


def add(writer: Redis, name: str, *numbers: int) -> list[StreamId]:
    """In one write, but not in one transaction."""
    with writer.pipeline(transaction=False) as pipeline:
        for number in numbers:
            pipeline.xadd(stream_key(name), {"payload": "{}"}, id=f"{number}-0")
        return [StreamId.parse(reply) for reply in pipeline.execute()]


def at(number: int) -> StreamId:
    return StreamId(number, 0)


# -- delivery


async def test_events_arrive_in_order_and_once(tails, watch, writer):
    topic = await watch(tails, "a")

    expected = add(writer, "a", *range(1, 101))

    await topic.wait_delivered(*expected)
    assert tails.statistics().gaps == 0


async def test_a_burst_beyond_the_read_limit_arrives_whole(start_tails, watch, writer):
    tails = await start_tails(read_limit_events=7)
    topic = await watch(tails, "a")

    expected = add(writer, "a", *range(1, 101))

    await topic.wait_delivered(*expected)


async def test_reading_begins_behind_the_position(tails, client, writer):
    add(writer, "a", 1, 2, 3)
    topic = Watched("a")
    await topic.open(client)
    between = add(writer, "a", 4, 5)

    tails.watch(topic)

    await topic.wait_delivered(*between)


async def test_a_topic_without_a_stream_gets_its_first_event(tails, watch, writer):
    topic = await watch(tails, "a")
    assert topic.position.is_origin

    await topic.wait_delivered(*add(writer, "a", 1))


async def test_a_new_topic_wakes_a_blocked_read(tails, watch, writer):
    first = await watch(tails, "a")
    await trio.sleep(0.05)  # it blocks by now

    second = Watched("b")
    await second.open(tails.client)
    tails.watch(second)
    expected = add(writer, "b", 1)

    await second.wait_delivered(*expected)
    await first.wait_delivered(*add(writer, "a", 1))


async def test_topics_are_split_over_groups_and_all_are_read(start_tails, client, writer):
    tails = await start_tails(group_limit_topics=4)
    topics = [Watched(f"t{number}") for number in range(30)]
    for topic in topics:
        await topic.open(client)
        tails.watch(topic)

    expected = {topic.key: add(writer, topic.name, 1, 2) for topic in topics}

    for topic in topics:
        await topic.wait_delivered(*expected[topic.key])
    statistics = tails.statistics()
    assert (statistics.groups, statistics.topics) == (8, 30)


async def test_a_topic_that_is_not_watched_any_more_hears_nothing(tails, watch, writer):
    left, stays = await watch(tails, "a"), await watch(tails, "b")

    tails.unwatch(left)
    add(writer, "a", 1)
    await stays.wait_delivered(*add(writer, "b", 1))

    assert left.delivered == []
    assert tails.statistics().topics == 1


async def test_the_last_topic_takes_its_group_and_connection_along(needs_real_server, tails, watch, writer):
    def is_gone() -> bool:
        return not [one for one in writer.client_list() if one["name"] == "stalecast-tail"]

    topic = await watch(tails, "a")

    tails.unwatch(topic)

    assert tails.statistics().groups == 0
    await wait_for(is_gone, SOON_S)


async def test_a_topic_comes_and_goes_many_times(tails, client, writer):
    """Wake-ups may overtake the read that they are meant for."""
    stays = Watched("stays")
    await stays.open(client)
    tails.watch(stays)
    for number in range(1, 20):
        topic = Watched("a")
        await topic.open(client)
        tails.watch(topic)
        await topic.wait_delivered(*add(writer, "a", number))
        tails.unwatch(topic)

    await stays.wait_delivered(*add(writer, "stays", 1))


async def test_leaving_late_does_not_take_the_successor_along(tails, watch, writer):
    old = await watch(tails, "a")
    tails.unwatch(old)
    new = await watch(tails, "a")

    tails.unwatch(old)

    await new.wait_delivered(*add(writer, "a", 1))


# -- gaps


async def test_what_was_trimmed_before_it_was_read_is_a_loss(tails, watch, writer):
    add(writer, "a", 1)
    topic = await watch(tails, "a")

    with writer.pipeline(transaction=True) as pipeline:
        for number in range(2, 8):
            pipeline.xadd(stream_key("a"), {"payload": "{}"}, id=f"{number}-0")
        pipeline.xtrim(stream_key("a"), maxlen=2, approximate=False)
        pipeline.execute()

    await topic.wait_lost(at(7), forced=False)
    assert topic.delivered == []
    assert tails.statistics().gaps == 1
    await topic_goes_on(topic, writer, 8)


async def topic_goes_on(topic: Watched, writer: Redis, *numbers: int) -> None:
    losses = list(topic.losses)
    expected = add(writer, topic.name, *numbers)
    await wait_for(lambda: topic.delivered[-len(expected) :] == expected, SOON_S)
    assert topic.losses == losses


async def test_what_was_trimmed_after_it_was_read_is_none(tails, watch, writer):
    topic = await watch(tails, "a")
    for number in range(1, 6):
        writer.xadd(stream_key("a"), {"payload": "{}"}, id=f"{number}-0", maxlen=2, approximate=False)
        await topic.wait_delivered(*(at(known) for known in range(1, number + 1)))


async def test_a_stream_that_keeps_nothing_of_before_a_read_proves_nothing(tails, watch, writer):
    """With MAXLEN 1 it looks like one that was deleted and filled again."""
    add(writer, "a", 1)
    topic = await watch(tails, "a")

    writer.xadd(stream_key("a"), {"payload": "{}"}, id="2-0", maxlen=1, approximate=False)

    await topic.wait_lost(at(2), forced=False)


async def test_counters_that_coincide_are_no_proof(tails, watch, writer):
    """As many came after the deletion as make up for what had been there before."""
    add(writer, "a", 1)
    topic = await watch(tails, "a")

    with writer.pipeline(transaction=True) as pipeline:
        pipeline.delete(stream_key("a"))
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="2-0")
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="3-0")
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="4-0", maxlen=2, approximate=False)
        pipeline.execute()

    await topic.wait_lost(at(4), forced=False)
    assert topic.delivered == []
    await topic_goes_on(topic, writer, 5)


async def test_a_read_of_before_a_rollback_and_one_of_after_it_make_no_whole(
    needs_real_server, redis_url, client, writer
):
    """6 and 7 were trimmed unread, 8 was read; then the stream went back to where it held 6, and 9 came: as
    many were added behind 5 as were read, and yet 6 is not among them."""
    topic = Watched("a")
    add(writer, "a", 1, 2, 3, 4, 5)
    await topic.open(client)
    add(writer, "a", 6, 9)
    address = Address.from_url(redis_url)
    group = Group(Tails(address, client, group_limit_topics=1, read_limit_events=500, timeout_s=TIMEOUT_S))
    group.topics[topic.key] = topic

    async with await connect(address, name="test", timeout_s=TIMEOUT_S) as connection:
        await group._decide(connection, {topic.key: [(at(8), [b"payload", b"{}"])]})

    assert topic.delivered == []
    assert topic.losses or topic.rewinds


async def test_what_came_between_a_read_and_its_proof_is_read_with_one_of_its_own(redis_url, client, writer):
    topic = Watched("a")
    add(writer, "a", 1, 2, 3, 4, 5)
    await topic.open(client)
    add(writer, "a", 6, 7, 8)
    address = Address.from_url(redis_url)
    group = Group(Tails(address, client, group_limit_topics=1, read_limit_events=500, timeout_s=TIMEOUT_S))
    group.topics[topic.key] = topic

    async with await connect(address, name="test", timeout_s=TIMEOUT_S) as connection:
        await group._decide(connection, {topic.key: [(at(6), [b"payload", b"{}"])]})

    assert topic.delivered == [at(6), at(7), at(8)]
    assert topic.losses == []


def go_back_and_on(writer: Redis, name: str, dump: bytes, numbers: Iterable[int]) -> None:
    """Older data, and new events behind it before anybody has looked."""
    with writer.pipeline(transaction=True) as pipeline:
        pipeline.restore(stream_key(name), 0, dump, replace=True)
        for number in numbers:
            pipeline.xadd(stream_key(name), {"payload": "{}"}, id=f"{number}-0")
        pipeline.execute()


async def test_a_rollback_with_new_events_behind_it_is_seen_without_a_new_connection(
    needs_real_server, tails, watch, writer
):
    """Nothing is missing for the tail, but whoever is away with an older cursor must be told."""
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4, 5))

    go_back_and_on(writer, "a", dump, (7, 8, 9))

    def marks() -> list[bytes]:
        return [one for one, fields in writer.xrange(stream_key("a")) if b"reload" in fields[b"payload"]]

    await wait_for(marks, SOON_S)
    (mark,) = marks()
    await wait_for(lambda: topic.delivered[-1] == StreamId.parse(mark), SOON_S)
    await topic_goes_on(topic, writer, *next_numbers(mark))
    assert marks() == [mark]


async def test_a_rollback_to_an_emptied_stream_is_marked(needs_real_server, tails, watch, writer):
    """Whoever is away at its end would be taken to have everything."""
    add(writer, "a", 1, 2, 3)
    writer.xtrim(stream_key("a"), maxlen=0, approximate=False)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    add(writer, "a", 4)
    await topic.wait_lost(at(4), forced=False)  # with nothing left from before it

    await go_back(writer, tails, "a", dump)

    await wait_for(lambda: topic.delivered == [StreamId(4, MARK_SEQ)], SOON_S)
    ((_, fields),) = writer.xrange(stream_key("a"))
    assert b"reload_required" in fields[b"payload"]


def next_numbers(event_id: bytes) -> list[int]:
    return [StreamId.parse(event_id).ms + step for step in (1, 2, 3)]


async def test_a_mark_that_redis_refuses_is_none(needs_real_server, redis_url, watch, writer, nursery):
    """The answer of an XRANGE may be an error as well, which is no entry."""
    writer.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-xadd")
    address = Address.from_url(redis_url.replace("redis://", "redis://reader:secret@"))
    client = Client(address, timeout_s=TIMEOUT_S, waiting_limit=100)
    tails = Tails(address, client, group_limit_topics=64, read_limit_events=500, timeout_s=TIMEOUT_S)
    await nursery.start(client.run)
    await nursery.start(tails.run)
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4, 5))

    with capture_logs() as logs:
        await go_back(writer, tails, "a", dump)
        await topic_is_lost(topic)

    assert topic.rewinds == []
    assert topic.losses == [(at(3), True)]
    assert "rollback_not_marked" in [log["event"] for log in logs]
    nursery.cancel_scope.cancel()
    writer.execute_command("ACL", "DELUSER", "reader")


@pytest.mark.parametrize(("answer", "marked"), [("NOPERM no", False), ("ERR The ID is too small", True)])
async def test_a_mark_that_nobody_may_look_for_is_none(
    needs_real_server, tails, watch, writer, monkeypatch, answer, marked
):
    """The answer to the look for another's mark is an error: no mark, and no reason to leave clients untold.
    They are told, or another one is appended."""
    call = Connection.call

    async def refuse(self: Connection, *commands: Command) -> list[Any]:
        replies = await call(self, *commands) if commands[0][0] != "XADD" or len(commands) == 1 else []
        return replies or [hiredis.ReplyError(answer), hiredis.ReplyError("NOPERM no")]

    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4, 5))
    monkeypatch.setattr(Connection, "call", refuse)

    await go_back(writer, tails, "a", dump)

    await wait_for(lambda: topic.losses or topic.rewinds, SOON_S)
    assert topic.losses == ([] if marked else [(at(3), True)])
    assert topic.rewinds == ([at(3)] if marked else [])


async def topic_is_lost(topic: Watched) -> None:
    await wait_for(lambda: topic.losses, SOON_S)


async def test_a_burst_is_proven_by_the_entry_at_the_last_position(start_tails, watch, writer):
    tails = await start_tails(read_limit_events=7)
    add(writer, "a", 1)
    topic = await watch(tails, "a")

    with writer.pipeline(transaction=True) as pipeline:
        for number in range(2, 60):
            pipeline.xadd(stream_key("a"), {"payload": "{}"}, id=f"{number}-0")
        pipeline.execute()

    await topic.wait_delivered(*(at(number) for number in range(2, 60)))


async def test_a_deletion_before_the_read_is_a_loss(tails, watch, writer):
    add(writer, "a", 1)
    topic = await watch(tails, "a")

    with writer.pipeline(transaction=True) as pipeline:
        for number in (2, 3):
            pipeline.xadd(stream_key("a"), {"payload": "{}"}, id=f"{number}-0")
        pipeline.xdel(stream_key("a"), "2-0")
        pipeline.execute()

    await topic.wait_lost(at(3), forced=False)
    await topic_goes_on(topic, writer, 4)


async def test_a_deletion_of_what_was_read_is_none(tails, watch, writer):
    topic = await watch(tails, "a")
    await topic.wait_delivered(*add(writer, "a", 1, 2))

    writer.xdel(stream_key("a"), "1-0")

    await topic.wait_delivered(at(1), at(2), *add(writer, "a", 3))


@pytest.mark.parametrize("numbers", [(1,), (1, 2, 3), (9,)])
async def test_a_flush_is_a_loss_however_the_stream_begins_anew(tails, watch, writer, numbers):
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    other = await watch(tails, "b")

    writer.flushall()
    add(writer, "a", *numbers)
    tails.recheck(topic)

    await wait_for(lambda: topic.losses, SOON_S)
    assert all(forced for _, forced in topic.losses)
    assert topic.delivered in ([], [at(number) for number in numbers])
    await topic_goes_on(topic, writer, 10)
    # A topic without a stream cannot know what was there meanwhile.
    await wait_for(lambda: other.losses, SOON_S)


async def test_a_flush_shows_with_the_next_event(tails, watch, writer):
    add(writer, "a", 1)
    topic = await watch(tails, "a")

    writer.flushall()
    add(writer, "a", 9)

    await topic.wait_lost(at(9), forced=True)
    await topic_goes_on(topic, writer, 10)


async def test_a_topic_without_a_stream_is_told_of_a_flush(tails, watch, writer):
    topic = await watch(tails, "a")

    with writer.pipeline(transaction=True) as pipeline:
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="1-0")
        pipeline.flushall()
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="2-0")
        pipeline.execute()

    await topic.wait_lost(at(2), forced=True)


async def test_a_wipe_between_a_read_and_its_proof_is_a_loss(tails, watch, writer, monkeypatch):
    """The stream is filled again, so that its counters and ids are those that the read would have left. Only
    topics beyond the first few are proven by a second question."""
    for number in range(PROBED_TOPICS):
        await watch(tails, f"other{number}")
    add(writer, "a", 1, 2)
    topic = await watch(tails, "a")
    call = Connection.call
    wiped = False

    async def wipe_before_the_proof(self: Connection, *commands: Command) -> list[object]:
        nonlocal wiped
        if not wiped and commands[-1] == snapshot_command(topic.key):
            wiped = True
            writer.flushall()
            add(writer, "a", 1, 2, 3)
        return await call(self, *commands)

    monkeypatch.setattr(Connection, "call", wipe_before_the_proof)
    add(writer, "a", 3)

    await topic.wait_lost(at(3), forced=True)
    assert wiped
    assert topic.delivered == []


async def test_a_stream_that_was_replaced_is_a_loss(tails, watch, writer):
    add(writer, "a", 1, 2)
    topic = await watch(tails, "a")

    with writer.pipeline(transaction=True) as pipeline:
        pipeline.delete(stream_key("a"))
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="5-0")
        pipeline.execute()

    await wait_for(lambda: topic.losses, SOON_S)
    assert topic.position == at(5)


async def test_one_topics_loss_is_no_other_topics(tails, watch, writer):
    add(writer, "a", 1)
    topic, other = await watch(tails, "a"), await watch(tails, "b")

    with writer.pipeline(transaction=True) as pipeline:
        pipeline.xadd(stream_key("b"), {"payload": "{}"}, id="1-0")
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="2-0")
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="3-0", maxlen=1, approximate=False)
        pipeline.execute()

    await topic.wait_lost(at(3), forced=False)
    await other.wait_delivered(at(1))


async def test_what_a_read_under_way_brings_is_not_for_who_watches_the_key_anew(tails, watch, writer):
    """The last client has left, and the next one come; to judge its new topic by what was read behind the
    position of the one before is to see a loss that never was."""
    await watch(tails, "b")
    add(writer, "a", 1, 2, 3)
    before = await watch(tails, "a")
    (group,) = tails._groups
    await wait_for(lambda: group.reading)

    add(writer, "a", 4)  # the reply is here, and nobody has looked at it
    tails.unwatch(before)
    topic = Watched("a")
    topic.position, topic.epoch, topic.added_at_position = at(4), before.epoch, before.added_at_position
    topic.added_at_position = before.added_at_position and before.added_at_position + 1
    tails.watch(topic)

    await topic_goes_on(topic, writer, 5, 6)
    assert (topic.losses, topic.rewinds, before.delivered) == ([], [], [])
    assert writer.xlen(stream_key("a")) == 6


async def test_a_topic_that_is_watched_anew_has_no_mark_of_the_one_before(
    needs_real_server, tails, watch, writer
):
    """Or its own rollback would be taken for one that is marked."""
    await watch(tails, "b")
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    (group,) = tails._groups
    group._marks[topic.key] = at(2)
    tails.unwatch(topic)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4))
    group._marks[topic.key] = at(2)
    tails.unwatch(topic)

    topic = await watch(tails, "a")
    await go_back(writer, tails, "a", dump)

    await wait_for(lambda: topic.delivered == [StreamId(4, MARK_SEQ)], SOON_S)


# -- a stream that went back


async def go_back(writer: Redis, tails: Tails, name: str, dump: bytes) -> None:
    """What a failover to a replica that lags does: older data, and broken connections."""
    reconnects = tails.statistics().reconnects
    writer.restore(stream_key(name), 0, dump, replace=True)
    for connection in writer.client_list():
        if connection["name"] == "stalecast-tail":
            writer.client_kill_filter(_id=connection["id"])
    await wait_for(lambda: tails.statistics().reconnects > reconnects)


async def test_a_stream_that_went_back_says_so_itself(needs_real_server, tails, watch, writer):
    """Clients that are away now will find the reload in the stream: their cursors are still in it."""
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4, 5))

    await go_back(writer, tails, "a", dump)

    await wait_for(lambda: topic.rewinds and len(topic.delivered) == 3)
    assert topic.rewinds == [at(3)]
    mark = StreamId(5, MARK_SEQ)
    assert topic.delivered == [at(4), at(5), mark]
    assert topic.losses == []
    ((_, fields),) = writer.xrange(stream_key("a"), bytes(mark), bytes(mark))
    assert b"reload_required" in fields[b"payload"]


async def test_a_mark_has_the_id_of_no_event_that_was_lost(needs_real_server, tails, watch, writer):
    """Of a burst within one millisecond this server had read a part, and another server more of it: whoever
    stands there must find the mark behind it, or not find where it stands."""
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    burst = [StreamId(5, number) for number in range(3)]
    for one in burst:
        writer.xadd(stream_key("a"), {"payload": "{}"}, id=bytes(one))
    await topic.wait_delivered(*burst)
    another_has_read = [StreamId(5, number) for number in range(3, 100)]

    await go_back(writer, tails, "a", dump)

    await wait_for(lambda: topic.delivered[-1] not in burst, SOON_S)
    assert topic.delivered[-1] > max(another_has_read)


async def test_a_lost_mark_is_marked_behind_it(needs_real_server, tails, watch, writer):
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4))

    for seq in (MARK_SEQ, MARK_SEQ + 1):
        await go_back(writer, tails, "a", dump)
        await wait_for(lambda seq=seq: topic.delivered[-1] == StreamId(4, seq), SOON_S)


async def test_a_mark_stands_behind_more_than_one_read(needs_real_server, start_tails, watch, writer):
    """Where new events were there before it, a mark comes behind them. It tells of what is missing all the
    same, and nobody is told twice."""
    tails = await start_tails(read_limit_events=3)
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4, 5))

    go_back_and_on(writer, "a", dump, range(7, 20))

    await wait_for(lambda: topic.delivered[-1] > at(19), SOON_S)
    assert topic.delivered == [at(4), at(5), *map(at, range(7, 20)), topic.delivered[-1]]
    assert (topic.losses, topic.rewinds) == ([], [at(19)])
    assert writer.xlen(stream_key("a")) == 3 + 13 + 1
    await topic_goes_on(topic, writer, *next_numbers(bytes(topic.delivered[-1])))


async def rolled_back(
    redis_url: str, client: Client, writer: Redis, added: Iterable[int], mark: int
) -> tuple[Watched, Group]:
    """A topic that had come to 5, and whose stream went back to 3; `added` came since, and `mark` was to."""
    topic = Watched("a")
    add(writer, "a", 1, 2, 3)
    await topic.open(client)
    topic.position, topic.added_at_position = at(5), None
    add(writer, "a", *added)
    address = Address.from_url(redis_url)
    group = Group(Tails(address, client, group_limit_topics=1, read_limit_events=500, timeout_s=TIMEOUT_S))
    group.topics[topic.key] = topic
    group._marks[topic.key] = at(mark)
    return topic, group


@pytest.mark.parametrize(
    ("mark", "added", "rewinds"),
    [
        (8, (7, 8), []),
        (8, (7, 8, 9), []),
        (8, (7,), [at(7)]),  # it was lost as well
        (8, (7, 9), [at(9)]),
    ],
)
async def test_who_connects_anew_before_the_mark_is_read_looks_for_the_mark(
    needs_real_server, redis_url, client, writer, mark, added, rewinds
):
    topic, group = await rolled_back(redis_url, client, writer, added, mark)

    async with await connect(Address.from_url(redis_url), name="test", timeout_s=TIMEOUT_S) as connection:
        await group._recheck(connection)

    assert (topic.losses, topic.rewinds) == ([], rewinds)
    assert (group._marks[topic.key] == at(mark)) == (not rewinds)


@pytest.mark.parametrize(
    ("added", "read", "delivered", "rewinds"),
    [
        ((7, 8), (7,), [7], []),
        ((7, 8, 9), (7, 8), [7, 8], []),
        ((7,), (7,), [], [at(7)]),  # gone, and nothing is behind it
        ((7, 9), (7, 9), [], [at(9)]),
    ],
)
async def test_a_mark_that_is_gone_when_its_place_is_read_is_made_again(
    needs_real_server, redis_url, client, writer, added, read, delivered, rewinds
):
    topic, group = await rolled_back(redis_url, client, writer, added, mark=8)
    entries = [(at(number), [b"payload", b"{}"]) for number in read]

    async with await connect(Address.from_url(redis_url), name="test", timeout_s=TIMEOUT_S) as connection:
        epoch_reply, proof = await connection.call(EPOCH_COMMAND, snapshot_command(topic.key))
        await group._hand_over(connection, {topic.key: entries}, {topic.key: proof}, parse_epoch(epoch_reply))

    assert (topic.delivered, topic.losses, topic.rewinds) == ([*map(at, delivered)], [], rewinds)


async def test_of_all_who_saw_it_go_back_one_says_so(needs_real_server, start_tails, watch, writer):
    add(writer, "a", 1, 2, 3)
    many = [await start_tails() for _ in range(4)]
    topics = [await watch(tails, "a") for tails in many]
    dump = writer.dump(stream_key("a"))
    expected = add(writer, "a", 4, 5)
    for topic in topics:
        await topic.wait_delivered(*expected)

    await go_back(writer, many[0], "a", dump)

    for topic in topics:
        await wait_for(lambda topic=topic: topic.delivered[-1] == StreamId(5, MARK_SEQ), SOON_S)
    assert writer.xlen(stream_key("a")) == 4


async def test_what_came_after_going_back_is_covered_by_the_reload(needs_real_server, tails, watch, writer):
    add(writer, "a", 1, 2, 3)
    topic = await watch(tails, "a")
    dump = writer.dump(stream_key("a"))
    await topic.wait_delivered(*add(writer, "a", 4, 5))

    with writer.pipeline(transaction=True) as pipeline:
        pipeline.restore(stream_key("a"), 0, dump, replace=True)
        pipeline.xadd(stream_key("a"), {"payload": "{}"}, id="9-0")
        for connection in writer.client_list():
            if connection["name"] == "stalecast-tail":
                pipeline.client_kill_filter(_id=connection["id"])
        pipeline.execute()

    await wait_for(lambda: writer.xlen(stream_key("a")) == 5)
    newest = StreamId.parse(writer.xinfo_stream(stream_key("a"))["last-generated-id"])
    await wait_for(lambda: topic.delivered[-1] == newest)
    assert topic.delivered[:2] == [at(4), at(5)]
    assert b"reload_required" in writer.xrevrange(stream_key("a"), count=1)[0][1][b"payload"]


# -- refusals


async def test_a_refused_topic_lets_the_others_go_on(tails, watch, writer):
    good = await watch(tails, "good")
    writer.set(stream_key("bad"), "no stream")
    bad = Watched("bad")

    tails.watch(bad)

    await wait_for(lambda: bad.refusals, SOON_S)
    assert "WRONGTYPE" in str(bad.refusals[0])
    assert tails.statistics().topics == 1
    await good.wait_delivered(*add(writer, "good", 1))


async def test_a_topic_that_turns_bad_is_refused(tails, watch, writer):
    good, bad = await watch(tails, "good"), await watch(tails, "bad")
    add(writer, "bad", 1)
    await bad.wait_delivered(at(1))

    writer.set(stream_key("bad"), "no stream")
    tails.recheck(bad)

    await wait_for(lambda: bad.refusals, SOON_S)
    await good.wait_delivered(*add(writer, "good", 1))


async def test_being_refused_every_read_does_not_spin(needs_real_server, redis_url, client, writer, nursery):
    """An ACL that forgot XREAD: Redis must not be asked tens of thousands of times a second."""
    writer.execute_command("ACL", "SETUSER", "watcher", "on", ">secret", "~*", "+@all", "-xread")
    url = redis_url.replace("redis://", "redis://watcher:secret@")
    tails = Tails(
        Address.from_url(url), client, group_limit_topics=64, read_limit_events=500, timeout_s=TIMEOUT_S
    )
    await nursery.start(tails.run)
    topic = Watched("a")
    await topic.open(client)

    tails.watch(topic)
    await trio.sleep(0.5)

    assert tails.statistics().reads < 50
    writer.execute_command("ACL", "DELUSER", "watcher")


# -- Redis away


async def test_a_broken_connection_loses_nothing(needs_real_server, tails, watch, writer):
    topic = await watch(tails, "a")
    await topic.wait_delivered(*add(writer, "a", 1))

    for number in range(2, 6):
        for connection in writer.client_list():
            if connection["name"] == "stalecast-tail":
                writer.client_kill_filter(_id=connection["id"])
        add(writer, "a", number)

    await topic.wait_delivered(*(at(number) for number in range(1, 6)))
    assert tails.statistics().reconnects >= 1


async def test_a_new_topic_is_read_soon_though_the_shared_connection_just_broke(
    needs_real_server, tails, watch, writer
):
    await watch(tails, "a")
    topic = Watched("b")
    await topic.open(tails.client)
    (shared,) = [one["id"] for one in writer.client_list() if one["name"] == "stalecast-client"]

    writer.client_kill_filter(_id=shared)
    tails.watch(topic)

    await topic.wait_delivered(*add(writer, "b", 1))


@pytest.fixture
async def crashing(tmp_path, nursery, request):
    """A server to kill, with its shared client and its tails."""
    with run_redis(tmp_path, valkey_binary(), appendonly=request.param) as server:
        address = Address.from_url(server.url)
        client = Client(address, timeout_s=TIMEOUT_S, waiting_limit=100)
        tails = Tails(address, client, group_limit_topics=64, read_limit_events=500, timeout_s=TIMEOUT_S)
        await nursery.start(client.run)
        await nursery.start(tails.run)
        yield server, tails


@pytest.mark.parametrize("crashing", [True], indirect=True)
async def test_after_a_crash_with_its_data_reading_goes_on(crashing, watch_on):
    server, tails = crashing
    with redis_client(server.url) as writer:
        add(writer, "a", 1, 2)
    topic, unwritten = await watch_on(tails, "a"), await watch_on(tails, "b")

    await trio.to_thread.run_sync(server.restart)
    with redis_client(server.url) as writer:
        expected = add(writer, "a", 3, 4)
        await wait_for(lambda: topic.delivered == expected)
        first = add(writer, "b", 1)
        await wait_for(lambda: unwritten.delivered == first)

    assert topic.losses == unwritten.losses == []
    assert tails.statistics().reconnects >= 1


@pytest.mark.parametrize("crashing", [False], indirect=True)
async def test_after_a_crash_without_its_data_the_loss_is_told(crashing, watch_on):
    server, tails = crashing
    with redis_client(server.url) as writer:
        add(writer, "a", 1, 2)
    topic, unwritten = await watch_on(tails, "a"), await watch_on(tails, "b")

    await trio.to_thread.run_sync(server.restart)

    await wait_for(lambda: topic.losses and unwritten.losses)
    assert all(forced for _, forced in topic.losses + unwritten.losses)
    with redis_client(server.url) as writer:
        await topic_goes_on(topic, writer, 1)
        await topic_goes_on(unwritten, writer, 1)


@pytest.fixture
def watch_on() -> Watch:
    async def watch_on(tails: Tails, key: str) -> Watched:
        topic = Watched(key)
        await topic.open(tails.client)
        tails.watch(topic)
        await wait_for(lambda: tails.statistics().connected_groups == 1)
        await trio.sleep(0.05)
        return topic

    return watch_on
