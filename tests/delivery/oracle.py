"""Judge of the first promise: no silent gap, and no `reload_required` without a cause.

Input: what was done to one topic (`TopicLog`) and what its clients saw (`ClientHistory`). Output:
violations. Pure: no clock, no socket, and no code shared with `app`, so that an error there cannot hide
itself here.

The log is one line. Entries are ordered by id over every incarnation of the data (whoever writes the log
sees to it that ids also rise over a wipe), so a cursor is a place on that line: how many entries lie behind
it. A position `0-<number>` names a topic without a stream; its place is where the newest incarnation
begins.

The rules, each a function below:

known    An event that arrives is in the log, with the id under which it was appended.
order    On one connection places strictly rise, from the cursor sent on; a reload is no licence to go back.
gap      Between two consecutive things a client has (the cursor it sends opens a connection's row) no entry
         is passed over, unless a reload stands between them. If one of the passed entries had been removed
         or wiped, or could not be read, the violation is called `missing_reload`, otherwise `gap`. Excused:
         a topic's entries from its first to its DEL, for a cursor from before the first (nothing in Redis
         tells of them any more); and an event for which a later one about the same thing stands.
ahead    A cursor handed out (position or reload) is not ahead of the log: what is appended after the client
         has it must lie behind it.
placed   Without a cursor the first thing is a position; a cursor that was never given out is met by a
         reload.
warrant  A reload has a cause: the cursor's own entry or a later one was removed, the data was wiped after
         the cursor was made, or the cursor was never valid; `overflow` is for clients that stalled, or for
         more events at once than may wait for one client; `unreadable` is for an entry that is so, at its
         own id. A cause warrants one reload, except where the cursor's own entry is gone and others were
         appended after it: nothing is left to prove continuity by, so each time is allowed.
rollback What a Redis lost that came back from an older dump may be passed over, but whoever did so hears
         of it sooner or later, if a server that had read it went on. A server tells by an entry of its own,
         which warrants a reload to everybody who comes by it. (One rollback a log at most.)
drain    A healthy client that was streaming when the server was told to stop gets `retry:` and a clean end.
end      After settling every client has everything.

Operations are intervals (`sent_s`, `done_s`): where the order of an operation and a receipt is unknown, the
reading that acquits holds. An append in doubt (`id` None: Redis was killed before it answered, and the data
was wiped so nobody can ask) counts only if some client received it.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import assert_never

StreamId = tuple[int, int]

_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)
_NONE: frozenset[int] = frozenset()
# Within this a server that streams has read what is in Redis.
READ_LIMIT_S = 0.3
# Of one rollback: each process may append one of its own (two servers of two workers).
MARKS_LIMIT = 4

_Finding = tuple[str, str]  # kind, detail


def parse_id(text: str) -> StreamId | None:
    """The id as integers; None for what Redis would not read as one (`<ms>-<seq>`, 64 bits each)."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    ms, seq = int(found[1]), int(found[2] or 0)
    return (ms, seq) if max(ms, seq) < 1 << 64 else None


# --- the log of one topic ---


@dataclass(frozen=True, slots=True)
class Append:
    """`unreadable`: what the contract refuses. `thing`: of readable ones with the same, a later one stands
    for all before it; None: each one counts."""

    n: int
    id: StreamId | None
    sent_s: float
    done_s: float
    unreadable: bool = False
    thing: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    """Exact trim or XDEL: every entry below `below`, and those named in `ids`, are gone. `rollback`: Redis
    came back from an older dump, without those in `ids`."""

    sent_s: float
    done_s: float
    below: StreamId = (0, 0)
    ids: frozenset[StreamId] = frozenset()
    rollback: bool = False


@dataclass(frozen=True, slots=True)
class Wipe:
    """The topic's data was lost as a whole: FLUSHALL, a Redis that came back empty, or DEL of its key alone
    (`traceless`: the rest of the data set is as it was)."""

    sent_s: float
    done_s: float
    traceless: bool = False


@dataclass(frozen=True, slots=True)
class TopicLog:
    appends: Sequence[Append]
    removals: Sequence[Removal] = ()
    wipes: Sequence[Wipe] = ()


# --- what a client saw ---


