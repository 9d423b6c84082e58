"""Databases that cannot be migrated, and what a person reads then."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from mesh.db.migrations import head
from stack.errors import StartFailed, StateTooNew
from stack.migrations import migrate
from stack.servers import Postgres, Servers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
async def postgres(data: Path) -> AsyncIterator[Postgres]:
    async with Servers.started(data, only={"postgres"}) as servers:
        yield servers.postgres


async def tell(postgres: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(postgres.url_for("order_svc"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_database_that_has_what_is_to_be_made_is_named(postgres: Postgres) -> None:
    await tell(postgres, "CREATE SCHEMA mesh")
    with pytest.raises(StartFailed, match=r'database orders at .* could not be migrated: .*"mesh" already exists'):
        await migrate(postgres, "order_svc")
    await tell(postgres, "DROP SCHEMA mesh")
    await migrate(postgres, "order_svc")


async def test_a_database_of_a_newer_version_is_named_and_left_alone(postgres: Postgres) -> None:
    await migrate(postgres, "order_svc")
    await tell(postgres, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StateTooNew, match=r"database orders at .* is of version 9999, which this mesh does not know"):
        await migrate(postgres, "order_svc")
    known = head("order_svc")
    await tell(postgres, f"UPDATE alembic_version SET version_num = '{known}'")
    await migrate(postgres, "order_svc")


async def test_the_command_says_so_without_a_traceback(data: Path) -> None:
    async with Servers.started(data, only={"postgres"}) as servers:
        await migrate(servers.postgres, "order_svc")
        await tell(servers.postgres, "UPDATE alembic_version SET version_num = '9999'")
    command = [sys.executable, "-c", "from ops.cli import main; main()", "migrate", "--state", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)  # noqa: ASYNC221
    assert (done.returncode, done.stdout) == (1, "customer is up to date\n")
    assert done.stderr.startswith("mesh: The database orders at unix:")
    assert done.stderr.count("\n") == 1
