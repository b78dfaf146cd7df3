"""The request for a stream: what is read, what is left to others, and that whatever is read means the same to
h11 and to the route.
"""

from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

import h11
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from quart_trio import QuartTrio

from app.serving import EventStream, StreamConnection
from app.settings import Settings
from app.stream_request import LIMIT_BYTES, NotRead, StreamRequest, choose_cursor, read_stream_request
from app.web import create_app

PLAIN = StreamRequest("a", None, "all", True, None, "")


def head(*fields: bytes, target: bytes = b"/v1/sse/a", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", host, *fields, b"", b""])


# What a browser sends.
GOOD = head(
    b"Connection: keep-alive",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64)",
    b"Accept: text/event-stream",
    b"Cache-Control: no-cache",
    b"Origin: https://app.example",
    b"Last-Event-ID: 1-2",
    target=b"/v1/sse/user:1?catchup=compact&lastEventId=0-1",
)


# -- read


def test_a_browsers_request_is_read() -> None:
    assert read_stream_request(GOOD) == StreamRequest(
        "user:1", "1-2", "compact", True, "https://app.example", "Mozilla/5.0 (X11; Linux x86_64)"
    )


@pytest.mark.parametrize("topic_id", ["a", "...", ".a", "..a", "a.", "-", "~", "Az09_.:~-", "x" * 128])
def test_a_topic_id_is_taken_as_it_is(topic_id: str) -> None:
    for query in ("", "?"):
        target = f"/v1/sse/{topic_id}{query}".encode()
        assert read_stream_request(head(target=target)) == replace(PLAIN, topic_id=topic_id)


