"""What the tests of the product service share."""

from collections.abc import AsyncIterator

import pytest

from stack.servers import Servers
from tests.product.process import Warehouse, warehouse
from tests.services import empty_bus


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
