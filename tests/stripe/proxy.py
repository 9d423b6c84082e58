"""A TCP proxy that loses replies."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class LossyProxy:
    """Forwards connections to `target`, a URL. A reply to a request that begins with `lose` is lost: it comes from the
    server, and the connection breaks before the client has a byte of it. So it goes `times` times.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._connections: set[asyncio.Task[None]] = set()
        self.lose = b""
        self.times = 0
        self.lost = 0
        """How many replies were lost."""

    async def __aenter__(self) -> LossyProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def lose_replies(self, to: bytes, *, times: int = 1) -> None:
        """Lose the replies to the next requests that begin with `to`."""
        self.lose, self.times = to, times

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        doomed = asyncio.Event()
        pumps = [
            asyncio.create_task(self._requests(reader, upstream_writer, doomed)),
            asyncio.create_task(self._replies(upstream_reader, writer, doomed)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in (writer, upstream_writer):
                each.transport.abort()
            self._connections.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if self.times and data.startswith(self.lose):
                self.times -= 1
                doomed.set()
            to.write(data)
            await to.drain()

    async def _replies(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, doomed: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if doomed.is_set():
                self.lost += 1
                return
            to.write(data)
            await to.drain()
