"""A history made by hand for each rule: what the rule is there to report, and what it must let pass."""

from __future__ import annotations

import pytest

from .oracle import (
    Append,
    ClientHistory,
    Connection,
    End,
    Event,
    Item,
    Position,
    Reload,
    Removal,
    Retry,
    TopicLog,
    Wipe,
    check,
    parse_id,
)

# Event n is appended at second n under id n*10-0, unless a test says otherwise.


def append(n: int) -> Append:
    return Append(n, (n * 10, 0), n, n + 0.1)


def log(*numbers: int, removals: tuple[Removal, ...] = (), wipes: tuple[Wipe, ...] = ()) -> TopicLog:
    return TopicLog([append(n) for n in numbers], removals, wipes)


def unreadable(n: int) -> Append:
    return Append(n, (n * 10, 0), n, n + 0.1, unreadable=True)


def about(thing: str, n: int) -> Append:
    return Append(n, (n * 10, 0), n, n + 0.1, thing=thing)


def event(n: int, at_s: float | None = None) -> Event:
    return Event(n + 0.2 if at_s is None else at_s, f"{n * 10}-0", n)


def trim(at_s: float, below: int) -> Removal:
    return Removal(at_s, at_s + 0.1, below=(below * 10, 0))


def wipe(at_s: float) -> Wipe:
    return Wipe(at_s, at_s + 0.1)


def on(*items: Item, cursor: str | None = None, opened_s: float = 0) -> Connection:
    return Connection(cursor, opened_s, items)


def kinds(log: TopicLog, *connections: Connection) -> list[str]:
    return [violation.kind for violation in check(log, [ClientHistory("c", connections)])]


START = Position(0.5, "0-7")
AFTER_1 = Position(1.5, "10-0")

REFUSED = TopicLog([append(1), unreadable(2), append(3)])
SAME = TopicLog([append(1), about("a", 2), about("b", 3), about("a", 4), append(5)])

BACK = Removal(3, 3.1, ids=frozenset({(20, 0)}), rollback=True)
LOST_2 = TopicLog([append(1), append(2), append(4), append(5)], (BACK,))
MARK = "20-1"


