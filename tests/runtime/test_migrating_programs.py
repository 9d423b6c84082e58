"""A service as a program that migrates its database, or waits until another process has done so."""

from __future__ import annotations

import asyncio

import asyncpg

from stack.servers import Servers
from tests.processes import WITHOUT_SETTINGS, spawned
from tests.runtime.process import new_database


async def ended(url: str | None, *arguments: str) -> tuple[int | None, str]:
    """The exit code and the whole output of the order service."""
    variables = WITHOUT_SETTINGS | ({"MESH_DATABASE_URL": url} if url else {})
    async with spawned("order", variables, *arguments) as process, asyncio.timeout(60):
        out, errors = await process.communicate()
    assert b"Traceback" not in errors, errors.decode()
    return process.returncode, (out + errors).decode()


async def test_waiting_process_ends_after_another_has_migrated_the_database(servers: Servers) -> None:
    async with new_database(servers) as url:
        variables = WITHOUT_SETTINGS | {"MESH_DATABASE_URL": url}
        async with spawned("order", variables, "--await-migrations", "60") as waiting:
            assert await ended(url, "--migrate") == (0, "order: the database is up to date\n")
            out, errors = await waiting.communicate()
        assert (waiting.returncode, out, errors) == (0, b"order: the database is up to date\n", b"")


async def test_waiting_for_migrations_fails_with_the_reason(servers: Servers) -> None:
    async with new_database(servers) as url:
        code, output = await ended(url, "--await-migrations", "0")
    assert (code, output) == (1, "order: the database was not migrated within 0 s: it has an older version\n")


async def test_waiting_for_a_database_that_does_not_answer_names_the_error() -> None:
    code, output = await ended("postgresql://127.0.0.1:1/none", "--await-migrations", "0")
    assert code == 1
    assert output.startswith("order: the database was not migrated within 0 s: ConnectionRefusedError: ")


async def test_database_of_later_code_is_waited_for_no_more_and_never_migrated(servers: Servers) -> None:
    async with new_database(servers) as url:
        assert (await ended(url, "--migrate"))[0] == 0
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("UPDATE alembic_version SET version_num = '9999'")
        finally:
            await connection.close()
        assert await ended(url, "--await-migrations", "60") == (0, "order: the database is up to date\n")
        code, output = await ended(url, "--migrate")
    assert code == 1
    assert output == "order: the database has version 9999, which this version of the service does not know\n"


async def test_migrating_without_a_database_url_names_the_setting() -> None:
    for arguments in (("--migrate",), ("--await-migrations", "1")):
        code, output = await ended(None, *arguments)
        assert (code, output) == (1, "order: the settings are not valid\nMESH_DATABASE_URL: Field required\n")