@pytest.mark.parametrize(
    ("query", "changes"),
    [
        (b"", {}),
        (b"lastEventId=1-2", {"last_event_id": "1-2"}),
        (b"lastEventId=1%2d2", {"last_event_id": "1-2"}),
        (b"lastEventId=1+2", {"last_event_id": "1 2"}),
        (b"lastEventId=%c3%a4", {"last_event_id": "ä"}),
        (b"last%45ventId=1-2", {"last_event_id": "1-2"}),
        (b"lastEventId=1-2%", {"last_event_id": "1-2%"}),
        (b"lastEventId=1=2", {"last_event_id": "1=2"}),
        (b"lastEventId=1-2?", {"last_event_id": "1-2?"}),
        (b"lastEventId=1;lastEventId=2", {"last_event_id": "1;lastEventId=2"}),
        (b"lastEventId=", {}),
        (b"lastEventId", {}),
        (b"lasteventid=1-2", {}),
        (b"x=1&&y&=&lastEventId=1-2&", {"last_event_id": "1-2"}),
        # As reconnecting-eventsource appends the newer one.
        (b"lastEventId=1-1&lastEventId=2-2", {"last_event_id": "2-2"}),
        (b"lastEventId=1-1&x=3&last%45ventId=2%2d2&x=4", {"last_event_id": "2-2"}),
        (b"lastEventId=3-3&lastEventId=1-1&lastEventId=2-2", {"last_event_id": "2-2"}),
        (b"lastEventId=1-1&lastEventId=x", {"last_event_id": "x"}),
        (b"lastEventId=&lastEventId=2-2", {"last_event_id": "2-2"}),
        (b"lastEventId=2-2&lastEventId=&lastEventId", {"last_event_id": "2-2"}),
        (b"lastEventId=&lastEventId=", {}),
        (b"lastEventId=%ff", {"last_event_id": "\ufffd"}),
        (b"catchup=all", {}),
        (b"catchup=compact", {"catchup": "compact"}),
        (b"c%61tchup=comp%61ct", {"catchup": "compact"}),
        (b"catchup=x&catchup=compact", {"catchup": "compact"}),
        (b"catchup=compact&catchup=all", {}),
        (b"catchup=compact&catchup=", {"catchup": "compact"}),
        (b"Catchup=x", {}),
        (b"lastEventId=1-2&catchup=compact", {"last_event_id": "1-2", "catchup": "compact"}),
        (b"live=true", {}),
        (b"live=false", {"live": False}),
        (b"l%69ve=f%61lse", {"live": False}),
        (b"live=x&live=false", {"live": False}),
        (b"live=false&live=true", {}),
        (b"Live=false", {}),
        (b"live=false&catchup=compact", {"live": False, "catchup": "compact"}),
    ],
)
def test_a_query_is_read_as_the_route_reads_it(query: bytes, changes: dict[str, Any]) -> None:
    data = head(target=b"/v1/sse/a?" + query)
    assert read_stream_request(data) == replace(PLAIN, **changes)
    assert read_by_others(data) == replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("fields", "changes"),
    [
        ([], {}),
        ([b"Last-Event-ID: 1-2"], {"last_event_id": "1-2"}),
        ([b"last-event-id: 1-2"], {"last_event_id": "1-2"}),
        ([b"LAST-EVENT-ID: 1-2"], {"last_event_id": "1-2"}),
        ([b"Last-Event-ID:1-2"], {"last_event_id": "1-2"}),
        ([b"Last-Event-ID: \t 1-2\t "], {"last_event_id": "1-2"}),
        ([b"Last-Event-ID: 1 \t 2"], {"last_event_id": "1 \t 2"}),
        ([b"Last-Event-ID: \xe4\x80\xff"], {"last_event_id": "ä\x80ÿ"}),
        ([b"Last-Event-ID:"], {}),
        ([b"Last-Event-ID: "], {}),
        ([b"Last-Event-ID: 1-1", b"last-event-id: 2-2"], {"last_event_id": "1-1"}),
        ([b"Last-Event-ID:", b"Last-Event-ID: 2-2"], {}),
        ([b"Last-Event-Id-: 1-2", b"Last_Event_ID: 1-2"], {}),
        ([b"Origin: https://a.example"], {"origin": "https://a.example"}),
        ([b"oRIGIN:null", b"Origin: https://a.example"], {"origin": "null"}),
        ([b"Origin:"], {"origin": ""}),
        ([b"User-Agent: one", b"USER-AGENT: two"], {"user_agent": "one"}),
        ([b"User-Agent: \xfc: \"x\""], {"user_agent": 'ü: "x"'}),
        ([b"Connection: close"], {}),
        ([b"Connection: keep-alive, Upgrade", b"HTTP2-Settings: AAMAAABk"], {}),
        ([b"!#$%&'*+.^_`|~0-9a-Z: odd, but a token"], {}),
    ],
)  # fmt: skip
def test_fields_are_read_as_the_route_reads_them(fields: list[bytes], changes: dict[str, Any]) -> None:
    data = head(*fields)
    assert read_stream_request(data) == replace(PLAIN, **changes)
    assert read_by_others(data) == replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("header", "query", "cursor"),
    [
        (None, None, None),
        ("", "", None),
        (None, "", None),
        ("", None, None),
        ("1-1", None, "1-1"),
        (None, "2-2", "2-2"),
        ("1-1", "2-2", "1-1"),
        ("", "2-2", "2-2"),
        ("nonsense", "2-2", "nonsense"),
    ],
)
def test_a_cursor_in_the_header_goes_before_one_in_the_query(
    header: str | None, query: str | None, cursor: str | None
) -> None:
    assert choose_cursor(header, query) == cursor
    fields = [] if header is None else [b"Last-Event-ID: " + header.encode()]
    target = b"/v1/sse/a" + (b"" if query is None else b"?lastEventId=" + query.encode())
    assert read_stream_request(head(*fields, target=target)) == replace(PLAIN, last_event_id=cursor)


@pytest.mark.parametrize("host", [b"Host: x:8000", b"host:x", b"HOST:", b"Host: [::1]:80"])
def test_a_host_is_all_that_must_be_there(host: bytes) -> None:
    assert read_stream_request(head(host=host)) == PLAIN


def test_a_host_may_stand_anywhere() -> None:
    assert read_stream_request(head(b"Host: x", host=b"Origin: null")) == replace(PLAIN, origin="null")


