"""`mesh migrate`: the databases of all services, brought up to date."""

import asyncio
from collections.abc import Mapping

import typer

from stack.errors import NotRunning
from stack.migrations import migrate
from stack.servers import DATABASES, Postgres, Servers, short_folder
from stack.state import State
from stack.supervisor import Supervisor


def migrate_all(state: State, environment: Mapping[str, str]) -> None:
    """Migrate with the PostgreSQL of the running mesh, or else with one that runs for the time it takes.

    Raises:
        StackError: PostgreSQL cannot be run, or is not there; a database cannot be migrated.
    """
    asyncio.run(_migrate_all(state, environment))


async def _migrate_all(state: State, environment: Mapping[str, str]) -> None:
    try:
        sockets = state.running().sockets
    except NotRunning:
        with state.locked(), short_folder() as sockets:
            await state.clear_remains()
            async with Supervisor(logs=state.logs) as supervisor:
                servers = Servers.under(state.folder, sockets, supervisor, given=environment)
                await servers.start(only={"postgres"})
                await _migrate(servers.postgres)
    else:
        servers = Servers.under(state.folder, sockets, Supervisor(logs=state.logs), given=environment)
        await _migrate(servers.postgres)


async def _migrate(postgres: Postgres) -> None:
    for role, database in DATABASES.items():
        await migrate(postgres, role)
        typer.echo(f"{database} is up to date")
