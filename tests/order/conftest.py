"""The database of orders with no service at work on it, and all four services."""

from collections.abc import AsyncIterator

import pytest

from mesh.db.database import Database
from stack.servers import Servers
from tests.mesh.house import Buyer, House, house
from tests.services import Keys, migrated


@pytest.fixture(scope="package")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """Opened with a few connections. The tests of the folder share it."""
    async with Servers.started(tmp_path_factory.mktemp("orders"), only={"postgres"}) as servers:
        await migrated(servers)
        opened = Database(servers.postgres.url_for("order_svc"), max_connections=4)
        await opened.start()
        yield opened
        await opened.stop()


@pytest.fixture(scope="module")
async def mesh(servers: Servers, keys: Keys) -> AsyncIterator[House]:
    """All four services, shared by the tests of this module."""
    async with house(servers, keys) as running:
        yield running


@pytest.fixture
async def buyer(mesh: House) -> Buyer:
    """A customer with a payment method."""
    return await mesh.buyer("tok_visa")
