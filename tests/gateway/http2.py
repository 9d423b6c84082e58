"""An HTTP/2 client for attacks and watches: it ends requests, reads responses and resets streams only as told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.errors
import h2.events

_FRAME = 16 * 1024


class Connection:
    """A connection to the edge."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_reading: bool) -> None:
        self.statuses: dict[int, int] = {}
        """The HTTP status of each response, by stream."""
        self.over: set[int] = set()
        """The streams that the edge has ended or reset."""
        self.streams_allowed = 0
        """How many concurrent streams the edge allows."""
        self.received: dict[int, bytes] = {}
        """The bytes of each response so far, by stream."""
        self._is_reading = is_reading
        self._reader, self._writer = reader, writer
        self._changed = asyncio.Condition()
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))

    async def begin(
        self, path: str, *, token: str = "", verb: str = "POST", content_type: str = "application/json"
    ) -> int:
        """Send the headers of a request that has a body, and return its stream. Waits while all streams are in use."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._http.open_outbound_streams < self.streams_allowed)
        stream: int = self._http.get_next_available_stream_id()
        headers = [(":method", verb), (":path", path), (":scheme", "http"), (":authority", "edge")]
        headers += [("content-type", content_type), ("te", "trailers")]
        if token:
            headers.append(("authorization", f"Bearer {token}"))
        self._http.send_headers(stream, headers)
        await self._flush()
        return stream

    async def get(self, path: str, *, token: str = "") -> int:
        """Send a request without a body, and return its stream. Waits while all streams are in use."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._http.open_outbound_streams < self.streams_allowed)
        stream: int = self._http.get_next_available_stream_id()
        headers = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "edge")]
        if token:
            headers.append(("authorization", f"Bearer {token}"))
        self._http.send_headers(stream, headers, end_stream=True)
        await self._flush()
        return stream

    async def send(self, stream: int, size: int) -> None:
        """Send `size` bytes of a body as fast as the edge accepts them, until the stream is over."""
        while size and stream not in self.over:
            part = min(size, _FRAME, self._http.local_flow_control_window(stream))
            if part:
                self._http.send_data(stream, b" " * part)
                size -= part
                await self._flush()
            else:
                async with self._changed:
                    await self._changed.wait()

    async def line(self, stream: int, condition: Callable[[bytes], bool] = bool) -> bytes:
        """Wait for the first line of a response that meets a condition. Returns nothing if the stream ends without."""

        def found() -> bytes | None:
            lines = self.received.get(stream, b"").split(b"\n")[:-1]
            return next(filter(condition, lines), b"" if stream in self.over else None)

        async with self._changed:
            await self._changed.wait_for(lambda: found() is not None)
        return found() or b""

    async def reset(self, stream: int) -> None:
        """Leave a stream, with RST_STREAM."""
        self._http.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        await self._flush()

    async def until_over(self, stream: int) -> None:
        """Wait until the edge has ended or reset a stream."""
        async with self._changed:
            await self._changed.wait_for(lambda: stream in self.over)

    async def ended(self, count: int) -> None:
        """Wait until so many streams are over."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.over) >= count)

    async def greet(self) -> None:
        """Exchange settings."""
        self._http.initiate_connection()
        await self._flush()
        async with self._changed:
            await self._changed.wait_for(lambda: self.streams_allowed)

    async def listen(self) -> None:
        """Process what the edge sends, until it closes the connection."""
        while data := await self._reader.read(_FRAME):
            for event in self._http.receive_data(data):
                if isinstance(event, h2.events.RemoteSettingsChanged):
                    self.streams_allowed = self._http.remote_settings.max_concurrent_streams
                elif isinstance(event, h2.events.ResponseReceived):
                    self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
                elif isinstance(event, h2.events.DataReceived):
                    self.received[event.stream_id] = self.received.get(event.stream_id, b"") + event.data
                    if self._is_reading:
                        self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    self.over.add(event.stream_id)
            await self._flush()
            async with self._changed:
                self._changed.notify_all()

    async def _flush(self) -> None:
        self._writer.write(self._http.data_to_send())
        await self._writer.drain()


@asynccontextmanager
async def connected(target: str, *, is_reading: bool = False) -> AsyncIterator[Connection]:
    """A connection to `target`, host and port.

    Unless it is reading, it never widens its window, so the edge can send 64 KiB in all.
    """
    host, _, port = target.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    connection = Connection(reader, writer, is_reading=is_reading)
    listening = asyncio.create_task(connection.listen())
    try:
        await connection.greet()
        yield connection
    finally:
        listening.cancel()
        writer.close()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await listening
