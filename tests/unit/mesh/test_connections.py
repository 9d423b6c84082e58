"""The connection pool: it opens few connections, makes callers wait when all are in use, and drops broken ones."""

from __future__ import annotations

import asyncio
from typing import cast

import asyncpg
import pytest

from mesh.db.connections import Connections
from mesh.errors import Unavailable
from tests.services import TEST_TIMEOUT_S


class Connection:
    """The part of a connection that `Connections` uses."""

    def __init__(self) -> None:
        self.closed = False

    def is_closed(self) -> bool:
        """Whether the connection is closed."""
        return self.closed

    async def close(self) -> None:
        """Close the connection."""
        self.closed = True

    def terminate(self) -> None:
        """Terminate the connection."""
        self.closed = True


class Server:
    """A fake server that opens connections."""

    def __init__(self) -> None:
        self.made: list[Connection] = []
        self.is_down = False

    async def connect(self) -> asyncpg.Connection:
        """Open a connection."""
        if self.is_down:
            raise ConnectionRefusedError
        self.made.append(Connection())
        return cast("asyncpg.Connection", self.made[-1])


async def test_released_connection_is_used_again(server: Server) -> None:
    connections = Connections(server.connect, most=4, wait=TEST_TIMEOUT_S)
    for _ in range(3):
        async with connections.one():
            pass
    assert len(server.made) == 1


async def test_caller_waits_for_a_connection_until_the_timeout(server: Server) -> None:
    hasty, connections = (Connections(server.connect, most=1, wait=wait) for wait in (0.05, TEST_TIMEOUT_S))
    async with hasty.one():
        with pytest.raises(Unavailable):
            async with hasty.one():
                pass
    async with connections.one() as mine:
        waiting = asyncio.create_task(use(connections))
        await asyncio.sleep(0)
    assert await waiting is mine
    assert len(server.made) == 2, "one of each pool"


async def test_idle_connection_that_was_closed_is_replaced(server: Server) -> None:
    connections = Connections(server.connect, most=1, wait=TEST_TIMEOUT_S)
    await use(connections)
    server.made[0].closed = True
    async with connections.one():
        server.made[1].closed = True
    await use(connections)
    assert len(server.made) == 3


async def test_idle_connections_are_closed_when_one_in_use_is_lost(server: Server) -> None:
    connections = Connections(server.connect, most=4, wait=TEST_TIMEOUT_S)
    async with connections.one(), connections.one(), connections.one():
        pass
    async with connections.one() as used:
        used.terminate()
    assert [each.closed for each in server.made] == [True] * 3
    await asyncio.gather(*(use(connections) for _ in range(4)))
    assert not server.made[-1].closed


async def test_failed_connection_attempt_takes_no_place_in_the_pool(server: Server) -> None:
    connections = Connections(server.connect, most=1, wait=TEST_TIMEOUT_S)
    server.is_down = True
    for _ in range(3):
        with pytest.raises(Unavailable):
            await use(connections)
    server.is_down = False
    await use(connections)


async def test_cancelled_caller_leaves_a_released_connection_to_the_next(server: Server) -> None:
    connections = Connections(server.connect, most=1, wait=TEST_TIMEOUT_S)
    async with connections.one():
        first, second = (asyncio.create_task(use(connections)) for _ in range(2))
        await asyncio.sleep(0)
    first.cancel()
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_close_waits_for_connections_in_use_and_terminates_them_after_the_timeout(server: Server) -> None:
    connections = Connections(server.connect, most=2, wait=TEST_TIMEOUT_S)
    async with connections.one():
        closing = asyncio.create_task(connections.close(timeout=TEST_TIMEOUT_S))
        await asyncio.sleep(0)
        assert not closing.done()
    await closing
    async with connections.one():
        await connections.close(timeout=0.01)
    assert [each.closed for each in server.made] == [True, True]


async def use(connections: Connections) -> asyncpg.Connection:
    """Acquire a connection and release it."""
    async with connections.one() as connection:
        return connection


@pytest.fixture
def server() -> Server:
    return Server()