# -- left to others


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"GET /v1/sse/a HTTP/1.0", id="http-1.0"),
        pytest.param(b"GET /v1/sse/a HTTP/2.0", id="http-2.0"),
        pytest.param(b"GET /v1/sse/a http/1.1", id="version-in-lower-case"),
        pytest.param(b"GET /v1/sse/a", id="http-0.9"),
        pytest.param(b"HEAD /v1/sse/a HTTP/1.1", id="head"),
        pytest.param(b"POST /v1/sse/a HTTP/1.1", id="post"),
        pytest.param(b"OPTIONS /v1/sse/a HTTP/1.1", id="options"),
        pytest.param(b"get /v1/sse/a HTTP/1.1", id="method-in-lower-case"),
        pytest.param(b"GET / HTTP/1.1", id="root"),
        pytest.param(b"GET /healthz HTTP/1.1", id="another-path"),
        pytest.param(b"GET /v1/sse HTTP/1.1", id="no-topic"),
        pytest.param(b"GET /v1/sse/ HTTP/1.1", id="empty-topic"),
        pytest.param(b"GET /v1/sse/?catchup=all HTTP/1.1", id="empty-topic-with-query"),
        pytest.param(b"GET /V1/sse/a HTTP/1.1", id="path-in-upper-case"),
        pytest.param(b"GET //v1/sse/a HTTP/1.1", id="two-slashes"),
        pytest.param(b"GET /v1/sse/a/ HTTP/1.1", id="slash-behind"),
        pytest.param(b"GET /v1/sse/a/b HTTP/1.1", id="slash-within"),
        pytest.param(b"GET /v1/sse/%61 HTTP/1.1", id="percent-encoded"),
        pytest.param(b"GET /v1/sse/a%2fb HTTP/1.1", id="percent-encoded-slash"),
        pytest.param(b"GET /v1/sse/. HTTP/1.1", id="dot"),
        pytest.param(b"GET /v1/sse/.. HTTP/1.1", id="dot-dot"),
        pytest.param(b"GET /v1/sse/.?catchup=all HTTP/1.1", id="dot-with-query"),
        pytest.param(b"GET /v1/sse/..?catchup=all HTTP/1.1", id="dot-dot-with-query"),
        pytest.param(b"GET /v1/sse/" + b"x" * 129 + b" HTTP/1.1", id="129-characters"),
        pytest.param(b"GET /v1/sse/a,b HTTP/1.1", id="character"),
        pytest.param(b"GET /v1/sse/\xe4 HTTP/1.1", id="latin-1"),
        pytest.param(b"GET /v1/sse/a#b HTTP/1.1", id="fragment"),
        pytest.param(b"GET /v1/sse/a?b#c HTTP/1.1", id="fragment-behind-query"),
        pytest.param(b"GET /v1/sse/a?\xe4 HTTP/1.1", id="latin-1-in-query"),
        pytest.param(b"GET /v1/sse/a?\x7f HTTP/1.1", id="control-in-query"),
        pytest.param(b"GET http://x/v1/sse/a HTTP/1.1", id="absolute-form"),
        pytest.param(b"GET x:80 HTTP/1.1", id="authority-form"),
        pytest.param(b"GET * HTTP/1.1", id="asterisk-form"),
        pytest.param(b"GET  /v1/sse/a HTTP/1.1", id="two-blanks-before"),
        pytest.param(b"GET /v1/sse/a  HTTP/1.1", id="two-blanks-behind"),
        pytest.param(b"GET\t/v1/sse/a HTTP/1.1", id="tab"),
        pytest.param(b"GET /v1/sse/a HTTP/1.1 ", id="blank-at-the-end"),
        pytest.param(b" GET /v1/sse/a HTTP/1.1", id="blank-at-the-start"),
        pytest.param(b"\r\nGET /v1/sse/a HTTP/1.1", id="empty-line-first"),
        pytest.param(b"GET /v1/sse/a?b c HTTP/1.1", id="blank-in-query"),
        pytest.param(b"GET /v1/sse/a?catchup=x HTTP/1.1", id="catchup"),
        pytest.param(b"GET /v1/sse/a?catchup= HTTP/1.1", id="empty-catchup"),
        pytest.param(b"GET /v1/sse/a?catchup HTTP/1.1", id="catchup-without-value"),
        pytest.param(b"GET /v1/sse/a?catchup=Compact HTTP/1.1", id="catchup-in-upper-case"),
        pytest.param(b"GET /v1/sse/a?catchup=all&catchup=x HTTP/1.1", id="catchup-twice"),
        pytest.param(b"GET /v1/sse/a?live=x HTTP/1.1", id="live"),
        pytest.param(b"GET /v1/sse/a?live= HTTP/1.1", id="empty-live"),
        pytest.param(b"GET /v1/sse/a?live HTTP/1.1", id="live-without-value"),
        pytest.param(b"GET /v1/sse/a?live=False HTTP/1.1", id="live-in-upper-case"),
        pytest.param(b"GET /v1/sse/a?live=0 HTTP/1.1", id="live-as-a-number"),
        pytest.param(b"GET /v1/sse/a?live=true&live=x HTTP/1.1", id="live-twice"),
    ],
)
def test_another_request_line_is_left_to_others(line: bytes) -> None:
    assert read_stream_request(line + b"\r\nHost: x\r\n\r\n") is NotRead.UNUSUAL


