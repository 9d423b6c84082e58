"""Changes to nats-py. Checked with nats-py 2.16.

1. `flush` writes its PING ahead of buffered data, so the PONG does not prove that the server has received that data,
   and `drain` discards messages that arrive before the server has ended the subscription. Here the PING joins the
   buffer. Remove it when nats-py sends the PING as it sends every other command.
2. A PONG whose PING was given up (its future cancelled by a timeout) raises in the reader and stops it: the connection
   receives nothing until two of the client's own PINGs time out. Remove it when `_process_pong` skips such futures.
3. The parser of headers checks every character of every name in Python. Here it costs a third of that. Remove it when
   the parser of nats-py has no loop over characters.

`send` is an addition: nats-py has no public method that sends many messages in one write.
The tests in `tests/runtime/test_nats_patches.py` fail when one of these stops working, or is no longer needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import lru_cache

import nats.errors
from nats.aio.client import PING_PROTO, Client

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


@lru_cache(maxsize=256)
def _name_in(text: str) -> str | None:
    """The header name in the text before a colon, or None if the text is not a valid name."""
    name = text.strip(_BLANKS)
    return name if name.isascii() and name == "".join(name.split()) else None
