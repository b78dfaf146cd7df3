"""One client: what it is told, from wherever it comes and whatever happens meanwhile."""

import itertools
import json
from functools import partial

import pytest
import trio
from conftest import Browser
from structlog.testing import capture_logs

from app.publish import InvalidTopicId
from app.streams import subscriber as subscriber_module
from app.streams import window as window_module
from app.streams.hub import HubFull
from app.streams.ids import BEGINNING, StreamId
from app.streams.sse import Parser

pytestmark = pytest.mark.parametrize("asgi", [False, True], ids=["socket", "asgi"])


def at(number: int) -> StreamId:
    return StreamId(number, 0)


@pytest.fixture(params=["one_slice", "many_slices"])
def slices(request, monkeypatch):
    """Whether all that a test publishes fits into one slice, or a slice holds an event or two."""
    if request.param == "many_slices":
        for module in (window_module, subscriber_module):
            monkeypatch.setattr(module, "SLICE_BYTES", 150)


# -- first bytes


async def test_a_client_without_a_cursor_is_told_where_it_stands(autojump_clock, world, asgi):
    world.publish(1, 2)

    browser = world.connect(asgi=asgi)
    await world.settle()

    assert browser.position == "2-0"
    assert browser.told == []
    assert browser.messages[0].retry_ms is not None
    await world.publish_and_deliver(3, 4)
    assert browser.told == ["3-0 n3", "4-0 n4"]


POSITION_DATA = 'data: {"event":"position","data":{}}'


@pytest.mark.parametrize(
    ("cursor", "id_line", "more"),
    [
        (None, "id: 2-0\n", []),
        ("2-0", "id: 2-0\n", []),
        ("2", "id: 2-0\n", []),
        ("0002-00", "id: 2-0\n", []),
        ("1-0", "id: 1-0\n", ["2-0 n2"]),
        ("99-0", "id: 99-0\n", ["2-0 trimmed"]),
        ("x", "", ["2-0 invalid_id"]),
        ("1-0, 2-0", "", ["2-0 invalid_id"]),
    ],
)
@pytest.mark.parametrize("catchup", ["all", "compact"])
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("window_limit_events", [0, 50])
async def test_the_first_block_says_where_the_client_stands(
    autojump_clock, make_world, asgi, cursor, id_line, more, catchup, live, window_limit_events
):
    """An `id:` alone is what Firefox and half of all libraries pass over: they would come back without it."""
    world = await make_world(window_limit_events=window_limit_events)
    world.publish(1, 2)

    browser = world.connect(cursor, catchup=catchup, live=live, asgi=asgi)
    await world.settle()

    assert browser.told == more
    first, *rest = browser.blocks
    assert first == f"retry: {browser.retries_ms[0]}\nevent: position\n{id_line}{POSITION_DATA}"
    assert len(rest) == len(more)
    assert browser.position == "2-0"


async def test_a_client_of_a_topic_without_events_can_resume_as_well(autojump_clock, world, asgi):
    first = world.connect(asgi=asgi)
    await world.settle()
    position = first.position
    first.disconnect()
    await world.publish_and_deliver(1, 2)

    again = world.connect(position, asgi=asgi)
    await world.settle()

    assert again.told == ["1-0 n1", "2-0 n2"]


async def test_reconnects_are_drawn_apart(autojump_clock, world, asgi):
    browsers = [world.connect(asgi=asgi) for _ in range(30)]
    await world.settle()

    retries_ms = [browser.retries_ms[0] for browser in browsers]
    assert all(1000 <= retry_ms <= 2000 for retry_ms in retries_ms)
    assert len(set(retries_ms)) > 20


@pytest.mark.parametrize("cursor", ["x", "1-", "-1", "$", "9" * 30, "18446744073709551616-0"])
async def test_an_id_that_does_not_parse_is_a_reload(autojump_clock, world, asgi, cursor):
    world.publish(1, 2)

    browser = world.connect(cursor, asgi=asgi)
    await world.settle()

    assert browser.told == ["2-0 invalid_id"]
    await world.publish_and_deliver(3)
    assert browser.told == ["2-0 invalid_id", "3-0 n3"]


async def test_what_cannot_be_joined_is_refused_before_anything_is_promised(autojump_clock, make_world, asgi):
    world = await make_world(max_clients=1)

    with pytest.raises(InvalidTopicId):
        world.connect(topic="a b", asgi=asgi)
    world.connect(asgi=asgi)
    with pytest.raises(HubFull):
        world.connect(asgi=asgi)
    assert world.hub.statistics().clients == 1


# -- resuming


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("window_limit_events", [0, 3, 50])
@pytest.mark.parametrize("replay_page_events", [1, 4, 200])
@pytest.mark.parametrize("catchup", ["all", "compact"])
@pytest.mark.parametrize("opened_at", [0, 5, 9])
async def test_exactly_what_was_missed_is_replayed(
    autojump_clock, make_world, asgi, window_limit_events, replay_page_events, catchup, opened_at
):
    world = await make_world(window_limit_events=window_limit_events, replay_page_events=replay_page_events)
    appended = world.publish(*range(1, opened_at + 1))
    await world.open()
    appended += await world.publish_and_deliver(*range(opened_at + 1, 10))

    for cursor in [BEGINNING, *appended]:
        browser = world.connect(cursor, catchup=catchup, asgi=asgi)
        await world.settle()
        browser.check_no_gap(cursor, appended)
        assert browser.position == "9-0"
        browser.disconnect()