@dataclass(frozen=True, slots=True)
class Retry:
    at_s: float


@dataclass(frozen=True, slots=True)
class Position:
    at_s: float
    id: str


@dataclass(frozen=True, slots=True)
class Event:
    at_s: float
    id: str
    n: int


@dataclass(frozen=True, slots=True)
class Reload:
    at_s: float
    id: str
    reason: str


Item = Retry | Position | Event | Reload


class End(StrEnum):
    CUT = "cut"  # by the client
    CLEAN = "clean"  # last chunk received
    BROKEN = "broken"  # reset, or closed without the last chunk


@dataclass(frozen=True, slots=True)
class Connection:
    cursor: str | None
    opened_s: float
    items: Sequence[Item]
    end: End = End.CUT
    stalled_s: float | None = None  # when the client first stopped reading
    drained: bool = False  # streaming and healthy when the server was told to stop


@dataclass(frozen=True, slots=True)
class ClientHistory:
    name: str
    connections: Sequence[Connection]


@dataclass(frozen=True, slots=True)
class Violation:
    kind: str
    client: str
    connection: int
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: client {self.client}, connection {self.connection}: {self.detail}"


# --- the line of entries ---


@dataclass(frozen=True, slots=True)
class _Entry:
    n: int
    id: StreamId
    sent_s: float
    removed_by: int | None  # index into the removals
    unreadable: bool
    thing: str | None


