"""What both ends of a measurement agree on: paths, the frame of an event, and the token inside its `id`.

The token carries the publisher's clock and a number that counts up by one for each topic. It has a fixed
width, so the load finds it by a pattern and never parses JSON.
"""

from __future__ import annotations

import re

SSE_PATH_PREFIX = "/v1/sse/"
TOPIC_KEY_PREFIX = "topic:events:"

# The stream length that Stalecast's own publisher asks for; a client that resumes finds what it missed in it.
STREAM_MAXLEN_EVENTS = 1000

# bench-<seq>-<monotonic clock>: fixed widths, 19 digits hold every signed 64-bit number of nanoseconds
TOKEN_FORMAT = b"bench-%08d-%019d"
TOKEN_PATTERN = re.compile(rb"bench-(\d{8})-(\d{19})")

RELOAD_MARK = b"reload_required"


def topic_key(topic: str) -> str:
    return TOPIC_KEY_PREFIX + topic


def payload(seq: int, published_ns: int, reason: bytes) -> bytes:
    event_id = TOKEN_FORMAT % (seq, published_ns)
    return b'{"event":"argument_updated","data":{"id":"%b","reason":"%b"}}' % (event_id, reason)


def chunk(body: bytes) -> bytes:
    """One chunk of HTTP/1.1 chunked transfer coding (RFC 9112, section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def request_head(topic: str, last_event_id: str | None = None) -> bytes:
    resume = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id is not None else ""
    return (
        f"GET {SSE_PATH_PREFIX}{topic} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Accept: text/event-stream\r\n"
        f"{resume}\r\n"
    ).encode()


def count_comments(data: bytes) -> int:
    """Heartbeats in whole lines of a stream; the coding's own lines never begin with a colon."""
    return data.count(b"\n:") + data.startswith(b":")
