"""Each module finds the bus as a new mesh does."""

import pytest

from stack.servers import Servers
from tests.services import empty_bus


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    await empty_bus(servers)
