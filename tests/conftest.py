"""Fixtures for all tests: the real servers, started once for each run in a temporary folder, and the keys."""

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from stack.servers import Servers
from tests.services import Keys, migrated

# The same examples in every run, however slow the machine is.
hypothesis.settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("reproducible")

# Tracebacks as Python prints them. The default includes all local variables, which takes so long that a service with a
# batch of failing events does not reply in time.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Collect the garbage of each module, so that what its tests have not closed fails there and not later."""
    yield
    gc.collect()


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
    """A folder for one test."""
    return tmp_path