@pytest.mark.parametrize(
    "field",
    [
        pytest.param(b"Content-Length: 0", id="content-length"),
        pytest.param(b"content-length:1", id="content-length-in-lower-case"),
        pytest.param(b"Transfer-Encoding: chunked", id="transfer-encoding"),
        pytest.param(b"Upgrade: h2c", id="upgrade"),
        pytest.param(b"UPGRADE: websocket", id="upgrade-in-upper-case"),
        pytest.param(b"Expect: 100-continue", id="expect"),
        pytest.param(b"TE: trailers", id="te"),
        pytest.param(b"Trailer: X", id="trailer"),
        pytest.param(b"Host: y", id="two-hosts"),
        pytest.param(b"host: x", id="the-same-host-twice"),
        pytest.param(b"A: b\nC: d", id="bare-lf"),
        pytest.param(b"A: b\rC: d", id="bare-cr"),
        pytest.param(b"A: b\r", id="two-cr"),
        pytest.param(b"A: \rb", id="cr-before-the-value"),
        pytest.param(b"A: b\x00c", id="nul"),
        pytest.param(b"A: b\x0bc", id="vertical-tab"),
        pytest.param(b"A: b\x0c", id="form-feed"),
        pytest.param(b"A: b\x1bc", id="escape"),
        pytest.param(b"A: b\x7fc", id="delete"),
        pytest.param(b"A: \x7f", id="delete-alone"),
        pytest.param(b"A: b\r\n c", id="folded"),
        pytest.param(b"A: b\r\n\tc", id="folded-with-a-tab"),
        pytest.param(b" A: b", id="blank-before-the-name"),
        pytest.param(b"A : b", id="blank-before-the-colon"),
        pytest.param(b"A\t: b", id="tab-before-the-colon"),
        pytest.param(b": b", id="no-name"),
        pytest.param(b"A", id="no-colon"),
        pytest.param(b"A b: c", id="blank-in-the-name"),
        pytest.param(b"A\x00: b", id="nul-in-the-name"),
        pytest.param(b"\xe4: b", id="latin-1-name"),
        pytest.param(b"(A): b", id="no-token"),
    ],
)
def test_another_field_is_left_to_others(field: bytes) -> None:
    for data in (head(field), head(field, b"Accept: */*"), head(b"Host: x", host=field)):
        assert read_stream_request(data) is NotRead.UNUSUAL


def test_a_request_without_a_host_is_left_to_others() -> None:
    assert read_stream_request(b"GET /v1/sse/a HTTP/1.1\r\n\r\n") is NotRead.UNUSUAL
    assert read_stream_request(head(host=b"Accept: */*")) is NotRead.UNUSUAL


def test_lines_must_end_in_cr_lf() -> None:
    assert read_stream_request(GOOD.replace(b"\r\n", b"\n") + b"\r\n\r\n") is NotRead.UNUSUAL


# -- not all of it is here yet


@pytest.mark.parametrize("data", [GOOD, head()], ids=["browser", "short"])
def test_every_part_of_a_request_could_become_one(data: bytes) -> None:
    for size in range(len(data)):
        assert read_stream_request(data[:size]) is NotRead.INCOMPLETE


