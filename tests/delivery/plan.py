"""A round's schedule, drawn from its seed. Pure: the same seed gives the same plan, whatever the machine.

A plan says what is tried, not what comes of it: where a fault falls between two packets is left to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random

HEAVY_SHARE = 0.35  # rounds with a restart: each costs about a second of start-up
CALM_SHARE = 0.25  # rounds in which nothing is removed, so that every reload is a false one
HEARTBEAT_INTERVAL_S = 0.2
REDIS_TIMEOUT_S = 0.5
SECURE_SHARE = 0.3  # of the faults of servers; the other server has more clients
GARBAGE = ("x", "5-", "-1-0", "18446744073709551616-0", "1-2-3", "$", "0x10-0", "1 2")
FUTURE = ("99999999999999-0", "18446744073709551615-18446744073709551615")


class Cursor(StrEnum):
    NONE = "none"
    LAST = "last"
    OLD = "old"  # any that the client was ever given
    GARBAGE = "garbage"
    FUTURE = "future"


class Cut(StrEnum):
    CLOSE = "close"
    RESET = "reset"


class Transport(StrEnum):
    """How a client reaches a server. Of two servers on one Redis one has cleartext, one the rest."""

    CLEAR = "clear"
    TLS = "tls"
    HTTP2 = "http2"

    @property
    def is_secure(self) -> bool:
        return self is not Transport.CLEAR


@dataclass(frozen=True, slots=True)
class Stall:
    after_s: float
    for_s: float
    small_buffer: bool


@dataclass(frozen=True, slots=True)
class Stint:
    """One connection of a client, from connecting to its cut."""

    after_s: float
    cursor: Cursor
    hold_s: float
    cut: Cut
    stall: Stall | None


@dataclass(frozen=True, slots=True)
class Kind:
    """What sort of client it is, over all its connections.

    `asgi`: its requests have a shape that goes through the server's ASGI route. `compact`: it asks for
    compact replays. `polls`: it asks
    with `live=false`. `in_query`: it sends its cursor there instead of in the header. `transports`: it takes
    one of them for each connection; of more than one, at random, so that it moves between servers.
    """

    transports: tuple[Transport, ...] = (Transport.CLEAR,)
    asgi: bool = False
    compact: bool = False
    polls: bool = False
    in_query: bool = False


@dataclass(frozen=True, slots=True)
class ClientPlan:
    topic: int
    seed: int
    stints: tuple[Stint, ...]
    kind: Kind = Kind()


@dataclass(frozen=True, slots=True)
class Pause:
    for_s: float


class Form(StrEnum):
    """What an entry looks like."""

    PLAIN = "plain"
    WHOLE = "whole"  # of a type that is never conflated
    FURTHER_FIELD = "further_field"  # beside the payload, as a later release may write
    UNREADABLE = "unreadable"  # what the contract refuses, in turn each of its kinds


@dataclass(frozen=True, slots=True)
class Publish:
    """`count` events, as a pipeline or in one MULTI; with `keep` an exact XTRIM MAXLEN ends the MULTI.
    `things`: how many different ids they have; 0: each one its own, so that none may be left out."""

    topic: int
    count: int
    multi: bool = False
    keep: int | None = None
    padding: int = 0
    form: Form = Form.PLAIN
    things: int = 0


@dataclass(frozen=True, slots=True)
class TrimToLength:
    topic: int
    keep: int


@dataclass(frozen=True, slots=True)
class TrimBelow:
    """XTRIM MINID at the entry `back` places before the newest."""

    topic: int
    back: int


@dataclass(frozen=True, slots=True)
class Delete:
    """XDEL of the entries that many places before the newest."""

    topic: int
    backs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DropTopic:
    topic: int


@dataclass(frozen=True, slots=True)
class FlushAll:
    pass


class Left(StrEnum):
    """What a Redis that was killed comes back with."""

    ALL = "all"
    NOTHING = "nothing"
    SAVED = "saved"  # what it had at SaveRedis; all, if there is nothing saved that it could go back to


@dataclass(frozen=True, slots=True)
class SaveRedis:
    pass


@dataclass(frozen=True, slots=True)
class KillRedis:
    """kill -9 with `in_flight` events sent but not answered; then restarted."""

    in_flight: tuple[int, ...]
    grace_s: float
    down_s: float
    left: Left


class Disturbance(StrEnum):
    """What lies between the servers and Redis."""

    SLOW = "slow"  # each piece by another delay
    HELD = "held"  # half open: everything waits, and goes on afterwards
    LOST = "lost"  # half open, and then cut
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class DisturbRedis:
    """While the steps are done, and for `for_s` after them."""

    how: Disturbance
    for_s: float
    meanwhile: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class FreezeServer:
    """SIGSTOP while the steps are done, and for `for_s` in all. `secure`: which of the two."""

    secure: bool
    for_s: float
    meanwhile: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class RestartServer:
    """`kill`: SIGKILL; otherwise SIGTERM, and the drain is waited for. `meanwhile`: once while it stops, and
    once while it is down. `secure`: which of the two."""

    secure: bool
    kill: bool
    meanwhile: tuple[Step, ...]


Step = (
    Pause
    | Publish
    | TrimToLength
    | TrimBelow
    | Delete
    | DropTopic
    | FlushAll
    | SaveRedis
    | KillRedis
    | DisturbRedis
    | FreezeServer
    | RestartServer
)


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    topics: int
    clients: tuple[ClientPlan, ...]
    steps: tuple[Step, ...]


def draw(seed: int) -> Plan:
    random = Random(seed)
    topics = random.randint(1, 3)
    duration_s = random.uniform(0.6, 1.5)
    clients = tuple(_client(random, topics, duration_s) for _ in range(random.randint(4, 12)))
    return Plan(seed, topics, clients, _steps(random, topics, duration_s))


def draw_heartbeats(seed: int) -> Plan:
    """Events that come just when a heartbeat is due, to as many clients as a fan-out needs to take long."""
    random = Random(seed)
    stay = Stint(0, Cursor.NONE, 60, Cut.CLOSE, None)
    clients = tuple(ClientPlan(0, random.getrandbits(32), (stay,)) for _ in range(40))
    quiet = [Pause(HEARTBEAT_INTERVAL_S + random.uniform(0, 0.02)) for _ in range(12)]
    return Plan(seed, 1, clients, tuple(step for pause in quiet for step in (pause, Publish(0, 1))))


def draw_backfills(seed: int) -> Plan:
    """Data that is wiped between the two looks by which a window takes in what is older than itself, and a
    window that has heard of an event since it was opened."""
    random = Random(seed)
    opens_s, returns_s, told_s = 0.25, 1.05, 0.08
    opener = Stint(opens_s, Cursor.NONE, 5, Cut.CLOSE, None)
    # From before the first event; they are back when that is no news any more.
    early = Stint(0, Cursor.NONE, told_s, Cut.CLOSE, None)
    back = Stint(returns_s - told_s, Cursor.LAST, 5, Cut.CLOSE, None)
    topics = range(3)
    clients = tuple(
        ClientPlan(topic, random.getrandbits(32), stints)
        for topic in topics
        for stints in ((opener,), (early, back), (early, back))
    )
    slow = (
        *(Pause(0.65), *(Publish(topic, 1) for topic in topics)),
        *(Pause(random.uniform(0.25, 0.35)), FlushAll(), *(Publish(topic, 1) for topic in topics)),
    )
    first = tuple(Publish(topic, 5) for topic in topics)
    steps = (Pause(0.15), *first, Pause(0.05), DisturbRedis(Disturbance.SLOW, 0.5, slow))
    return Plan(seed, len(topics), clients, steps)


def _client(random: Random, topics: int, duration_s: float) -> ClientPlan:
    stints = [_stint(random, first=True)]
    if random.random() < 0.3:  # a late comer
        stints = [_stint(random, first=True, after_s=random.uniform(0, duration_s))]
    while sum(stint.after_s + stint.hold_s for stint in stints) < duration_s:
        stints.append(_stint(random, first=False))
    topic, seed = random.randrange(topics), random.getrandbits(32)
    return ClientPlan(topic, seed, tuple(stints), _kind(Random(seed)))


def _kind(random: Random) -> Kind:
    secure = (Transport.TLS, Transport.HTTP2)
    return Kind(
        transports=random.choices(
            ((Transport.CLEAR,), *((one,) for one in secure), tuple(Transport)), (5, 1, 1.5, 2.5)
        )[0],
        asgi=random.random() < 0.3,
        compact=random.random() < 0.2,
        polls=random.random() < 0.15,
        in_query=random.random() < 0.3,
    )


def _stint(random: Random, *, first: bool, after_s: float = 0) -> Stint:
    stall = None
    if random.random() < 0.15:
        for_s = random.choice((random.uniform(0.02, 0.3), random.uniform(0.3, 1.2)))
        stall = Stall(random.uniform(0, 0.1), for_s, small_buffer=random.random() < 0.7)
    weights = (60, 0, 0, 4, 4) if first else (8, 72, 14, 3, 3)
    return Stint(
        after_s=after_s if first else random.choice((0, random.uniform(0, 0.05), random.uniform(0, 0.4))),
        cursor=random.choices(tuple(Cursor), weights)[0],
        hold_s=random.choice((random.uniform(0, 0.03), random.uniform(0, 0.3), random.uniform(0.3, 1.5))),
        cut=random.choice(tuple(Cut)),
        stall=stall,
    )


def _steps(random: Random, topics: int, duration_s: float) -> tuple[Step, ...]:
    draw_light = _light_drawer(random, topics, calm=random.random() < CALM_SHARE)
    steps: list[Step] = []
    left_s = duration_s
    while left_s > 0:
        pause = Pause(min(random.expovariate(1 / 0.03), 0.2))
        steps += [pause, draw_light()]
        left_s -= pause.for_s
    if random.random() < HEAVY_SHARE:
        for _ in range(random.choice((1, 1, 1, 2))):
            at = random.randrange(len(steps))
            heavy = _heavy(random, topics, draw_light)
            steps.insert(at, heavy)
            if isinstance(heavy, KillRedis) and heavy.left is Left.SAVED:
                steps.insert(random.randrange(at + 1), SaveRedis())
    return tuple(steps)


def _light_drawer(random: Random, topics: int, *, calm: bool) -> Callable[[], Step]:
    def one() -> Step:
        topic = random.randrange(topics)
        weights = {"burst": 8, "multi": 4, "flood": 1.5, "unreadable": 0.3, "disturb": 0.5, "freeze": 0.8}
        if not calm:
            weights |= {"multi-trim": 2.5, "trim": 1.5, "below": 1, "delete": 1, "drop": 0.3}
        kind = random.choices(list(weights), list(weights.values()))[0]
        form, things = _form(random)
        match kind:
            case "burst":
                return Publish(topic, random.randint(1, 6), form=form, things=things)
            case "multi":
                return Publish(topic, random.randint(2, 30), multi=True, form=form, things=things)
            case "flood":  # beyond the window, the backlog and, padded, what the sockets hold
                return Publish(
                    topic, random.randint(60, 300), random.random() < 0.5, padding=200, things=things
                )
            case "unreadable":
                return Publish(topic, random.randint(1, 3), form=Form.UNREADABLE)
            case "multi-trim":
                return Publish(topic, random.randint(1, 40), multi=True, keep=random.randint(0, 12))
            case "trim":
                return TrimToLength(topic, random.choice((0, 1, random.randint(0, 20))))
            case "below":
                return TrimBelow(topic, random.randint(0, 15))
            case "delete":
                return Delete(
                    topic, tuple({0 if random.random() < 0.3 else random.randint(0, 15) for _ in range(2)})
                )
            case "drop":
                return DropTopic(topic)
            case "disturb":
                meanwhile = tuple(step for _ in range(random.randint(1, 4)) if _is_short(step := one()))
                for_s = random.choice((random.uniform(0.02, 0.2), REDIS_TIMEOUT_S))
                return DisturbRedis(random.choice(tuple(Disturbance)), for_s, meanwhile)
            case _:
                meanwhile = tuple(step for _ in range(random.randint(1, 4)) if _is_short(step := one()))
                return FreezeServer(_is_secure(random), random.uniform(0.05, 0.2), meanwhile)

    return one


def _heavy(random: Random, topics: int, draw_light: Callable[[], Step]) -> Step:
    meanwhile = tuple(step for _ in range(random.randint(0, 4)) if _is_short(step := draw_light()))
    match random.choice(("redis", "wipe", "rollback", "rollback", "flush", "stop", "kill")):
        case "flush":
            return FlushAll()
        case "stop":
            return RestartServer(_is_secure(random), kill=False, meanwhile=meanwhile)
        case "rollback":
            down_s = random.choice((0, random.uniform(0, 0.3)))
            return KillRedis((0,) * topics, 0, down_s, Left.SAVED)
        case "kill":
            return RestartServer(_is_secure(random), kill=True, meanwhile=meanwhile)
        case kind:
            in_flight = tuple(random.choice((0, 1, random.randint(0, 40))) for _ in range(topics))
            left = Left.NOTHING if kind == "wipe" else Left.ALL
            grace_s = random.choice((0, random.uniform(0, 0.003)))
            return KillRedis(in_flight, grace_s, random.choice((0, random.uniform(0, 0.3))), left)


def _is_secure(random: Random) -> bool:
    """Which of the two servers a fault meets."""
    return random.random() < SECURE_SHARE


def _is_short(step: Step) -> bool:
    return not isinstance(step, FreezeServer | DisturbRedis)


def _form(random: Random) -> tuple[Form, int]:
    forms = (Form.PLAIN, Form.WHOLE, Form.FURTHER_FIELD)
    return random.choices(forms, (8, 1, 1))[0], random.choice((0, 0, random.randint(1, 5)))
