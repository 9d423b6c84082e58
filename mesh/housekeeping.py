"""Rows of the runtime that have had their time: stored replies and inbox entries."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from mesh import consumers, idempotency
from mesh.bus import MAX_AGE_S
from mesh.jobs import Periodic

if TYPE_CHECKING:
    from mesh.database import Database

INBOX_RETENTION = timedelta(seconds=MAX_AGE_S) + timedelta(days=1)
"""Longer than a stream keeps an event: what can still be delivered can still be recognised."""


def housekeeping(database: Database, *, interval: float = 3600.0) -> Periodic:
    """The job that purges them, hourly."""

    async def purge() -> None:
        await idempotency.purge(database)
        async with database.transaction() as transaction:
            await transaction.execute(consumers.PURGE, age=INBOX_RETENTION)

    return Periodic("housekeeping", interval, purge)
