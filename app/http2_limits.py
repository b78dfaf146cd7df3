"""What one HTTP/2 connection may ask for before it is told to calm down. Pure.

Frames that bring no request nearer to its answer (PING, SETTINGS, WINDOW_UPDATE, empty DATA, ...) cost the
client a byte or nine and the server a turn of its parser, an answer or a task. Each is paid for out of one
budget that refills slowly. It is counted from the frames' heads, before anything else looks at them, so what
is too much costs little more than its bytes. Memory that no parser bounds by itself is bounded here, too: a
frame larger than we allow is refused at its head, a header block at its limit.

Source: RFC 9113, sections 4.1 (frame format), 6 (frame types), 10.5 (denial of service); CVE-2023-44487
(rapid reset), CVE-2025-8671 (resets that a client has the server send), CVE-2019-9511 to 9518 (the floods),
CVE-2024-27316 and its kin (CONTINUATION).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

PREFACE_BYTES: Final = 24
_HEAD_BYTES: Final = 9
# What our SETTINGS allow (the protocol's default). h2 would look only once the whole frame is in memory: up
# to 16 MiB.
FRAME_LIMIT_BYTES: Final = 1 << 14
# As our SETTINGS say of the decoded list; encoded it is smaller, or it has no reason to be larger.
HEADER_BLOCK_LIMIT_BYTES: Final = 1 << 16

# A browser sends some tens of such frames in a connection's life, a proxy that carries a hundred streams some
# hundreds at once when its clients leave together.
BURST: Final = 1000
# At most a thousandth of a core. A ping a second and a settings change a minute are what is seen.
REFILL_PER_S: Final = 50
# DATA that carries less is counted: a body of one byte a frame costs as much as an attack.
SMALL_DATA_BYTES: Final = 128
# Every window of the connection changes, and an acknowledgement goes out.
SETTINGS_COST: Final = 5
# A request that was parsed and began to be served, and nobody wants its answer. A hundred, all that may be
# open, at once; five a second for ever.
RESET_COST: Final = 10
# A client may give back the window of its stream and of its connection for each DATA frame that it gets.
WINDOWS_FOR_DATA_SENT: Final = 2


class Frame(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


_END_STREAM: Final = 0x1
_END_HEADERS: Final = 0x4
_ACK: Final = 0x1


@dataclass
class TooMuch(Exception):
    """`reason`: a short name for logs."""

    reason: str


class FrameMeter:
    """Reads the frames' heads of everything that a client sends."""

    __slots__ = ("_budget", "_head", "_header_block_bytes", "_refilled_s", "_skip", "_windows_due")

    def __init__(self, now_s: float) -> None:
        self._budget: float = BURST
        self._refilled_s = now_s
        self._windows_due = 0  # window updates that answer what we sent
        self._skip = PREFACE_BYTES  # bytes that are passed over before the next head
        self._head = b""
        self._header_block_bytes: int | None = None

    @property
    def in_header_block(self) -> bool:
        """Whether a header block was begun and not ended."""
        return self._header_block_bytes is not None

    def feed(self, data: bytes, now_s: float) -> None:
        """Raises TooMuch."""
        self._refill(now_s)
        at = 0
        while True:
            step = min(self._skip, len(data) - at)
            self._skip -= step
            at += step
            lacking = _HEAD_BYTES - len(self._head)
            self._head += data[at : at + lacking]
            at += lacking
            if len(self._head) < _HEAD_BYTES:
                return
            head, self._head = self._head, b""
            self._skip = int.from_bytes(head[:3], "big")
            self._judge(head[3], head[4], self._skip)

    def reset(self) -> None:
        """A stream was reset before its answer had begun, or by us, because of what the client did on it.
        Raises TooMuch."""
        self._pay(RESET_COST, "resets")

    def reset_again(self) -> None:
        """We had to tell the client once more that a stream is closed. Raises TooMuch."""
        self._pay(1, "resets")

    def sent_data(self) -> None:
        self._windows_due = min(BURST, self._windows_due + WINDOWS_FOR_DATA_SENT)

    def _judge(self, kind: int, flags: int, length: int) -> None:
        if length > FRAME_LIMIT_BYTES:
            raise TooMuch("frame_size")
        match kind:
            case Frame.DATA:
                if length < SMALL_DATA_BYTES and not flags & _END_STREAM:
                    self._pay(1, "small_data")
            case Frame.HEADERS | Frame.PUSH_PROMISE:
                self._count_header_block(flags, length)
            case Frame.CONTINUATION:
                self._pay(1, "continuations")
                self._count_header_block(flags, length + (self._header_block_bytes or 0))
            case Frame.SETTINGS:
                self._pay(1 if flags & _ACK else SETTINGS_COST, "settings")
            case Frame.PING:
                self._pay(1, "pings")
            case Frame.WINDOW_UPDATE if self._windows_due:
                self._windows_due -= 1
            case Frame.WINDOW_UPDATE:
                self._pay(1, "window_updates")
            case Frame.PRIORITY:
                self._pay(1, "priorities")
            case Frame.RST_STREAM:
                self._pay(1, "resets")
            case _:
                self._pay(1, "other_frames")

    def _count_header_block(self, flags: int, size: int) -> None:
        if size > HEADER_BLOCK_LIMIT_BYTES:
            raise TooMuch("header_block_size")
        self._header_block_bytes = None if flags & _END_HEADERS else size

    def _pay(self, cost: int, reason: str) -> None:
        self._budget -= cost
        if self._budget < 0:
            raise TooMuch(reason)

    def _refill(self, now_s: float) -> None:
        self._budget = min(BURST, self._budget + (now_s - self._refilled_s) * REFILL_PER_S)
        self._refilled_s = now_s
