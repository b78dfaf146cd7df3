"""HTTP/1.1 on top of Hypercorn's: the same, without what leads away from it.

No HTTP/2 in cleartext, where nothing bounds what a client makes us buffer; no WebSockets, whose handshake
raises on what a client may send. An `Upgrade` is answered in HTTP/1.1, as RFC 9110 (7.8) allows. And where a
request turns out to be for a stream, the connection leaves Hypercorn (serving.py).
"""

# pyright: reportUnknownMemberType=false
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from app.handler_settings import CONNECTION_STATE_KEY, HandlerSettings
from app.problem import PROBLEM_TYPE, problem_json
from app.stream_request import LIMIT_BYTES, StreamRequest, read_stream_request

_VERSIONS: Final = frozenset((b"1.0", b"1.1"))


# A path, or a whole URL, of which the path counts (RFC 9112, section 3.2); `*` and names of hosts are for
# servers of another kind. What could not be taken apart later is refused here.
_TARGET: Final = re.compile(
    rb"(?:https?://(?:[A-Za-z0-9._~%!$&'()*+,;=:@-]+|[A-Za-z0-9._~%:-]*@?\[[0-9A-Fa-f:.]+\](?::[0-9]*)?)"
    rb"(?=[/?]|\Z))?(?P<path>/[!-~]*)?(?P<query>\?[!-~]*)?",
    re.IGNORECASE,
)


def _path(target: bytes) -> bytes | None:
    """With its query; None where there is none to serve."""
    found = _TARGET.fullmatch(target)
    if found is None or (found["path"] is None and not target.lower().startswith(b"http")):
        return None
    return found["path"] or b"/" + (found["query"] or b"")


def _has_two_lengths(request: h11.Request) -> bool:
    """Whether what stands before us may see the body end elsewhere than we do (RFC 9112, section 6.1)."""
    names = {bytes(name).lower() for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return False
    return b"content-length" in names or request.http_version == b"1.0"


@dataclass
class StreamAsked(Exception):
    """A connection that Hypercorn serves has come to a request for a stream: leave Hypercorn."""

    request: StreamRequest


# What Hypercorn and h11 refuse, and we above, before the application is asked.
_DETAILS: Final = {
    HTTPStatus.BAD_REQUEST: "this is no request that could be served",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"target and fields may have {LIMIT_BYTES} bytes together",
    HTTPStatus.NOT_IMPLEMENTED: "neither tunnels nor transfer codings other than chunked are served here",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "spoken here are HTTP 1.0, 1.1 and, over TLS, 2",
}


class Http11(H11Protocol):
    _request: h11.Request | None = None  # the latest

    async def _check_protocol(self, event: h11.Request) -> None:
        return  # whatever it would like to upgrade to

    async def _create_stream(self, request: h11.Request) -> None:
        self._request = request
        if request.http_version not in _VERSIONS or request.method == b"PRI":
            await self._refuse(505)
            return
        if request.method == b"CONNECT":
            await self._refuse(501)  # no tunnels
            return
        target = _path(request.target)
        if target is None or _has_two_lengths(request):
            await self._refuse(400)
            return
        handler: Any = self.connection_state.get(CONNECTION_STATE_KEY)
        if handler is not None and handler.stream_endpoint is not None:
            # Another one came before it on this connection; from here on it goes the same way as a first one.
            fields = b"".join([b"%b: %b\r\n" % field for field in request.headers])
            line = b"%b %b HTTP/%b\r\n" % (request.method, request.target, request.http_version)
            asked = read_stream_request(line + fields + b"\r\n")
            if isinstance(asked, StreamRequest):
                raise StreamAsked(asked)
        await self._serve(request, target)

    async def _send_error_response(self, status_code: int) -> None:
        """In the form of all errors, and so that a page of another origin may read it: otherwise its fetch
        cannot tell a head that is too large from a network that fails."""
        request = None if self.connection.our_state is h11.IDLE else self._request
        origin = None
        if request is not None:
            origins = [value for name, value in request.headers if name == b"origin"]
            origin = origins[-1].decode("latin-1") if origins else None
        status = HTTPStatus(status_code)
        body = problem_json(status, _DETAILS.get(status, status.phrase))
        fields = {
            "Content-Type": PROBLEM_TYPE,
            "Content-Length": str(len(body)),
            "Connection": "close",
            **HandlerSettings.cors.headers(origin),
        }
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
        headers += self.config.response_headers("h11")
        events = [
            h11.Response(status_code=status_code, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        if request is not None and request.method == b"HEAD":
            del events[1]
        try:  # at once: an application that answers meanwhile must not come between
            data = b"".join([self.connection.send(event) or b"" for event in events])
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
        else:
            await self.send(RawData(data=data))

    async def _refuse(self, status: int) -> None:
        await self._send_error_response(status)
        await self.send(Closed())

    async def _serve(self, request: h11.Request, target: bytes) -> None:
        self.stream = HTTPStream(
            self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server,
            self.stream_send, STREAM_ID,
        )  # fmt: skip
        headers = request.headers.raw_items() if self.config.h11_pass_raw_headers else list(request.headers)
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode("ascii"),
                method=request.method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()
