"""The outbox: the rows of events, written in the transaction of their cause, and the partitions that hold them.

A relay publishes them. Published rows are not marked: the table `outbox_position` contains the position of the relay
(ADR-0017).
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.database import BulkInsert, Statement, unnested
from mesh.db.schema import outbox as table
from mesh.db.schema import outbox_position
from mesh.ids import new_id

if TYPE_CHECKING:
    from uuid import UUID

    from mesh.events.cloudevents import Event

RETENTION = timedelta(days=7)
"""How long published rows are kept, so that a backfill can restore what a stream has lost."""


def _as_integer(transaction_id: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.cast(sa.cast(transaction_id, sa.Text), sa.BigInteger)


APPEND = BulkInsert(
    table.c.event_id, table.c.type, table.c.aggregate_id, table.c.sequence, table.c.payload, table.c.traceparent
)
_most = sa.bindparam("most", type_=sa.Integer)
_gaps = unnested({"firsts": ("first", sa.BigInteger), "lasts": ("last", sa.BigInteger)})
_behind = sa.select(table).where(table.c.seq > sa.bindparam("through", type_=sa.BigInteger)).order_by(table.c.seq)
_events = sa.union_all(
    sa.select(_behind.limit(_most).subquery()), sa.select(table).join(_gaps, table.c.seq.between(*_gaps.c))
).subquery()
UNPUBLISHED = Statement(
    sa.select(
        _events,
        sa.select(_as_integer(sa.func.pg_snapshot_xmin(sa.func.pg_current_snapshot())))
        .scalar_subquery()
        .label("ended"),
    )
    .order_by(_events.c.seq)
    .limit(_most),
    name="read unpublished",
)
"""The rows above the position and in its gaps, with the id below which all transactions have ended."""
POSITION = Statement(sa.select(outbox_position))
MOVE = Statement(
    sa.update(outbox_position)
    .values(
        through=sa.bindparam("new_through", type_=sa.BigInteger),
        gaps=sa.bindparam("new_gaps", type_=postgresql.INT8MULTIRANGE),
    )
    .returning(_as_integer(sa.func.pg_current_xact_id()))
)
"""Writes the position. Returns the id of its transaction."""

BY_INDEX = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off"}
"""Settings of a session that reads unpublished rows: by an index, and in its order.

Plans are cached, and a plan that is made while the outbox is empty would scan the whole table.
"""


def row(event: Event, traceparent: str, event_id: UUID | None = None) -> tuple[Any, ...]:
    """The row of an event, in the order of `APPEND`. Without an id, it gets a new one."""
    return (
        event_id or new_id(),
        event.type,
        event.aggregate_id,
        event.sequence,
        event.payload.SerializeToString(),
        traceparent,
    )


async def maintain_partitions(connection: asyncpg.Connection, now: datetime) -> None:
    """Create the partitions of today and the next two days. Drop those past `RETENTION` without unpublished rows.

    Rows of a day without a partition go into the default partition, so a wrong clock or a missed run loses nothing. If
    the default partition already contains rows of a day, that day gets no partition of its own.

    Raises LockNotAvailableError if the table is too busy.
    """
    today = now.astimezone(UTC).date()
    for day in (today + timedelta(days=offset) for offset in range(3)):
        name = f"outbox_{day:%Y%m%d}"
        if not await connection.fetchval("SELECT to_regclass($1)", f"mesh.{name}"):
            with suppress(asyncpg.CheckViolationError):  # the default partition contains rows of that day
                await _define(
                    connection,
                    f"CREATE TABLE mesh.{name} PARTITION OF mesh.outbox "
                    f"FOR VALUES FROM ('{day}T00:00Z') TO ('{day + timedelta(days=1)}T00:00Z') "
                    # Its rows never change and it is dropped as a whole, so there is nothing to vacuum.
                    "WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
                )
    oldest = f"outbox_{today - RETENTION:%Y%m%d}"
    for partition in await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'mesh.outbox'::regclass AND c.relname ~ '^outbox_[0-9]{8}$' AND c.relname < $1",
        oldest,
    ):
        name = partition["relname"]
        day = datetime.strptime(f"{name}+0000", "outbox_%Y%m%d%z")
        unpublished = "SELECT EXISTS (SELECT FROM mesh.unpublished WHERE create_time >= $1 AND create_time < $2)"
        if not await connection.fetchval(unpublished, day, day + timedelta(days=1)):
            await _define(connection, f"DROP TABLE mesh.{name}")
    await connection.execute(
        "DELETE FROM mesh.outbox_default event WHERE create_time < $1 "
        "AND NOT EXISTS (SELECT FROM mesh.unpublished WHERE seq = event.seq)",
        now - RETENTION,
    )


async def _define(connection: asyncpg.Connection, change: str) -> None:
    """Change the definition of a table. The lock timeout is short, because writers queue behind an exclusive lock."""
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '200ms'")
        await connection.execute(change)
