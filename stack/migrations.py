"""The databases of the services, brought up to date by Alembic, with a word for a person when that fails."""

import asyncio

from mesh.db.migrations import DatabaseTooNew, upgrade
from stack.errors import StartFailed, StateTooNew
from stack.servers import DATABASES, Postgres


async def migrate(postgres: Postgres, role: str) -> None:
    """Bring the database of a role up to date. One at a time: Alembic keeps what it works on in globals.

    Raises:
        StateTooNew: a later version of the mesh has migrated it.
        StartFailed: it cannot be migrated.
    """
    database = f"The database {DATABASES[role]} at {postgres.address}"
    try:
        await asyncio.to_thread(upgrade, role, postgres.url_for(role))
    except DatabaseTooNew as error:
        raise StateTooNew(
            f"{database} is of version {error}, which this mesh does not know."
            " Run the mesh that wrote it, or choose another folder with --state."
        ) from error
    except Exception as error:
        raise StartFailed(f"{database} could not be migrated: {type(error).__name__}: {error}") from error
