"""The only writer of the topics under test, and the keeper of their logs. One task calls it, step by step.

That Redis is alive is the caller's affair; only `collect` expects it to be dead.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .oracle import Append, Removal, StreamId, TopicLog, Wipe, parse_id
from .plan import Form, Publish
from .processes import RedisLink
from .wire import EVENT, WHOLE_EVENT, parse_reason, reason

# Ids rise over a wipe only if the clock, in milliseconds, does.
CLOCK_STEP_S = 0.002

Command = Sequence[str | int]

# What foreign writers append, made from a good payload: a mark of the byte order, a number that JavaScript
# cannot hold, a further member, no JSON, no payload, another one beside it, more than the limit.
UNREADABLE: Sequence[Callable[[str], tuple[str, ...]]] = (
    lambda good: ("payload", "\ufeff" + good),
    lambda good: ("payload", json.dumps({"event": EVENT, "data": {"id": 2**53, "reason": "x"}})),
    lambda good: ("payload", json.dumps({**json.loads(good), "more": 1})),
    lambda good: ("payload", good[:-1]),
    lambda good: ("body", good),
    lambda good: ("payload", good, "payload", good),
    lambda good: ("payload", good + " " * 5000),
)


class RedisRefused(RuntimeError):
    """Redis answered a command of the checker with an error: the checker's fault."""


@dataclass(frozen=True, slots=True)
class _Saved:
    appends: int
    exists: bool