class _Line:
    """The log as one ordered line, with the cause of each entry's removal."""

    def __init__(self, log: TopicLog, clients: Sequence[ClientHistory], backlog_limit_events: int) -> None:
        self.backlog_limit_events = backlog_limit_events
        received = _received_ids(clients)
        placed = ((append, append.id or received.get(append.n)) for append in log.appends)
        known = sorted((id_, append) for append, id_ in placed if id_ is not None)
        self.removals = log.removals
        self.wipes = log.wipes
        self.entries = [
            _Entry(a.n, id_, a.sent_s, self._remover(id_, a.sent_s), a.unreadable, a.thing)
            for id_, a in known
        ]
        self.ids = [entry.id for entry in self.entries]
        self.sent_s = [entry.sent_s for entry in self.entries]
        self.index = {entry.n: index for index, entry in enumerate(self.entries)}
        self.marks = self._find_marks(clients)
        self._witnessed = {
            number: self._find_witnessed(removal, clients)
            for number, removal in enumerate(log.removals)
            if removal.rollback
        }
        self._by_thing: dict[str, list[int]] = {}
        for index, entry in enumerate(self.entries):
            if entry.thing is not None and not entry.unreadable:
                self._by_thing.setdefault(entry.thing, []).append(index)

    def _remover(self, id_: StreamId, sent_s: float) -> int | None:
        for number, removal in enumerate(self.removals):
            if removal.done_s >= sent_s and (id_ < removal.below or id_ in removal.ids):
                return number
        return None

    def remover_by(self, index: int, at_s: float) -> int | None:
        """The removal that had taken the entry by then; none if a wipe may have done so before."""
        entry = self.entries[index]
        if entry.removed_by is None:
            return None
        removed_s = self.removals[entry.removed_by].sent_s
        is_wiped = any(entry.sent_s <= wipe.sent_s <= removed_s for wipe in self.wipes)
        return None if is_wiped or removed_s > at_s else entry.removed_by

    def place(self, id_: StreamId, at_s: float, before: int | None = None) -> int:
        """How many entries lie at or behind a cursor that was received at `at_s`.

        For `0-<number>`: the newest incarnation that had begun by then, but not one that begins behind the
        entry `before`, the next to arrive: a client that stalled receives a position long after it was true.
        """
        if id_[0] > 0:
            return bisect_right(self.ids, id_)
        begun = (bisect_left(self.sent_s, wipe.sent_s) for wipe in self.wipes if wipe.sent_s <= at_s)
        return max((place for place in begun if before is None or place <= before), default=0)

    def is_traceless(self, begin: int, stop: int) -> bool:
        """Whether these entries are whole incarnations of the topic, each ended by a traceless wipe."""
        ends = {bisect_left(self.sent_s, wipe.sent_s): wipe.traceless for wipe in self.wipes}
        return ends.get(stop, False) and all(ends[end] for end in ends if begin < end < stop)

    def _find_marks(self, clients: Sequence[ClientHistory]) -> frozenset[StreamId]:
        """Entries that servers appended to tell of a rollback, as far as anybody heard of them."""
        if not any(removal.rollback for removal in self.removals):
            return frozenset()
        told = (
            parse_id(item.id)
            for client in clients
            for connection in client.connections
            for item in connection.items
            if isinstance(item, Reload)
        )
        own = set(self.ids)
        return frozenset(id_ for id_ in told if id_ is not None and id_[0] > 0 and id_ not in own)

    def marks_between(self, behind: int, upto: StreamId) -> frozenset[StreamId]:
        """Those that somebody comes by who has so many entries behind, and goes to `upto`. One reload may
        stand for several."""
        return frozenset(
            mark for mark in self.marks if mark <= upto and bisect_left(self.ids, mark) >= behind
        )

    def _find_witnessed(self, rollback: Removal, clients: Sequence[ClientHistory]) -> int:
        """Up to where (exclusive) the entries had surely been read by a server that went on over the
        rollback: it wrote them to somebody well before, and something else on the same connection after."""
        witnessed = 0
        for connection in (connection for client in clients for connection in client.connections):
            if connection.items and connection.items[-1].at_s > rollback.done_s:
                before = (
                    self.index.get(item.n, -1) + 1
                    for item in connection.items
                    if isinstance(item, Event) and item.at_s < rollback.sent_s - READ_LIMIT_S
                )
                witnessed = max(witnessed, *before, 0)
        return witnessed

    def rollback_over(self, index: int, at_s: float) -> int | None:
        """The rollback that took the entry, if any has by then. Also one from before the entry, which was
        removed since: a server that has yet to mark the rollback marks it behind what came meanwhile."""
        entry = self.entries[index]
        for number in self._witnessed:
            rollback = self.removals[number]
            since = entry.sent_s >= rollback.sent_s and self.lost(index, at_s)
            if rollback.sent_s <= at_s and (entry.id in rollback.ids or since):
                return number
        return None

    def owed_for(self, missed: Sequence[int], at_s: float) -> frozenset[int]:
        """The rollbacks of which whoever passed over these entries must still be told."""
        taken = ((index, self.rollback_over(index, at_s)) for index in missed)
        return frozenset(
            number
            for index, number in taken
            if number is not None
            and (index < self._witnessed[number] or self.entries[index].id not in self.removals[number].ids)
        )

    def is_superseded(self, index: int, upto: int, at_s: float) -> bool:
        """Whether the first one about the same thing from `upto` on could stand for it by then. That one has
        to arrive in its own turn."""
        entry = self.entries[index]
        if entry.thing is None or entry.unreadable:
            return False
        same = self._by_thing[entry.thing]
        later = bisect_left(same, upto)
        if later == len(same):
            return False
        sent_s = self.entries[same[later]].sent_s
        return sent_s <= at_s and not any(entry.sent_s <= wipe.sent_s <= sent_s for wipe in self.wipes)

    def lost(self, index: int, at_s: float) -> bool:
        """Whether the entry had been removed or wiped by then, as far as can be known."""
        entry = self.entries[index]
        remover = entry.removed_by
        trimmed = remover is not None and self.removals[remover].sent_s <= at_s
        return trimmed or any(entry.sent_s <= wipe.sent_s <= at_s for wipe in self.wipes)


def _received_ids(clients: Sequence[ClientHistory]) -> dict[int, StreamId]:
    received: dict[int, StreamId] = {}
    for client in clients:
        for connection in client.connections:
            for item in connection.items:
                if isinstance(item, Event) and (id_ := parse_id(item.id)) is not None:
                    received.setdefault(item.n, id_)
    return received


# --- where a client stands ---


@dataclass(frozen=True, slots=True)
class _Held:
    """A cursor as the client holds it.

    `spent_*`: causes already used up by reloads at this cursor; removals and wipes by index.
    """

    behind: int
    own: bool  # whether the last entry behind it is the one it names
    made_after_s: float
    before_first: bool = False  # it was given for a topic without a stream
    spent_removals: frozenset[int] = _NONE
    spent_wipes: frozenset[int] = _NONE
    at_mark: bool = False  # its entry is a server's own, about a rollback
    spent_marks: frozenset[StreamId] = frozenset()
    owed: frozenset[int] = _NONE  # rollbacks whose losses it has passed over


