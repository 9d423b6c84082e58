"""A service as a program: `python -m order_svc` runs it; `--check`, `--migrate` and `--help` do one thing and exit."""

from __future__ import annotations

import asyncio
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable

from asyncpg import PostgresError
from sqlalchemy.exc import SQLAlchemyError

from mesh import lifecycle
from mesh import settings as settings_module
from mesh.db import migrations
from mesh.db.migrations import DatabaseTooNew
from mesh.lifecycle import Service
from mesh.rpc import reflection
from mesh.settings import DatabaseSettings, Settings, SettingsInvalid

_CHECK = "check the settings and build the service, without a network; print the result and exit with 0 or 1"
_MIGRATE = "migrate the database to the newest version and exit; it needs no setting but MESH_DATABASE_URL"
_AWAIT = (
    "wait at most this long for another process to migrate the database, and exit with 0 or 1; "
    "it needs no setting but MESH_DATABASE_URL"
)
_PAUSE_S = 1.0
"""Between two looks at the version of the database."""


def main(name: str, settings: type[Settings], build: Callable[[Settings], Service]) -> None:
    """Run the service, check it or print the help, depending on the command line."""
    parser = ArgumentParser(
        prog=f"python -m {name}_svc",
        description=f"Run the {name} service until SIGTERM or SIGINT, then drain it.\n"
        "Exits with 0 after draining, with 1 if it cannot start, and with 2 if its settings are not valid.",
        epilog=f"settings, from the environment:\n\n{settings_module.describe(settings)}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    once = parser.add_mutually_exclusive_group()
    once.add_argument("--check", action="store_true", help=_CHECK)
    once.add_argument("--migrate", action="store_true", help=_MIGRATE)
    once.add_argument("--await-migrations", type=float, metavar="SECONDS", help=_AWAIT)
    arguments = parser.parse_args()
    if arguments.check:
        check(name, settings, build)
    elif arguments.migrate:
        migrate(name)
    elif arguments.await_migrations is not None:
        await_migrations(name, arguments.await_migrations)
    else:
        lifecycle.run(name, settings, build)


def check(name: str, settings: type[Settings], build: Callable[[Settings], Service]) -> None:
    """Read the settings, load the contracts and build the service. Exits with 1 and all errors if that fails."""
    try:
        read = settings_module.read(settings)
        reflection.load_contracts()
        asyncio.run(_build(read, build))
    except SettingsInvalid as error:
        sys.exit(f"{name}: the settings are not valid\n{error}")
    except Exception as error:  # noqa: BLE001  # any error is reported with its type
        sys.exit(f"{name}: it cannot be built: {type(error).__name__}: {error}")
    sys.stdout.write(f"{name}: the settings are valid, and the service can be built\n")


def migrate(name: str) -> None:
    """Migrate the database. Exits with 1 and the error if that fails, also if later code has migrated it."""
    url = _database_url(name)
    try:
        migrations.upgrade(f"{name}_svc", url)
    except DatabaseTooNew as error:
        sys.exit(f"{name}: the database has version {error}, which this version of the service does not know")
    except Exception as error:  # noqa: BLE001  # any error is reported with its type
        sys.exit(f"{name}: the database cannot be migrated: {type(error).__name__}: {error}")
    sys.stdout.write(f"{name}: the database is up to date\n")


def await_migrations(name: str, seconds: float) -> None:
    """Return when the database has been migrated. Exits with 1 and the last error after `seconds`."""
    try:
        asyncio.run(_migrated(name, _database_url(name), seconds))
    except TimeoutError as error:
        sys.exit(f"{name}: the database was not migrated within {seconds:g} s: {error}")
    sys.stdout.write(f"{name}: the database is up to date\n")


async def _migrated(name: str, url: str, seconds: float) -> None:
    """Wait until the database is migrated; it is read at least once. Raises TimeoutError with the last reason."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            if await migrations.is_migrated(f"{name}_svc", url):
                return
            seen = "it has an older version"
        except (OSError, SQLAlchemyError, PostgresError) as error:
            seen = f"{type(error).__name__}: {error}"
        if loop.time() >= deadline:
            raise TimeoutError(seen)
        await asyncio.sleep(_PAUSE_S)


def _database_url(name: str) -> str:
    try:
        return settings_module.read(DatabaseSettings).database_url.get_secret_value()
    except SettingsInvalid as error:
        sys.exit(f"{name}: the settings are not valid\n{error}")


async def _build(read: Settings, build: Callable[[Settings], Service]) -> Service:
    # In an event loop, as when the service runs.
    return build(read)
