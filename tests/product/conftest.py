"""What the tests of the product service share."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from product_svc.app import Settings, build
from stack.servers import Servers
from tests.product.process import Warehouse, warehouse
from tests.services import NOWHERE, Client, Keys, empty_bus, running, settings_for


@pytest.fixture(scope="package", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    """Events of the tests before are about orders that have no holds here."""
    await empty_bus(servers)


@pytest.fixture(scope="package")
async def here(servers: Servers) -> AsyncIterator[Warehouse]:
    """A process of the service."""
    async with warehouse(servers) as opened:
        yield opened


@pytest.fixture(scope="package")
async def there(servers: Servers) -> AsyncIterator[Warehouse]:
    """Another process of the service."""
    async with warehouse(servers) as opened:
        yield opened


@pytest.fixture(scope="module")
async def client(servers: Servers, keys: Keys) -> AsyncIterator[Client]:
    """A member of staff, as a client of the service."""
    settings = settings_for(Settings, "product", servers, keys, order_target=NOWHERE)
    async with running(build(settings)) as address:
        client = Client(address, "product", keys, token=keys.token("staff", uuid4()))
        yield client
        await client.close()