async def test_a_client_that_has_everything_is_told_nothing(autojump_clock, world, asgi):
    world.publish(1, 2, 3)

    browser = world.connect("3-0", asgi=asgi)
    await world.settle()

    assert browser.told == []
    assert browser.position == "3-0"


async def test_resuming_within_the_window_does_not_ask_redis(autojump_clock, world, asgi):
    await world.open()
    await world.publish_and_deliver(*range(1, 10))
    reads = world.client.reads

    browsers = [world.connect(f"{number}-0", asgi=asgi) for number in range(1, 10)]
    await world.settle()

    assert world.client.reads == reads
    assert [len(browser.told) for browser in browsers] == [8, 7, 6, 5, 4, 3, 2, 1, 0]


async def test_resuming_from_before_the_window_asks_redis_once_for_all(autojump_clock, world, asgi):
    world.publish(*range(1, 10))
    await world.open()
    reads = world.client.reads

    browsers = [world.connect(f"{number % 9 + 1}-0", asgi=asgi) for number in range(90)]
    await world.settle()

    # For the window, and first for each cursor whether it is there.
    assert world.client.reads == reads + 1 + 8
    assert all(browser.position == "9-0" for browser in browsers)


@pytest.mark.parametrize("cursor", ["3-0", "3-5", "99-0", "0-5000000000", "0-0"])
async def test_a_cursor_that_proves_nothing_is_a_reload(autojump_clock, world, asgi, cursor):
    world.publish(*range(1, 10))
    world.writer.xtrim("topic:events:a", minid="5-0", approximate=False)

    browser = world.connect(cursor, asgi=asgi)
    await world.settle()

    assert browser.told == ["9-0 trimmed"]
    await world.publish_and_deliver(10)
    assert browser.told == ["9-0 trimmed", "10-0 n10"]


@pytest.mark.usefixtures("slices")
async def test_trimming_between_two_pages_is_a_reload(autojump_clock, make_world, asgi):
    world = await make_world(replay_page_events=2, window_limit_events=0)
    appended = world.publish(*range(1, 10))
    await world.open()
    calls = itertools.count()

    async def trim_later() -> None:
        await trio.lowlevel.checkpoint()
        if next(calls) == 4:
            world.writer.xtrim("topic:events:a", minid="8-0", approximate=False)

    world.client.at_await = trim_later
    browser = world.connect("1-0", asgi=asgi)
    await world.settle()

    assert browser.told[-1] == "9-0 trimmed"
    assert browser.told[:-1] == [f"{number}-0 n{number}" for number in range(2, len(browser.told) + 1)]
    browser.check_no_gap(at(1), appended)


@pytest.mark.parametrize("window_limit_events", [0, 50])
@pytest.mark.parametrize("catchup", ["all", "compact"])
async def test_a_client_cut_anywhere_in_its_replay_can_resume_it(
    autojump_clock, make_world, asgi, window_limit_events, catchup
):
    """It brought its cursor in the query, so its browser has no last event id of its own yet."""
    world = await make_world(replay_page_events=2, window_limit_events=window_limit_events)
    world.publish(*range(1, 6))
    browser = world.connect("1-0", catchup=catchup, asgi=asgi)
    await world.settle()
    browser.receive()

    positions = []
    for length in range(len(browser.received) + 1):
        parser = Parser()
        messages = parser.feed(bytes(browser.received[:length]))
        told = [message.last_event_id for message in messages if is_event(message)]
        if parser.last_event_id not in positions:
            positions.append(parser.last_event_id)
        assert told == [f"{number}-0" for number in range(2, len(told) + 2)]
        assert parser.last_event_id == (told[-1] if told else parser.last_event_id)
    assert positions == ["", "1-0", "2-0", "3-0", "4-0", "5-0"]


def is_event(message) -> bool:
    return message.data is not None and json.loads(message.data)["event"] != "position"


@pytest.mark.usefixtures("slices")
async def test_a_compact_replay_brings_the_newest_of_each(autojump_clock, world, asgi):
    world.publish(1, 2, 3)
    world.publish(4, 5, 6, resource="often")
    world.publish(7, resource="r2")

    browser = world.connect("1-0", catchup="compact", asgi=asgi)
    await world.settle()

    assert browser.told == ["3-0 n3", "6-0 n6", "7-0 n7"]
    assert browser.position == "7-0"


async def test_a_compact_replay_of_more_than_fits_is_a_reload(autojump_clock, make_world, asgi):
    world = await make_world(stream_maxlen=5, window_limit_events=0)
    world.publish(*range(1, 21))

    browser = world.connect("1-0", catchup="compact", asgi=asgi)
    await world.settle()
    await world.publish_and_deliver(21)

    assert "overflow" in browser.told[0]
    browser.check_no_gap(at(1), [at(number) for number in range(1, 22)])


