"""Bugs that the checker must see. Each replaces one function of `app` in the server that launch.py starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from app.streams import hub, sse, subscriber, tail

HAND_OVER_S = 0.05


def no_live_trim_check() -> None:
    """The live reader takes whatever XREAD returns for all there is."""
    tail.continues = lambda *_, **__: "proven"


def no_replay_trim_check() -> None:
    """A resume believes that the cursor's entry is still there."""
    decide = subscriber.decide

    def trusting(cursor: Any, stream: Any, *, entry_present: bool) -> Any:
        return decide(cursor, stream, entry_present=True)

    subscriber.decide = trusting


def no_hand_over() -> None:
    """What the hub queued during the replay is dropped when the client goes live."""
    follow = subscriber.Subscriber._follow

    async def forgetful(self: subscriber.Subscriber) -> None:
        # The moment between the phases is too short for an event to fall into it in each dozen of rounds.
        await trio.sleep(HAND_OVER_S)
        self.backlog.clear()
        await follow(self)

    subscriber.Subscriber._follow = forgetful


def position_without_data() -> None:
    """A position is an `id:` alone, which Firefox, WebKit and half of all libraries pass over: whoever is cut
    before the first event then comes back without a cursor."""

    def lone_id(position: Any, retry_ms: int | None = None) -> bytes:
        retry = b"" if retry_ms is None else b"retry: %d\n\n" % retry_ms
        return retry if position is None else retry + b"id: %d-%d\n\n" % tuple(position)

    sse.position_block = lone_id


def heartbeats_within_a_fan_out() -> None:
    """A heartbeat goes to everyone, also to who has yet to get what is just written to the others."""
    hub.Topic.fanning_out = property(lambda _: False, lambda *_: None)


def backfill_of_another_stream() -> None:
    """A window takes in what Redis holds by now for what it held before the window."""
    floor = hub._floor

    def trusting(page: Any, base: Any) -> Any:
        return floor(page, page.entries[0][0] if page.entries else base)

    hub._floor = trusting


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        no_live_trim_check,
        no_replay_trim_check,
        no_hand_over,
        position_without_data,
        heartbeats_within_a_fan_out,
        backfill_of_another_stream,
    )
}