class TopicWriter:
    """One topic's stream and what is known to have happened to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = f"topic:events:{name}"
        self._appends: list[Append] = []
        self._removals: list[Removal] = []
        self._wipes: list[Wipe] = []
        self._in_doubt: list[Append] = []
        self._numbers = 0
        self._saved: _Saved | None = None

    @property
    def log(self) -> TopicLog:
        return TopicLog(self._appends, self._removals, self._wipes)

    @property
    def newest(self) -> StreamId:
        return self._back(0)

    def publish(self, link: RedisLink, step: Publish) -> None:
        count, keep = step.count, step.keep
        numbers = self._take_numbers(count)
        commands = [self._append_command(n, step) for n in numbers]
        if keep is not None:
            commands += self._trim_commands("MAXLEN", keep)
        sent_s = time.monotonic()
        replies = _ask_atomically(link, commands) if step.multi else _ask(link, commands)
        done_s = time.monotonic()
        self._appends += [
            Append(
                *(n, parse_id(id_.decode()), sent_s, done_s),
                unreadable=step.form is Form.UNREADABLE,
                thing=None if step.form is Form.WHOLE else _thing(n, step),
            )
            for n, id_ in zip(numbers, replies[:count], strict=True)
        ]
        if keep is not None:
            self._note_trim(sent_s, done_s, replies[-1])

    def trim_to_length(self, link: RedisLink, keep: int) -> None:
        self._trim(link, "MAXLEN", keep)

    def trim_below(self, link: RedisLink, back: int) -> None:
        self._trim(link, "MINID", _text(self._back(back)))

    def delete(self, link: RedisLink, backs: Sequence[int]) -> None:
        ids = frozenset(self._back(back) for back in backs)
        sent_s = time.monotonic()
        _ask(link, [("XDEL", self.key, *map(_text, sorted(ids)))])
        self._removals.append(Removal(sent_s, time.monotonic(), ids=ids))

    def drop(self, link: RedisLink) -> None:
        _wipe([self], lambda: _ask(link, [("DEL", self.key)]), traceless=True)

    def send(self, link: RedisLink, count: int) -> None:
        """Append without waiting for the replies: `collect` or `settle_doubt` come later."""
        sent_s = time.monotonic()
        numbers = self._take_numbers(count)
        self._in_doubt += [Append(n, None, sent_s, sent_s) for n in numbers]
        link.send([self._append_command(n, Publish(0, count)) for n in numbers])

    def collect(self, link: RedisLink) -> None:
        """Take the replies of `send`. Raises OSError when Redis died before the last one."""
        while self._in_doubt:
            reply = _checked(link.read())
            append = self._in_doubt.pop(0)
            self._appends.append(Append(append.n, parse_id(reply.decode()), append.sent_s, time.monotonic()))

    def settle_doubt(self, link: RedisLink, *, wiped: bool) -> None:
        """After a restart: the stream itself says which appends happened, unless it was wiped."""
        done_s = time.monotonic()
        ids: dict[int, StreamId | None] = {}
        for id_, fields in _ask(link, [("XRANGE", self.key, "-", "+")])[0]:
            if (n := _number(fields)) is not None:
                ids[n] = parse_id(id_.decode())
        for append in self._in_doubt:
            if wiped or append.n in ids:
                self._appends.append(Append(append.n, ids.get(append.n), append.sent_s, done_s))
        self._in_doubt.clear()

    def note_saved(self, link: RedisLink) -> None:
        (exists,) = _ask(link, [("EXISTS", self.key)])
        self._saved = _Saved(len(self._appends), bool(exists))

    @property
    def can_go_back(self) -> bool:
        """Not over a wipe: what was lost by that would be there again."""
        return self._saved is not None

    def note_rollback(self, sent_s: float, done_s: float) -> None:
        """Redis came back with what was saved."""
        assert self._saved is not None
        lost = frozenset(one.id for one in self._appends[self._saved.appends :] if one.id is not None)
        if self._saved.exists:
            self._removals.append(Removal(sent_s, done_s, ids=lost, rollback=True))
        else:
            self.note_wipe(sent_s, done_s, traceless=True)
        self._saved = None

    def note_wipe(self, sent_s: float, done_s: float, *, traceless: bool = False) -> None:
        self._saved = None
        self._wipes.append(Wipe(sent_s, done_s, traceless))

    def _take_numbers(self, count: int) -> range:
        first = self._numbers
        self._numbers += count
        return range(first, self._numbers)

    def _append_command(self, n: int, step: Publish) -> Command:
        event = WHOLE_EVENT if step.form is Form.WHOLE else EVENT
        data = {"id": f"{self.name}.{_thing(n, step)}", "reason": reason(n, step.padding)}
        payload = json.dumps({"event": event, "data": data})
        match step.form:
            case Form.UNREADABLE:
                return "XADD", self.key, "*", *UNREADABLE[n % len(UNREADABLE)](payload)
            case Form.FURTHER_FIELD:
                return "XADD", self.key, "*", "payload", payload, "trace", "1"
            case _:
                return "XADD", self.key, "*", "payload", payload

    def _trim(self, link: RedisLink, by: str, limit: int | str) -> None:
        sent_s = time.monotonic()
        replies = _ask_atomically(link, self._trim_commands(by, limit))
        self._note_trim(sent_s, time.monotonic(), replies[-1])

    def _trim_commands(self, by: str, limit: int | str) -> list[Command]:
        return [("XTRIM", self.key, by, "=", limit), ("XRANGE", self.key, "-", "+", "COUNT", 1)]

    def _note_trim(self, sent_s: float, done_s: float, oldest_left: list[Any]) -> None:
        if oldest_left:
            below = parse_id(oldest_left[0][0].decode()) or (0, 0)
        else:
            ms, seq = self.newest
            below = (ms, seq + 1)
        self._removals.append(Removal(sent_s, done_s, below=below))

    def _back(self, places: int) -> StreamId:
        """The id of the entry that many places before the newest, as far as there is one."""
        recent = [append.id for append in self._appends[-1 - places :] if append.id is not None]
        return recent[0] if recent else (0, 0)


def has_epoch(link: RedisLink) -> bool:
    """Whether the data set has its name already. (One that is saved without gets another name later.)"""
    (epoch,) = _ask(link, [("GET", "stalecast:epoch")])
    return epoch is not None


def flush_all(link: RedisLink, topics: Sequence[TopicWriter]) -> None:
    _wipe(topics, lambda: _ask(link, [("FLUSHALL",)]), traceless=False)


def _wipe(topics: Sequence[TopicWriter], wipe: Callable[[], object], *, traceless: bool) -> None:
    time.sleep(CLOCK_STEP_S)
    sent_s = time.monotonic()
    wipe()
    done_s = time.monotonic()
    time.sleep(CLOCK_STEP_S)
    for topic in topics:
        topic.note_wipe(sent_s, done_s, traceless=traceless)


def _text(id_: StreamId) -> str:
    return f"{id_[0]}-{id_[1]}"


def _thing(n: int, step: Publish) -> str:
    return f"t{n % step.things}" if step.things else str(n)


def _number(fields: Sequence[bytes]) -> int | None:
    """Which event an entry is; None for one that cannot be read, and for one of the server's own."""
    try:
        return parse_reason(
            json.loads(dict(zip(fields[::2], fields[1::2], strict=True))[b"payload"])["data"]["reason"]
        )
    except (KeyError, TypeError, ValueError):
        return None


def _ask(link: RedisLink, commands: Sequence[Command]) -> list[Any]:
    return [_checked(reply) for reply in link.ask(commands)]


def _ask_atomically(link: RedisLink, commands: Sequence[Command]) -> list[Any]:
    replies = _ask(link, [("MULTI",), *commands, ("EXEC",)])[-1]
    return [_checked(reply) for reply in replies]


def _checked(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise RedisRefused(str(reply))
    return reply