# -- the hand-over from replay to live


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("window_limit_events", [0, 50])
@pytest.mark.parametrize("catchup", ["all", "compact"])
@pytest.mark.parametrize("cursor", [None, "first", "middle", "newest", "origin"])
async def test_an_event_at_any_moment_arrives_once(
    autojump_clock, make_world, asgi, window_limit_events, catchup, cursor
):
    """At the n-th thing that the client's task waits for, one more event is appended and delivered."""
    for moment in itertools.count():
        world = await make_world(window_limit_events=window_limit_events, replay_page_events=2)
        if cursor == "origin":
            await world.open()
            (topic,) = world.tails.watched.values()
            start = topic.position
            appended = await world.publish_and_deliver(1, 2, 3, 4)
        else:
            appended = world.publish(1, 2, 3, 4)
            start = {"first": at(1), "middle": at(3), "newest": at(4)}.get(cursor)
        calls = itertools.count()
        happened = False

        async def happen(world=world, calls=calls, moment=moment, appended=appended) -> None:
            nonlocal happened
            await trio.lowlevel.checkpoint()
            if next(calls) == moment:
                happened = True
                appended += world.publish(5)
                await world.deliver()

        world.client.at_await = happen
        browser = world.connect(start, catchup=catchup, asgi=asgi)
        await trio.sleep(1)
        world.client.at_await = trio.lowlevel.checkpoint
        appended += await world.publish_and_deliver(6)

        browser.receive()
        if start is None:  # it stands where it was told first
            start = next(
                StreamId.parse(message.last_event_id) for message in browser.messages if message.last_event_id
            )
        browser.check_no_gap(start, appended)
        if not happened:
            assert moment > 1
            return


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("forced", [False, True])
async def test_a_loss_at_any_moment_is_told(autojump_clock, make_world, asgi, forced):
    for moment in itertools.count():
        world = await make_world(replay_page_events=2, window_limit_events=0)
        appended = world.publish(1, 2, 3, 4)
        await world.open()
        calls = itertools.count()
        happened = False

        async def happen(world=world, calls=calls, moment=moment) -> None:
            nonlocal happened
            await trio.lowlevel.checkpoint()
            if next(calls) == moment:
                happened = True
                world.client.at_await = trio.lowlevel.checkpoint
                if forced:
                    world.writer.flushall()
                    world.publish(1)
                else:
                    world.publish(5, 6)
                    world.writer.xtrim("topic:events:a", maxlen=1, approximate=False)
                await world.lose(forced=forced)

        world.client.at_await = happen
        browser = world.connect("2-0", asgi=asgi)
        await trio.sleep(1)
        world.client.at_await = trio.lowlevel.checkpoint
        if not happened:
            assert moment > 2
            return
        appended += await world.publish_and_deliver(2 if forced else 7)

        newest = "1-0" if forced else "6-0"
        assert browser.told.count(f"{newest} trimmed") == 1, moment
        assert browser.told[-1] == ("2-0 n2" if forced else "7-0 n7"), moment


async def test_a_gap_behind_a_client_ahead_of_the_hub_is_not_its_own(autojump_clock, make_world, asgi):
    """It comes from an instance that had read on before the trimming."""
    world = await make_world(window_limit_events=0)
    world.publish(1)
    await world.open()
    world.publish(2, 3, 4)
    browser = world.connect("3-0", asgi=asgi)
    await world.settle()
    world.publish(5)
    world.writer.xtrim("topic:events:a", minid="4-0", approximate=False)

    await world.lose(forced=False)
    await world.settle()

    assert browser.told == ["4-0 n4", "5-0 n5"]


async def test_a_cursor_that_was_not_judged_yet_hides_nothing(autojump_clock, make_world, asgi):
    """It is further on than the stream ever was. What comes before that is known is still to be sent."""
    world = await make_world(window_limit_events=0)
    world.publish(1, 2, 3)
    await world.open()
    calls = itertools.count()

    async def go_on_after_the_look() -> None:
        await trio.lowlevel.checkpoint()
        if next(calls) == 1:
            world.publish(4)
            await world.deliver()

    world.client.at_await = go_on_after_the_look
    browser = world.connect("9-0", asgi=asgi)
    await trio.sleep(1)

    assert browser.told == ["3-0 trimmed", "4-0 n4"]


async def test_a_wipe_during_the_read_is_told_once_though_much_came_since(autojump_clock, make_world, asgi):
    """The read sees the new data set further on than the hub does, whose word comes after it."""
    world = await make_world(window_limit_events=0, backlog_limit_events=4)
    world.publish(1)
    await world.open()

    async def wipe_and_go_on() -> None:
        await trio.lowlevel.checkpoint()
        world.client.at_await = trio.lowlevel.checkpoint
        world.writer.flushall()
        world.publish(10)
        await world.lose(forced=True)
        world.publish(*range(11, 21))
        await world.deliver()
        world.publish(21, 22)

    world.client.at_await = wipe_and_go_on
    browser = world.connect("0-1", asgi=asgi)
    await trio.sleep(1)
    await world.deliver()
    await world.publish_and_deliver(23)

    assert browser.told == ["22-0 trimmed", "23-0 n23"]


async def test_a_loss_before_the_read_is_told_by_the_read_alone(autojump_clock, make_world, asgi):
    """Redis is away; by the time that it answers this client, the hub has told of a wipe and gone on."""
    world = await make_world(window_limit_events=0)
    world.publish(1, 2, 3)
    await world.open()
    world.client.away = True
    browser = world.connect("2-0", asgi=asgi)
    await trio.sleep(3)

    world.client.away = False
    world.writer.flushall()
    world.publish(10)
    await world.lose(forced=True)
    world.publish(11, 12)
    await world.deliver()
    await trio.sleep(10)
    await world.publish_and_deliver(13)

    assert browser.told == ["12-0 trimmed", "13-0 n13"]


async def test_what_came_while_redis_was_away_is_in_the_read(autojump_clock, make_world, asgi):
    """More than may wait: the replay brings it, whether or not the hub has caught up with the stream."""
    world = await make_world(window_limit_events=0, backlog_limit_events=2)
    appended = world.publish(1, 2, 3)
    await world.open()
    world.client.away = True
    browser = world.connect("2-0", asgi=asgi)
    await trio.sleep(3)

    world.client.away = False
    appended += world.publish(4, 5, 6, 7)
    await world.deliver()
    appended += world.publish(8)  # which the hub has yet to read
    reads = world.client.reads

    async def not_for_ever() -> None:
        await trio.lowlevel.checkpoint()
        assert world.client.reads < reads + 20

    world.client.at_await = not_for_ever
    await trio.sleep(10)

    browser.check_no_gap(at(2), appended)


