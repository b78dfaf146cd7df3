"""Reading a stream together with the proof of what was read: one MULTI for both.

Only this file knows which commands make a snapshot and how their replies look (RESP2 lists or RESP3 maps).
"""

# Replies of Redis have no type until this file gives them one:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis

from app.redis_connection import Client, Command, RedisRefused, raise_if_unavailable
from app.streams.ids import StreamId
from app.streams.resume import Snapshot, absent

# Names the data set. Whoever finds it missing makes it: a Redis that was wiped gets a new one, and positions
# of topics that had no stream yet (ids.origin) stop being valid.
EPOCH_KEY: Final = "stalecast:epoch"

Entry = tuple[StreamId, Sequence[bytes]]


@dataclass(frozen=True, slots=True)
class Page:
    """A snapshot, and entries that were in the stream at that moment, oldest first."""

    stream: Snapshot
    entry_present: bool
    entries: list[Entry]


EPOCH_COMMAND: Final[Command] = ("GET", EPOCH_KEY)


def make_epoch_command() -> Command:
    """For when there is none: returns the epoch that stands by then, or nothing after setting this one."""
    return ("SET", EPOCH_KEY, secrets.randbits(52), "NX", "GET")


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
    return Page(
        parse_snapshot(info, await _epoch(client, epoch)),
        present,
        entries[1:] if present else entries[:limit_events],
    )


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


def parse_epoch(reply: Any) -> int | None:
    return None if isinstance(reply, hiredis.ReplyError) else int(reply)


def parse_made_epoch(command: Command, reply: Any) -> int | None:
    """None where this user may not write, Redis is full or a replica, or too old for SET NX GET (7.0)."""
    return int(command[2]) if reply is None else parse_epoch(reply)


def parse_snapshot(info: Any, epoch: int | None) -> Snapshot:
    """Raises RedisRefused for a key that is not a stream or may not be read."""
    if isinstance(info, hiredis.ReplyError):
        if "no such key" in str(info):
            return absent(epoch)
        raise RedisRefused(f"Redis answered: {info}")
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


def parse_entries(found: Any) -> list[Entry]:
    """Raises RedisRefused when Redis refused the range."""
    if isinstance(found, hiredis.ReplyError):
        raise RedisRefused(f"Redis answered: {found}")
    # An entry deleted while it was read has no fields: nothing to send, and the snapshot tells of the
    # deletion.
    return [(StreamId.from_redis(entry[0]), entry[1] or ()) for entry in found or ()]


def parse_streams(reply: Any) -> dict[str, list[Entry]]:
    """The reply of XREAD: entries by key; empty when it timed out or was unblocked.

    Raises RedisUnavailable (the reply says so) or RedisRefused.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise_if_unavailable([reply])
        raise RedisRefused(f"Redis answered: {reply}")
    pairs: Any = reply.items() if isinstance(reply, dict) else (reply or ())
    return {key.decode(): parse_entries(entries) for key, entries in pairs}
