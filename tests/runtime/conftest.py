"""Fixtures for the tests of the runtime: a database with its tables, a process that uses it, and an empty bus."""

from collections.abc import AsyncIterator

import nats
import pytest

from stack.servers import Servers
from tests.runtime.consuming import Publisher
from tests.runtime.process import Process, Scratch, new_area, process, scratch_database
from tests.services import empty_bus


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    await empty_bus(servers)


@pytest.fixture(scope="module")
async def scratch(servers: Servers) -> AsyncIterator[Scratch]:
    """A database with the runtime's tables, for the tests of one module."""
    async with scratch_database(servers) as made:
        yield made


@pytest.fixture(scope="module")
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    """A process that uses that database. Its relay does not run. A module may define its own."""
    async with process(scratch, servers) as started:
        await started.bus.connected()
        yield started


@pytest.fixture
async def nothing_yet(scratch: Scratch) -> None:
    """Delete all rows of earlier tests."""
    await scratch.empty()


@pytest.fixture
async def publish(here: Process, servers: Servers) -> AsyncIterator[Publisher]:
    """Publishes events of an area that only this test uses."""
    area = new_area()
    await here.bus.ensure_stream_of(area)
    client = await nats.connect(servers.nats.url)
    yield Publisher(client, area)
    await client.close()