@pytest.mark.parametrize(("cursor", "numbers"), [(None, (10, 11)), ("1-0", (1, 2, 3)), ("1-0", "older")])
@pytest.mark.parametrize("before_read", [1, 2])
async def test_a_stream_that_changes_before_the_backfill_is_not_taken_for_the_hubs(
    autojump_clock, world, asgi, cursor, numbers, before_read
):
    """Flushed and filled again, or restored from an older dump: the tail has yet to see it, so the window may
    not take in what is there now. The client's first read asks for its cursor, the second is the backfill."""
    origin = await world.position_of()
    world.publish(1, 2)
    dump = world.writer.dump("topic:events:a")
    world.publish(3, 4)
    await world.open(afresh=True)
    reads = world.client.reads
    changed = False

    async def change() -> None:
        nonlocal changed
        await trio.lowlevel.checkpoint()
        if world.client.reads == reads + before_read and not changed:
            changed = True
            if numbers == "older":
                world.writer.restore("topic:events:a", 0, dump, replace=True)
            else:
                world.writer.flushall()
                world.publish(*numbers)

    world.client.at_await = change
    browser = world.connect(cursor or origin, asgi=asgi)
    await trio.sleep(0.1)

    assert changed
    assert "topic:events:a" in world.tails.rechecked
    assert (browser.told, browser.position) == ([], "")


async def test_a_stream_that_is_deleted_and_filled_again_before_the_backfill_is_not_taken_for_the_hubs(
    autojump_clock, world, asgi
):
    """Nothing but the entry at the window's base tells it from the one that the window was opened on: it is
    of the same data set, and further on. (It was event 3 without 1 and 2.)"""
    origin = await world.position_of()
    world.publish(1, 2)
    await world.open(afresh=True)
    await world.publish_and_deliver(3)
    reads = world.client.reads
    changed = False

    async def change() -> None:
        nonlocal changed
        await trio.lowlevel.checkpoint()
        if world.client.reads == reads + 1 and not changed:
            changed = True
            world.writer.delete("topic:events:a")
            world.publish(10)

    world.client.at_await = change
    browser = world.connect(origin, asgi=asgi)
    await trio.sleep(0.1)

    assert changed
    assert "3-0 n3" not in browser.told


@pytest.mark.parametrize("when", ["while it waits", "during its look"])
async def test_who_is_ahead_of_a_hub_that_reads_another_stream_is_told(autojump_clock, world, asgi, when):
    """The client has heard of 1 and 2. The hub, which is slow, has read nothing when the key is deleted and
    filled again, and goes on from the beginning with what looks complete."""
    await world.open()
    world.publish(1, 2)

    awaits_until = 1 if when == "while it waits" else 2  # the second is behind the look

    async def change() -> None:
        nonlocal awaits_until
        await trio.lowlevel.checkpoint()
        awaits_until -= 1
        if not awaits_until:
            world.writer.delete("topic:events:a")
            world.publish(3)
            await world.deliver()

    if when == "during its look":
        world.client.at_await = change
    browser = world.connect("2-0", asgi=asgi)
    await trio.sleep(0.1)
    if when == "while it waits":
        await change()
    assert awaits_until <= 0
    await world.publish_and_deliver(4)
    await trio.sleep(0.1)

    # One that looks again finds both.
    assert browser.told in (["3-0 trimmed", "4-0 n4"], ["4-0 trimmed"])


@pytest.mark.parametrize("cursor", ["origin", "0-0"])
async def test_a_deleted_stream_is_not_served_from_memory(autojump_clock, world, asgi, cursor):
    """The hub, which reads no more since, does not know yet; another instance has given out the position."""
    origin = await world.position_of()
    await world.open(afresh=True)
    await world.publish_and_deliver(1, 2)
    world.writer.delete("topic:events:a")

    browser = world.connect(origin if cursor == "origin" else cursor, asgi=asgi)
    await trio.sleep(0.1)

    assert browser.told == []
    assert "topic:events:a" in world.tails.rechecked


async def test_a_cursor_before_every_event_is_served_from_memory_after_a_look(autojump_clock, world, asgi):
    origin = await world.position_of()
    await world.open(afresh=True)
    await world.publish_and_deliver(1, 2, 3)
    reads = world.client.reads

    browser = world.connect(origin, asgi=asgi)
    await world.settle()

    assert browser.told == ["1-0 n1", "2-0 n2", "3-0 n3"]
    assert world.client.reads == reads + 1


async def test_a_client_ahead_of_the_hub_gets_nothing_twice(autojump_clock, world, asgi):
    """It comes from an instance that reads faster."""
    await world.open()
    world.publish(1, 2, 3)
    browser = world.connect("2-0", asgi=asgi)
    await world.settle()
    assert browser.told == ["3-0 n3"]

    await world.deliver()
    await world.settle()
    assert browser.told == ["3-0 n3"]

    await world.publish_and_deliver(4)
    assert browser.told == ["3-0 n3", "4-0 n4"]


async def test_a_stream_that_went_back_is_told_once(autojump_clock, world, asgi):
    world.publish(1, 2, 3)
    await world.open()
    world.writer.flushall()
    world.publish(1)

    browser = world.connect("2-0", asgi=asgi)
    await trio.sleep(0.1)
    assert "topic:events:a" in world.tails.rechecked
    await world.lose(forced=True)
    await trio.sleep(1)
    await world.publish_and_deliver(2)

    assert browser.told == ["1-0 trimmed", "2-0 n2"]


