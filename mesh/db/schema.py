"""The tables of the runtime. Each service's database has them in the schema `mesh`, and its own tables in `public`."""

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

metadata = sa.MetaData(schema="mesh")

_now = sa.func.clock_timestamp()

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("digest", sa.LargeBinary, primary_key=True, comment="of caller and key"),
    sa.Column("caller", sa.String, nullable=False),
    sa.Column("method", sa.String, nullable=False),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("reply", sa.LargeBinary, comment="null only inside the transaction that makes it"),
    sa.Column("create_time", pg.TIMESTAMP(timezone=True), nullable=False, server_default=_now),
    comment="The stored replies of changes, kept a day, so that a retry changes nothing.",
)

idempotency_age = sa.Index("idempotency_create_time", idempotency.c.create_time)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column(
        "seq",
        sa.BigInteger,
        primary_key=True,
        # CASE makes a transaction obtain its id before it draws a number. `mesh.events.position` depends on that.
        server_default=sa.text("CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval('mesh.outbox_seq') END"),
        comment="commit order within an aggregate",
    ),
    sa.Column("create_time", pg.TIMESTAMP(timezone=True), primary_key=True, server_default=_now),
    sa.Column("event_id", sa.Uuid, nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("aggregate_id", sa.Uuid, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False, comment="the aggregate's version"),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("traceparent", sa.String, nullable=False),
    postgresql_partition_by="RANGE (create_time)",
    comment="Events, written in the transaction of their cause and never changed. A partition a day, dropped whole.",
)

outbox_position = sa.Table(
    "outbox_position",
    metadata,
    sa.Column("through", sa.BigInteger, nullable=False, comment="seq up to which all is published but the gaps"),
    sa.Column("gaps", pg.INT8MULTIRANGE, nullable=False),
    comment="How far the relay has come: one row. The view mesh.unpublished shows what is behind it.",
)

inbox = sa.Table(
    "inbox",
    metadata,
    sa.Column("event_id", sa.Uuid, primary_key=True),
    sa.Column("consumer", sa.String, primary_key=True),
    sa.Column("receive_time", pg.TIMESTAMP(timezone=True), nullable=False, server_default=_now),
    comment="Events applied, written in the transaction of their effect, so that a redelivery changes nothing.",
)

inbox_age = sa.Index("inbox_receive_time", inbox.c.receive_time)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("consumer", sa.String, primary_key=True),
    sa.Column("event", sa.String, primary_key=True, comment="the event's id, or the place of a message that has none"),
    sa.Column("unfinished", sa.Integer, nullable=False, comment="attempts that have begun and did not end"),
    sa.Column("begin_time", pg.TIMESTAMP(timezone=True), nullable=False, server_default=_now),
    comment="Attempts at redelivered events. What is left here ended its process, or is under way.",
)

attempts_age = sa.Index("attempts_begin_time", attempts.c.begin_time)
