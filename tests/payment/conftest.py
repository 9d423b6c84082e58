"""What the tests of the payment service share: its database, over which a test starts processes, and an empty bus."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from mesh.db.database import Database
from stack.servers import Servers
from tests.payment.process import House
from tests.services import empty_bus


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    await empty_bus(servers)


@pytest.fixture
async def house(servers: Servers) -> AsyncIterator[House]:
    """The payment service's database, over which a test starts processes."""
    url = servers.postgres.url_for("payment_svc")
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        sandbox_database = Database(url, max_connections=4)
        await sandbox_database.start()
        stack.push_async_callback(sandbox_database.stop)
        yield House(url, connection, stack, sandbox_database)