async def test_a_reload_is_told_also_when_the_hub_never_agrees(autojump_clock, world, asgi):
    world.publish(1, 2, 3)
    await world.open()
    world.writer.flushall()
    world.publish(1)

    browser = world.connect("2-0", asgi=asgi)
    await trio.sleep(60)

    assert browser.told == ["1-0 trimmed"]


async def test_a_replay_of_a_busy_topic_does_not_wait_for_a_quiet_moment(autojump_clock, make_world, asgi):
    """At every look at the stream the tail is a little further: that is no disagreement."""
    world = await make_world(window_limit_events=0)
    appended = world.publish(1, 2, 3)
    await world.open()
    numbers = iter(range(4, 60))

    async def publish_one() -> None:
        await trio.lowlevel.checkpoint()
        # Not for ever: a write over ASGI is an await, too, so each event would bring the next in no time.
        for number in itertools.islice(numbers, 1):
            appended.extend(world.publish(number))
            await world.deliver()

    world.client.at_await = publish_one
    browser = world.connect("1-0", asgi=asgi)
    await trio.sleep(0.5)
    world.client.at_await = trio.lowlevel.checkpoint

    assert browser.told[:2] == ["2-0 n2", "3-0 n3"]
    await trio.sleep(1)
    browser.check_no_gap(at(1), appended)


# -- behind


def big(number: int) -> str:
    return f"{number:0200d}"


async def publish_many(world, numbers) -> list[StreamId]:
    appended = []
    for number in numbers:
        appended += world.publish(number, resource=big(number))
        await world.deliver()
    await world.settle()
    return appended


async def stop_reading(world, browser, asgi) -> list[StreamId]:
    """Publish until the client is behind."""
    if asgi:
        browser.reads = trio.Event()
    appended = []
    for number in itertools.count(1):
        appended += await publish_many(world, [number])
        if world.hub.statistics().live_clients == 0 and (not asgi or number > 3):
            return appended
    raise AssertionError


async def read_on(world, browser, asgi) -> None:
    if asgi:
        browser.reads.set()
    for _ in range(1000):
        browser.receive()
        await world.settle()


async def test_a_client_that_was_behind_gets_everything_and_is_live_again(autojump_clock, make_world, asgi):
    world = await make_world(backlog_limit_events=1000)
    browser = world.connect(asgi=asgi)
    await world.settle()
    appended = await stop_reading(world, browser, asgi)
    last = len(appended)
    appended += await publish_many(world, range(last + 1, last + 20))

    await read_on(world, browser, asgi)
    appended += await publish_many(world, [last + 20])

    browser.check_no_gap(BEGINNING, appended)
    assert browser.told[-1] == f"{last + 20}-0 n{last + 20}"
    assert world.hub.statistics().live_clients == (0 if asgi else 1)


async def test_a_burst_beyond_the_limit_is_served_from_the_window(autojump_clock, make_world, asgi):
    world = await make_world(backlog_limit_events=5, window_limit_events=200)
    browser = world.connect(asgi=asgi)
    await world.settle()
    appended = await stop_reading(world, browser, asgi)
    last = len(appended)
    appended += await publish_many(world, range(last + 1, last + 8))

    await read_on(world, browser, asgi)

    assert not any("overflow" in told for told in browser.told)
    browser.check_no_gap(BEGINNING, appended)


async def test_a_client_too_far_behind_is_told_to_reload_and_goes_on(autojump_clock, make_world, asgi):
    world = await make_world(backlog_limit_events=5, window_limit_events=0)
    browser = world.connect(asgi=asgi)
    await world.settle()
    appended = await stop_reading(world, browser, asgi)
    last = len(appended)
    appended += await publish_many(world, range(last + 1, last + 8))

    await read_on(world, browser, asgi)
    appended += await publish_many(world, [last + 8])

    assert any("overflow" in told for told in browser.told)
    browser.check_no_gap(BEGINNING, appended)
    assert browser.told[-1] == f"{last + 8}-0 n{last + 8}"
    browser.disconnect()
    await world.settle()
    assert world.hub.statistics().overflows == 1


async def test_a_slow_client_costs_only_itself(autojump_clock, make_world, asgi):
    world = await make_world(backlog_limit_events=5)
    slow = world.connect(asgi=asgi)
    fast = [world.connect(asgi=kind) for kind in (False, True)]
    await world.settle()
    if asgi:
        slow.reads = trio.Event()
    appended = []
    for number in range(1, 100):
        appended += await publish_many(world, [number])
        for browser in fast:
            assert browser.told[-1] == f"{number}-0 n{number}"

    for browser in fast:
        browser.check_no_gap(BEGINNING, appended)


async def test_a_client_that_never_reads_is_cut(autojump_clock, make_world, asgi):
    world = await make_world(backlog_limit_events=5)
    browser = world.connect(asgi=asgi, stuck_timeout_s=30)
    await world.settle()
    await stop_reading(world, browser, asgi)
    started_s = trio.current_time()

    await trio.sleep(60)

    assert browser.ended_cleanly is False
    assert 29 <= browser.ended_s - started_s <= 46  # from the first byte that it did not take
    assert world.hub.statistics().stuck_clients == 1
    assert world.hub.statistics().clients == 0
    if asgi:
        assert browser.aborted
    else:
        browser.receive()
        assert browser.at_end


# -- going


