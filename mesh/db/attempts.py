"""The attempts at redelivered events, so that an event that ends its process is recognized.

An attempt is recorded in a transaction of its own before the event is applied, and its row is deleted afterwards,
however the attempt ends. Only the end of the process leaves a row.
"""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.database import Statement, unnested
from mesh.db.schema import attempts as table

RETENTION = timedelta(days=31)
"""How long rows are kept: longer than a stream keeps the event."""

_consumer = sa.bindparam("consumer", type_=sa.String)
_events = sa.bindparam("events", type_=sa.ARRAY(sa.String))
_rows = unnested({"events": ("event", sa.String)})
_begin = postgresql.insert(table).from_select(
    ["consumer", "event", "unfinished"], sa.select(_consumer, _rows.c.event, sa.literal_column("1"))
)

UNFINISHED = Statement(
    sa.select(table.c.event, table.c.unfinished).where(
        table.c.consumer == _consumer, table.c.event == sa.any_(_events)
    ),
    name="read unfinished attempts",
)
"""How many attempts at these events have begun and did not end."""
BEGIN = Statement(
    _begin.on_conflict_do_update(
        index_elements=[table.c.consumer, table.c.event],
        set_={"unfinished": table.c.unfinished + 1, "begin_time": sa.func.clock_timestamp()},
    ),
    name="begin attempts",
)
"""Records an attempt at each of these events. They must be distinct, and sorted, so that transactions do not block each
other."""
END = Statement(
    sa.delete(table).where(table.c.consumer == _consumer, table.c.event == sa.any_(_events)), name="end attempts"
)
"""Deletes the attempts at these events."""

_old = (
    sa.select(table.c.consumer, table.c.event)
    .where(table.c.begin_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval))
    .order_by(table.c.begin_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("old")
)
PURGE = Statement(
    sa.delete(table).where(table.c.consumer == _old.c.consumer, table.c.event == _old.c.event), name="purge attempts"
)