class _NeverValid:
    """Stands for a cursor that no server ever gave this client."""


_NEVER_VALID = _NeverValid()


def _held_at(line: _Line, item: Position | Reload, rest: Sequence[Item], made_after_s: float) -> _Held:
    """`rest`: what came after the item on its connection."""
    id_ = parse_id(item.id) or (0, 0)
    numbers = (later.n for later in rest if isinstance(later, Event))
    behind = line.place(id_, item.at_s, before=line.index.get(next(numbers, -1)))
    own = behind > 0 and line.ids[behind - 1] == id_
    # A server that has yet to hear of a wipe hands out positions from before it; also to who is told that its
    # cursor is none.
    if own:
        made_after_s = line.sent_s[behind - 1]
    elif isinstance(item, Position) or item.reason == "invalid_id":
        made_after_s = -math.inf
    return _Held(behind, own, made_after_s, before_first=id_[0] == 0, at_mark=id_ in line.marks)


def _held_event(line: _Line, index: int) -> _Held:
    return _Held(index + 1, own=True, made_after_s=line.entries[index].sent_s)


def _further(held: _Held | _NeverValid | None, after: _Held) -> _Held:
    """A step back is for `order` to report; it must not make the next step forward look like a gap."""
    return held if isinstance(held, _Held) and held.behind > after.behind else after


# --- the rules ---


def _name(line: _Line, index: int) -> str:
    entry = line.entries[index]
    return f"{entry.id[0]}-{entry.id[1]} (n={entry.n})"


def known(line: _Line, event: Event) -> Iterator[_Finding]:
    index = line.index.get(event.n)
    if index is None:
        yield "unknown_event", f"n={event.n} under id {event.id} was never appended"
    elif line.ids[index] != parse_id(event.id):
        yield "unknown_event", f"{_name(line, index)} arrived under id {event.id}"
    elif line.entries[index].unreadable:
        yield "unknown_event", f"{_name(line, index)} arrived, though the contract refuses it"


def order(line: _Line, reached: int, seen: Counter[int], index: int) -> Iterator[_Finding]:
    if seen[index]:
        yield "duplicate", f"{_name(line, index)} arrived again"
    elif index < reached:
        after = _name(line, reached - 1)
        yield "disorder", f"{_name(line, index)} arrived though the connection was already at {after}"


def gap(line: _Line, held: _Held, upto: int, at_s: float) -> Iterator[_Finding]:
    missed = [index for index in _passed(line, held, upto, at_s) if line.rollback_over(index, at_s) is None]
    if missed and not (held.before_first and line.is_traceless(held.behind, missed[-1] + 1)):
        lost = sum(line.lost(index, at_s) for index in missed)
        unreadable = any(line.entries[index].unreadable for index in missed)
        kind = "missing_reload" if lost or unreadable else "gap"
        span = f"{_name(line, missed[0])} to {_name(line, missed[-1])}"
        yield kind, f"{len(missed)} passed over, {lost} of them removed from Redis: {span}"


def _passed(line: _Line, held: _Held, upto: int, at_s: float) -> list[int]:
    return [index for index in range(held.behind, upto) if not line.is_superseded(index, upto, at_s)]


def _owing(line: _Line, held: _Held | _NeverValid | None, after: _Held, upto: int, at_s: float) -> _Held:
    """`after`, with what is owed to a client that came there from `held`."""
    if not isinstance(held, _Held):
        return after
    return replace(after, owed=held.owed | line.owed_for(_passed(line, held, upto, at_s), at_s))


def ahead(line: _Line, item: Position | Reload) -> Iterator[_Finding]:
    id_ = parse_id(item.id)
    if id_ is None:
        yield "ahead", f"unreadable id {item.id!r}"
        return
    for index in range(line.place(id_, item.at_s)):
        if line.entries[index].sent_s > item.at_s:
            yield "ahead", f"cursor {item.id} was given before {_name(line, index)} was appended"
            return


