# ruff: noqa: E501 tables read better in few lines
"""What a fuzzed connection sends: requests by their grammar, then spoilt. Pure; a seed says it all."""

import random
import struct
from dataclasses import dataclass

from raw import PREFACE, Field, frame, header_block, request_fields, reset, setting, window_update

from app.http2_limits import Frame

_METHODS = (
    b"GET",
    b"GET",
    b"GET",
    b"HEAD",
    b"POST",
    b"OPTIONS",
    b"PUT",
    b"CONNECT",
    b"PRI",
    b"get",
    b"\xff",
    b"",
)
_TARGETS = (
    b"/v1/sse/a", b"/v1/sse/a?live=false", b"/v1/sse/a?lastEventId=1-1", b"/v1/sse/", b"/v1//sse/a", b"/v1/sse/%00",
    b"/v1/sse/%ff%", b"/healthz", b"/readyz", b"/openapi.json", b"/v1/topics/a/events", b"/v1/topics/a/cursor",
    b"/", b"?x", b"*", b"", b"http://x/healthz", b"http://[::1/", b"http://[::1]/v1/sse/a", b"//x/y", b"x:443",
    b"/\xff", b"/a b", b"/..//../etc", b"/v1/sse/" + b"a" * 300, b"/healthz?" + b"q" * 5000,
)  # fmt: skip
_VERSIONS = (b"HTTP/1.1",) * 8 + (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9.9", b"http/1.1", b"")
_FIELDS: tuple[bytes, ...] = (
    b"Host: x", b"Host: y", b"Host: \xff", b"Host:", b"Connection: upgrade", b"Connection: \xff", b"Connection: close",
    b"Connection: keep-alive", b"Upgrade: websocket", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Protocol: \xff",
    b"Content-Length: 0", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 5, 5",
    b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: \x0bchunked", b"Expect: 100-continue", b"Expect: \xff",
    b"Last-Event-ID: 1-1", b"Last-Event-ID: \xff\xfe", b"Last-Event-ID: " + b"9" * 40, b"Origin: null",
    b"Authorization: Bearer x", b"Authorization: \xff", b"TE: trailers", b"Trailer: x", b" folded: x", b"no colon",
    b": empty", b"X: " + b"x" * 9000, b"A: \x00", b"Accept: text/event-stream", b"Cookie: a=\xff; b",
    b"Access-Control-Request-Method: GET", b"X-Forwarded-Proto: \xff", b"Content-Type: \xff/\x80; charset=nope",
)  # fmt: skip
_BODIES = (
    b"", b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\n\r\n", b"fffffffffffffffffff\r\nx", b"-1\r\n", b"5;x=\xff\r\nhello",
    b'{"event":"argument_updated","data":{"id":"1","reason":"r"}}', b"\x00" * 70_000, b"\x81\x05hello",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """`pieces` are sent one by one. `ending`: how the client ends it."""

    pieces: list[bytes]
    ending: str  # "abort", "close", "half_close" (and read), "wait" (for the server to close)


def http1(seed: str) -> Plan:
    draw = random.Random(seed)
    data = b"".join(_request(draw) for _ in range(draw.choice((1, 1, 1, 2, 3))))
    if draw.random() < 0.4:
        data = _spoil(draw, data)
    if draw.random() < 0.1:
        data = data.replace(b"\r\n", b"\n")
    return Plan(_split(draw, data), _ending(draw))


def _request(draw: random.Random) -> bytes:
    line = b" ".join((draw.choice(_METHODS), draw.choice(_TARGETS), draw.choice(_VERSIONS)))
    fields = draw.sample(_FIELDS, draw.randrange(7))
    if draw.random() < 0.8:
        fields.insert(0, b"Host: x")
    return b"\r\n".join([line, *fields, b"", b""]) + draw.choice(_BODIES)


def http2(seed: str) -> Plan:
    draw = random.Random(seed)
    data = bytearray(PREFACE if draw.random() < 0.97 else PREFACE[: draw.randrange(24)])
    if draw.random() < 0.95:
        data += frame(Frame.SETTINGS, 0, 0, b"".join(_setting(draw) for _ in range(draw.randrange(3))))
    for _ in range(draw.randrange(1, 24)):
        data += _frame(draw) * draw.choice((1, 1, 1, 1, 1, 3, 200 if draw.random() < 0.1 else 1))
    spoilt = bytes(data)
    if draw.random() < 0.15:
        spoilt = spoilt[:24] + _spoil(draw, spoilt[24:])
    return Plan(_split(draw, spoilt), _ending(draw))


def _setting(draw: random.Random) -> bytes:
    return setting(
        draw.randrange(11), draw.choice((0, 0, 1, 100, 16_384, 65_535, 2**31 - 1, 2**31, 2**32 - 1))
    )


def _frame(draw: random.Random) -> bytes:
    stream_id = draw.choice((0, 1, 1, 1, 3, 3, 5, 7, 9, 2, 2**31 - 1))
    flags = draw.choice((0, 1, 4, 5, 5, 5, 8, 0x20, 0x24, 0xFF))
    match draw.randrange(14):
        case 0 | 1 | 2 | 3:
            return frame(Frame.HEADERS, flags, stream_id, _block(draw))
        case 4 | 5:
            return frame(Frame.DATA, flags, stream_id, draw.randbytes(draw.choice((0, 1, 9, 600, 16_384))))
        case 6:
            return frame(Frame.PRIORITY, flags, stream_id, draw.randbytes(draw.choice((5, 5, 5, 4))))
        case 7:
            return reset(stream_id, draw.choice((0, 2, 8, 2**32 - 1)))
        case 8:
            return window_update(stream_id, draw.choice((0, 1, 65_535, 2**31 - 1, 2**31)))
        case 9:
            return frame(Frame.SETTINGS, draw.choice((0, 0, 1)), draw.choice((0, 0, 0, 1)), _setting(draw))
        case 10:
            return frame(Frame.PING, draw.choice((0, 1)), 0, draw.randbytes(draw.choice((8, 8, 7))))
        case 11:
            return frame(Frame.CONTINUATION, flags, stream_id, _block(draw))
        case 12 if draw.random() < 0.3:
            return frame(Frame.GOAWAY, 0, 0, struct.pack(">LL", draw.randrange(9), draw.randrange(20)))
        case _:
            return frame(draw.randrange(256), flags, stream_id, draw.randbytes(draw.randrange(40)))


def _block(draw: random.Random) -> bytes:
    if draw.random() < 0.15:
        return draw.randbytes(draw.randrange(200))
    fields: list[Field] = request_fields(draw.choice(_METHODS), draw.choice(_TARGETS))
    for _ in range(draw.randrange(4)):
        name, _, value = draw.choice(_FIELDS).partition(b": ")
        fields.append((name if draw.random() < 0.1 else name.lower(), value))
    if draw.random() < 0.2:
        fields.append((b":protocol", b"websocket"))
    if draw.random() < 0.1:
        draw.shuffle(fields)
    if draw.random() < 0.1:
        fields.pop(draw.randrange(len(fields)))
    return header_block(fields)


def _spoil(draw: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(spoilt) + 1)
        match draw.randrange(4):
            case 0:
                spoilt[at : at + 1] = draw.randbytes(1)
            case 1:
                spoilt[at:at] = draw.choice(
                    (b"\r", b"\n", b"\x00", b"\r\n\r\n", b" ", b"\xff", draw.randbytes(9))
                )
            case 2:
                del spoilt[at : at + draw.choice((1, 1, 2, 30))]
            case _:
                del spoilt[at:]
    return bytes(spoilt)


def _split(draw: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.choice((0, 0, 1, 1, 2, 5))))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]


def _ending(draw: random.Random) -> str:
    return draw.choices(("abort", "close", "half_close", "wait"), (60, 25, 13, 2))[0]
