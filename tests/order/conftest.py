"""The database of orders, with no service at work on it."""

from collections.abc import AsyncIterator

import pytest

from mesh.db.database import Database
from stack.servers import Servers
from tests.services import migrated


@pytest.fixture(scope="package")
async def database(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """Opened with a few connections. The tests of the folder share it."""
    async with Servers.started(tmp_path_factory.mktemp("orders"), only={"postgres"}) as servers:
        await migrated(servers)
        opened = Database(servers.postgres.url_for("order_svc"), max_connections=4)
        await opened.start()
        yield opened
        await opened.stop()