def placed(
    held: _Held | _NeverValid | None, item: Position | Event, cursor: str | None
) -> Iterator[_Finding]:
    if isinstance(held, _NeverValid):
        yield "missing_reload", f"cursor {cursor!r} was never given out, yet {item} follows without a reload"
    elif held is None and isinstance(item, Event):
        yield "unplaced", f"{item} arrived before any position"


def warrant(
    line: _Line, held: _Held | _NeverValid | None, item: Reload, base: _Held, connection: Connection
) -> tuple[_Held, list[_Finding]]:
    """The cursor that the reload leaves the client with (`base`, and what was spent on it), and the violation
    if nothing warrants it."""
    if isinstance(held, _NeverValid):
        unreadable = parse_id(connection.cursor or "") is None
        wanted = "invalid_id" if unreadable else "trimmed"
        wrong = ("unwarranted_reload", f"{item} for cursor {connection.cursor!r}: the reason is not {wanted}")
        return base, [wrong] if item.reason != wanted else []
    if item.reason == "unreadable":
        at = base.behind - 1  # the entry itself, and everything before it
        if base.own and line.entries[at].unreadable and (held is None or held.behind <= at):
            return base, []
        return base, [("unwarranted_reload", f"{item}: no entry behind the cursor is unreadable there")]
    if item.reason == "overflow":
        stalled = connection.stalled_s is not None and connection.stalled_s <= item.at_s
        dropped = base.behind - held.behind if held is not None else 0
        # Marks wait with the events, and nobody may have received them.
        rollbacks = sum(one.rollback and one.sent_s <= item.at_s for one in line.removals)
        dropped += rollbacks * MARKS_LIMIT if dropped else 0
        if stalled or dropped > line.backlog_limit_events:
            return base, []
        return base, [("unwarranted_reload", f"{item} over {dropped} events, and the client never stalled")]
    if item.reason != "trimmed":
        return base, [("unwarranted_reload", f"{item}: the reason does not fit the cursor")]

    start = _Held(base.behind, own=False, made_after_s=connection.opened_s) if held is None else held
    if _unprovable(line, start, item.at_s):  # first, for it spends no cause but that of its own entry
        return _spend(base, start, removal=line.remover_by(start.behind - 1, item.at_s)), []
    removals, wipes = _open_removals(line, start, item.at_s), _open_wipes(line, start, item.at_s)
    # Best a wipe that can warrant nothing more to a client at `base`: it may hear of a removal later.
    free = set(wipes) - set(_open_wipes(line, base, math.inf))
    if free:
        return _spend(base, start, wipe=min(free)), []
    if removals:
        return _spend(base, start, removal=removals[0]), []
    if wipes:
        return _spend(base, start, wipe=wipes[0]), []
    passed = line.marks_between(start.behind, parse_id(item.id) or (0, 0)) - start.spent_marks
    if passed:
        return replace(_spend(base, start), spent_marks=start.spent_marks | passed), []
    for number, one in enumerate(line.removals):
        # A server that hears of it late tells also those who came to it from another one.
        if one.rollback and one.sent_s <= item.at_s and number not in start.spent_removals:
            return _spend(base, start, removal=number), []
    if start.at_mark and any(not one.rollback and one.sent_s <= item.at_s for one in line.removals):
        return base, []  # the mark itself may have been removed
    where = _name(line, start.behind - 1) if start.own else "a topic without entries"
    return base, [("unwarranted_reload", f"{item} at {where}: nothing after the cursor was removed")]


def _open_removals(line: _Line, held: _Held, at_s: float) -> list[int]:
    causes = {entry.removed_by for entry in line.entries[held.behind - held.own :]} - {None}
    return sorted(
        cause
        for cause in causes
        if cause is not None and cause not in held.spent_removals and line.removals[cause].sent_s <= at_s
    )


def _open_wipes(line: _Line, held: _Held, at_s: float) -> list[int]:
    return [
        number
        for number, wipe in enumerate(line.wipes)
        if number not in held.spent_wipes and wipe.done_s >= held.made_after_s and wipe.sent_s <= at_s
    ]


