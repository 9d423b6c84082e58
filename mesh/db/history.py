"""Histories: the steps of a subject, such as an order, kept for good.

The outbox keeps events for days. A history keeps, of the events that concern its subjects, all but the payload. Its
rows are written together with those of the outbox. Each service declares a table of its own.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from mesh.db.columns import TIME
from mesh.db.database import BulkInsert, Statement
from mesh.db.rows import Values


class Step(NamedTuple):
    """One row of a history."""

    event_id: UUID
    """The id of the event, or of the step itself if it publishes none."""
    type: str
    """The type of the event, or the name of the step."""
    time: datetime
    trace_id: str
    actor: str
    """Who caused it: `customer:`, `staff:` or `service:`, followed by an id or a name. Empty if that is not known."""


def history(name: str, metadata: sa.MetaData) -> sa.Table:
    """The table of a history."""
    return sa.Table(
        name,
        metadata,
        sa.Column("subject_id", sa.Uuid, primary_key=True),
        # In the order of time, as all ids are.
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("type", sa.String, nullable=False),
        sa.Column("time", TIME, nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("trace_id", sa.String, nullable=False),
        sa.Column("actor", sa.String, nullable=False, comment="empty if it is not known"),
        comment="Rows are only ever added.",
    )


def append_to(table: sa.Table) -> BulkInsert:
    """The statement that adds rows to a history, each (subject, event id, type, trace id, actor)."""
    return BulkInsert(table.c.subject_id, table.c.event_id, table.c.type, table.c.trace_id, table.c.actor)


def read_from(table: sa.Table) -> Statement:
    """The statement that reads the steps of the subject with the id `subject`, oldest first."""
    return Statement(
        sa.select(*(table.c[name] for name in Step._fields))
        .where(table.c.subject_id == sa.bindparam("subject", type_=sa.Uuid))
        .order_by(table.c.event_id)
    )


STEPS = Values(Step)
"""The rows of `read_from`."""
