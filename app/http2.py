"""HTTP/2 on top of Hypercorn's: the same streams, without what a client could do to the connection or to us.

Against Hypercorn's own: nothing that a client sends raises (DATA behind the response's end, a path that is no
ASCII, CONNECT, priorities of a thousand streams); there are no WebSockets; a stream that was reset before it
was begun to be served is never served; waiting for a client's window has a limit; and what brings nothing is
paid for from a budget (http2_limits.py).

Only this file and http11.py know the insides of `hypercorn.protocol`; serving.py puts them in place.
"""

# Hypercorn's and h2's own types leave much unsaid, and what is overridden is not meant to be:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateImportUsage=false
# pyright: reportPrivateUsage=false
import contextlib
import re
from collections import OrderedDict
from typing import Any, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import priority
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import (
    BUFFER_HIGH_WATER,
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import Frame, RstStreamFrame

from app.contain import report_refused
from app.handler_settings import CLOSE_TIMEOUT_S, CONNECTION_STATE_KEY, HandlerSettings
from app.http2_limits import FrameMeter, TooMuch

# A client may still send the body of a request that has its answer (curl does). So much of it is thrown away;
# then the stream is reset with NO_ERROR, which asks it to stop (RFC 9113, section 8.1).
DISCARD_LIMIT_BYTES: Final = 1 << 20
# Our own table of header fields is no larger than the protocol's default, whatever the client allows: it
# grows with every answer, and each field is searched for in it.
HEADER_TABLE_LIMIT_BYTES: Final = 4096
# RFC 9110, sections 5.6.2 (token) and 9.1; RFC 9113, section 8.3.1 (a path begins with a slash).
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH: Final = re.compile(rb"/[!-~]*")
_HOST: Final = re.compile(rb"[!-~]*")


class RoundRobin:
    """Streams that have something to send take turns. In the place of `priority.PriorityTree`, whose shape a
    client decides, up to an exception; RFC 9113 (5.3.2) has given its priorities up."""

    def __init__(self) -> None:
        self._ready: OrderedDict[int, None] = OrderedDict()
        self._blocked: set[int] = set()

    def insert_stream(self, stream_id: int) -> None:
        """Blocked: it has nothing to send yet."""
        self._blocked.add(stream_id)

    def remove_stream(self, stream_id: int) -> None:
        self._ready.pop(stream_id, None)
        self._blocked.discard(stream_id)

    def block(self, stream_id: int) -> None:
        if stream_id in self._ready:
            del self._ready[stream_id]
            self._blocked.add(stream_id)

    def unblock(self, stream_id: int) -> None:
        if stream_id in self._blocked:
            self._blocked.discard(stream_id)
            self._ready[stream_id] = None

    def __next__(self) -> int:
        """Raises priority.DeadlockError when nobody has anything to send."""
        for stream_id in self._ready:
            self._ready.move_to_end(stream_id)
            return stream_id
        raise priority.DeadlockError


class BoundedStreamBuffer(StreamBuffer):
    """`push` waits while the peer's window is shut. (Hypercorn's own lets a push through at every turn of the
    sending task: a client with a window of zero grew it by 1.2 MB/s.)"""

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        while len(self.buffer) >= BUFFER_HIGH_WATER and not self._complete:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


assert callable(h2.connection.H2Connection._prepare_for_sending)
assert h2.connection.H2Connection.MAX_CLOSED_STREAMS


class _Connection(h2.connection.H2Connection):
    """Counts the resets that it sends by itself, and remembers fewer streams that have ended (each takes 100
    bytes, and 65,536 of them are kept otherwise)."""

    MAX_CLOSED_STREAMS = 1024

    def __init__(self, config: Any) -> None:
        super().__init__(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.resets_sent = 0
        self.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: config.h2_max_concurrent_streams,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: config.h2_max_header_list_size,
            },
        )
        self.decoder.max_header_list_size = config.h2_max_header_list_size

    def _prepare_for_sending(self, frames: list[Frame]) -> None:
        self.resets_sent += sum(isinstance(frame, RstStreamFrame) for frame in frames)
        super()._prepare_for_sending(frames)


