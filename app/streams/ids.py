"""Positions in a stream. Pure: everything that parses, orders or prints a stream id lives here."""

import re
from typing import NamedTuple

_MAX_PART = 2**64 - 1
# At most 20 digits a part: int() of an attacker's megabyte of digits would be quadratic.
_PATTERN = re.compile(rb"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)

# The range an origin's random sequence is drawn from: above what any writer counts to by hand, and small
# enough that a JavaScript number holds it.
ORIGIN_SEQ_MIN = 2**32
ORIGIN_SEQ_MAX = 2**53 - 1


class InvalidStreamId(ValueError):
    """The text is not a stream id; the client's fault."""


class StreamId(NamedTuple):
    """A Redis stream id: milliseconds, then a sequence; ordered as that pair of integers.

    Three kinds of value travel as one. An entry's id; `BEGINNING` (0-0), before every entry; and an
    *origin* (ms 0, a random seq): the position of a topic that had no stream yet, which names the data
    set it was read from, so that a wiped Redis is told from an untouched one.
    """

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    def __bytes__(self) -> bytes:
        return b"%d-%d" % self

    @property
    def is_origin(self) -> bool:
        return self.ms == 0 and ORIGIN_SEQ_MIN <= self.seq <= ORIGIN_SEQ_MAX

    @property
    def read_after(self) -> "StreamId":
        """What to hand to Redis as the exclusive lower bound of a read from here."""
        return BEGINNING if self.is_origin else self

    @classmethod
    def parse(cls, text: str | bytes) -> "StreamId":
        """Parse `ms-seq`, or `ms` alone (seq 0, as Redis reads it).

        Raises InvalidStreamId for anything else, also for `$`, `+`, signs and numbers over 64 bits.
        """
        match = _PATTERN.fullmatch(text.encode("utf-8", "replace") if isinstance(text, str) else text)
        if match is None:
            raise InvalidStreamId(f"not a stream id: {text[:60]!r}")
        ms, seq = int(match[1]), int(match[2] or 0)
        if ms > _MAX_PART or seq > _MAX_PART:
            raise InvalidStreamId(f"a part of the stream id exceeds 64 bits: {text[:60]!r}")
        return cls(ms, seq)

    @classmethod
    def readable(cls, text: str | None) -> "StreamId | None":
        """What a client sent, where it is a stream id."""
        if text is None:
            return None
        try:
            return cls.parse(text)
        except InvalidStreamId:
            return None

    @classmethod
    def from_redis(cls, text: bytes) -> "StreamId":
        """Parse what Redis itself wrote: always both parts, never wrong. On the way of every event."""
        ms, seq = text.split(b"-")
        return cls(int(ms), int(seq))


BEGINNING = StreamId(0, 0)


def origin(epoch: int | None) -> StreamId:
    """The position of a topic without a stream, in the data set that `epoch` names (None: nothing names
    it)."""
    return StreamId(0, ORIGIN_SEQ_MIN + (epoch or 0) % (ORIGIN_SEQ_MAX - ORIGIN_SEQ_MIN))
