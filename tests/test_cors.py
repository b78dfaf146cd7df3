"""Which origins may read: as browsers write them, and what each answer says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cors import FIELDS_LIMIT_CHARS, USUAL_FIELDS, Cors, InvalidOrigin, parse_origin

APP = "https://app.example"


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        (APP, APP),
        ("https://app.example/", APP),
        ("HTTPS://App.EXAMPLE", APP),
        ("https://app.example:443", APP),
        ("https://app.example:0443/", APP),
        ("https://app.example:", APP),
        ("http://app.example:80/", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("https://app.example:80", "https://app.example:80"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://LOCALHOST:3000/", "http://localhost:3000"),
        ("http://127.0.0.1:5173", "http://127.0.0.1:5173"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("https://[2001:DB8::0001]/", "https://[2001:db8::1]"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("https://a_b.app-1.example", "https://a_b.app-1.example"),
        ("https://app.example.", "https://app.example."),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
    ],
)
def test_an_origin_is_read_as_browsers_write_it(text, origin):
    assert parse_origin(text) == origin
    assert parse_origin(origin) == origin


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no scheme"),
        ("app.example", "no scheme"),
        ("//app.example", "no scheme"),
        ("app.example:443", "no scheme"),
        ("null", "sandboxed"),
        ("*.example", "wildcard"),
        ("https://*.app.example", "wildcard"),
        ("https://app.example:*", "wildcard"),
        ("https://*", "wildcard"),
        ("https://app.example/path", "no user, path or query"),
        ("https://app.example//", "no user, path or query"),
        ("https://app.example?x", "no user, path or query"),
        ("https://app.example/?", "no user, path or query"),
        ("https://app.example#", "no user, path or query"),
        ("https://me@app.example", "no user, path or query"),
        ("https://@app.example", "no user, path or query"),
        ("https:\\\\app.example", "no scheme"),
        ("https://app.example\\", "no user, path or query"),
        ("https://", "no host"),
        ("https://:443", "no host"),
        ("https:///app.example", "no user, path or query"),
        ("https://app..example", "no host"),
        ("https://app,example", "no host"),
        ("https://app.example;https://b.example", "no user, path or query"),
        ("https://app.example https://b.example", "commas"),
        ("https://app\n.example", "commas"),
        ("https://app.example\x00", "commas"),
        ("https://bücher.example", "xn--"),
        ("https://app%2eexample", "escape"),
        ("https://app.example:99999", "cannot be read"),
        ("https://app.example:x", "cannot be read"),
        ("https://[::1", "cannot be read"),
        ("https://[::g]", "origin"),
        ("https://[fe80::1%25eth0]", "origin"),
        ("http://127.1", "written otherwise"),
        ("http://0x7f.0.0.1", "written otherwise"),
        ("http://256.0.0.1", "written otherwise"),
        ("http://2130706433", "written otherwise"),
        ("file://", "scheme that no page"),
        ("ws://app.example", "scheme that no page"),
        ("://app.example", "scheme that no page"),
    ],
)
def test_what_no_browser_sends_is_refused(text, says):
    says = says.replace("written otherwise", "write otherwise")

    with pytest.raises(InvalidOrigin, match=says):
        parse_origin(text)


@given(st.text(max_size=40) | st.from_regex(r"https?://[a-zA-Z0-9.:\[\]/@?#%\\*-]{0,20}", fullmatch=True))
def test_whatever_is_accepted_stays_as_it_is(text):
    try:
        origin = parse_origin(text)
    except InvalidOrigin:
        return
    assert parse_origin(origin) == origin
    assert origin == origin.lower()
    assert not set(origin) & set(" *,;/?#@\\\r\n") - {"/"}
    assert origin.count("/") == 2


ANSWERS = [
    (["*"], None, "*", False, None),
    (["*"], APP, "*", False, None),
    (["*"], "null", "*", False, None),
    ([APP], APP, APP, True, "Origin"),
    ([APP], None, None, False, "Origin"),
    ([APP], "null", None, False, "Origin"),
    ([APP], "https://app.example.evil.example", None, False, "Origin"),
    ([APP], "https://app.example:8443", None, False, "Origin"),
    ([APP], "http://app.example", None, False, "Origin"),
    (["*", APP], APP, APP, True, "Origin"),
    (["*", APP], "https://other.example", "*", False, "Origin"),
    (["*", APP], None, "*", False, "Origin"),
    ([], APP, None, False, "Origin"),
]


@pytest.mark.parametrize(("allowed", "origin", "told", "credentials", "vary"), ANSWERS)
def test_an_answer_says_who_may_read_it(allowed, origin, told, credentials, vary):
    headers = Cors(allowed).headers(origin)

    assert headers.get("Access-Control-Allow-Origin") == told
    assert headers.get("Access-Control-Allow-Credentials") == ("true" if credentials else None)
    assert headers.get("Access-Control-Expose-Headers") == ("Retry-After" if told else None)
    assert headers.get("Vary") == vary


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        ("", []),
        ("last-event-id", []),
        ("authorization,last-event-id", []),
        ("traceparent", ["traceparent"]),
        ("last-event-id,traceparent, \tx-b3-spanid", ["traceparent", "x-b3-spanid"]),
        ("X-Tenant", ["X-Tenant"]),
        ("a b", []),
        ("a,,b", []),
        (",", []),
        ("a\r\nSet-Cookie: x", []),
        ("x" * (FIELDS_LIMIT_CHARS + 1), []),
        ("ä", []),
    ],
)
def test_a_preflight_allows_what_is_asked_for_if_it_is_well_formed(asked, more):
    headers = Cors([APP]).preflight_headers(APP, asked)

    assert headers["Access-Control-Allow-Headers"].split(", ") == [*USUAL_FIELDS, *more]
    assert headers["Vary"] == "Access-Control-Request-Method, Access-Control-Request-Headers"


def test_a_preflight_of_another_origin_is_told_nothing():
    assert Cors([APP]).preflight_headers("https://evil.example", "x") == {
        "Vary": "Access-Control-Request-Method, Access-Control-Request-Headers"
    }
