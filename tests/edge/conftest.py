"""One running mesh for the tests of this folder."""

from collections.abc import AsyncIterator

import pytest

from tests.running import RunningMesh, running_mesh


@pytest.fixture(scope="package")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningMesh]:
    """A mesh as `mesh up` runs it."""
    async with running_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running
