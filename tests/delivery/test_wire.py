"""The checker's own reader: what an event stream must not contain, it must see."""

from __future__ import annotations

import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from .oracle import Item, Position, Retry
from .plan import Kind, Transport
from .processes import Certificate
from .wire import BlockReader, Exchange, WrongBytes, _Http2

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
DATA = b'data: {"event":"position","data":{}}\n\n'
FIRST = b"retry: 5\nevent: position\nid: 1-0\n" + DATA
READ = [Retry(1.0), Position(1.0, "1-0")]


def read(*blocks: bytes) -> list[Item]:
    return BlockReader().feed(b"".join(blocks), 1.0)


def ask(transport: Transport, context: ssl.SSLContext | None = None) -> Exchange:
    return Exchange("t", "5-0", Kind(in_query=True), transport, context)


def feed_bytewise(exchange: Exchange, data: bytes) -> list[Item]:
    return [item for byte in data for item in exchange.feed(bytes([byte]), 1.0)]


def test_a_position_is_read_with_or_without_an_id() -> None:
    assert read(FIRST, b":\n", b"event: position\n" + DATA) == READ


def test_http1_is_read_byte_by_byte() -> None:
    exchange = ask(Transport.CLEAR)
    assert exchange.take_output().startswith(b"GET /v1/sse/t?lastEventId=5-0 HTTP/1.1\r\n")
    assert feed_bytewise(exchange, HEAD + b"%x\r\n%b\r\n" % (len(FIRST), FIRST)) == READ
    assert not exchange.complete
    feed_bytewise(exchange, b"0\r\n\r\n")
    assert exchange.complete
    with pytest.raises(WrongBytes):
        exchange.feed(b"x", 1.0)


def answer_http2(server: h2.connection.H2Connection, request: bytes) -> bytes:
    (asked,) = (one for one in server.receive_data(request) if isinstance(one, h2.events.RequestReceived))
    assert dict(asked.headers)[b":path"] == b"/v1/sse/t?lastEventId=5-0"
    server.send_headers(asked.stream_id, [(":status", "200")])
    server.send_data(asked.stream_id, FIRST)
    return server.data_to_send()


def test_http2_is_read_over_tls(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.certfile, certificate.keyfile)
    context.set_alpn_protocols(["h2", "http/1.1"])
    tls = context.wrap_bio(there, back, server_side=True)
    exchange = ask(Transport.HTTP2, ssl.create_default_context(cafile=str(certificate.certfile)))
    for _ in range(2):
        there.write(exchange.take_output())
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            exchange.feed(back.read(), 1.0)
    exchange.feed(back.read(), 1.0)
    there.write(exchange.take_output())
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    tls.write(answer_http2(server, tls.read()))
    assert feed_bytewise(exchange, back.read()) == READ
    assert exchange.status == 200
    assert not exchange.complete
    server.end_stream(1)
    tls.write(server.data_to_send())
    assert exchange.feed(back.read(), 1.0) == []
    assert exchange.complete


def test_a_reset_stream_is_a_broken_connection_and_no_http2_is_wrong() -> None:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    http = _Http2()
    http.ask("/v1/sse/t?lastEventId=5-0", [])
    assert http.feed(answer_http2(server, http.take_output())) == FIRST
    server.reset_stream(1)
    with pytest.raises(ConnectionResetError):
        http.feed(server.data_to_send())
    with pytest.raises(WrongBytes):
        http.feed(b"\0\0\1\0\0\0\0\0\0x")  # DATA of no stream


@pytest.mark.parametrize(
    "block",
    [
        b"retry: 5\n\n",
        b"id: 1-0\n\n",
        b":\n\n",
        b"event: position\nid: 1-0\n\n",
        b"id: 1-0\n" + DATA,
        DATA,
        b'event: position\nid: 1-0\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n',
        b'event: position\nid: 1-0\ndata: {"event":"position","data":{"id":"1"}}\n\n',
        b'event: other\nid: 1-0\ndata: {"event":"reload_required","data":{"reason":"trimmed"}}\n\n',
    ],
)
def test_what_some_client_would_pass_over_or_stumble_on_is_wrong(block: bytes) -> None:
    with pytest.raises(WrongBytes):
        read(block)