def _unprovable(line: _Line, held: _Held, at_s: float) -> bool:
    own_gone = held.own and line.lost(held.behind - 1, at_s)
    return own_gone and any(entry.sent_s <= at_s for entry in line.entries[held.behind :])


def _spend(base: _Held, held: _Held, *, removal: int | None = None, wipe: int | None = None) -> _Held:
    return replace(
        base,
        spent_removals=held.spent_removals | ({removal} if removal is not None else _NONE),
        spent_wipes=held.spent_wipes | ({wipe} if wipe is not None else _NONE),
        spent_marks=held.spent_marks,
    )


def drain(connection: Connection) -> Iterator[_Finding]:
    if not connection.drained or connection.end is End.CUT:
        return
    if connection.end is not End.CLEAN:
        yield "unclean_drain", f"the stream ended {connection.end} on a draining server"
    retries = sum(isinstance(item, Retry) for item in connection.items)
    if retries < 2 or not isinstance(connection.items[-1], Retry):  # the first one opened the stream
        yield "unclean_drain", "no retry: before the end of the stream"


def end(line: _Line, held: _Held | _NeverValid | None) -> Iterator[_Finding]:
    if held is None or isinstance(held, _NeverValid):
        yield "never_arrived", "the client never got a position"
    elif held.owed:
        yield "missing_reload", "events were lost by a rollback that a server saw, and the client never heard"
    elif held.behind < len(line.entries):
        span = f"{_name(line, held.behind)} to {_name(line, len(line.entries) - 1)}"
        yield "never_arrived", f"{len(line.entries) - held.behind} after settling: {span}"


# --- the walk along one client's history ---


def check(
    log: TopicLog, clients: Sequence[ClientHistory], *, backlog_limit_events: int = 256
) -> list[Violation]:
    """Every violation in these clients' histories of one topic, in the order in which they happened.

    `backlog_limit_events`: as many may wait in the server for a client that is behind.
    """
    line = _Line(log, clients, backlog_limit_events)
    return [violation for client in clients for violation in _walk(line, client)]


def _walk(line: _Line, client: ClientHistory) -> Iterator[Violation]:
    given: dict[str, _Held] = {}
    held: _Held | _NeverValid | None = None
    for number, connection in enumerate(client.connections):
        held = None if connection.cursor is None else given.get(connection.cursor, _NEVER_VALID)
        cursor = connection.cursor
        reached = held.behind if isinstance(held, _Held) else 0
        seen: Counter[int] = Counter()
        for place, item in enumerate(connection.items):
            rest = connection.items[place + 1 :]
            found: list[_Finding] = []
            match item:
                case Retry():
                    continue
                case Position():
                    if item.id == cursor:
                        continue  # the cursor sent, said back: proves nothing, and needs no reload
                    found += [*placed(held, item, connection.cursor), *ahead(line, item)]
                    after = _held_at(line, item, rest, connection.opened_s)
                    after = given[item.id] = _owing(line, held, after, after.behind, item.at_s)
                    if isinstance(held, _Held):
                        found += gap(line, held, after.behind, item.at_s)
                    held = _further(held, after)
                case Event():
                    found += [*placed(held, item, connection.cursor), *known(line, item)]
                    index = line.index.get(item.n)
                    if index is not None:
                        found += order(line, reached, seen, index)
                        seen[index] += 1
                        after = _owing(line, held, _held_event(line, index), index, item.at_s)
                        given[item.id] = after
                        if isinstance(held, _Held):
                            found += gap(line, held, index, item.at_s)
                        held = _further(held, after)
                case Reload():
                    found += ahead(line, item)
                    base = _held_at(line, item, rest, connection.opened_s)
                    held, wrong = warrant(line, held, item, base, connection)
                    given[item.id] = held
                    found += wrong
                case _:
                    assert_never(item)
            cursor = item.id
            if isinstance(held, _Held):
                reached = max(reached, held.behind)
            yield from (Violation(kind, client.name, number, detail) for kind, detail in found)
        yield from (Violation(kind, client.name, number, detail) for kind, detail in drain(connection))
    last = len(client.connections) - 1
    yield from (Violation(kind, client.name, last, detail) for kind, detail in end(line, held))