@pytest.mark.parametrize("moment", [0, 1, 2, 3, 5, 8, 100])
async def test_a_disconnect_frees_everything_at_any_moment(autojump_clock, make_world, asgi, moment):
    world = await make_world(replay_page_events=2, window_limit_events=0)
    world.publish(*range(1, 20))
    browser = world.connect("1-0", asgi=asgi)
    for _ in range(moment):
        await trio.lowlevel.checkpoint()

    browser.disconnect()
    await world.settle()

    assert browser.ended_cleanly is False
    assert world.hub.statistics().clients == 0
    await world.publish_and_deliver(20)
    assert world.hub.statistics().live_clients == 0


async def test_a_disconnect_ends_a_client_that_is_stuck(autojump_clock, make_world, asgi):
    world = await make_world(backlog_limit_events=5)
    browser = world.connect(asgi=asgi)
    await world.settle()
    await stop_reading(world, browser, asgi)

    browser.disconnect()
    await world.settle()

    assert browser.ended_cleanly is False
    assert world.hub.statistics().clients == 0


async def test_a_cancelled_client_frees_everything(autojump_clock, make_world, asgi):
    world = await make_world()
    async with trio.open_nursery() as nursery:
        world.nursery = nursery
        world.connect(asgi=asgi)
        await world.settle()
        nursery.cancel_scope.cancel()

    assert world.hub.statistics().clients == 0
    assert world.hub.statistics().live_clients == 0


# -- answered without going live


@pytest.mark.parametrize("window_limit_events", [0, 3, 50])
@pytest.mark.parametrize("replay_page_events", [1, 4, 200])
@pytest.mark.parametrize("catchup", ["all", "compact"])
@pytest.mark.parametrize("opened_at", [0, 5, 8])
async def test_an_answer_is_what_a_stream_sends_until_it_has_caught_up(
    autojump_clock, make_world, asgi, window_limit_events, replay_page_events, catchup, opened_at
):
    world = await make_world(window_limit_events=window_limit_events, replay_page_events=replay_page_events)
    appended = world.publish(*range(1, opened_at + 1))
    await world.open()
    appended += await world.publish_and_deliver(*range(opened_at + 1, 9))
    appended += world.publish(9, resource="r7")  # which the hub has yet to read

    before = world.hub.statistics().clients
    for cursor in [None, "x", "3-5", "99-0", BEGINNING, *appended]:
        stream = world.connect(cursor, catchup=catchup, asgi=asgi)
        await world.settle()
        answer = world.connect(cursor, catchup=catchup, live=False, asgi=asgi)
        await world.settle()
        assert stream.ended_cleanly is None
        assert answer.ended_cleanly is True
        assert without_delays(answer.messages) == without_delays(stream.messages), cursor
        assert len(answer.retries_ms) == 1
        assert answer.position != ""
        assert world.hub.statistics().clients == before + 1
        stream.disconnect()
        await world.settle()


def without_delays(messages):
    return [message._replace(retry_ms=None) for message in messages]


async def test_an_answer_is_logged_as_such(autojump_clock, world, asgi):
    world.publish(1, 2)
    with capture_logs() as lines:
        world.connect("1-0", live=False, asgi=asgi)
        await world.settle()

    assert [line["outcome"] for line in lines if line["event"] == "stream_closed"] == ["answered"]


class Poller:
    """Asks again and again, from where the last answer has left it; `told` is what all of them brought."""

    def __init__(self, world, cursor, **how):
        self.cursor = cursor
        self.told = []
        self._ask = partial(world.connect, live=False, **how)

    async def ask(self):
        answer = self._ask(self.cursor)
        await trio.sleep(1)
        assert answer.ended_cleanly is True
        self.told += answer.told
        self.cursor = answer.position or self.cursor

    check_no_gap = Browser.check_no_gap


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("window_limit_events", [0, 50])
@pytest.mark.parametrize("backlog_limit_events", [2, 256])
@pytest.mark.parametrize("catchup", ["all", "compact"])
@pytest.mark.parametrize("cursor", [None, "first", "middle", "newest", "origin"])
async def test_polling_brings_an_event_of_any_moment_once(
    autojump_clock, make_world, asgi, window_limit_events, backlog_limit_events, catchup, cursor
):
    """At the n-th thing that the first question waits for, three more events are appended and delivered."""
    for moment in itertools.count():
        world = await make_world(
            window_limit_events=window_limit_events,
            backlog_limit_events=backlog_limit_events,
            replay_page_events=2,
        )
        if cursor == "origin":
            await world.open()
            (topic,) = world.tails.watched.values()
            start = topic.position
            appended = await world.publish_and_deliver(1, 2, 3, 4)
        else:
            appended = world.publish(1, 2, 3, 4)
            start = {"first": at(1), "middle": at(3), "newest": at(4)}.get(cursor)
        calls = itertools.count()
        happened = False

        async def happen(world=world, calls=calls, moment=moment, appended=appended) -> None:
            nonlocal happened
            await trio.lowlevel.checkpoint()
            if next(calls) == moment:
                happened = True
                appended += world.publish(5, 6, 7)
                await world.deliver()

        poller = Poller(world, start, catchup=catchup, asgi=asgi)
        world.client.at_await = happen
        await poller.ask()
        world.client.at_await = trio.lowlevel.checkpoint
        if start is None:
            assert poller.told == []
            start = StreamId.parse(poller.cursor)
        await poller.ask()
        appended += await world.publish_and_deliver(8)
        await poller.ask()

        poller.check_no_gap(start, appended)
        assert poller.cursor == "8-0"
        assert not any("overflow" in told for told in poller.told)
        if not happened:
            assert moment > 1
            return


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("forced", [False, True])
async def test_polling_is_told_of_a_loss_at_any_moment(autojump_clock, make_world, asgi, forced):
    for moment in itertools.count():
        world = await make_world(replay_page_events=2, window_limit_events=0)
        world.publish(1, 2, 3, 4)
        await world.open()
        calls = itertools.count()
        happened = False

        async def happen(world=world, calls=calls, moment=moment) -> None:
            nonlocal happened
            await trio.lowlevel.checkpoint()
            if next(calls) == moment:
                happened = True
                world.client.at_await = trio.lowlevel.checkpoint
                if forced:
                    world.writer.flushall()
                    world.publish(1)
                else:
                    world.publish(5, 6)
                    world.writer.xtrim("topic:events:a", maxlen=1, approximate=False)
                await world.lose(forced=forced)

        poller = Poller(world, "2-0", asgi=asgi)
        world.client.at_await = happen
        await poller.ask()
        world.client.at_await = trio.lowlevel.checkpoint
        if not happened:
            assert moment > 2
            return
        await poller.ask()
        await world.publish_and_deliver(2 if forced else 7)
        await poller.ask()

        newest = "1-0" if forced else "6-0"
        assert poller.told.count(f"{newest} trimmed") == 1, moment
        assert poller.told[-1] == ("2-0 n2" if forced else "7-0 n7"), moment


