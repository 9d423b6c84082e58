"""What all tests share: the real servers, started once a run in a temporary folder, and the mesh's keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog

from stack.servers import Servers
from tests.services import Keys, migrated

# A traceback as Python prints it. The default draws one with all local variables, for so long that a batch of failing
# events keeps a service of these tests from answering in time.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="session")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """PostgreSQL, NATS and Redis, with the four databases migrated."""
    async with Servers.started(tmp_path_factory.mktemp("servers")) as started:
        await migrated(started)
        yield started


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Certificates of all peers, and the key that signs access tokens."""
    return Keys.made(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the test's own."""
    return tmp_path
