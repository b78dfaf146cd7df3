"""Which pages of other origins may read what the server answers. Pure.

An origin in the settings is brought into the form in which browsers send theirs, so that the two can be
compared as text; what no browser would ever send is refused there, rather than never matched.

Source: WHATWG Fetch, sections 3.2 (the Origin header) and 3.3 (the CORS protocol); WHATWG HTML, section 7.1.1
(serialization of an origin).
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Final
from urllib.parse import urlsplit

ANY: Final = "*"
# What a page may read of an answer beyond the few fields that every page may: when to ask again.
EXPOSED: Final = "Retry-After"
METHODS: Final = "GET, HEAD, POST, OPTIONS"
USUAL_FIELDS: Final = ("Authorization", "Cache-Control", "Content-Type", "Last-Event-ID")
# Browsers keep a preflight's answer for two hours (Chromium) or a day (Firefox) at most.
PREFLIGHT_MAX_AGE_S: Final = 86_400
# What a preflight asks for beyond these is allowed, too. What tracing libraries add is below a hundred bytes.
FIELDS_LIMIT_CHARS: Final = 1024

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Pages of these are of no origin (`null`), or there are none.
_NO_ORIGINS: Final = frozenset(("about", "blob", "data", "file", "ftp", "javascript", "ws", "wss"))
_NAME: Final = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
_NUMBER: Final = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)\.?")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 RFC 9110, section 5.6.2
_FIELDS: Final = re.compile(rf"{_TOKEN}(?:[ \t]*,[ \t]*{_TOKEN})*")
_USUAL: Final = frozenset(name.lower() for name in USUAL_FIELDS)


class InvalidOrigin(ValueError):
    """No browser sends such an origin; the operator's to write otherwise."""


def parse_origin(text: str) -> str:
    """The origin as a browser sends it: in lower case, without a default port or a slash at its end.

    Raises InvalidOrigin.
    """

    def refuse(why: str) -> InvalidOrigin:
        return InvalidOrigin(f"origin {text[:100]!r} {why}")

    if text == "null":
        raise refuse("is what every sandboxed page sends, anybody's: allow `*` if all may read")
    if any(char.isspace() or not char.isprintable() for char in text):
        raise refuse("holds a blank: separate origins by commas")
    if ANY in text:
        raise refuse("holds a wildcard: name each origin, or allow all with `*` alone")
    if not text.isascii():
        raise refuse("is not ASCII: write the name as browsers send it (xn--...)")
    if "://" not in text:
        raise refuse("has no scheme: write https://app.example")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise refuse(f"cannot be read: {error}") from None
    if parts.scheme in _NO_ORIGINS or not parts.scheme:
        raise refuse("has a scheme that no page's origin has: write https://app.example")
    if parts.path not in ("", "/") or set("?#@\\") & set(text):
        raise refuse("holds more than scheme, host and port: no user, path or query")
    if "%" in parts.netloc:
        raise refuse("holds an escape, which no host of an origin does")
    if "[" in parts.netloc:
        host = f"[{_address(ipaddress.IPv6Address, host, refuse)}]"
    elif _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        host = _address(ipaddress.IPv4Address, host, refuse)
    elif not _NAME.fullmatch(host):
        raise refuse("has no host that a browser could name: write https://app.example")
    is_default = port is None or port == _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


def _address(
    kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address],
    host: str,
    refuse: Callable[[str], InvalidOrigin],
) -> str:
    try:
        return kind(host).compressed
    except ValueError:
        raise refuse(f"has the address {host!r}, which a browser would write otherwise") from None


class Cors:
    """What the answers say to pages of other origins. `allowed`: as parse_origin returns them, and `*`."""

    def __init__(self, allowed: Iterable[str]) -> None:
        origins = set(allowed)
        self.origins = frozenset(origins - {ANY})
        shared = {"Access-Control-Expose-Headers": EXPOSED}
        # An answer that depends on who asks says so, whoever asked: a cache may stand between.
        varies = {"Vary": "Origin"} if self.origins or ANY not in origins else {}
        # With credentials for those that are named, never for all: any page could read as its visitor.
        self._listed = {
            origin: {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Credentials": "true",
                **shared,
                **varies,
            }
            for origin in self.origins
        }
        self._others = {"Access-Control-Allow-Origin": ANY, **shared, **varies} if ANY in origins else varies

    def headers(self, origin: str | None) -> dict[str, str]:
        """Of every answer, to a request with this `Origin`."""
        return self._others if origin is None else self._listed.get(origin, self._others)

    def preflight_headers(self, origin: str | None, fields: str) -> dict[str, str]:
        """Of the answer to a preflight, beside the others. `fields`: its Access-Control-Request-Headers."""
        headers = {"Vary": "Access-Control-Request-Method, Access-Control-Request-Headers"}
        if "Access-Control-Allow-Origin" not in self.headers(origin):
            return headers
        names = list(USUAL_FIELDS)
        if len(fields) <= FIELDS_LIMIT_CHARS and _FIELDS.fullmatch(fields):
            asked = (name.strip(" \t") for name in fields.split(","))
            names += [name for name in asked if name.lower() not in _USUAL]
        return headers | {
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ", ".join(names),
            "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S),
        }
