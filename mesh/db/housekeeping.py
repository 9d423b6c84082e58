"""Rows of the runtime that have had their time: stored replies and inbox entries."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from mesh.db import idempotency, inbox
from mesh.jobs import Periodic

if TYPE_CHECKING:
    from mesh.db.database import Database, Statement

PORTION = 10_000
"""Rows that one transaction deletes: well within the time that a statement has."""


def housekeeping(database: Database, *, interval: float = 3600.0, portion: int = PORTION) -> list[Periodic]:
    """The jobs that purge them, hourly, each a portion at a time for as long as there is more."""
    return [
        Periodic(name, interval, partial(_purge, database, statement, age, portion))
        for name, statement, age in (
            ("purge of replies", idempotency.PURGE, idempotency.RETENTION),
            ("purge of the inbox", inbox.PURGE, inbox.RETENTION),
        )
    ]


async def _purge(database: Database, statement: Statement, age: timedelta, most: int) -> bool:
    """Delete a portion; whether there may be more."""
    async with database.transaction() as transaction:
        return await transaction.execute(statement, age=age, most=most) == most
