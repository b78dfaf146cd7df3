"""The fan-out, and what the hub does for all clients together: heartbeats, limits, leaving, draining."""

import contextlib
import itertools
from collections import Counter

import pytest
import trio
from conftest import World
from redis import Redis
from servers import wait_for
from structlog.testing import capture_logs

from app.contracts import builtin_registry
from app.publish import publish_topic_event_sync, stream_key
from app.redis_connection import Address
from app.settings import Settings
from app.streams import hub as hub_module
from app.streams.hub import Hub
from app.streams.ids import StreamId
from app.streams.sse import HEARTBEAT, chunk
from app.streams.tail import Tails

KINDS = [False, True]


# -- fan-out


async def test_every_client_of_a_topic_and_no_other_gets_its_events(autojump_clock, world):
    here = [world.connect(asgi=kind) for kind in KINDS * 3]
    elsewhere = [world.connect(topic="b", asgi=kind) for kind in KINDS]
    await world.settle()

    world.publish(1, 2, 3)
    world.publish(1, topic="b")
    await world.deliver("a")
    await world.deliver("b")
    await world.settle()

    assert [browser.told for browser in here] == [["1-0 n1", "2-0 n2", "3-0 n3"]] * 6
    assert [browser.told for browser in elsewhere] == [["1-0 n1"]] * 2
    statistics = world.hub.statistics()
    assert (statistics.topics, statistics.clients, statistics.events) == (2, 8, 4)
    assert statistics.live_clients == 4  # those with a socket of their own


async def test_one_delivery_is_one_write(autojump_clock, world):
    browser = world.connect()
    await world.settle()
    browser.receive()
    sizes = []
    world.publish(*range(1, 51))

    await world.deliver()
    sizes.append(browser.socket.recv(1 << 16))

    assert sizes[0].count(b"data: ") == 50
    assert sizes[0].count(b"\r\n") == 2  # one chunk


@pytest.fixture
def yields_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "WRITES_BETWEEN_YIELDS", 20)


