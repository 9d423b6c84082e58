"""Changes to nats-py. Checked with nats-py 2.16.

1. `flush` writes its PING ahead of buffered data, so the PONG does not prove that the server has received that data,
   and `drain` discards messages that arrive before the server has ended the subscription. Here the PING joins the
   buffer. Remove it when nats-py sends the PING as it sends every other command.
2. A PONG whose PING was given up (its future cancelled by a timeout) raises in the reader and stops it: the connection
   receives nothing until two of the client's own PINGs time out. Remove it when `_process_pong` skips such futures.
3. The parser of headers checks every character of every name in Python. Here it costs a third of that. Remove it when
   the parser of nats-py has no loop over characters.

`send` is an addition: nats-py has no public method that sends many messages in one write.
`RawReader` is another: nats-py takes 40 µs for a message, which is too much to read millions of them.
The tests in `tests/runtime/test_nats_patches.py` fail when one of these stops working, or is no longer needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache

import nats.errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

_BLANKS = " \t\n\r\v\f"


class NatsClient(Client):
    """The client of nats-py with these changes."""

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send serialized messages in one write. They are buffered while the client reconnects.

        Raises ConnectionClosedError, ConnectionDrainingError, MaxPayloadError, or OutboundBufferLimitError if the
        buffer is full.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats.errors.ConnectionDrainingError
        if any(len(frame) > self.max_payload for frame in frames):
            raise nats.errors.MaxPayloadError
        data = b"".join(frames)
        if not data:
            return
        if not self.is_connected and self._pending_data_size + len(data) > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        await self._send_command(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        fields = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n"))
        return {
            name: value.strip(_BLANKS)
            for text, colon, value in fields
            if colon and (name := _name_in(text)) is not None
        }

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class RawReader(NatsClient):
    """A client that reads the messages of one subscription as bytes, for a tenth of the time."""

    def __init__(self) -> None:
        super().__init__()
        self._ps = self._raw = _RawParser(self)

    def read_raw(self, subscription: Subscription, read: Callable[[bytes, bytes, bytes], None]) -> None:
        """Call `read` with the subject, the reply subject and the headers of each message of a subscription.

        Its callback gets only messages without headers.
        """
        self._raw.sid, self._raw.read = str(subscription._id).encode(), read  # noqa: SLF001 - it has no public name

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # What arrives together with something else is parsed by nats-py.
        if headers and str(sid).encode() == self._raw.sid:
            self._raw.read(subject, reply, headers)
        else:
            await super()._process_msg(sid, subject, reply, data, headers)


class _RawParser(Parser):
    """Passes on the messages of one subscription, and leaves everything else to the parser of nats-py."""

    def __init__(self, client: NatsClient) -> None:
        super().__init__(client)
        self.sid = b""
        self.read: Callable[[bytes, bytes, bytes], None] = lambda *_: None
        self._left = b""
        """The beginning of a message that is not complete."""

    async def parse(self, data: bytes = b"") -> None:
        """Parse what has arrived."""
        if not self.buf:
            data = self._left + data
            data = data[self._pass_on(data) :]
            is_begun = data.startswith(b"HMSG ") and self._is_ours(data)
            self._left = data if is_begun else b""
            if is_begun:
                return
        if data:
            await super().parse(data)

    def _is_ours(self, data: bytes) -> bool:
        """Whether an incomplete message is of the subscription, or may be."""
        words = data[: data.find(b"\r\n")].split(b" ", 3) if b"\r\n" in data else [b"", b"", self.sid]
        return words[2] == self.sid

    def _pass_on(self, data: bytes) -> int:
        """Pass on the complete messages at the beginning of the data. Returns their length."""
        position = 0
        while data.startswith(b"HMSG ", position):
            line_end = data.find(b"\r\n", position)
            # HMSG <subject> <sid> <reply> <size of headers> <size of all>
            words = data[position:line_end].split(b" ") if line_end > 0 else []
            if len(words) < 5 or words[2] != self.sid:
                break
            begin = line_end + 2
            end = begin + int(words[-1]) + 2
            if end > len(data):
                break
            self.read(words[1], words[3] if len(words) == 6 else b"", data[begin : begin + int(words[-2])])
            position = end
        return position


@lru_cache(maxsize=256)
def _name_in(text: str) -> str | None:
    """The header name in the text before a colon, or None if the text is not a valid name."""
    name = text.strip(_BLANKS)
    return name if name.isascii() and name == "".join(name.split()) else None