async def test_an_answer_does_not_wait_for_a_quiet_moment(autojump_clock, make_world, asgi):
    world = await make_world(window_limit_events=0)
    appended = world.publish(1, 2, 3)
    await world.open()
    numbers = iter(range(4, 1000))

    async def publish_one() -> None:
        await trio.lowlevel.checkpoint()
        for number in itertools.islice(numbers, 1):
            appended.extend(world.publish(number))
            await world.deliver()

    poller = Poller(world, "1-0", asgi=asgi)
    world.client.at_await = publish_one
    await poller.ask()
    world.client.at_await = trio.lowlevel.checkpoint

    assert next(numbers) < 100, "or it has waited until no more came"
    await poller.ask()
    poller.check_no_gap(at(1), appended)


async def test_who_wants_an_answer_only_is_freed_wherever_it_leaves(autojump_clock, make_world, asgi):
    for moment in itertools.count():
        world = await make_world(replay_page_events=2, window_limit_events=0)
        world.publish(*range(1, 6))
        browser = world.connect("1-0", live=False, asgi=asgi)
        for _ in range(moment):
            await trio.lowlevel.checkpoint()
        ended = browser.ended_cleanly

        browser.disconnect()
        await world.settle()

        assert world.hub.statistics().clients == 0, moment
        if ended:
            assert moment > 5
            return


@pytest.mark.parametrize(("cursor", "told"), [(None, []), ("1-0", ["2-0 n2"])])
async def test_without_redis_an_answer_begins_and_ends_when_it_is_back(
    autojump_clock, world, asgi, cursor, told
):
    world.publish(1, 2)
    world.client.away = True
    answer = world.connect(cursor, live=False, asgi=asgi)
    await trio.sleep(40)
    assert len(answer.retries_ms) == 1
    assert answer.comments >= 2
    assert answer.position == (cursor or "")  # its own is not taken from it
    assert answer.ended_cleanly is None

    world.client.away = False
    await trio.sleep(5)

    assert answer.ended_cleanly is True
    assert answer.told == told
    assert answer.position == "2-0"
    assert len(answer.retries_ms) == 1


@pytest.mark.parametrize(("cursor", "told"), [(None, []), ("1-0", ["2-0 n2"])])
async def test_a_draining_server_answers_what_it_can(autojump_clock, world, asgi, cursor, told):
    world.publish(1, 2)
    await world.open()
    await world.hub.drain(1)

    answer = world.connect(cursor, live=False, asgi=asgi)
    unknown = world.connect(cursor, topic="b", live=False, asgi=asgi)
    await world.settle()

    assert answer.ended_cleanly is unknown.ended_cleanly is True
    assert answer.told == told
    assert answer.position == "2-0"
    # Nothing was said of the other topic, so its client's cursor stays, also where the query brought it.
    assert (unknown.told, unknown.position) == ([], cursor or "")
    assert len(unknown.blocks) == 1
    assert len(answer.retries_ms) == len(unknown.retries_ms) == 1


async def test_an_answer_that_a_drain_cuts_short_leaves_nothing_out(autojump_clock, make_world, asgi):
    world = await make_world(replay_page_events=2, window_limit_events=0)
    appended = world.publish(*range(1, 10))
    await world.open()
    calls = itertools.count()

    async def go_away_later() -> None:
        await trio.lowlevel.checkpoint()
        if next(calls) == 5:
            world.client.away = True

    world.client.at_await = go_away_later
    answer = world.connect("1-0", live=False, asgi=asgi)
    await trio.sleep(5)
    await world.hub.drain(1)
    await trio.sleep(5)

    assert answer.ended_cleanly is True
    assert 0 < len(answer.told) < 8
    last = StreamId.parse(answer.position)
    answer.check_no_gap(at(1), [event_id for event_id in appended if event_id <= last])


async def test_a_topic_that_redis_refuses_is_not_answered(autojump_clock, world, asgi):
    world.writer.set("topic:events:a", "no stream")

    with capture_logs() as lines:
        answer = world.connect("1-0", live=False, asgi=asgi)
        await world.settle()

    assert answer.ended_cleanly is True
    assert (answer.told, answer.position) == ([], "1-0")
    assert answer.retries_ms[-1] >= 10_000
    assert [line["outcome"] for line in lines if line["event"] == "stream_closed"] == ["refused"]