async def test_a_fan_out_to_many_lets_others_have_their_turn(autojump_clock, world, yields_often):
    for _ in range(300):
        world.connect()
    await world.settle()
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    world.publish(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        before = turns
        await world.deliver()
        assert turns > before
        nursery.cancel_scope.cancel()

    assert all(browser.told == ["1-0 n1"] for browser in world.browsers)


async def test_a_client_that_leaves_while_a_fan_out_yields_gets_nothing(autojump_clock, world, yields_often):
    """Its socket is closed by then, and the number of its descriptor may be another client's."""
    browsers = [world.connect() for _ in range(300)]
    await world.settle()
    left = browsers[-1]

    async def leave() -> None:
        left.disconnect()
        left.close()

    world.publish(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave)
        await world.deliver()
    await world.settle()

    assert all(browser.told == ["1-0 n1"] for browser in browsers[:-1])
    assert world.hub.statistics().clients == len(browsers) - 1


async def test_a_client_sent_away_while_a_fan_out_yields_gets_nothing_after_its_goodbye(
    autojump_clock, world, yields_often
):
    browsers = [world.connect() for _ in range(300)]
    await world.settle()
    (topic,) = world.tails.watched.values()
    last = list(topic.live)[-1]  # the last to be written to
    (sent_away,) = (browser for browser in browsers if browser.subscriber is last)
    browsers.remove(sent_away)

    async def send_away() -> None:
        sent_away.subscriber.end()

    world.publish(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_away)
        await world.deliver()
    await world.settle()

    assert sent_away.ended_cleanly is True
    assert sent_away.retries_ms[1:] == [sent_away.messages[-1].retry_ms]
    assert all(browser.told == ["1-0 n1"] for browser in browsers[:-1])
    # Nor does that move its cursor to where the topic stands: it has yet to get the event.
    again = world.connect(sent_away.position)
    await world.settle()
    assert again.told == ["1-0 n1"]
    assert sent_away.blocks[-1] == (
        f'retry: {sent_away.retries_ms[-1]}\nevent: position\ndata: {{"event":"position","data":{{}}}}'
    )


async def test_a_client_whose_socket_broke_is_let_go(autojump_clock, world):
    browser, other = world.connect(), world.connect()
    await world.settle()
    browser.socket.close()

    await world.publish_and_deliver(1)
    await world.publish_and_deliver(2)

    assert browser.ended_cleanly is False
    assert other.told == ["1-0 n1", "2-0 n2"]
    assert world.hub.statistics().clients == 1


UNREADABLE = [
    {"payload": "not json"},
    {"other": "{}"},
    {"payload": b'\xef\xbb\xbf{"event":"argument_updated","data":{"id":"1","reason":"r"}}'},
    {"payload": '{"event":"argument_updated","data":{"id":9007199254740993,"reason":"r"}}'},
    {"payload": '{"event":"argument_updated","data":{"id":"1","reason":"r","body":"the thing"}}'},
    {"payload": '{"event":"argument_updated","data":{"id":"1","reason":"r"}}' + " " * 5000},
]


def add_unreadable(world: World, *numbers: int) -> list[StreamId]:
    for number in numbers:
        fields = UNREADABLE[number % len(UNREADABLE)]
        world.writer.xadd("topic:events:a", fields, id=f"{number}-0")
    return [StreamId(number, 0) for number in numbers]


@pytest.mark.parametrize("asgi", KINDS)
async def test_what_cannot_be_read_is_a_reload_at_its_id(autojump_clock, world, asgi):
    browser = world.connect(asgi=asgi)
    await world.settle()
    world.publish(1)
    add_unreadable(world, 2, 3)
    world.publish(4)
    await world.deliver()
    await world.settle()

    # One reload for all: what came before it is covered by it.
    assert browser.told == ["3-0 unreadable", "4-0 n4"]
    assert world.hub.statistics().malformed_entries == 2
    for cursor, told in [("1-0", ["3-0 unreadable", "4-0 n4"]), ("3-0", ["4-0 n4"]), ("4-0", [])]:
        again = world.connect(cursor, asgi=asgi)
        await trio.sleep(1)
        assert again.told == told, cursor
        assert again.position == "4-0"


@pytest.mark.parametrize("number", range(len(UNREADABLE)))
async def test_a_stream_of_nothing_but_what_cannot_be_read_is_a_reload(autojump_clock, world, number):
    browser = world.connect()
    await world.settle()
    add_unreadable(world, number + 1)
    await world.deliver()

    assert browser.told == [f"{number + 1}-0 unreadable"]
    await world.publish_and_deliver(9)
    assert browser.told[1:] == ["9-0 n9"]


@pytest.mark.parametrize("window_limit_events", [0, 50])
@pytest.mark.parametrize("catchup", ["all", "compact"])
@pytest.mark.parametrize("replay_page_events", [1, 3, 200])
async def test_no_client_is_moved_past_what_cannot_be_read(
    autojump_clock, make_world, catchup, window_limit_events, replay_page_events
):
    world = await make_world(window_limit_events=window_limit_events, replay_page_events=replay_page_events)
    appended = [StreamId(number, 0) for number in range(1, 13)]
    for number in range(1, 13):
        if number % 4:
            world.publish(number)
        else:
            add_unreadable(world, number)
        if number == 6:
            await world.open()

    await world.deliver()
    for index, cursor in enumerate(appended):
        browser = world.connect(cursor, catchup=catchup)
        await world.settle()
        owed = [one for one in appended[index + 1 :] if one.ms % 4 == 0]
        told = [StreamId.parse(text.split()[0]) for text in browser.told if "unreadable" in text]
        assert (told[-1:] or [None])[0] == (owed[-1:] or [None])[0], cursor
        behind = [one for one in appended if one > (told[-1] if told else cursor)]
        assert [text.split()[0] for text in browser.told[-len(behind) :] if behind] == list(map(str, behind))
        browser.disconnect()


async def test_a_backlog_holds_the_reload_for_what_cannot_be_read(autojump_clock, world):
    """The client is behind when it comes."""
    browser = world.connect(asgi=True)
    await world.settle()
    browser.reads = trio.Event()
    world.publish(1)
    await world.deliver()
    await world.settle()
    add_unreadable(world, 2)
    await world.deliver()
    world.publish(3)
    await world.deliver()
    browser.reads.set()
    await world.settle()

    assert browser.told == ["1-0 n1", "2-0 unreadable", "3-0 n3"]


async def test_a_topic_rests_after_what_cannot_be_read(autojump_clock, make_world):
    world = await make_world(unreadable_gather_s=3.0)
    await world.open()
    topic = world.tails.watched["topic:events:a"]

    async def deliver() -> float | None:
        (entry,) = world.client.redis.execute_command(
            "XRANGE", topic.key, b"(" + bytes(topic.position.read_after), "+"
        )
        return await topic.deliver([(StreamId.from_redis(entry[0]), entry[1])])

    world.publish(1)
    assert await deliver() is None
    add_unreadable(world, 2)
    assert await deliver() == 3.0


async def test_what_cannot_be_read_is_logged_once_in_a_while(autojump_clock, world):
    await world.open()
    with capture_logs() as logs:
        for number in range(1, 100):
            add_unreadable(world, number)
            await world.deliver()

    assert [log["event"] for log in logs].count("unreadable_entry") <= 1
    assert world.hub.statistics().malformed_entries == 99


async def test_a_client_ahead_of_the_hub_is_not_sent_away_for_what_it_has(autojump_clock, make_world):
    """It comes from an instance that reads faster; what this one reads now must not fill its backlog."""
    world = await make_world(backlog_limit_events=5, window_limit_events=0)
    world.publish(1)
    await world.open()
    world.publish(*range(2, 30))
    ahead = world.connect("29-0")
    await world.settle()
    assert ahead.position == "29-0"

    await world.deliver()
    await world.settle()
    assert ahead.told == []
    assert world.hub.statistics().overflows == 0

    await world.publish_and_deliver(30)
    assert ahead.told == ["30-0 n30"]


async def test_a_cursor_from_another_data_set_suppresses_nothing(autojump_clock, make_world):
    world = await make_world(window_limit_events=0)
    await world.publish_and_deliver(1)
    await world.open()
    ahead = world.connect("999-0")
    await world.settle()
    # Not judged yet, or judged and reloaded: either way it stands where the hub stands.
    await world.publish_and_deliver(2, 3)

    assert ahead.told == ["1-0 trimmed", "2-0 n2", "3-0 n3"]


async def test_a_client_ahead_that_hears_of_a_wipe_hears_what_follows(autojump_clock, make_world):
    world = await make_world(window_limit_events=0)
    world.publish(1)
    await world.open()
    world.publish(*range(2, 30))
    ahead = world.connect("29-0", asgi=True)
    await world.settle()
    assert ahead.position == "29-0"
    ahead.reads = trio.Event()  # it is told of the wipe, but does not get to it yet
    world.writer.flushall()
    world.publish(3)
    await world.lose(forced=True)
    await world.publish_and_deliver(4, 5)
    ahead.reads.set()
    await world.settle()

    assert ahead.told == ["3-0 trimmed", "4-0 n4", "5-0 n5"]


# -- heartbeats


@pytest.mark.parametrize("asgi", KINDS)
async def test_a_silent_stream_gets_heartbeats(autojump_clock, make_world, asgi):
    world = await make_world(heartbeat_interval_s=15)
    browser = world.connect(asgi=asgi)
    await world.settle()

    await trio.sleep(14)
    assert browser.comments == 0
    await trio.sleep(3)
    assert browser.comments == 1
    await trio.sleep(150)
    assert 9 <= browser.comments <= 11


@pytest.mark.parametrize("asgi", KINDS)
async def test_a_stream_with_events_gets_none(autojump_clock, make_world, asgi):
    world = await make_world(heartbeat_interval_s=15)
    busy, silent = world.connect(asgi=asgi), world.connect(topic="b", asgi=asgi)
    await world.settle()

    for number in range(1, 30):
        await trio.sleep(10)
        await world.publish_and_deliver(number)
        silent.receive()
        busy.receive()

    assert busy.comments == 0
    assert silent.comments >= 15


async def test_each_silent_stream_has_a_time_of_its_own(autojump_clock, make_world):
    """Whenever it came, and whoever comes and goes meanwhile."""
    world = await make_world(heartbeat_interval_s=15)
    heard_s = {}
    for step in range(200):
        if step < 40:
            heard_s |= {world.connect(topic=topic): (0, trio.current_time()) for topic in ("a", "b")}
        if step % 7 == 3 and len(heard_s) > 10:
            leaving = list(heard_s)[step % len(heard_s)]
            leaving.socket.close()
            del heard_s[leaving]
        await trio.sleep(1.3)
        for browser, (comments, since_s) in heard_s.items():
            if browser.comments > comments:
                heard_s[browser] = (browser.comments, trio.current_time())
            assert trio.current_time() <= since_s + 16 + 1.3

    assert len(heard_s) > 50


@pytest.mark.parametrize("asgi", KINDS)
async def test_a_heartbeat_is_due_when_the_last_event_is_an_interval_ago(autojump_clock, make_world, asgi):
    world = await make_world(heartbeat_interval_s=15)
    browser = world.connect(asgi=asgi)
    await world.settle()
    for _ in range(5):
        await trio.sleep(10.5)
        await world.publish_and_deliver(1 + len(browser.told))
        before = browser.comments
        await trio.sleep(14)
        assert browser.comments == before
        await trio.sleep(2.5)
        assert browser.comments == before + 1


async def test_who_watches_nothing_is_looked_at_no_more(autojump_clock, make_world):
    world = await make_world(heartbeat_interval_s=15)
    for number in range(50):
        browser = world.connect(topic=f"t{number}")
        await trio.sleep(1)
        browser.socket.close()
        await trio.sleep(1)

    looks = world.hub._looks_ahead
    assert len(looks) == hub_module.LOOKS_PER_INTERVAL + 1
    assert set().union(*looks) == set()


async def test_a_look_touches_only_topics_that_are_due(autojump_clock, make_world, monkeypatch):
    looked_at = Counter()
    take_due = Hub._take_due

    def counted(self, topic, before_s):
        looked_at[topic.name] += 1
        return take_due(self, topic, before_s)

    monkeypatch.setattr(Hub, "_take_due", counted)
    world = await make_world(heartbeat_interval_s=15)
    browsers = [world.connect(topic=f"t{number}") for number in range(50)]
    await world.settle()

    for _ in range(20):
        await trio.sleep(15)
        heard = [browser.comments for browser in browsers]

    assert min(heard) >= 18
    assert max(looked_at.values()) <= 2 * 20


async def test_who_was_ahead_of_the_hub_has_its_heartbeat_in_time(autojump_clock, make_world):
    """It goes live without having been written to for long, and among others who were just now."""
    world = await make_world(heartbeat_interval_s=15)
    await world.open()
    world.publish(1, 2)
    ahead = world.connect("1-0")
    await world.settle()
    assert ahead.told == ["2-0 n2"]
    await trio.sleep(13)
    others = [world.connect() for _ in range(3)]
    await world.settle()
    assert ahead.comments == 0

    await world.deliver()  # the hub catches up, and has nothing to send to it
    await trio.sleep(3)

    assert ahead.comments == 1
    await trio.sleep(16)
    assert ahead.comments == 2
    assert all(browser.comments == 1 for browser in others)


async def test_a_heartbeat_finds_out_who_has_gone(autojump_clock, make_world):
    world = await make_world(heartbeat_interval_s=15)
    browser = world.connect()
    await world.settle()
    browser.socket.close()

    await trio.sleep(40)

    assert browser.ended_cleanly is False
    assert world.hub.statistics().clients == 0


async def test_no_heartbeat_cuts_in_on_a_fan_out(autojump_clock, world, yields_often):
    """A client whose turn has yet to come, and whose socket is full, would fall behind over the heartbeat
    and so be taken for one that has the events."""
    browsers = [world.connect() for _ in range(100)]
    await world.settle()
    live = world.tails.watched[stream_key("a")].live
    subscriber, send_nowait = list(live.items())[-1]
    (last,) = [browser for browser in browsers if browser.subscriber is subscriber]
    fill(send_nowait)

    async def let_its_heartbeat_be_due() -> None:
        autojump_clock.jump(100)
        for other in set(live) - {subscriber}:  # or the heartbeats yield before they come to it
            other.last_write_s = trio.current_time()
            live[other] = live.pop(other)

    world.publish(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_its_heartbeat_be_due)
        await world.deliver()
    await read_all(world, last)

    assert all(browser.told == ["1-0 n1"] for browser in browsers)


def fill(send_nowait) -> None:
    """Write comments to a socket, each a whole chunk, until the kernel takes no more."""
    with contextlib.suppress(BlockingIOError):
        while True:
            send_nowait(chunk(HEARTBEAT))


async def read_all(world, browser) -> None:
    for _ in range(10):
        browser.receive()
        await world.settle()


# -- joining and leaving


async def test_a_topic_is_read_a_while_longer_than_it_is_watched(autojump_clock, make_world):
    world = await make_world(topic_linger_s=10)
    first = world.connect()
    await world.settle()
    await world.publish_and_deliver(1)
    first.disconnect()
    await trio.sleep(9)
    assert stream_key("a") in world.tails.watched
    reads = world.client.reads

    again = world.connect("1-0")
    await world.settle()
    assert world.client.reads == reads  # from memory
    await trio.sleep(60)
    assert stream_key("a") in world.tails.watched

    again.disconnect()
    await trio.sleep(13)
    assert world.tails.watched == {}
    statistics = world.hub.statistics()
    assert (statistics.topics, statistics.clients, statistics.window_bytes) == (0, 0, 0)


async def test_a_topic_nobody_waited_for_is_given_up(autojump_clock, make_world):
    world = await make_world()
    world.client.away = True
    browser = world.connect()
    await trio.sleep(2)
    browser.disconnect()
    await trio.sleep(10)

    assert world.hub.statistics().topics == 0


async def test_clients_come_and_go_and_nothing_remains(autojump_clock, make_world):
    world = await make_world(topic_linger_s=5)
    world.publish(*range(1, 10))
    for number in range(200):
        browser = world.connect(f"{number % 9 + 1}-0", topic=f"t{number % 7}", asgi=number % 2 == 0)
        for _ in range(number % 5):
            await trio.lowlevel.checkpoint()
        browser.disconnect()
    await trio.sleep(30)

    statistics = world.hub.statistics()
    assert (statistics.topics, statistics.clients, statistics.live_clients) == (0, 0, 0)
    assert statistics.window_bytes == 0
    assert world.tails.watched == {}


@pytest.mark.parametrize("asgi", KINDS)
async def test_a_refused_topic_sends_everyone_away(autojump_clock, world, asgi):
    browsers = [world.connect(asgi=asgi) for _ in range(3)]
    other = world.connect(topic="b", asgi=asgi)
    await world.settle()
    topic = world.tails.watched[stream_key("a")]

    await topic.refuse(Exception("WRONGTYPE"))
    await world.settle()

    assert [browser.ended_cleanly for browser in browsers] == [True] * 3
    assert all(browser.retries_ms[-1] >= 10 * 1000 for browser in browsers)
    assert other.ended_cleanly is None
    assert world.hub.statistics().clients == 1

    # Whoever comes back afterwards starts anew.
    again = world.connect(asgi=asgi)
    await world.settle()
    await world.publish_and_deliver(1)
    assert again.told == ["1-0 n1"]


# -- draining


async def test_a_drain_sends_everyone_away_one_after_the_other(autojump_clock, make_world):
    world = await make_world(drain_rate_clients_per_s=1)
    browsers = [world.connect(asgi=kind) for kind in KINDS * 20]
    await world.settle()
    started_s = trio.current_time()

    await world.hub.drain(20)
    await world.settle()

    assert all(browser.ended_cleanly for browser in browsers)
    ended_s = sorted(browser.ended_s - started_s for browser in browsers)
    assert 5 < ended_s[-1] <= 20
    per_second = Counter(int(moment_s) for moment_s in ended_s)
    assert max(per_second.values()) <= 6  # nobody meets all the others at the next server
    assert all(len(browser.retries_ms) == 2 for browser in browsers)
    assert len({browser.retries_ms[-1] for browser in browsers}) > 20
    statistics = world.hub.statistics()
    assert statistics.clients == 0
    assert statistics.draining


async def test_a_few_clients_are_sent_away_fast(autojump_clock, make_world):
    world = await make_world(drain_rate_clients_per_s=500)
    browsers = [world.connect() for _ in range(10)]
    await world.settle()
    started_s = trio.current_time()

    await world.hub.drain(25)
    await world.settle()

    assert all(browser.ended_cleanly for browser in browsers)
    assert trio.current_time() - started_s < 1


@pytest.mark.parametrize("asgi", KINDS)
@pytest.mark.parametrize("cursor", [None, "1-0"])
async def test_who_comes_during_a_drain_is_sent_away_at_once(autojump_clock, world, asgi, cursor):
    world.publish(1, 2)
    await world.open()
    await world.hub.drain(1)

    browser = world.connect(cursor, asgi=asgi)
    await world.settle()

    assert browser.ended_cleanly is True
    assert browser.retries_ms != []


@pytest.mark.parametrize("asgi", KINDS)
@pytest.mark.parametrize("cursor", [None, "1-0"])
@pytest.mark.parametrize("opened", [False, True])
async def test_a_drain_ends_those_who_wait_for_redis_as_well(
    autojump_clock, make_world, asgi, cursor, opened
):
    world = await make_world(window_limit_events=0)
    world.publish(1, 2, 3)
    if opened:
        await world.open()
    world.client.away = True
    browser = world.connect(cursor, asgi=asgi)
    await trio.sleep(5)

    await world.hub.drain(10)
    await trio.sleep(10)

    assert browser.ended_cleanly is True


@pytest.mark.parametrize("asgi", KINDS)
async def test_a_drain_loses_nothing_that_was_delivered(autojump_clock, make_world, asgi):
    """What a client gets before its end, together with what it gets by resuming, is everything."""
    for moment in range(6):
        world = await make_world()
        browser = world.connect(asgi=asgi)
        await world.settle()
        appended = await world.publish_and_deliver(1)

        async def end_soon(moment=moment, world=world) -> None:
            for _ in range(moment):
                await trio.lowlevel.checkpoint()
            await world.hub.drain(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end_soon)
            for number in (2, 3, 4):
                appended += world.publish(number)
                await world.deliver()
        await world.settle()
        assert browser.ended_cleanly is True

        told = [StreamId.parse(told.split()[0]) for told in browser.told]
        assert told == appended[: len(told)]


# -- with the real tail and the real client


@pytest.fixture
async def real_world(redis_url, client, nursery):
    """The hub as `Services` makes it; browsers as in `World`."""
    tails = Tails(
        Address.from_url(redis_url), client, group_limit_topics=2, read_limit_events=50, timeout_s=5
    )
    world = World(nursery)
    world.hub = Hub(
        Settings(_env_file=None, replay_page_events=7, window_limit_events=20),
        builtin_registry(),
        client,
        tails,
    )
    await nursery.start(world.hub.run)
    yield world
    world.close()


def publish(writer: Redis, topic: str, number: int) -> StreamId:
    data = {"id": f"r{number}", "reason": f"n{number}"}
    return StreamId.parse(publish_topic_event_sync(writer, topic, "argument_updated", data))


async def test_events_reach_all_clients_whenever_they_come(real_world, writer):
    """Every 10th event brings a client that resumes from somewhere; all of them miss nothing."""
    appended: dict[str, list[StreamId]] = {"a": [], "b": [], "c": []}
    browsers = []
    for number in range(150):
        for topic, ids in appended.items():
            ids.append(publish(writer, topic, number))
            if number % 10 == 5:
                cursor = ids[number // 3]
                browser = real_world.connect(cursor, topic=topic, asgi=number % 20 == 5)
                browsers.append((browser, topic, cursor))
        if number % 7 == 0:
            await trio.sleep(0.002)

    for browser, topic, cursor in browsers:
        newest = str(appended[topic][-1])
        await wait_for(lambda browser=browser, newest=newest: browser.position == newest, 10)
        browser.check_no_gap(cursor, appended[topic])
        assert "trimmed" not in str(browser.told)


async def test_a_flush_reaches_every_client(real_world, writer):
    topics = [f"t{number}" for number in range(5)]
    for topic in topics:
        publish(writer, topic, 1)
    browsers = {topic: real_world.connect(topic=topic, asgi=asgi) for topic, asgi in zip(
        topics, itertools.cycle(KINDS), strict=False
    )}  # fmt: skip
    await wait_for(lambda: all(browser.position for browser in browsers.values()))
    await trio.sleep(0.05)

    writer.flushall()
    newest = {topic: publish(writer, topic, 2) for topic in topics}

    for topic, browser in browsers.items():
        await wait_for(lambda browser=browser: browser.told, 10)
        assert browser.told == [f"{newest[topic]} trimmed"]


# -- what anonymous clients can cause


async def test_topics_that_nobody_has_written_to_go_with_their_last_client(autojump_clock, world):
    browsers = [world.connect(topic=f"invented-{number}") for number in range(50)]
    await world.settle()
    assert world.hub.statistics().topics == len(world.tails.watched) == 50

    for browser in browsers:
        browser.disconnect()
    await world.settle()

    statistics = world.hub.statistics()
    assert (statistics.topics, statistics.lingering_topics) == (0, 0)
    assert world.tails.watched == {}


@pytest.mark.parametrize("asgi", KINDS)
async def test_who_only_asks_has_nothing_watched(autojump_clock, world, asgi):
    for number in range(20):
        world.publish(1, 2, topic=f"t{number}")
        answer = world.connect("1-0", topic=f"t{number}", live=False, asgi=asgi)
        await world.settle()
        assert answer.told == ["2-0 n2"]
        assert answer.ended_cleanly is True

    assert world.tails.watched == {}
    assert world.hub.statistics().topics == 0


async def test_who_asks_hears_what_came_since_whoever_else_asks(autojump_clock, world):
    """Each asks Redis for itself: a topic that is not watched does not move."""
    world.publish(1)
    hanging = world.connect("1-0", live=False, asgi=True)
    hanging.reads = trio.Event()  # it takes nothing, and so stays
    await world.settle()
    world.publish(2)

    answer = world.connect("1-0", live=False)
    await world.settle()
    follower = world.connect("1-0")
    await world.settle()

    assert answer.told == follower.told == ["2-0 n2"]


async def test_a_topic_that_was_written_to_lingers_for_a_while(autojump_clock, world):
    world.publish(1)
    await world.open()
    assert world.hub.statistics().lingering_topics == 1

    again = world.connect()
    await world.settle()
    assert world.hub.statistics().lingering_topics == 0
    again.disconnect()
    await trio.sleep(world.settings.topic_linger_s * 1.5)

    assert world.hub.statistics().topics == 0
    assert world.tails.watched == {}


async def test_few_topics_linger_at_a_time(autojump_clock, world, monkeypatch):
    monkeypatch.setattr(hub_module, "LINGERING_LIMIT_TOPICS", 3)
    for number in range(10):
        world.publish(1, topic=f"t{number}")
        await world.open(f"t{number}")

    assert world.hub.statistics().lingering_topics == 3
    assert set(world.tails.watched) == {stream_key(f"t{number}") for number in (7, 8, 9)}


async def test_a_client_that_leaves_while_its_topic_opens_leaves_nothing(autojump_clock, world):
    world.publish(1)
    browser = world.create_browser()
    browser.subscriber.close()
    await world.settle()

    assert world.hub.statistics().topics == 0
    assert world.tails.watched == {}


async def test_few_topics_are_opened_at_a_time(autojump_clock, world):
    under_way, most = 0, 0
    transaction = world.client.transaction

    async def count(commands):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await trio.sleep(0.01)
        try:
            return await transaction(commands)
        finally:
            under_way -= 1

    world.client.transaction = count
    for number in range(300):
        world.connect(topic=f"invented-{number}")
    await trio.sleep(2)

    assert most == hub_module.OPENINGS_AT_ONCE
    assert len(world.tails.watched) == 300


async def test_a_cursor_that_is_nowhere_costs_no_page(autojump_clock, make_world):
    world = await make_world(window_limit_events=0)
    world.publish(*range(10, 1000, 10))
    await world.open()
    asked = []
    transaction = world.client.transaction

    async def note(commands):
        asked.extend(command for command in commands if command[0] in ("XRANGE", "XREVRANGE"))
        return await transaction(commands)

    world.client.transaction = note
    browsers = [world.connect(f"{number * 10 + 5}-0") for number in range(1, 50)]
    await world.settle()

    assert all(browser.told == ["990-0 trimmed"] for browser in browsers)
    assert all(command[2] == command[3] for command in asked), "only whether the entry is there"


async def test_a_crowd_with_invented_cursors_does_not_delay_a_replay(autojump_clock, make_world):
    world = await make_world(window_limit_events=0, replay_page_events=2)
    world.publish(*range(10, 200, 10))
    await world.open()
    transaction = world.client.transaction

    async def be_slow(commands):
        await trio.sleep(0.1)
        return await transaction(commands)

    world.client.transaction = be_slow
    for number in range(1, 1000):
        world.connect(f"{number * 10 + 5}-0")
    honest = world.connect("150-0")
    await trio.sleep(0.1 * 1000 / hub_module.LOOKS_AT_ONCE + 0.5)

    assert honest.told == ["160-0 n160", "170-0 n170", "180-0 n180", "190-0 n190"]


async def test_an_overflow_counts_at_once(autojump_clock, make_world):
    world = await make_world(backlog_limit_events=3, window_limit_events=0)
    world.publish(1)
    stuck = world.connect("1-0", asgi=True)
    await world.settle()
    stuck.reads = trio.Event()

    await world.publish_and_deliver(*range(2, 20))
    await world.publish_and_deliver(*range(20, 40))

    statistics = world.hub.statistics()
    assert statistics.overflows >= 1
    assert statistics.clients == 1, "it is still there"


async def test_malformed_entries_are_told_at_a_bounded_rate(autojump_clock, world):
    world.connect()
    await world.settle()
    with capture_logs() as lines:
        for number in range(1, 200):
            world.writer.xadd("topic:events:a", {"payload": "not json"}, id=f"{number}-0")
        await world.deliver()

    assert len([line for line in lines if line["event"] == "malformed_entry_skipped"]) <= 1
