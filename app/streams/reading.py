"""Reading a stream together with the proof of what was read: one MULTI for both.

Only this file knows which commands make a snapshot and how their replies look (RESP2 lists or RESP3 maps).
Whatever stands in our keys, and whatever answers in Redis's place: what these parsers cannot read is
RedisRefused, like an error reply, and no other exception leaves them.
"""

# Replies of Redis have no type until this file gives them one:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
import functools
import re
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import hiredis
import structlog

from app.publish import PAYLOAD_FIELD, stream_key
from app.redis_connection import (
    Client,
    Command,
    ConnectionCut,
    RedisRefused,
    error_code,
    raise_if_error,
    raise_if_unavailable,
    to_error,
)
from app.streams.ids import StreamId
from app.streams.resume import Snapshot, absent

# Names the data set. Whoever finds it missing makes it: a Redis that was wiped gets a new one, and positions
# of topics that had no stream yet (ids.origin) stop being valid.
EPOCH_KEY: Final = "stalecast:epoch"

EPOCH_BITS: Final = 52
# After so many reads without a cut more is asked for again: it may have had another cause. Every mistake
# costs a connection.
CALM_READS: Final = 256
FORGET_LIMIT_EVENTS: Final = 1024
_EPOCH: Final = re.compile(rb"0|[1-9][0-9]{0,15}")

Entry = tuple[StreamId, Sequence[bytes]]

_log = structlog.get_logger("stalecast.reading")

P = ParamSpec("P")
T = TypeVar("T")


