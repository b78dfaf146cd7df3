"""Live reading: blocking XREADs over groups of topics, each read followed by its proof of completeness.

XREAD costs Redis time for every key it names, on every call (about 0.9 us a key), so the watched topics are
split over groups of bounded size, each with a connection and a task of its own. Only this file moves a tailed
topic forward: it hands over what was read, or, where it cannot prove that nothing was skipped, the loss.

A change of the set of topics must reach a read that is already blocked: it is ended by CLIENT UNBLOCK from
the shared connection, gathered over a few milliseconds. It is never cancelled, since that would cost a
connection.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import hiredis
import structlog
import trio

from app.publish import append_command
from app.redis_connection import (
    Address,
    Backoff,
    Client,
    Command,
    Connection,
    RedisRefused,
    RedisUnavailable,
    connect,
    raise_if_unavailable,
)
from app.streams.ids import StreamId
from app.streams.reading import (
    EPOCH_COMMAND,
    Entry,
    make_epoch_command,
    parse_entries,
    parse_epoch,
    parse_made_epoch,
    parse_snapshot,
    parse_streams,
    snapshot_command,
)
from app.streams.resume import Live, Reload, Snapshot, continues, decide, was_rolled_back

# A read that nothing wakes ends by itself: this is how long a dead peer goes unnoticed at most.
BLOCK_MS: Final = 5000
# Without CLIENT ID and CLIENT UNBLOCK (an ACL may forbid them) a change waits for the read to end by itself.
BLOCK_WITHOUT_WAKING_MS: Final = 50
WAKE_GATHER_S: Final = 0.002
# The proof is asked for in the same write as the read, for this many of a group's topics: those that had
# events last. Redis answers it right behind the read, so an event of theirs costs no second round trip (which
# is half of the time to a single subscriber); about 3 us of Redis time each.
PROBED_TOPICS: Final = 4

_log = structlog.get_logger("stalecast.tail")


class Tailed(Protocol):
    """A topic as the tail sees it."""

    name: str
    key: str
    position: StreamId
    epoch: int | None
    added_at_position: int | None

    async def deliver(self, entries: list[Entry]) -> None:
        """Everything that was added after `position`; moves it."""
        ...

    async def lose(self, stream: Snapshot, *, forced: bool) -> None:
        """Continuity is broken: go on from `stream.position`. `forced`: the stream itself went back."""
        ...

    def rewind(self, stream: Snapshot) -> None:
        """The stream went back, behind `position`, and now holds a `reload_required` that tells so, after
        it: what was known from before is void, and reading goes on from `position`."""
        ...

    async def refuse(self, error: RedisRefused) -> None:
        """Redis refuses to read this topic; it is not watched any more."""
        ...


@dataclass(frozen=True, slots=True)
class TailStatistics:
    groups: int
    connected_groups: int
    topics: int
    reads: int
    gaps: int
    reconnects: int


class Tails:
    """All groups of this process. Started with `await nursery.start(tails.run)`."""

    def __init__(
        self,
        address: Address,
        client: Client,
        *,
        group_limit_topics: int,
        read_limit_events: int,
        timeout_s: float,
    ) -> None:
        self.address = address
        self.client = client
        self.group_limit_topics = group_limit_topics
        self.read_limit_events = read_limit_events
        self.timeout_s = timeout_s
        self.reads = 0
        self.gaps = 0
        self.reconnects = 0
        self._groups: list[Group] = []
        self._group_of: dict[str, Group] = {}
        self._stale: set[Group] = set()
        self._stale_added = trio.Event()
        self._nursery: trio.Nursery | None = None

    def statistics(self) -> TailStatistics:
        return TailStatistics(
            groups=len(self._groups),
            connected_groups=sum(group.connected for group in self._groups),
            topics=len(self._group_of),
            reads=self.reads,
            gaps=self.gaps,
            reconnects=self.reconnects,
        )

    def watch(self, topic: Tailed) -> None:
        """Read `topic` from its position on, within a few milliseconds."""
        assert self._nursery is not None, "Tails.run has not started"
        group = next((group for group in self._groups if len(group.topics) < self.group_limit_topics), None)
        if group is None:
            group = Group(self)
            self._groups.append(group)
            self._nursery.start_soon(group.run)
        group.topics[topic.key] = topic
        self._group_of[topic.key] = group
        self._wake(group)

    def unwatch(self, topic: Tailed) -> None:
        """Stop reading it. What a read under way still returns for it is dropped."""
        group = self._group_of.get(topic.key)
        if group is None or group.topics[topic.key] is not topic:
            return
        del self._group_of[topic.key], group.topics[topic.key]
        if not group.topics:
            # Its task ends at its next turn; a new topic must not join a group on its way out.
            self._groups.remove(group)
            self._wake(group)

    def recheck(self, topic: Tailed) -> None:
        """Somebody saw that the stream is not what the tail believes: apply the gap rule now."""
        group = self._group_of.get(topic.key)
        if group is not None:
            group.recheck_wanted = True
            self._wake(group)

    def _wake(self, group: "Group") -> None:
        group.stale = True
        self._stale.add(group)
        self._stale_added.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                if not self._stale:
                    self._stale_added = trio.Event()
                    await self._stale_added.wait()
                await trio.sleep(WAKE_GATHER_S)
                await self._unblock_stale()

    async def _unblock_stale(self) -> None:
        # A group leaves the set once it has built a read from its current topics; until then UNBLOCK is
        # repeated, because it does nothing when it overtakes the XREAD it is meant for.
        self._stale = {group for group in self._stale if group.stale and group.reading}
        commands: list[Command] = [
            ("CLIENT", "UNBLOCK", group.client_id) for group in self._stale if group.client_id
        ]
        if commands:
            try:
                await self.client.pipeline(commands)
            except RedisUnavailable:
                self._stale.clear()  # the reads break as well, and start anew with all their topics


class Group:
    """Up to `group_limit_topics` topics, read by one task over one connection."""

    def __init__(self, tails: Tails) -> None:
        self.topics: dict[str, Tailed] = {}
        self.connected = False
        self.client_id = 0
        self.reading = False
        self.stale = False  # the read under way does not name the current topics
        self.recheck_wanted = False
        self._recent: list[str] = []  # topics that had events last, newest first
        self._has_read = False
        self._tails = tails
        self._deadline = trio.CancelScope()

    async def run(self) -> None:
        backoff = Backoff()
        tails = self._tails
        while self.topics:
            # One scope for all calls, its deadline moved by each: leaving a scope of its own would be on the
            # way of every event.
            self._deadline = trio.CancelScope()
            try:
                with self._deadline:
                    await self._read(backoff)
                if self._deadline.cancelled_caught:
                    raise RedisUnavailable(f"Redis at {tails.address} did not answer in time")  # noqa: TRY301 one way out
            except (RedisUnavailable, RedisRefused) as error:
                tails.reconnects += 1
                delay_s = backoff.next_s()
                _log.warning(
                    "tail_interrupted",
                    error=str(error),
                    topics=len(self.topics),
                    retry_in_s=round(delay_s, 2),
                )
                self.connected = False
                await trio.sleep(delay_s)
            finally:
                self.connected = self.reading = False

    async def _read(self, backoff: Backoff) -> None:
        tails = self._tails
        async with await connect(
            tails.address, name="stalecast-tail", timeout_s=tails.timeout_s
        ) as connection:
            self.client_id = connection.client_id
            if self._has_read:
                # Whatever happened while nobody read: the same rule as for a client that comes back. (What
                # happens before the first read, that read's own proof covers.)
                await self._recheck(connection)
            self._has_read = self.connected = True
            while self.topics:
                if self.recheck_wanted:
                    await self._recheck(connection)
                await self._read_once(connection)
                backoff.reset()

    async def _read_once(self, connection: Connection) -> None:
        topics = list(self.topics.values())
        block_ms = BLOCK_MS if self.client_id else BLOCK_WITHOUT_WAKING_MS
        read: list[str | bytes | int] = ["XREAD", "COUNT", self._tails.read_limit_events]
        read += ["BLOCK", block_ms, "STREAMS"]
        read += [topic.key for topic in topics]
        read += [bytes(topic.position.read_after) for topic in topics]
        probed = self._likely_next(topics)
        probes = [snapshot_command(key) for key in probed]
        self.stale, self.reading = False, True
        try:
            reply, epoch_reply, *infos = await self._call(
                connection, read, EPOCH_COMMAND, *probes, blocked_s=block_ms / 1000
            )
        finally:
            self.reading = False
        self._tails.reads += 1
        try:
            streams = parse_streams(reply)
        except RedisRefused:
            watched = len(self.topics)
            await self._recheck(connection)  # finds the topic that Redis refuses, and lets it go
            if len(self.topics) == watched:
                raise
            return
        if not streams:
            return
        proofs = dict(zip(probed, infos, strict=True))
        if unproven := [key for key in streams if key not in proofs]:
            later_epoch, *infos = await self._call(
                connection, EPOCH_COMMAND, *map(snapshot_command, unproven)
            )
            proofs |= zip(unproven, infos, strict=True)
            if later_epoch != epoch_reply:
                self.recheck_wanted = True  # wiped between the two: no proof is worth anything
                return
        raise_if_unavailable(list(proofs.values()))
        await self._hand_over(connection, streams, proofs, await self._epoch(connection, epoch_reply))

    def _likely_next(self, topics: list[Tailed]) -> list[str]:
        recent = [key for key in self._recent if key in self.topics]
        for topic in topics:
            if len(recent) >= PROBED_TOPICS:
                break
            if topic.key not in recent:
                recent.append(topic.key)
        return recent

    async def _hand_over(
        self,
        connection: Connection,
        streams: dict[str, list[Entry]],
        proofs: dict[str, Any],
        epoch: int | None,
    ) -> None:
        # Every proof was taken after its read, and is judged before anybody hears of what was read: a client
        # that had advanced past a gap and then lost its connection would never learn of it.
        self._recent = [*streams, *(key for key in self._recent if key not in streams)][:PROBED_TOPICS]
        for key, entries in streams.items():
            topic = self.topics.get(key)
            if topic is None:
                continue
            stream = parse_snapshot(proofs[key], epoch)
            read = [entry[0] for entry in entries]
            # An empty read: appended and removed again in one transaction.
            if (
                read
                and topic.epoch == epoch
                and continues(topic.position, topic.added_at_position, read, stream)
            ):
                topic.added_at_position = _added_at(read[-1], len(read), topic.added_at_position, stream)
                await topic.deliver(entries)
            else:
                await self._lose(connection, topic, stream)

    async def _recheck(self, connection: Connection) -> None:
        self.recheck_wanted = False
        topics = list(self.topics.values())
        if not topics:
            return
        commands: list[Command] = [EPOCH_COMMAND]
        for topic in topics:
            position = bytes(topic.position.read_after)
            commands += [snapshot_command(topic.key), ("XRANGE", topic.key, position, position)]
        *_queued, replies = await self._call(connection, ("MULTI",), *commands, ("EXEC",))
        if isinstance(replies, hiredis.ReplyError):
            raise RedisUnavailable(f"Redis answered: {replies}")
        raise_if_unavailable(replies)
        current_epoch = await self._epoch(connection, replies[0])
        for topic, info, found in zip(topics, replies[1::2], replies[2::2], strict=True):
            if self.topics.get(topic.key) is not topic:
                continue
            try:
                stream = parse_snapshot(info, current_epoch)
                present = bool(parse_entries(found))
            except RedisRefused as error:
                self._tails.unwatch(topic)
                await topic.refuse(error)
                continue
            decision = decide(topic.position, stream, entry_present=present)
            if topic.epoch != stream.epoch or isinstance(decision, Reload):
                await self._lose(connection, topic, stream)
            elif isinstance(decision, Live):
                topic.added_at_position = stream.entries_added

    async def _epoch(self, connection: Connection, reply: Any) -> int | None:
        if reply is not None:
            return parse_epoch(reply)
        command = make_epoch_command()
        (reply,) = await self._call(connection, command)
        return parse_made_epoch(command, reply)

    async def _call(self, connection: Connection, *commands: Command, blocked_s: float = 0.0) -> list[Any]:
        self._deadline.deadline = trio.current_time() + blocked_s + self._tails.timeout_s
        replies = await connection.call(*commands)
        self._deadline.deadline = math.inf
        return replies

    async def _lose(self, connection: Connection, topic: Tailed, stream: Snapshot) -> None:
        self._tails.gaps += 1
        topic.added_at_position = stream.entries_added
        same_data = topic.epoch == stream.epoch
        if same_data and was_rolled_back(topic.position, stream) and await self._mark(connection, topic):
            topic.rewind(stream)
            return
        # Within one data set a loss concerns those who are not past it; after another, everybody.
        await topic.lose(stream, forced=not same_data or was_rolled_back(topic.position, stream))

    async def _mark(self, connection: Connection, topic: Tailed) -> bool:
        """Append a `reload_required` to a stream that lost its newest events, so that also those learn of it
        who are away now and whose cursor is from before. Returns whether one is there."""
        lost = topic.position
        # The id that would have come next: of all the workers and servers that saw the same, one succeeds.
        next_id = str(StreamId(lost.ms, lost.seq + 1))
        mark = partial(append_command, topic.name, "reload_required", {"reason": "trimmed"}, maxlen=None)
        _, found = await self._call(
            connection, mark(entry_id=next_id), ("XRANGE", topic.key, next_id, next_id)
        )
        if not found:
            # New events are behind it already: each appends one of its own; a reload too many does no harm.
            (reply,) = await self._call(connection, mark())
            if isinstance(reply, hiredis.ReplyError):
                _log.error("rollback_not_marked", topic=topic.name, error=str(reply))
                return False
        return True


def _added_at(position: StreamId, read: int, added_before: int | None, stream: Snapshot) -> int | None:
    """entries-added when the stream stood at `position`, after a read that is known to be complete."""
    if stream.last_generated == position:
        return stream.entries_added
    return added_before + read if added_before is not None else None
