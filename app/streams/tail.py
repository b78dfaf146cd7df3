"""Live reading: blocking XREADs over groups of topics, each read followed by its proof of completeness.

XREAD costs Redis time for every key it names, on every call (about 0.9 us a key), so the watched topics are
split over groups, each with a connection and a task of its own. Clients decide how many topics there are, but
not how many connections: past the limit of groups, the groups grow. Only this file moves a tailed
topic forward: it hands over what was read, or, where it cannot prove that nothing was skipped, the loss.

A change of the set of topics must reach a read that is already blocked: it is ended by CLIENT UNBLOCK from
the shared connection, gathered over a few milliseconds. It is never cancelled, since that would cost a
connection.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import hiredis
import structlog
import trio

from app.publish import PAYLOAD_FIELD, append_command
from app.redis_connection import (
    Address,
    Backoff,
    Client,
    Command,
    Connection,
    ConnectionCut,
    RedisRefused,
    RedisUnavailable,
    connect,
    error_code,
    parse_transaction,
    raise_if_unavailable,
)
from app.streams.ids import StreamId
from app.streams.reading import (
    EPOCH_COMMAND,
    Entry,
    make_epoch_command,
    parse_entries,
    parse_epoch,
    parse_id,
    parse_made_epoch,
    parse_snapshot,
    parse_streams,
    snapshot_command,
)
from app.streams.resume import Continuity, Live, Reload, Snapshot, continues, decide, was_rolled_back

# A read that nothing wakes ends by itself: this is how long a dead peer goes unnoticed at most.
BLOCK_MS: Final = 5000
# Without CLIENT ID and CLIENT UNBLOCK (an ACL may forbid them) a change waits for the read to end by itself.
BLOCK_WITHOUT_WAKING_MS: Final = 50
WAKE_GATHER_S: Final = 0.002
# Groups when nothing else is said; the setting is `tail_limit_connections`.
DEFAULT_LIMIT_GROUPS: Final = 16
# A group that has no connection for this long counts as away: reconnecting takes less.
AWAY_AFTER_S: Final = 3.0
# Topics whose proofs are asked for in one call: bounds how long Redis is busy with it, and the reply.
PROOFS_AT_ONCE: Final = 64
# Each time that Redis cuts the connection over a read, half as much is asked for: first fewer events of each
# topic, then of fewer topics (2**9 events and 2**9 topics halved down to one).
CUTS_LIMIT: Final = 20
# From here on it is no accident.
CUTS_WITH_A_CAUSE: Final = 3
# The proof is asked for in the same write as the read, for this many of a group's topics: those that had
# events last. Redis answers it right behind the read, so an event of theirs costs no second round trip (which
# is half of the time to a single subscriber); about 3 us of Redis time each.
PROBED_TOPICS: Final = 4
# The mark of a rollback comes behind whatever its millisecond held: had a lost event the mark's own id,
# whoever stands at that event would be taken to have read the mark. (Signed 64 bits hold it.)
MARK_SEQ: Final = 1 << 62

_log = structlog.get_logger("stalecast.tail")

T = TypeVar("T")


class Tailed(Protocol):
    """A topic as the tail sees it."""

    name: str
    key: str
    position: StreamId
    epoch: int | None
    added_at_position: int | None

    async def deliver(self, entries: list[Entry]) -> float | None:
        """Everything that was added after `position`; moves it. Returns for how many seconds the topic is to
        be left out of the reads, if at all: what comes meanwhile is read afterwards, at once."""
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


# A topic, and what XRANGE is to look for in it.
_Asked = tuple[Tailed, tuple[bytes | int, ...]]


@dataclass(frozen=True, slots=True)
class TailStatistics:
    groups: int
    connected_groups: int
    topics: int
    reads: int
    gaps: int
    reconnects: int
    away_groups: int = 0  # not connected for some seconds


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
        limit_groups: int = DEFAULT_LIMIT_GROUPS,
    ) -> None:
        self.limit_groups = limit_groups
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
        self._can_wake = True

    def statistics(self) -> TailStatistics:
        return TailStatistics(
            groups=len(self._groups),
            connected_groups=sum(group.connected for group in self._groups),
            topics=len(self._group_of),
            reads=self.reads,
            gaps=self.gaps,
            reconnects=self.reconnects,
            away_groups=sum(group.is_away for group in self._groups),
        )

    def watch(self, topic: Tailed) -> None:
        """Read `topic` from its position on, within a few milliseconds."""
        assert self._nursery is not None, "Tails.run has not started"
        group = next((group for group in self._groups if len(group.topics) < self.group_limit_topics), None)
        if group is None and len(self._groups) < self.limit_groups:
            group = Group(self)
            self._groups.append(group)
            self._nursery.start_soon(group.run)
        elif group is None:
            group = min(self._groups, key=lambda group: len(group.topics))
        group.add(topic)
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

    def note_wakeable(self, can_wake: bool) -> None:
        """Of a group that has just connected. Says it once."""
        if self._can_wake and not can_wake:
            _log.warning(
                "tail_wakeups_refused",
                error="this Redis user may not run CLIENT ID or CLIENT UNBLOCK",
                effect=f"reads end by themselves every {BLOCK_WITHOUT_WAKING_MS} ms, which costs Redis time",
            )
        self._can_wake = can_wake

    def reconnect(self) -> None:
        """The server at the other end is gone, or is not the one to read any more."""
        for group in self._groups:
            group.reconnect()

    def _wake(self, group: "Group") -> None:
        group.stale = True
        self._stale.add(group)
        self._stale_added.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.client.on_renewal = self.reconnect
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
        self._stale = {group for group in self._stale if group.stale and group.reading and group.client_id}
        if not self._stale:
            return
        try:
            replies = await self.client.pipeline(
                [("CLIENT", "UNBLOCK", group.client_id) for group in self._stale]
            )
            raise_if_unavailable(replies)
        except RedisUnavailable:
            self._stale.clear()  # the reads break as well, and start anew with all their topics
            return
        if any(isinstance(reply, hiredis.ReplyError) for reply in replies):
            # The permission was withdrawn. They find out when they connect, and block for short only.
            self._stale.clear()
            self.reconnect()


class Group:
    """Topics that are read by one task over one connection."""

    def __init__(self, tails: Tails) -> None:
        self.topics: dict[str, Tailed] = {}
        self.connected = False
        self.client_id = 0  # 0: nobody can wake its reads
        self.reading = False
        self.stale = False  # the read under way does not name the current topics
        self.recheck_wanted = False
        self._added: set[str] = set()  # topics since the last read began
        self._recent: list[str] = []  # topics that had events last, newest first
        self._has_read = False
        self._tails = tails
        self._deadline = trio.CancelScope()
        self._away_since_s = trio.current_time()
        self._calling = False
        self._reconnect_wanted = False
        self._resting: dict[str, float] = {}  # topics to leave out, until when
        # Marks that stand in the stream of a topic that was rolled back, and were not read yet.
        self._marks: dict[str, StreamId] = {}
        self._cuts = 0  # how often what is asked for has been halved
        self._calm_reads = 0
        self._turn = 0  # where the next read begins, if it cannot name all topics

    @property
    def is_away(self) -> bool:
        return not self.connected and trio.current_time() > self._away_since_s + AWAY_AFTER_S

    def add(self, topic: Tailed) -> None:
        self.topics[topic.key] = topic
        # What is known of the key, and what a read under way brings, is of one that was watched before.
        self._added.add(topic.key)
        self._marks.pop(topic.key, None)
        self._resting.pop(topic.key, None)

    def reconnect(self) -> None:
        self._reconnect_wanted = True
        if self._calling:  # never while events are being handed over
            self._deadline.cancel()

    async def run(self) -> None:
        backoff = Backoff()
        tails = self._tails
        while self.topics:
            # One scope for all calls, its deadline moved by each: leaving a scope of its own would be on the
            # way of every event.
            self._deadline = trio.CancelScope()
            self._reconnect_wanted = False
            try:
                with self._deadline:
                    await self._read(backoff)
                if self._deadline.cancelled_caught and not self._reconnect_wanted:
                    raise RedisUnavailable(f"Redis at {tails.address} did not answer in time")  # noqa: TRY301 one way out
                if self._deadline.cancelled_caught:
                    raise RedisUnavailable("the connection is made anew")  # noqa: TRY301
            except (RedisUnavailable, RedisRefused) as error:
                if self.connected:
                    self._away_since_s = trio.current_time()
                tails.reconnects += 1
                delay_s = backoff.next_s()
                _log.warning(
                    "tail_interrupted",
                    error=str(error),
                    topics=len(self.topics),
                    retry_in_s=round(delay_s, 2),
                    **self._explain_cuts(),
                )
                self.connected = False
                await trio.sleep(delay_s)
            finally:
                self.connected = self.reading = False

    def _explain_cuts(self) -> dict[str, Any]:
        if self._cuts < CUTS_WITH_A_CAUSE:
            return {}
        return {
            "read_limit_events": self._count(),
            "hint": "Redis cuts the connection while it answers: see client-output-buffer-limit normal",
        }

    async def _read(self, backoff: Backoff) -> None:
        tails = self._tails
        async with await connect(
            tails.address, name="stalecast-tail", timeout_s=tails.timeout_s
        ) as connection:
            self.client_id = connection.client_id
            tails.note_wakeable(connection.client_id != 0)
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

    def _count(self) -> int:
        return max(1, self._tails.read_limit_events >> self._cuts)

    def _next_topics(self) -> tuple[list[Tailed], bool]:
        """Those that the next read names, and whether these are all that want to be read."""
        topics = list(self.topics.values())
        if self._resting:
            now_s = trio.current_time()
            self._resting = {
                key: until_s
                for key, until_s in self._resting.items()
                if until_s > now_s and key in self.topics
            }
            topics = [topic for topic in topics if topic.key not in self._resting]
        halvings = self._cuts - self._tails.read_limit_events.bit_length() + 1  # beyond one event a topic
        if halvings <= 0 or len(topics) < 2:
            return topics, True
        named = max(1, len(topics) >> halvings)
        self._turn = (self._turn + named) % len(topics)
        return [*topics[self._turn :], *topics[: self._turn]][:named], False

    def _block_ms(self, *, all_named: bool) -> int:
        block_ms = BLOCK_MS if self.client_id and all_named else BLOCK_WITHOUT_WAKING_MS
        if self._resting:
            rest_s = min(self._resting.values()) - trio.current_time()
            block_ms = min(block_ms, max(1, math.ceil(rest_s * 1000)))
        return block_ms if all_named else 1

    async def _read_once(self, connection: Connection) -> None:
        topics, all_named = self._next_topics()
        block_ms = self._block_ms(all_named=all_named)
        if not topics:  # all of them rest
            await trio.sleep(min(block_ms, BLOCK_WITHOUT_WAKING_MS) / 1000)
            return
        count = self._count()
        read: list[str | bytes | int] = ["XREAD", "COUNT", count]
        read += ["BLOCK", block_ms, "STREAMS"]
        read += [topic.key for topic in topics]
        read += [bytes(topic.position.read_after) for topic in topics]
        probed = [] if self._cuts else self._likely_next(topics)
        probes = [snapshot_command(key) for key in probed]
        self.stale, self.reading = False, True
        self._added.clear()
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
        if self._cuts:
            self._note_calm(streams, count, len(topics))
        if not streams:
            return
        epoch = await self._epoch(connection, epoch_reply)
        proofs = dict(zip(probed, infos, strict=True))
        for unproven in _slices([key for key in streams if key not in proofs], self._proofs_at_once()):
            later_reply, *infos = await self._call(
                connection, EPOCH_COMMAND, *map(snapshot_command, unproven)
            )
            proofs |= zip(unproven, infos, strict=True)
            if await self._epoch(connection, later_reply) != epoch:
                self.recheck_wanted = True  # wiped between the two: no proof is worth anything
                return
        raise_if_unavailable(list(proofs.values()))
        await self._hand_over(connection, streams, proofs, epoch)

    def _note_calm(self, streams: dict[str, list[Entry]], count: int, named: int) -> None:
        """What Redis cut was a burst: once all topics have been read without one, ask for more again."""
        if any(len(entries) >= count for entries in streams.values()):
            self._calm_reads = 0
            return
        self._calm_reads += 1
        if self._calm_reads * named >= len(self.topics):
            self._cuts -= 1
            self._calm_reads = 0

    def _likely_next(self, topics: list[Tailed]) -> list[str]:
        named = {topic.key for topic in topics} if self._resting else self.topics.keys()
        recent = [key for key in self._recent if key in named]
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
        undecided: dict[str, list[Entry]] = {}
        for key, entries in streams.items():
            topic = self.topics.get(key)
            if topic is None or key in self._added:
                continue
            stream = parse_snapshot(proofs[key], epoch)
            continuity = self._judge(topic, entries, stream)
            if continuity == "undecided":
                undecided[key] = entries
            else:
                await self._conclude(connection, topic, entries, stream, proven=continuity == "proven")
        for keys in _slices(list(undecided), self._proofs_at_once()):
            await self._decide(connection, {key: undecided[key] for key in keys})

    async def _decide(self, connection: Connection, undecided: dict[str, list[Entry]]) -> None:
        """More came between the read and its proof, so the counters do not decide. What came is read together
        with a proof of its own, and they do, unless they are not known or it is too much for one reply. Then
        what the stream holds from the last position to the end of the read does."""
        topics = [self.topics[key] for key in undecided if key in self.topics and key not in self._added]
        asked: list[_Asked] = []
        count = self._count()
        for topic in topics:
            entries = undecided[topic.key]
            if topic.added_at_position is not None and len(entries) < count:
                asked.append((topic, (bytes(entries[-1][0]), b"+", b"COUNT", count)))
        for topic, stream, rest in await self._look_at(connection, asked):
            if self.topics.get(topic.key) is not topic:
                continue
            entries = undecided[topic.key]
            if not rest or rest[0][0] != entries[-1][0]:
                continue  # it may have gone back meanwhile: counters of before and after that are no sum
            entries = entries + rest[1:]
            continuity = self._judge(topic, entries, stream)
            if continuity != "undecided":
                del undecided[topic.key]
                await self._conclude(connection, topic, entries, stream, proven=continuity == "proven")
        asked = []
        for topic in topics:
            if topic.key in undecided and self.topics.get(topic.key) is topic:
                last, _, read = self._unread(topic, undecided[topic.key])
                asked.append((topic, (bytes(last), bytes(read[-1]))))
        for topic, stream, found in await self._look_at(connection, asked):
            if self.topics.get(topic.key) is not topic:
                continue
            entries = undecided[topic.key]
            held = [event_id for event_id, _ in found]
            proven = self._judge(topic, entries, stream, held=held) == "proven"
            await self._conclude(connection, topic, entries, stream, proven=proven)

    def _unread(self, topic: Tailed, entries: list[Entry]) -> tuple[StreamId, int | None, list[StreamId]]:
        """From where continuity is to be proven: position, entries-added there, what was read behind it."""
        read = [entry[0] for entry in entries]
        mark = self._marks.get(topic.key)
        if mark is None or (mark not in read and mark < read[-1]):
            return topic.position, topic.added_at_position, read
        # Whatever is missing before a mark, the mark tells of; also where a read ends before it.
        return mark, None, [one for one in read if one > mark]

    def _judge(
        self, topic: Tailed, entries: list[Entry], stream: Snapshot, *, held: list[StreamId] | None = None
    ) -> Continuity:
        # An empty read: appended and removed again in one transaction.
        if not entries or topic.epoch != stream.epoch:
            return "broken"
        last, added_at_last, read = self._unread(topic, entries)
        if not read:  # nothing behind the mark
            return "broken" if stream.last_generated < last else "proven"
        return continues(last, added_at_last, read, stream, held=held)

    async def _conclude(
        self,
        connection: Connection,
        topic: Tailed,
        entries: list[Entry],
        stream: Snapshot,
        *,
        proven: bool,
    ) -> None:
        mark = self._marks.get(topic.key)
        if not proven:
            if mark is not None and all(mark != event_id for event_id, _ in entries):
                del self._marks[topic.key]  # it went the way of what it told of
            await self._lose(connection, topic, stream)
            return
        position = entries[-1][0]
        topic.added_at_position = _added_at(position, len(entries), topic.added_at_position, stream)
        if mark is not None and mark <= position:
            del self._marks[topic.key]
        rest_s = await topic.deliver(entries)
        if rest_s:
            self._resting[topic.key] = trio.current_time() + rest_s

    async def _recheck(self, connection: Connection) -> None:
        self.recheck_wanted = False
        for topics in _slices(list(self.topics.values()), self._proofs_at_once()):
            places = [self._marks.get(topic.key, topic.position.read_after) for topic in topics]
            asked = [(topic, (bytes(one),) * 2) for topic, one in zip(topics, places, strict=True)]
            for topic, stream, found in await self._look_at(connection, asked):
                if self.topics.get(topic.key) is not topic:
                    continue
                if topic.key in self._marks:
                    if found and topic.epoch == stream.epoch:
                        continue  # to be read, and what is missing before it is told by it
                    del self._marks[topic.key]
                decision = decide(topic.position, stream, entry_present=bool(found))
                if topic.epoch != stream.epoch or isinstance(decision, Reload):
                    await self._lose(connection, topic, stream)
                elif isinstance(decision, Live):
                    topic.added_at_position = stream.entries_added

    async def _look_at(
        self, connection: Connection, asked: Sequence[_Asked]
    ) -> list[tuple[Tailed, Snapshot, list[Entry]]]:
        """In one MULTI: each topic's stream, and what XRANGE finds in it. A topic that Redis refuses is let
        go."""
        if not asked:
            return []
        commands: list[Command] = [EPOCH_COMMAND]
        for topic, span in asked:
            commands += [snapshot_command(topic.key), ("XRANGE", topic.key, *span)]
        *queued, executed = await self._call(connection, ("MULTI",), *commands, ("EXEC",))
        replies = parse_transaction(queued, executed)
        epoch = await self._epoch(connection, replies[0])
        seen: list[tuple[Tailed, Snapshot, list[Entry]]] = []
        for (topic, _), info, found in zip(asked, replies[1::2], replies[2::2], strict=True):
            try:
                seen.append((topic, parse_snapshot(info, epoch), parse_entries(found)))
            except RedisRefused as error:
                if self.topics.get(topic.key) is topic:
                    self._tails.unwatch(topic)
                    await topic.refuse(error)
        return seen

    def _proofs_at_once(self) -> int:
        return max(1, PROOFS_AT_ONCE >> self._cuts)

    async def _epoch(self, connection: Connection, reply: Any) -> int | None:
        if reply is not None:
            return parse_epoch(reply)
        command = make_epoch_command()
        (reply,) = await self._call(connection, command)
        return parse_made_epoch(command, reply)

    async def _call(self, connection: Connection, *commands: Command, blocked_s: float = 0.0) -> list[Any]:
        if self._reconnect_wanted:
            raise RedisUnavailable("the connection is made anew")
        self._deadline.deadline = trio.current_time() + blocked_s + self._tails.timeout_s
        self._calling = True
        try:
            replies = await connection.call(*commands)
        except ConnectionCut:
            self._cuts = min(self._cuts + 1, CUTS_LIMIT)
            self._calm_reads = 0
            raise
        finally:
            self._calling = False
        self._deadline.deadline = math.inf
        return replies

    async def _lose(self, connection: Connection, topic: Tailed, stream: Snapshot) -> None:
        self._tails.gaps += 1
        topic.added_at_position = stream.entries_added
        same_data = topic.epoch == stream.epoch
        went_back = same_data and was_rolled_back(topic.position, stream)
        # Once a mark is there, no further one: it is in the stream, and behind whoever was told by it.
        is_marked = self._marks.pop(topic.key, None) is not None
        if went_back and not is_marked:
            mark = await self._mark(connection, topic)
            if mark is not None:
                self._marks[topic.key] = mark
                topic.added_at_position = None
                topic.rewind(stream)
                return
        # Within one data set a loss concerns those who are not past it; after another, everybody.
        await topic.lose(stream, forced=not same_data or (went_back and not is_marked))

    async def _mark(self, connection: Connection, topic: Tailed) -> StreamId | None:
        """Append a `reload_required` to a stream that lost its newest events, so that also those learn of it
        who are away now and whose cursor is from before. Returns where one is, or None where Redis takes
        none."""
        lost = topic.position
        # Of all the workers and servers that saw the same, one succeeds.
        next_id = StreamId(lost.ms, max(lost.seq + 1, MARK_SEQ))
        mark = partial(append_command, topic.name, "reload_required", {"reason": "trimmed"}, maxlen=None)
        command = mark(entry_id=str(next_id))
        reply, found = await self._call(
            connection, command, ("XRANGE", topic.key, bytes(next_id), bytes(next_id))
        )
        if not isinstance(reply, hiredis.ReplyError):
            return next_id
        if not isinstance(found, hiredis.ReplyError):
            there = parse_entries(found)
            if there and list(there[0][1]) == [PAYLOAD_FIELD, command[-1]]:
                return next_id
        if error_code(reply) == "ERR":
            # New events are behind it already: each appends one of its own; a reload too many does no harm.
            (reply,) = await self._call(connection, mark())
        if isinstance(reply, hiredis.ReplyError):
            _log.error("rollback_not_marked", topic=topic.name, error=str(reply))
            return None
        return parse_id(reply)


def _slices(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _added_at(position: StreamId, read: int, added_before: int | None, stream: Snapshot) -> int | None:
    """entries-added when the stream stood at `position`, after a read that is known to be complete."""
    if stream.last_generated == position:
        return stream.entries_added
    return added_before + read if added_before is not None else None
