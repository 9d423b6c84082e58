"""The pool of a process's database connections. The most recently used one is used first.

The driver's own pool wraps each acquire and release in tasks and timeouts, which costs more than a short statement
(ADR-0013). A batch uses a connection for a few milliseconds, so a simple pool is enough.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from mesh.errors import Unavailable

if TYPE_CHECKING:
    import asyncpg

log = structlog.get_logger(__name__)


class Connections:
    """A pool of at most `most` connections, which `connect` opens on demand.

    When all are in use, a caller waits for at most `wait` seconds. A closed connection leaves the pool. If it was in
    use, all idle connections are closed as well: if the server is silent, a caller would wait for each of them in turn.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection]], *, most: int, wait: float) -> None:
        self._connect = connect
        self._most = most
        self._wait = wait
        self._open: set[asyncpg.Connection] = set()
        self._opening = 0
        self._idle: list[asyncpg.Connection] = []
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def one(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection for the block. Raises Unavailable if none becomes free in time or can be opened."""
        connection = self._take_idle()
        if connection is None:
            try:
                connection = await self._take()
            except Exception as error:
                # No statement was sent, so no error can be a fault of the work.
                log.warning("no connection to the database", error=repr(error))
                raise Unavailable("the database does not answer") from error
        try:
            yield connection
        finally:
            self._release(connection)

    async def close(self, timeout: float) -> None:
        """Close all connections. Those in use get `timeout` seconds to be released, and are then terminated."""
        try:
            async with asyncio.timeout(timeout):
                while self._open or self._opening:
                    while connection := self._take_idle():
                        self._open.discard(connection)
                        await connection.close()
                    if self._open or self._opening:
                        await self._turn()
        except TimeoutError:
            for connection in self._open:
                connection.terminate()

    def _take_idle(self) -> asyncpg.Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._open.discard(connection)
        return None

    async def _take(self) -> asyncpg.Connection:
        async with asyncio.timeout(self._wait):
            while True:
                if connection := self._take_idle():
                    return connection
                if len(self._open) + self._opening < self._most:
                    return await self._new()
                await self._turn()

    async def _new(self) -> asyncpg.Connection:
        self._opening += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._wake()
            raise
        finally:
            self._opening -= 1
        self._open.add(connection)
        return connection

    def _release(self, connection: asyncpg.Connection) -> None:
        if connection.is_closed():
            self._open.discard(connection)
            while idle := self._take_idle():
                self._open.discard(idle)
                idle.terminate()
        else:
            self._idle.append(connection)
        self._wake()

    async def _turn(self) -> None:
        """Wait until a connection may be free."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                # This caller was woken but gives up, so wake the next one.
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