PASSES: dict[str, tuple[TopicLog, list[Connection]]] = {
    "live on an empty topic": (log(1, 2), [on(START, event(1), event(2))]),
    "fresh client does not get what was before it": (log(1, 2), [on(AFTER_1, event(2), opened_s=1.4)]),
    "resume": (log(1, 2, 3), [on(START, event(1)), on(event(2), event(3), cursor="10-0", opened_s=2)]),
    "a cursor from nowhere is said back before the reload": (
        log(1, 2),
        [on(Position(2.5, "99-0"), Reload(2.5, "20-0", "trimmed"), cursor="99-0", opened_s=2.4)],
    ),
    "resume with the cursor said back": (
        log(1, 2),
        [on(START), on(Position(1.5, "0-7"), event(1), event(2), cursor="0-7", opened_s=1.4)],
    ),
    "an old cursor brings old events again": (
        log(1, 2),
        [on(START, event(1), event(2)), on(event(1, 3), event(2, 3), cursor="0-7", opened_s=3)],
    ),
    "the cursor's own entry is gone, nothing after it is": (
        log(1, 2, removals=(trim(1.5, below=2),)),
        [on(START, event(1)), on(Reload(3, "20-0", "trimmed"), cursor="10-0", opened_s=3)],
    ),
    "an entry after the cursor is gone": (
        log(1, 2, 3, removals=(Removal(2.5, 2.6, ids=frozenset({(20, 0)})),)),
        [on(START, event(1)), on(Reload(3, "20-0", "trimmed"), event(3), cursor="10-0", opened_s=2.8)],
    ),
    "live reading fell behind trimming": (
        log(1, 2, 3, removals=(trim(3.1, below=3),)),
        [on(START, event(1), Reload(3.4, "30-0", "trimmed"))],
    ),
    "live reading was faster than trimming": (
        log(1, 2, 3, removals=(trim(3.1, below=4),)),
        [on(START, event(1), event(2), event(3))],
    ),
    "wiped": (log(1, 2, wipes=(wipe(1.5),)), [on(START, event(1), Reload(1.7, "0-9", "trimmed"), event(2))]),
    "wiped, and nothing was lost by it": (log(1, 2, wipes=(wipe(1.5),)), [on(START, event(1), event(2))]),
    "wiped while the position was on its way": (
        log(2, wipes=(wipe(0.4),)),
        [on(START, Reload(0.6, "0-8", "trimmed"), event(2), opened_s=0.3)],
    ),
    "wiped, and the server gave out a position before it heard of it": (
        log(1, 3, wipes=(wipe(1.5),)),
        [on(Position(2, "10-0"), Reload(2.1, "0-8", "trimmed"), event(3), opened_s=1.9)],
    ),
    "wiped, and the server told of a wrong cursor before it heard of it": (
        log(3, wipes=(wipe(1.5),)),
        [on(Reload(2, "0-7", "invalid_id"), Reload(3.1, "30-0", "trimmed"), cursor="x", opened_s=1.9)],
    ),
    "two wipes, two reloads": (
        log(1, 4, wipes=(wipe(1.5), wipe(2.5))),
        [on(START, event(1), Reload(1.7, "0-8", "trimmed"), Reload(2.7, "0-9", "trimmed"), event(4))],
    ),
    "a wipe and a removal, both heard of late": (
        log(1, 3, 4, removals=(Removal(4.5, 4.6, ids=frozenset({(40, 0)})),), wipes=(wipe(2),)),
        [on(START, event(1), Reload(5, "30-0", "trimmed"), Reload(5.1, "40-0", "trimmed"))],
    ),
    "an unreadable entry": (REFUSED, [on(START, event(1), Reload(2.2, "20-0", "unreadable"), event(3))]),
    "an unreadable entry covers what came before it": (
        REFUSED,
        [on(START, Reload(2.2, "20-0", "unreadable"), event(3))],
    ),
    "a later one stands for an earlier one": (
        SAME,
        [on(START, event(1, 9), *map(event, (3, 4, 5), (9, 9, 9)))],
    ),
    "it may come after a cut": (
        SAME,
        [on(START, event(1, 9), event(3, 9)), on(event(4, 9), event(5, 9), cursor="30-0", opened_s=9)],
    ),
    "a rollback, told in front of what came after it": (
        LOST_2,
        [on(START, event(1), event(2), Reload(3.5, MARK, "trimmed"), event(4), event(5))],
    ),
    "a rollback, told of late": (
        LOST_2,
        [
            on(START, event(1)),
            on(event(4), Reload(4.5, "40-1", "trimmed"), event(5), cursor="10-0", opened_s=3.5),
        ],
    ),
    "a rollback, told of behind what came and went since": (
        TopicLog([append(1), append(2), append(4), append(5)], (BACK, trim(5.1, below=5))),
        [on(START, event(1), event(2), event(5, 5.3), Reload(5.3, "50-1", "trimmed"))],
    ),
    "one reload for all the entries that tell of a rollback, and for what came behind them": (
        TopicLog([append(1), append(2), append(4), append(5), append(6)], (BACK,)),
        [
            on(START, event(1), event(2), Reload(3.5, MARK, "trimmed"), Reload(4.5, "40-1", "trimmed")),
            on(Reload(3.5, "10-0", "trimmed"), Reload(5.5, "50-0", "trimmed"), event(6), cursor="10-0"),
        ],
    ),
    "a rollback, told by another server to who came after it": (
        LOST_2,
        [on(Position(4.2, "40-0"), Reload(4.5, "40-0", "trimmed"), event(5), opened_s=4.1)],
    ),
    "deleted, and of what came next a later one stands for the first": (
        TopicLog([append(1), about("a", 3), about("a", 4)], (), (Wipe(2, 2.1, traceless=True),)),
        [on(START), on(event(4, 9), cursor="0-7", opened_s=9)],
    ),
    "a rollback of what nobody had read": (LOST_2, [on(START, event(1), event(4), event(5))]),
    "nothing to prove continuity by, twice": (
        log(1, 2, removals=(trim(1.5, below=2),)),
        [
            on(START, event(1)),
            on(Reload(3, "20-0", "trimmed"), cursor="10-0", opened_s=3),
            on(Reload(4, "20-0", "trimmed"), cursor="10-0", opened_s=4),
        ],
    ),
    "nothing to prove continuity by after DEL, then a trim of what came since": (
        log(1, 3, 4, 7, removals=(trim(3.7, below=4),), wipes=(Wipe(2, 2.1, traceless=True),)),
        [
            on(START, event(1)),
            on(Reload(3.5, "0-9", "trimmed"), cursor="10-0", opened_s=3.4),
            on(Reload(4.5, "40-0", "trimmed"), event(7), cursor="0-9", opened_s=4.4),
        ],
    ),
    "nothing to prove continuity by, then a removal behind that": (
        log(1, 2, 4, 5, removals=(trim(2.5, below=3), Removal(5.2, 5.3, ids=frozenset({(50, 0)})))),
        [on(START, event(1), *(Reload(5.4, at, "trimmed") for at in ("20-0", "40-0", "50-0")))],
    ),
    "nothing to prove continuity by, then a wipe": (
        log(1, 2, 4, removals=(trim(1.5, below=2),), wipes=(wipe(2.5),)),
        [on(START, event(1), Reload(2.7, "20-0", "trimmed"), Reload(2.8, "0-9", "trimmed"), event(4))],
    ),
    "DEL leaves no trace for a cursor from before the first event": (
        log(1, 2, 4, wipes=(Wipe(2.5, 2.6, traceless=True),)),
        [on(START), on(event(4), cursor="0-7", opened_s=3)],
    ),
    "a stalled client reads an old position after a wipe": (
        log(1, 3, wipes=(wipe(2),)),
        [on(Position(4, "0-7"), event(1, 4), Reload(4, "0-8", "trimmed"), event(3, 4))],
    ),
    "a stalled client overflows": (
        log(1, 2, 3),
        [Connection(None, 0, (START, event(1), Reload(4, "30-0", "overflow")), stalled_s=1.5)],
    ),
    "more at once than may wait for a client": (
        log(*range(1, 300)),
        [on(START, event(1), Reload(300, "2990-0", "overflow"))],
    ),
    "as many as may wait, with the marks of a rollback among them": (
        log(*range(1, 261), removals=(BACK,)),
        [on(START, event(1), event(2), Reload(300, "2580-0", "overflow"), event(259), event(260))],
    ),
    "garbage for a cursor": (log(1), [on(Reload(2, "10-0", "invalid_id"), cursor="x", opened_s=2)]),
    "a cursor from the future": (log(1), [on(Reload(2, "10-0", "trimmed"), cursor="99-0", opened_s=2)]),
    "in doubt, and received by nobody": (
        TopicLog([append(1), Append(2, None, 2, 3), append(4)], (), (wipe(2.5),)),
        [on(START, event(1), event(4))],
    ),
    "drained": (
        log(1),
        [Connection(None, 0, (Retry(0.4), START, event(1), Retry(2)), End.CLEAN, drained=True)],
    ),
    "the client left a draining server": (log(1), [Connection(None, 0, (START, event(1)), drained=True)]),
}