@pytest.mark.parametrize(
    "start", [b"P", b"get", b"GET /h", b"GET /v1/topics/", b"\r\n", b"PRI * HTTP/2.0\r\n"]
)
def test_what_cannot_become_one_is_not_waited_for(start: bytes) -> None:
    assert read_stream_request(start) is NotRead.UNUSUAL


def test_a_request_without_an_end_is_left_to_others_at_the_limit() -> None:
    start = b"GET /v1/sse/a HTTP/1.1\r\nHost: "
    assert read_stream_request(start.ljust(LIMIT_BYTES - 1, b"x")) is NotRead.INCOMPLETE
    assert read_stream_request(start.ljust(LIMIT_BYTES, b"x")) is NotRead.UNUSUAL


# -- the same to others


@given(st.binary())
def test_any_bytes_are_answered(data: bytes) -> None:
    for start in (
        b"",
        b"GET /v1/sse/",
        b"GET /v1/sse/a HTTP/1.1\r\n",
        b"GET /v1/sse/a HTTP/1.1\r\nHost: x\r\n",
    ):
        for end in (b"", b"\r\n\r\n"):
            assert isinstance(read_stream_request(start + data + end), StreamRequest | NotRead)


NAMES = (
    b"Accept", b"last-event-id", b"Last-Event-ID", b"ORIGIN", b"origin", b"User-Agent", b"user-agent", b"X-1",
    b"Remote-Addr", b"Connection", b"Cookie", b"Forwarded", b"X-HTTP-Method-Override",
)  # fmt: skip
# What parsers have disagreed about.
FRAGMENTS = (
    b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\r\n", b" ", b"\t", b":", b"\x00", b"\x0b", b"\x7f", b"\x85",
    b"\xa0", b"%", b"%00", b"%2e", b"%ff", b"+", b"?", b"&", b";", b"=", b"#", b"/", b"//", b"\\", b"@", b".",
    b"..", b",", b"Host: y\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"Last-Event-ID: 7-7\r\n", b"lastEventId=8-8",
    b"catchup=compact", b"catchup=", b"live=false", b"live=", b"HTTP/1.0", b"HEAD", b"http://x",
)  # fmt: skip
_topics = st.from_regex(r"[A-Za-z0-9_.:~-]{1,16}", fullmatch=True).map(str.encode)
_query_values = st.one_of(
    st.sampled_from(
        [b"", b"1-2", b"all", b"compact", b"true", b"false", b"1%2D2", b"a+b", b"%C3%A4", b"%e2%82", b"%"]
    ),
    st.from_regex(rb"[!\"$-;=?-~]{0,8}", fullmatch=True),
)
_pairs = st.tuples(
    st.sampled_from([b"lastEventId", b"catchup", b"live", b"x", b"last%45ventId", b""]), _query_values
)
_queries = st.one_of(
    st.just(b""),
    st.lists(_pairs, max_size=4).map(lambda pairs: b"?" + b"&".join(b"%b=%b" % pair for pair in pairs)),
)
_values = st.one_of(
    st.sampled_from([b"", b" 1-2", b"\t1-2 ", b" https://a.example", b" close", b" \xe4"]),
    st.from_regex(rb"[ \t!-~\x80-\xff]{0,12}", fullmatch=True),
)
_fields = st.lists(st.tuples(st.sampled_from(NAMES), _values), max_size=6)
_hosts = st.one_of(st.sampled_from([b"x", b"x:80", b"", b"[::1]:8000", b"127.0.0.1"]), _values)
_good_heads = st.builds(
    lambda topic, query, fields, host, at: head(
        *[b"%b:%b" % field for field in fields[:at]],
        *[b"Host:%b" % host],
        *[b"%b:%b" % field for field in fields[at:]],
        target=b"/v1/sse/" + topic + query,
        host=b"Accept: text/event-stream",
    ),
    _topics, _queries, _fields, _hosts, st.integers(0, 6),
)  # fmt: skip
_changes = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["insert", "delete", "replace"]),
        st.one_of(st.sampled_from(FRAGMENTS), st.binary(min_size=1, max_size=1)),
    ),
    max_size=3,
)


