"""The request for a stream in its ordinary shape, read in one step. Pure.

`GET /v1/sse/{topicId}` over HTTP/1.1 without a body is nearly every request this server gets, and after a
deploy thousands come at once. What is accepted here means to any HTTP parser just what it means here (tests
compare with h11); whatever is in the least unusual is somebody else's to read, or to refuse.

Source: RFC 9112, sections 3 (request line) and 5 (field syntax); RFC 9110, section 5.6.2 (token).
"""

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal, TypeAlias
from urllib.parse import parse_qsl

Catchup: TypeAlias = Literal["all", "compact"]

PATH_PREFIX: Final = "/v1/sse/"
LIMIT_BYTES: Final = 16 << 10

_START: Final = b"GET " + PATH_PREFIX.encode()
_END: Final = b"\r\n\r\n"
# Topic ids as publish.py has them, without any percent-encoding.
_REQUEST_LINE: Final = re.compile(
    rb"GET /v1/sse/(?!\.{1,2}[ ?])([A-Za-z0-9_.:~-]{1,128})(?:\?([!\"$-;=?-~]*))? HTTP/1\.1\r\n"
)
# Tokens, and visible characters with blanks between them; no folding, no bare CR or LF.
_FIELD: Final = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~\x80-\xff](?:[ \t]*[!-~\x80-\xff])*)?)[ \t]*\r\n"
)
# A line that ends in LF alone. HTTP parsers may take it (RFC 9112, section 2.2): theirs to read, at once.
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
# A body, another protocol, an interim answer: each is a conversation of its own.
_UNUSUAL: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"te", b"trailer")
)


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """`last_event_id` is what the client sent, unparsed; None where it sent none. `live`: whether it
    goes on to follow once it has caught up."""

    topic_id: str
    last_event_id: str | None
    catchup: Catchup
    live: bool
    origin: str | None
    user_agent: str


class NotRead(Enum):
    UNUSUAL = auto()
    INCOMPLETE = auto()  # so far it could become one


def choose_cursor(header: str | None, query: str | None) -> str | None:
    """The browser repeats the page's query at every reconnect, with a newer id in the header."""
    return header or query or None


def read_query(query: str) -> dict[str, str]:
    """The parameters of a query, decoded. Of one that is given more than once the last counts, since some
    libraries append the newer `lastEventId` to the URL they were given; an empty one says nothing against
    another."""
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if value or name not in parameters:
            parameters[name] = value
    return parameters


def read_stream_request(data: bytes) -> StreamRequest | NotRead:
    """`data`: everything the client has sent since it connected, or since the last response."""
    end = data.find(_END)
    if end < 0:
        possible = (data.startswith(_START) or _START.startswith(data)) and not _BARE_LF.search(data)
        return NotRead.INCOMPLETE if possible and len(data) < LIMIT_BYTES else NotRead.UNUSUAL
    line = _REQUEST_LINE.match(data)
    if line is None:
        return NotRead.UNUSUAL
    fields: dict[bytes, bytes] = {}
    at = line.end()
    while at < end:
        field = _FIELD.match(data, at)
        if field is None:
            return NotRead.UNUSUAL
        name = field[1].lower()
        if name in _UNUSUAL or (name == b"host" and name in fields):
            return NotRead.UNUSUAL
        fields.setdefault(name, field[2])
        at = field.end()
    if b"host" not in fields:
        return NotRead.UNUSUAL
    query = read_query(line[2].decode("ascii")) if line[2] else {}
    catchup = query.get("catchup", "all")
    if catchup != "all" and catchup != "compact":
        return NotRead.UNUSUAL
    live = query.get("live", "true")
    if live != "true" and live != "false":
        return NotRead.UNUSUAL
    return StreamRequest(
        topic_id=line[1].decode("ascii"),
        last_event_id=choose_cursor(_text(fields.get(b"last-event-id")), query.get("lastEventId")),
        catchup=catchup,
        live=live == "true",
        origin=_text(fields.get(b"origin")),
        user_agent=_text(fields.get(b"user-agent")) or "",
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