FAILS: dict[str, tuple[list[str], TopicLog, list[Connection]]] = {
    "a rollback told of twice": (
        ["unwarranted_reload"],
        LOST_2,
        [on(START, event(1), event(2), *[Reload(3.5, MARK, "trimmed")] * 3, event(4), event(5))],
    ),
    "an unreadable entry in silence": (["missing_reload"], REFUSED, [on(START, event(1), event(3))]),
    "an unreadable entry delivered": (["unknown_event"], REFUSED, [on(START, *map(event, (1, 2, 3)))]),
    "an unreadable entry told of twice": (
        ["unwarranted_reload"],
        REFUSED,
        [on(START, *[Reload(2.2, "20-0", "unreadable")] * 2, event(3))],
    ),
    "a good entry called unreadable": (
        ["unwarranted_reload"],
        REFUSED,
        [on(START, Reload(1.2, "10-0", "unreadable"), Reload(2.2, "20-0", "unreadable"), event(3))],
    ),
    "left out before the one that stands for it": (
        ["gap"],
        SAME,
        [on(START, event(1, 3.2), event(3, 3.3), event(4), event(5))],
    ),
    "one that stands for others left out": (["gap"], SAME, [on(START, *map(event, (1, 3, 5), (9, 9, 9)))]),
    "about another thing": (["gap"], SAME, [on(START, *map(event, (1, 2, 4, 5), (9, 9, 9, 9)))]),
    "one does not stand for another over a wipe": (
        ["missing_reload"],
        TopicLog(SAME.appends, (), (wipe(2.5),)),
        [on(START, *map(event, (1, 3, 4, 5), (9, 9, 9, 9)))],
    ),
    "gap while live": (["gap"], log(1, 2, 3), [on(START, event(1), event(3))]),
    "gap at the first event": (["gap"], log(1, 2), [on(START, event(2))]),
    "gap over a reconnect": (
        ["gap"],
        log(1, 2, 3),
        [on(START, event(1)), on(event(3), cursor="10-0", opened_s=3)],
    ),
    "gap hidden by a position": (
        ["gap"],
        log(1, 2, 3),
        [on(START, event(1)), on(Position(2.5, "20-0"), event(3), cursor="10-0", opened_s=2.4)],
    ),
    "one gap, reported once": (["gap"], log(1, 2, 3, 4), [on(START, event(1), event(3), event(4))]),
    "duplicate": (["duplicate"], log(1, 2), [on(START, event(1), event(1), event(2))]),
    "the cursor's own event again": (
        ["disorder"],
        log(1, 2),
        [on(START, event(1)), on(event(1), event(2), cursor="10-0", opened_s=2)],
    ),
    "disorder": (["gap", "disorder"], log(1, 2, 3), [on(START, event(2), event(1), event(3))]),
    "back behind a reload": (
        ["disorder"],
        log(1, 2, 3, removals=(trim(2.5, below=3),)),
        [on(START, event(1), Reload(2.7, "20-0", "trimmed"), event(2), event(3))],
    ),
    "never appended": (["unknown_event"], log(1), [on(START, event(1), event(2))]),
    "under a wrong id": (["unknown_event"], log(1), [on(START, Event(1.2, "11-0", 1))]),
    "reload without a cause": (
        ["unwarranted_reload"],
        log(1, 2),
        [on(START, event(1), Reload(1.5, "10-0", "trimmed"), event(2))],
    ),
    "reload though only older entries were trimmed": (
        ["unwarranted_reload"],
        log(1, 2, 3, removals=(trim(2.5, below=2),)),
        [on(START, event(1), event(2), Reload(2.7, "20-0", "trimmed"), event(3))],
    ),
    "reload before the trim": (
        ["unwarranted_reload"],
        log(1, 2, removals=(trim(3, below=2),)),
        [on(START, event(1), Reload(1.5, "10-0", "trimmed"), event(2))],
    ),
    "two reloads for one trim": (
        ["unwarranted_reload"],
        log(1, 2, 3, removals=(trim(2.5, below=3),)),
        [on(START, event(1), Reload(2.7, "20-0", "trimmed"), Reload(2.8, "20-0", "trimmed"), event(3))],
    ),
    "two reloads for one wipe": (
        ["unwarranted_reload"],
        log(1, 3, wipes=(wipe(1.5),)),
        [on(START, event(1), Reload(1.7, "0-8", "trimmed"), Reload(1.8, "0-8", "trimmed"), event(3))],
    ),
    "a reload that loops over reconnects": (
        ["unwarranted_reload"],
        log(1, removals=(trim(1.5, below=2),)),
        [
            on(START, event(1)),
            on(Reload(2, "10-0", "trimmed"), cursor="10-0", opened_s=2),
            on(Reload(3, "10-0", "trimmed"), cursor="10-0", opened_s=3),
        ],
    ),
    "reload of a fresh client": (["unwarranted_reload"], log(1), [on(Reload(1.2, "10-0", "trimmed"))]),
    "reload after a wipe the cursor's entry is younger than": (
        ["unwarranted_reload"],
        log(1, wipes=(wipe(0.1),)),
        [on(START, event(1), Reload(1.5, "10-0", "trimmed"), opened_s=0.3)],
    ),
    "overflow of a client that read all the time": (
        ["unwarranted_reload"],
        log(1, 2),
        [on(START, event(1), Reload(2.5, "20-0", "overflow"))],
    ),
    "a good cursor called invalid": (
        ["unwarranted_reload"],
        log(1, removals=(trim(1.5, below=2),)),
        [on(START, event(1)), on(Reload(2, "10-0", "invalid_id"), cursor="10-0", opened_s=2)],
    ),
    "a future cursor called invalid": (
        ["unwarranted_reload"],
        log(1),
        [on(Reload(2, "10-0", "invalid_id"), cursor="99-0", opened_s=2)],
    ),
    "no reload after a trim": (
        ["missing_reload"],
        log(1, 2, 3, removals=(trim(2.5, below=3),)),
        [on(START, event(1), event(3))],
    ),
    "no reload after a wipe": (
        ["missing_reload"],
        log(1, 2, 3, wipes=(wipe(2.5),)),
        [on(START, event(1)), on(event(3), cursor="10-0", opened_s=2.8)],
    ),
    "no reload after a wipe of an empty topic's first events": (
        ["missing_reload"],
        log(1, 3, wipes=(wipe(1.5),)),
        [on(START), on(event(3), cursor="0-7", opened_s=2)],
    ),
    "no reload, a new empty position instead": (
        ["missing_reload"],
        log(1, 3, wipes=(wipe(1.5),)),
        [on(START), on(Position(2, "0-8"), event(3), cursor="0-7", opened_s=2)],
    ),
    "DEL leaves a trace for any other cursor": (
        ["missing_reload"],
        log(1, 2, 4, wipes=(Wipe(2.5, 2.6, traceless=True),)),
        [on(START, event(1)), on(event(4), cursor="10-0", opened_s=3)],
    ),
    "DEL excuses nothing that came after it": (
        ["missing_reload"],
        log(1, 4, 5, wipes=(Wipe(2.5, 2.6, traceless=True),)),
        [on(START), on(event(5), cursor="0-7", opened_s=3)],
    ),
    "a wipe before the DEL": (
        ["missing_reload"],
        log(1, 3, 5, wipes=(wipe(2), Wipe(4, 4.1, traceless=True))),
        [on(START), on(event(5), cursor="0-7", opened_s=4.5)],
    ),
    "a cursor from nowhere said back, and accepted": (
        ["missing_reload"],
        log(1, 2),
        [on(Position(1.5, "99-0"), event(2), cursor="99-0", opened_s=1.4), on(START, event(1), event(2))],
    ),
    "garbage accepted": (["missing_reload"], log(1, 2), [on(AFTER_1, event(2), cursor="x", opened_s=1.4)]),
    "in doubt, but another client has it": (
        ["missing_reload"],
        TopicLog([append(1), Append(2, None, 2, 3), append(4)], (), (wipe(2.5),)),
        [on(START, event(1), event(4)), on(event(2, 2.1), event(4), cursor="10-0", opened_s=2)],
    ),
    "a position ahead of the log": (["ahead", "disorder"], log(1), [on(Position(0.5, "10-0"), event(1))]),
    "a reload ahead of the log": (
        ["ahead"],
        log(1, 2, removals=(trim(1.5, below=2),)),
        [on(START, event(1), Reload(1.7, "20-0", "trimmed"))],
    ),
    "an event before any position": (["unplaced"], log(1), [on(event(1))]),
    "never a position": (["never_arrived"], log(1), [on()]),
    "the end is missing": (["never_arrived"], log(1, 2, 3), [on(START, event(1))]),
    "a drain that breaks the stream": (
        ["unclean_drain"],
        log(1),
        [Connection(None, 0, (Retry(0.4), START, event(1), Retry(2)), End.BROKEN, drained=True)],
    ),
    "a drain without retry": (
        ["unclean_drain"],
        log(1),
        [Connection(None, 0, (Retry(0.4), START, event(1)), End.CLEAN, drained=True)],
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_correct_history_passes(name: str) -> None:
    topic_log, connections = PASSES[name]
    assert check(topic_log, [ClientHistory("c", connections)]) == []


@pytest.mark.parametrize("name", FAILS)
def test_a_wrong_history_is_reported(name: str) -> None:
    wanted, topic_log, connections = FAILS[name]
    assert kinds(topic_log, *connections) == wanted


def test_who_was_away_over_a_rollback_is_owed_a_reload() -> None:
    """By a server that had read what was lost."""
    stayed = ClientHistory(
        "stayed", [on(START, event(1), event(2), Reload(3.5, MARK, "trimmed"), event(4), event(5))]
    )
    away = [on(START, event(1)), on(event(4), event(5), cursor="10-0", opened_s=3.6)]
    assert [str(one) for one in check(LOST_2, [stayed, ClientHistory("away", away)])] == [
        "missing_reload: client away, connection 1: "
        "events were lost by a rollback that a server saw, and the client never heard"
    ]
    told = [away[0], on(Reload(3.7, MARK, "trimmed"), event(4), event(5), cursor="10-0", opened_s=3.6)]
    assert check(LOST_2, [stayed, ClientHistory("away", told)]) == []


def test_a_violation_names_client_connection_and_id() -> None:
    history = ClientHistory("anna", [on(START, event(1)), on(event(3), cursor="10-0", opened_s=3)])
    (violation,) = check(log(1, 2, 3), [history])
    assert str(violation) == (
        "gap: client anna, connection 1: "
        "1 passed over, 0 of them removed from Redis: 20-0 (n=2) to 20-0 (n=2)"
    )


@pytest.mark.parametrize(
    ("text", "id_"),
    [
        ("5-0", (5, 0)),
        ("0-7", (0, 7)),
        ("18446744073709551615-18446744073709551615", (2**64 - 1, 2**64 - 1)),
        ("18446744073709551616-0", None),
        ("5", (5, 0)),
        ("5-", None),
        ("-1-0", None),
        (" 5-0", None),
        ("", None),
    ],
)
def test_ids_are_what_redis_calls_an_id(text: str, id_: tuple[int, int] | None) -> None:
    assert parse_id(text) == id_