# -- Redis away


async def test_without_redis_the_stream_opens_and_learns_its_position_later(autojump_clock, world, asgi):
    world.publish(1, 2)
    world.client.away = True
    browser = world.connect(asgi=asgi)
    await trio.sleep(0.9)
    assert not browser.begun

    await trio.sleep(0.2)
    assert browser.retries_ms != []
    assert browser.position == ""

    await trio.sleep(60)
    assert browser.comments >= 3
    world.client.away = False
    await trio.sleep(5)

    assert browser.position == "2-0"
    assert browser.told == []
    await world.publish_and_deliver(3)
    assert browser.told == ["3-0 n3"]


async def test_a_cursor_waits_for_redis_to_come_back(autojump_clock, world, asgi):
    world.publish(1, 2, 3)
    world.client.away = True
    browser = world.connect("1-0", asgi=asgi)
    await trio.sleep(40)
    assert browser.told == []
    assert browser.comments >= 2

    world.client.away = False
    await trio.sleep(5)

    assert browser.told == ["2-0 n2", "3-0 n3"]


async def test_a_replay_that_redis_interrupts_goes_on_where_it_was(autojump_clock, make_world, asgi):
    world = await make_world(replay_page_events=2, window_limit_events=0)
    appended = world.publish(*range(1, 10))
    await world.open()
    calls = itertools.count()

    async def go_away_later() -> None:
        await trio.lowlevel.checkpoint()
        if next(calls) == 5:
            world.client.away = True

    world.client.at_await = go_away_later
    browser = world.connect("1-0", asgi=asgi)
    await trio.sleep(40)
    assert browser.told != []
    assert len(browser.told) < 8
    assert browser.comments >= 2
    world.client.away = False
    await trio.sleep(5)

    browser.check_no_gap(at(1), appended)


async def test_a_position_that_comes_while_the_stream_opens_is_told_at_once(autojump_clock, world, asgi):
    """The hub learns it in the very moment in which the client's first bytes are on their way."""
    world.publish(1)
    world.client.away = True
    browser = world.connect(asgi=asgi)

    async def come_back_meanwhile() -> None:
        if browser.begun and world.client.away:
            world.client.away = False
            await trio.sleep(5)  # the first bytes take so long

    world.client.at_await = come_back_meanwhile
    await trio.sleep(1.5)
    assert browser.begun
    world.client.away = False
    await trio.sleep(6)

    assert browser.position == "1-0"


async def test_being_sent_away_while_the_stream_opens_is_not_missed(autojump_clock, world, asgi):
    world.client.away = True
    browser = world.connect(asgi=asgi)

    async def be_sent_away_meanwhile() -> None:
        if browser.begun and not world.hub.draining:
            await world.hub.drain(1)

    world.client.at_await = be_sent_away_meanwhile
    await trio.sleep(3)

    assert browser.ended_cleanly is True


# -- refusals


@pytest.mark.parametrize(
    ("cursor", "position"), [(None, ""), ("1-0", "1-0"), ("7", "7-0"), ("x", ""), ("99-0", "99-0")]
)
@pytest.mark.parametrize("because", ["refused", "drained", "away"])
async def test_a_response_without_a_position_repeats_the_clients_own(
    autojump_clock, world, asgi, cursor, position, because
):
    world.publish(1, 2)
    if because == "refused":
        world.writer.set("topic:events:a", "no stream")
    else:
        world.client.away = True
    if because == "drained":
        await world.hub.drain(1)

    browser = world.connect(cursor, asgi=asgi)
    await trio.sleep(2)
    if because == "away":
        await world.hub.drain(1)
        await trio.sleep(1)

    assert browser.ended_cleanly is True
    assert browser.told == []
    assert browser.position == position
    assert ("\nid: " in browser.blocks[0]) == bool(position)


async def test_a_topic_that_redis_refuses_sends_its_client_away_for_longer(autojump_clock, world, asgi):
    world.writer.set("topic:events:a", "no stream")

    browser = world.connect(asgi=asgi)
    await world.settle()

    assert browser.ended_cleanly is True
    assert browser.retries_ms[-1] >= 10_000
    assert world.hub.statistics().clients == 0


@pytest.mark.parametrize("command", ["XRANGE", "XREVRANGE"])
async def test_a_replay_that_redis_refuses_sends_the_client_away_for_longer(
    autojump_clock, world, asgi, command
):
    world.publish(1, 2, 3)
    await world.open()
    if command == "XRANGE":  # which is asked only where the window does not reach
        world.writer.xdel("topic:events:a", "2-0")
    live = world.connect(asgi=asgi)
    await world.settle()
    world.client.refuses = command

    browser = world.connect("1-0", asgi=asgi)
    await world.settle()

    assert browser.ended_cleanly is True
    assert browser.retries_ms[-1] >= 10_000
    assert live.ended_cleanly is True
    assert world.hub.statistics().clients == 0


async def test_who_stops_between_the_phases_is_freed(autojump_clock, world, asgi):
    browser = world.connect(asgi=asgi)
    await world.settle()
    first = browser.subscriber
    browser.disconnect()
    await world.settle()
    first.close()  # the server closes what it was handed, whatever happened to it
    assert world.hub.statistics().clients == 0

    arrived = world.create_browser(asgi=asgi)
    assert await arrived.subscriber.catch_up()
    assert world.hub.statistics().clients == 1
    arrived.subscriber.close()
    arrived.subscriber.close()
    assert world.hub.statistics().clients == 0
