"""The inbox: the ids of events that a consumer has applied, written in the transaction of their effect."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Statement
from mesh.db.schema import inbox as table
from mesh.errors import StaleWrite

RETENTION = timedelta(days=31)
"""How long ids are kept: longer than a stream keeps the event, so every redelivery is recognised."""

RECORD = BulkInsert(table.c.event_id, table.c.consumer, refusals={"inbox_pkey": StaleWrite}, name="record events")
RECORD_FRESH = BulkInsert(
    table.c.event_id, table.c.consumer, returning=[table.c.event_id], skip_existing=True, name="record fresh events"
)
_old = (
    sa.select(table.c.event_id, table.c.consumer)
    .where(table.c.receive_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval))
    .order_by(table.c.receive_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("old")
)
PURGE = Statement(sa.delete(table).where(table.c.event_id == _old.c.event_id, table.c.consumer == _old.c.consumer))