def _parser(parse: Callable[P, T]) -> Callable[P, T]:
    """The one boundary to what Redis answers."""

    @functools.wraps(parse)
    def parse_or_refuse(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return parse(*args, **kwargs)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise RedisRefused(f"Redis answered in a shape that no Redis has: {error!r:.200}") from error

    return parse_or_refuse


@dataclass(frozen=True, slots=True)
class Page:
    """A snapshot, and entries that were in the stream at that moment, oldest first. `is_whole`: they are all
    that there were behind the position asked for."""

    stream: Snapshot
    entry_present: bool
    entries: list[Entry]
    is_whole: bool = False


EPOCH_COMMAND: Final[Command] = ("GET", EPOCH_KEY)
_NO_SUCH_KEY: Final = "no such key"
_OF_OTHERS: Final = "because of previous errors"  # what EXEC answers after a command was not queued


def make_epoch_command() -> Command:
    """For when there is none: returns the epoch that stands by then, or nothing after setting this one."""
    return ("SET", EPOCH_KEY, secrets.randbits(EPOCH_BITS), "NX", "GET")


def snapshot_command(key: str) -> Command:
    return ("XINFO", "STREAM", key)


async def read_after(client: Client, key: str, after: StreamId, limit_events: int) -> Page:
    """Up to `limit_events` entries behind `after`, and whether an entry with that id is there.

    Raises RedisUnavailable or RedisRefused.
    """
    # Inclusive: finding the entry itself at the head of the page is the proof that nothing behind it is gone.
    span: Command = ("XRANGE", key, bytes(after.read_after), "+", "COUNT", limit_events + 1)
    epoch, info, found = await client.transaction([EPOCH_COMMAND, snapshot_command(key), span])
    entries = parse_entries(found)
    present = bool(entries) and entries[0][0] == after
    behind = entries[1:] if present else entries[:limit_events]
    stream = parse_snapshot(info, await _epoch(client, epoch))
    return Page(stream, present, behind, is_whole=len(behind) < limit_events)


class ReplyLimit:
    """How many events a reply may hold, learnt from the connections that Redis cut while it answered: its
    `client-output-buffer-limit` is not ours to know, and a page that was too large is too large again."""

    def __init__(self) -> None:
        self._limit_events: int | None = None
        self._calm_reads = 0

    def of(self, wanted_events: int) -> int:
        return wanted_events if self._limit_events is None else min(wanted_events, self._limit_events)

    async def read(self, wanted_events: int, read: Callable[[int], Awaitable[Page]]) -> Page:
        """`read` with as many events as may be. Whoever asks again after ConnectionCut asks for fewer."""
        limit_events = self.of(wanted_events)
        try:
            page = await read(limit_events)
        except ConnectionCut:
            # Of all who were cut together, each would halve it.
            self._limit_events = max(1, min(self.of(limit_events), limit_events // 2))
            self._calm_reads = 0
            raise
        if self._limit_events is not None:
            self._note_calm()
        return page

    def _note_calm(self) -> None:
        self._calm_reads += 1
        if self._calm_reads >= CALM_READS and self._limit_events is not None:
            self._calm_reads = 0
            doubled = 2 * self._limit_events
            self._limit_events = doubled if doubled < FORGET_LIMIT_EVENTS else None


async def read_at(client: Client, key: str, at: StreamId) -> Page:
    """Whether an entry with that id is there, and only that entry: a cursor that is nowhere costs no page.

    Raises RedisUnavailable or RedisRefused.
    """
    position = bytes(at.read_after)
    epoch, info, found = await client.transaction(
        [EPOCH_COMMAND, snapshot_command(key), ("XRANGE", key, position, position)]
    )
    entries = parse_entries(found)
    return Page(parse_snapshot(info, await _epoch(client, epoch)), bool(entries), entries)


async def read_newest(client: Client, key: str, limit_events: int) -> Page:
    """The newest entries. `entry_present` is False. Raises RedisUnavailable or RedisRefused."""
    commands: list[Command] = [EPOCH_COMMAND, snapshot_command(key)]
    if limit_events:
        commands.append(("XREVRANGE", key, "+", "-", "COUNT", limit_events))
    epoch, info, *found = await client.transaction(commands)
    entries = parse_entries(found[0]) if found else []
    entries.reverse()
    return Page(parse_snapshot(info, await _epoch(client, epoch)), False, entries)


async def _epoch(client: Client, reply: Any) -> int | None:
    if reply is not None:
        return parse_epoch(reply)
    command = make_epoch_command()
    (reply,) = await client.pipeline([command])
    return parse_made_epoch(command, reply)


# What was said about the epoch in the log since it was last right: each thing once.
_complaints: Final[set[str]] = set()


def parse_epoch(reply: Any) -> int | None:
    """None where nothing names the data set: the key cannot be read, or it holds what Stalecast never wrote.
    (A number derived from that would do as long as it stands; but whoever writes the same again after a wipe
    would make positions of before the wipe valid.) Raises RedisUnavailable."""
    if isinstance(reply, hiredis.ReplyError):
        raise_if_unavailable([reply])
        _complain(f"Redis answered {error_code(reply)}")
        return None
    epoch = int(reply) if isinstance(reply, bytes) and _EPOCH.fullmatch(reply) else -1
    if not 0 <= epoch < 1 << EPOCH_BITS:
        _complain("it holds what Stalecast never wrote; delete it")
        return None
    _complaints.clear()
    return epoch


def parse_made_epoch(command: Command, reply: Any) -> int | None:
    """None where this user may not write, Redis is full or a replica, or too old for SET NX GET (7.0)."""
    if isinstance(reply, hiredis.ReplyError):
        _complain(f"it is missing, and to make it Redis answered {error_code(reply)}")
        return None
    return int(command[2]) if reply is None else parse_epoch(reply)


def _complain(about: str) -> None:
    if about not in _complaints:
        _complaints.add(about)
        _log.error(
            "epoch_unusable", key=EPOCH_KEY, error=about, effect="topics without events answer with a reload"
        )


@_parser
def parse_snapshot(info: Any, epoch: int | None) -> Snapshot:
    """Raises RedisRefused for a key that is not a stream or may not be read."""
    if isinstance(info, hiredis.ReplyError):
        if _NO_SUCH_KEY in str(info):
            return absent(epoch)
        raise to_error(info)
    # RESP3 brings a map, RESP2 a flat list.
    fields: dict[bytes, Any] = (
        info if isinstance(info, dict) else dict(zip(info[::2], info[1::2], strict=True))
    )
    first = fields.get(b"first-entry")
    added = fields.get(b"entries-added")
    deleted = fields.get(b"max-deleted-entry-id")
    return Snapshot(
        epoch=epoch,
        length=int(fields[b"length"]),
        first=StreamId.from_redis(first[0]) if first else None,
        last_generated=StreamId.from_redis(fields[b"last-generated-id"]),
        entries_added=int(added) if added is not None else None,
        max_deleted=StreamId.from_redis(deleted) if deleted is not None else None,
    )


@_parser
def parse_entries(found: Any) -> list[Entry]:
    """Raises RedisUnavailable (the reply says so) or RedisRefused."""
    raise_if_error(found)
    # An entry deleted while it was read has no fields: nothing to send, and the snapshot tells of the
    # deletion.
    return [(StreamId.from_redis(event_id), _fields(fields)) for event_id, fields in found or ()]


@_parser
def parse_id(reply: Any) -> StreamId:
    """The reply of XADD. Raises RedisRefused."""
    return StreamId.from_redis(reply)


def _fields(fields: Any) -> Sequence[bytes]:
    if fields is None:
        return ()
    if not isinstance(fields, list):
        raise TypeError(f"an entry's fields are {type(fields).__name__}")
    parts: list[Any] = fields
    for part in parts:
        if type(part) is not bytes:
            raise TypeError(f"a part of an entry is {type(part).__name__}")
    return parts


@_parser
def parse_streams(reply: Any) -> dict[str, list[Entry]]:
    """The reply of XREAD: entries by key; empty when it timed out or was unblocked.

    Raises RedisUnavailable (the reply says so) or RedisRefused.
    """
    raise_if_error(reply)
    pairs: Any = reply.items() if isinstance(reply, dict) else (reply or ())
    return {key.decode(): parse_entries(entries) for key, entries in pairs}


# -- what this Redis and this user allow

# Asked about, never written.
_EXAMINED_KEY: Final = stream_key("readiness")
_NO_ENTRY: Final = "0-0"  # XADD refuses this id, after all else that it might refuse
_EXAMINED_READS: Final[dict[str, Command]] = {
    "MULTI": ("MULTI",),
    f"GET {EPOCH_KEY}": EPOCH_COMMAND,
    "XINFO STREAM topic:events:*": snapshot_command(_EXAMINED_KEY),
    "XRANGE topic:events:*": ("XRANGE", _EXAMINED_KEY, "-", "+", "COUNT", 1),
    "XREVRANGE topic:events:*": ("XREVRANGE", _EXAMINED_KEY, "+", "-", "COUNT", 1),
    "EXEC": ("EXEC",),
    "XREAD topic:events:*": ("XREAD", "COUNT", 1, "STREAMS", _EXAMINED_KEY, _NO_ENTRY),
}


@dataclass(frozen=True, slots=True)
class Examination:
    """What stands in the way, for anybody to see: of streams altogether, or only of parts of the service."""

    obstacles: list[str]
    warnings: list[str]


async def examine(client: Client) -> Examination:
    """Try what serving needs, as this user on this Redis, changing nothing but a missing epoch.
    Raises RedisUnavailable."""
    reads = list(_EXAMINED_READS.items())
    others: dict[str, Command] = {
        f"SET {EPOCH_KEY}": make_epoch_command(),
        "XADD topic:events:*": ("XADD", _EXAMINED_KEY, _NO_ENTRY, PAYLOAD_FIELD, "{}"),
        "CLIENT UNBLOCK": ("CLIENT", "UNBLOCK", 0),
    }
    replies = await client.pipeline([command for _, command in reads] + list(others.values()))
    epoch_reply = replies[len(reads)]
    executed: Any = replies[list(_EXAMINED_READS).index("EXEC")]
    inside: list[Any] = executed if isinstance(executed, list) else []
    # Inside a MULTI the answers come with EXEC, except to what was not even queued.
    asked = [*reads, *reads[1 : 1 + len(inside)]]
    answers = [*replies[: len(reads)], *inside]
    obstacles = _refusals([name for name, _ in asked], answers)
    warnings = _refusals(list(others), replies[len(reads) :])
    if not isinstance(epoch_reply, hiredis.ReplyError) and epoch_reply is not None:
        foreign = parse_epoch(epoch_reply) is None
        warnings += [f"{EPOCH_KEY} holds what Stalecast never wrote"] if foreign else []
    return Examination(obstacles, warnings)


def _refusals(names: Sequence[str], replies: Sequence[Any]) -> list[str]:
    refusals: dict[str, None] = {}
    for name, reply in zip(names, replies, strict=True):
        if not isinstance(reply, hiredis.ReplyError):
            continue
        error = to_error(reply)
        # Of a key that is not there, or foreign; of a MULTI whose own refusals are in the list; of the XADD.
        if _NO_SUCH_KEY in str(reply) or _OF_OTHERS in str(reply):
            continue
        if error.code == "ERR" and name.startswith("XADD"):
            continue
        if error.code == "WRONGTYPE":
            if EPOCH_KEY in name:
                refusals[f"{EPOCH_KEY} holds what Stalecast never wrote"] = None
            continue
        refusals[error.public if error.is_of_cluster else f"{name}: {error.public}"] = None
    return list(refusals)
