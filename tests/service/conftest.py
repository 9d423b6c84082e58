"""What the tests of services share: each module finds the bus as a new mesh does."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import asyncpg
import nats
import pytest

from mesh.db.database import Database
from stack.servers import Servers
from tests.service.consuming import Publisher
from tests.service.payments import House
from tests.service.runtime import Process, Scratch, new_area, process, scratch_database


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    """No stream and no consumer is left of the modules before: their orders and payments are nobody's here."""
    client = await nats.connect(servers.nats.url)
    try:
        context = client.jetstream()
        for stream in await context.streams_info():
            assert stream.config.name is not None
            await context.delete_stream(stream.config.name)
    finally:
        await client.close()


@pytest.fixture(scope="module")
async def scratch(servers: Servers) -> AsyncIterator[Scratch]:
    """A database with the runtime's tables, for the tests of one module."""
    async with scratch_database(servers) as made:
        yield made


@pytest.fixture(scope="module")
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    """A process over that database, whose relay does not run; a module may have one of its own kind."""
    async with process(scratch, servers) as started:
        await started.bus.connected()
        yield started


@pytest.fixture
async def nothing_yet(scratch: Scratch) -> None:
    """Nothing of the tests before is in the database."""
    await scratch.empty()


@pytest.fixture
async def publish(here: Process, servers: Servers) -> AsyncIterator[Publisher]:
    """Publishes events of an area of the test's own; `here` is where they are consumed."""
    area = new_area()
    await here.bus.ensure_stream_of(area)
    client = await nats.connect(servers.nats.url)
    yield Publisher(client, area)
    await client.close()


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
