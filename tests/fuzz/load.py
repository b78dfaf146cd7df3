"""Makes the connections, several at once, and looks after the server between batches."""

import contextlib
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from raw import Neighbour, linger_none
from servers import HOST, AppServer, redis_client

from .grammar import Plan, http1, http2

LANES = 32
BATCH_CONNECTIONS = 400
# What a connection that is not waited for may bring before it is ended.
LOOK_S = 0.002
# The deadlines that the server under test has; short, so that they can be waited for.
SERVER_DEADLINE_S = 1.0
WAIT_S = 10.0
# RSS after the first tenth is compared with the end.
GROWTH_LIMIT_BYTES = 24 << 20
# One in so many HTTP/1.1 connections is over TLS.
TLS_SHARE = 20

SERVER_SETTINGS = {
    "STALECAST_REQUEST_HEAD_TIMEOUT_S": str(SERVER_DEADLINE_S),
    "STALECAST_KEEP_ALIVE_TIMEOUT_S": str(SERVER_DEADLINE_S),
    "STALECAST_STUCK_TIMEOUT_S": str(SERVER_DEADLINE_S),
    "STALECAST_PUBLISH_TOKEN": "secret",
}


@dataclass
class Report:
    connections: int = 0
    failures: list[str] = field(default_factory=list)
    rss_bytes: dict[str, tuple[int, int]] = field(default_factory=dict)  # by server: early, at the end

    @property
    def failed(self) -> bool:
        return bool(self.failures)


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def run(
    clear: AppServer,
    secure: AppServer,
    redis_url: str,
    *,
    seed: int,
    first: int,
    http1_connections: int,
    http2_connections: int,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """`clear` and `secure`: servers with SERVER_SETTINGS; the second one speaks TLS."""
    report = Report()
    for kind, make, count in (("http1", http1, http1_connections), ("http2", http2, http2_connections)):
        early: dict[str, int] = {}
        for start in range(first, first + count, BATCH_CONNECTIONS):
            numbers = range(start, min(start + BATCH_CONNECTIONS, first + count))
            marks = [(server, len(server.output())) for server in (clear, secure)]
            found: list[str] = []
            with redis_client(redis_url) as writer:
                neighbours = [Neighbour(server, writer) for server in (clear, secure)]
                await _run_batch(clear, secure, kind, seed, numbers, make, found)
                for neighbour in neighbours:
                    try:
                        await trio.to_thread.run_sync(neighbour.check_hears)
                    except (OSError, AssertionError) as error:
                        found.append(f"an innocent client hears nothing: {error!r:.200}")
                    neighbour.close()
            for server, mark in marks:
                found += [line for line in server.output()[mark:].splitlines() if _is_exception(line)]
                if not server.is_running:
                    found.append("the server ended")
                elif server.url not in early and start + len(numbers) >= first + count // 10:
                    early[server.url] = rss_bytes(server.pid)
            report.connections += len(numbers)
            if found:
                again = f"--seed {seed} --first {start} --{kind} {len(numbers)}"
                report.failures += [f"{again}: {one}" for one in dict.fromkeys(found)]
                for one in dict.fromkeys(found):
                    say(f"{again}: {one}")
            if not (clear.is_running and secure.is_running):
                return report
        for server in (clear, secure):
            if server.url in early:
                now = rss_bytes(server.pid)
                report.rss_bytes[f"{kind} {server.url}"] = early[server.url], now
                if now - early[server.url] > GROWTH_LIMIT_BYTES:
                    report.failures.append(
                        f"{kind}: {server.url} grew from {early[server.url]} to {now} bytes"
                    )
    return report


def _is_exception(line: str) -> bool:
    return "_failed" in line or "Traceback" in line or "Error in ASGI" in line


async def _run_batch(
    clear: AppServer,
    secure: AppServer,
    kind: str,
    seed: int,
    numbers: Sequence[int],
    make: Callable[[str], Plan],
    found: list[str],
) -> None:
    todo = iter(numbers)

    async def lane() -> None:
        for number in todo:
            over_tls = kind == "http2" or number % TLS_SHARE == 0
            plan = make(f"{seed} {kind} {number}")
            left_open = await _connect(
                secure if over_tls else clear, plan, "h2" if kind == "http2" else "http/1.1"
            )
            if left_open:
                found.append(f"connection {number} was left open: {left_open}")

    async with trio.open_nursery() as nursery:
        for _ in range(LANES):
            nursery.start_soon(lane)


async def _connect(server: AppServer, plan: Plan, alpn: str) -> str | None:
    """None, or what the server had sent when it should have closed the connection and had not."""
    transport = await trio.open_tcp_stream(HOST, server.port)
    stream: trio.abc.Stream = transport
    received = b""
    try:
        if server.certificate:
            context = ssl.create_default_context(cafile=server.certificate)
            context.set_alpn_protocols([alpn])
            stream = trio.SSLStream(transport, context, server_hostname="localhost", https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(WAIT_S):
            for piece in plan.pieces:
                await stream.send_all(piece)
                await trio.lowlevel.checkpoint()
            match plan.ending:
                case "half_close" if stream is transport:
                    await transport.send_eof()
                    received = await _read(stream, 10 * LOOK_S)
                case "wait":
                    started_s = time.monotonic()
                    received = await _read(stream, WAIT_S)
                    # Streams go on, and so does the wait for a body that was announced.
                    is_open = time.monotonic() - started_s >= WAIT_S
                    sent = b"".join(plan.pieces)
                    lasts = b"event-stream" in received or b"sse" in sent or b"POST" in sent or b"PUT" in sent
                    if is_open and not lasts:
                        return repr(received[:200])
                case "close":
                    await _read(stream, LOOK_S)
                case _:
                    linger_none(transport.socket)
    finally:
        linger_none(transport.socket)
        await trio.aclose_forcefully(transport)
    return None


async def _read(stream: trio.abc.Stream, within_s: float) -> bytes:
    """Up to the end, or so long."""
    received = b""
    with trio.move_on_after(within_s):
        while data := await stream.receive_some(1 << 16):
            received += bytes(data)
    return received