def mutate(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for place, kind, fragment in changes:
        at = int(place * len(data))
        before, behind = data[:at], data[at:]
        if kind != "insert":
            behind = behind[len(fragment) :]
        data = before + (b"" if kind == "delete" else fragment) + behind
    return data


@given(_good_heads)
def test_an_ordinary_request_is_nearly_always_read(data: bytes) -> None:
    """Or the comparison below would compare nothing."""
    unread = (b"sse/. ", b"sse/.?", b"sse/..", b"catchup", b"live")
    assert any(one in data for one in unread) or isinstance(read_stream_request(data), StreamRequest)


@given(_good_heads, _changes, st.binary(max_size=20))
@example(head(target=b"/v1/sse/a?lastEventId=%ff"), [], b"")
@example(head(b"Last-Event-ID: 1-2"), [], b"POST / HTTP/1.1\r\n")
@example(head(host=b"Host: ."), [], b"")
def test_what_is_read_means_the_same_to_others(
    data: bytes, changes: list[tuple[float, str, bytes]], behind: bytes
) -> None:
    data = mutate(data, changes)
    asked = read_stream_request(data)
    if isinstance(asked, StreamRequest):
        assert read_stream_request(data + behind) == asked
        assert asked == read_by_others(data + behind)


@given(_good_heads, _changes)
def test_what_h11_has_read_means_the_same_to_others(
    data: bytes, changes: list[tuple[float, str, bytes]]
) -> None:
    """A request that is not its connection's first one is put together again from what h11 made of it."""
    data = mutate(data, changes)
    try:
        request = parse_with_h11(data)
    except h11.RemoteProtocolError:
        return
    if request is None:
        return
    fields = [b"%b: %b\r\n" % field for field in request.headers]
    line = b"%b %b HTTP/%b\r\n" % (request.method, request.target, request.http_version)
    again = read_stream_request(line + b"".join(fields) + b"\r\n")
    if isinstance(asked := read_stream_request(data), StreamRequest):
        assert again == asked
    if isinstance(again, StreamRequest):
        assert again == read_by_others(data)


def parse_with_h11(data: bytes) -> h11.Request | None:
    """The first request; None where there is none yet. Raises h11.RemoteProtocolError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT_BYTES)
    connection.receive_data(data)
    request = connection.next_event()
    return request if isinstance(request, h11.Request) else None


def read_by_others(data: bytes) -> StreamRequest:
    """What our route makes of a request that h11 has parsed and Hypercorn passed on. Fails on any other."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT_BYTES)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    assert not connection.they_are_waiting_for_100_continue
    assert isinstance(connection.next_event(), h11.EndOfMessage), "no body"
    return trio.run(_ask_route, _application(), request)


async def _ask_route(app: QuartTrio, request: h11.Request) -> StreamRequest:
    path, _, query = request.target.partition(b"?")  # as Hypercorn does
    scope: Any = {
        "type": "http",
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(request.headers),
        "client": None,
        "server": None,
        "extensions": {},
    }

    async def send(_: object) -> None:
        await trio.lowlevel.checkpoint()

    response = await app.handle_request(StreamConnection(app, scope)._create_request_from_scope(send))
    assert isinstance(response, EventStream), response
    assert isinstance(response.open, partial)
    (asked,) = response.open.args
    return asked


_applications: list[QuartTrio] = []


def _application() -> QuartTrio:
    """One for all examples: it is never started, and asked for no stream."""
    if not _applications:
        _applications.append(create_app(Settings(redis_url="redis://127.0.0.1:1")))
    return _applications[0]


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/sse/a HTTP/1.1\nHost: x\n\n",
        b"GET /v1/sse/a HTTP/1.1\r\nHost: x\n\n",
        b"GET /v1/sse/a HTTP/1.1\r\nHost: x\r\n\n",
        b"GET /v1/sse/a HTTP/1.1\n",
    ],
)
def test_a_bare_line_feed_is_somebody_elses_at_once(head: bytes) -> None:
    """Who waits for CR LF here would wait until the connection's time is up."""
    assert read_stream_request(head) is NotRead.UNUSUAL


def test_a_head_that_is_cut_behind_its_carriage_return_is_incomplete() -> None:
    for head in (b"GET /v1/sse/a HTTP/1.1\r", b"GET /v1/sse/a HTTP/1.1\r\nHost: x\r\n\r"):
        assert read_stream_request(head) is NotRead.INCOMPLETE
