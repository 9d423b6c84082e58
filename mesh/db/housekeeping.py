"""Deletes the expired rows of the runtime: stored replies, inbox rows and attempts."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from mesh.db import attempts, idempotency, inbox
from mesh.jobs import Periodic

if TYPE_CHECKING:
    from mesh.db.database import Database, Statement

PORTION = 10_000
"""The number of rows that one transaction deletes. It takes much less time than the statement timeout."""


def housekeeping(database: Database, *, interval: float = 3600.0, portion: int = PORTION) -> list[Periodic]:
    """The jobs that purge these rows every `interval` seconds, each in transactions of at most `portion` rows."""
    return [
        Periodic(name, interval, partial(_purge, database, statement, age, portion))
        for name, statement, age in (
            ("purge of replies", idempotency.PURGE, idempotency.RETENTION),
            ("purge of the inbox", inbox.PURGE, inbox.RETENTION),
            ("purge of attempts", attempts.PURGE, attempts.RETENTION),
        )
    ]


async def _purge(database: Database, statement: Statement, age: timedelta, most: int) -> bool:
    """Delete a portion. Returns whether there may be more rows to delete."""
    async with database.transaction() as transaction:
        return await transaction.execute(statement, age=age, most=most) == most