class Http2(H2Protocol):
    """The promises of this class are the module's."""

    streams: dict[int, Any]  # HTTPStream only

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        vars(self.connection).clear()  # it refers to itself, and would wait for the collector
        self.connection = _Connection(self.config)
        self.priority: Any = RoundRobin()
        self._meter = FrameMeter(trio.current_time())
        self._unanswered: set[int] = set()  # streams that are served, and whose head was not sent yet
        self._discarded: dict[int, int] = {}  # bytes, of bodies that nobody reads any more

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            if not self.closed:
                await self._receive(event.data)
        elif isinstance(event, Closed):
            self.closed = True
            for stream_id in list(self.streams):
                await self._close_stream(stream_id)
            for stream_id in list(self.stream_buffers):
                await self._drop(stream_id)
            await self.has_data.set()

    async def _receive(self, data: bytes) -> None:
        try:
            self._meter.feed(data, trio.current_time())
            events = self.connection.receive_data(data)
            for _ in range(self._take_resets_sent()):
                self._meter.reset_again()
            await self._handle_events(events)
            handler: Any = self.connection_state.get(CONNECTION_STATE_KEY)
            if handler is not None:
                handler.expect_rest(is_owed=self._meter.in_header_block)
        except TooMuch as error:
            report_refused(f"http2_{error.reason}")
            await self._go_away(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        except h2.exceptions.ProtocolError:
            # h2 has its GOAWAY ready, if it did not break on our own part.
            await self._flush()
            await self.send(Closed())

    def _take_resets_sent(self) -> int:
        resets, self.connection.resets_sent = self.connection.resets_sent, 0
        return resets

    async def _go_away(self, code: h2.errors.ErrorCodes) -> None:
        self.connection.clear_outbound_data_buffer()  # e.g. thousands of answers to pings
        self.connection.close_connection(code)
        await self._flush()
        await self.send(Closed())

    # -- what the client sends

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        # All of one read has been parsed by now: who has left again is not let in.
        reset = {one.stream_id for one in events if isinstance(one, h2.events.StreamReset)}
        for event in events:
            if self.closed:
                return
            match event:
                case h2.events.RequestReceived(stream_id=int(stream_id), headers=headers):
                    if stream_id not in reset:
                        await self._begin(stream_id, [(bytes(n), bytes(v)) for n, v in headers or ()])
                case h2.events.DataReceived():
                    await self._take_body(event)
                case h2.events.StreamEnded(stream_id=int(stream_id)):
                    if stream_id in self.streams:
                        await self.streams[stream_id].handle(EndBody(stream_id=stream_id))
                    self._discarded.pop(stream_id, None)
                case h2.events.StreamReset(stream_id=int(stream_id)):
                    await self._take_reset(event, stream_id)
                case h2.events.WindowUpdated(stream_id=stream_id):
                    await self._window_updated(stream_id)
                case h2.events.RemoteSettingsChanged(changed_settings=changed):
                    if h2.settings.SettingCodes.INITIAL_WINDOW_SIZE in changed:
                        await self._window_updated(None)
                    encoder = self.connection.encoder
                    if encoder.header_table_size > HEADER_TABLE_LIMIT_BYTES:
                        encoder.header_table_size = HEADER_TABLE_LIMIT_BYTES
                case h2.events.ConnectionTerminated():
                    await self.send(Closed())
                case _:
                    pass  # priorities, pings (h2 answers them), trailers, frames of extensions
        await self._flush()

    async def _begin(self, stream_id: int, headers: list[tuple[bytes, bytes]]) -> None:
        if self.context.terminated.is_set():
            # Nothing of it was done: a client may ask elsewhere (RFC 9113, section 8.7).
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        pseudo = dict(headers)
        method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        host = pseudo.get(b":authority", pseudo.get(b"host", b""))
        if method == b"CONNECT":
            self._refuse(stream_id, b"501")  # no tunnels, no WebSockets (RFC 8441)
        elif not (_METHOD.fullmatch(method) and _PATH.fullmatch(path) and _HOST.fullmatch(host)):
            self._refuse(stream_id, b"400")
        else:
            await self._serve(stream_id, method.decode("ascii").upper(), path, headers)

    def _refuse(self, stream_id: int, status: bytes) -> None:
        headers = [(b":status", status), (b"content-length", b"0"), *self.config.response_headers("h2")]
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the stream is closed already
            self.connection.send_headers(stream_id, headers, end_stream=True)

    async def _serve(
        self, stream_id: int, method: str, path: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        stream = HTTPStream(
            self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server,
            self.stream_send, stream_id,
        )  # fmt: skip
        self.streams[stream_id] = stream
        self.stream_buffers[stream_id] = BoundedStreamBuffer(self.context.event_class)
        self._unanswered.add(stream_id)
        self.priority.insert_stream(stream_id)
        await self.send(Updated(idle=False))
        await stream.handle(
            Request(
                stream_id=stream_id,
                headers=filter_pseudo_headers(headers),
                http_version="2",
                method=method,
                raw_path=path,
                state=self.connection_state,
            )
        )
        await self.context.mark_request()

    async def _take_body(self, event: h2.events.DataReceived) -> None:
        stream_id, size = event.stream_id, event.flow_controlled_length or 0
        assert stream_id is not None
        if stream_id in self.streams:
            await self.streams[stream_id].handle(Body(stream_id=stream_id, data=event.data or b""))
        elif stream_id in self._discarded:
            self._discarded[stream_id] += size
            if self._discarded[stream_id] > DISCARD_LIMIT_BYTES:
                del self._discarded[stream_id]
                self._reset(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        self.connection.acknowledge_received_data(size, stream_id)

    async def _take_reset(self, event: h2.events.StreamReset, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        answered = stream_id in self._discarded or (stream is not None and stream_id not in self._unanswered)
        if not (event.remote_reset and answered):
            self._meter.reset()
        self._discarded.pop(stream_id, None)
        if stream is not None:
            await self._close_stream(stream_id)
            await self._drop(stream_id)
            await self.send(Updated(idle=self.idle))

    # -- what the application sends

    async def stream_send(self, event: StreamEvent) -> None:
        """Returns once it is on its way; when the client does not take it in time, its stream is reset."""
        self._unanswered.discard(event.stream_id)
        with trio.move_on_after(HandlerSettings.send_timeout_s) as bound:
            await super().stream_send(event)
            if isinstance(event, EndBody):
                # A stream's end is on its way before anything follows from it: at a drain Hypercorn would
                # close the connection (GOAWAY) over the END_STREAM that its sending task has yet to write.
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    while event.stream_id in self.stream_buffers:
                        await self.has_data.set()
                        await trio.lowlevel.checkpoint()
        if isinstance(event, StreamClosed) or bound.cancelled_caught:
            await self._finish(event.stream_id)

    async def _finish(self, stream_id: int) -> None:
        """The application has no more to say. If it did not end the stream, an error did."""
        stream = self.connection.streams.get(stream_id)
        if stream_id in self.stream_buffers:
            await self._drop(stream_id)
            self._reset(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            await self._flush()
        elif stream is not None and not stream.closed:
            self._discarded.setdefault(stream_id, 0)  # its client still sends the request

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it, or the connection, is closed already
            self.connection.reset_stream(stream_id, code)
        self._take_resets_sent()  # not the client's doing

    async def _drop(self, stream_id: int) -> None:
        self.priority.remove_stream(stream_id)
        self._unanswered.discard(stream_id)
        buffer = self.stream_buffers.pop(stream_id, None)
        if buffer is not None:
            await buffer.close()

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None:
            self.priority.remove_stream(stream_id)
            return
        try:
            window = self.connection.local_flow_control_window(stream_id)
            data = await buffer.pop(max(0, min(window, self.connection.max_outbound_frame_size)))
            if data:
                self.connection.send_data(stream_id, data)
                self._meter.sent_data()
                await self._flush()
            else:
                self.priority.block(stream_id)
            if buffer.complete and stream_id in self.stream_buffers:
                self.connection.end_stream(stream_id)
                await self._flush()
                await self._drop(stream_id)
        except h2.exceptions.ProtocolError:
            await self._drop(stream_id)  # the stream, or the connection, was closed meanwhile
