"""Alembic, run from code: each service's `migrations/versions` brings its database up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from alembic import command, context, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine


class DatabaseTooNew(Exception):
    """A later version of the code has migrated the database; the text is the version that it has."""


def upgrade(package: str, database_url: str) -> None:
    """Bring the database of `package` (`order_svc`) to its newest version. Idempotent; not to be run inside a loop.

    Raises:
        DatabaseTooNew: it has a version that this code does not know; it is left as it is.
    """
    config = _config(package)
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")


def head(package: str) -> str | None:
    """The newest version that `package` knows."""
    return ScriptDirectory.from_config(_config(package)).get_current_head()


def run_env() -> None:
    """The body of every `migrations/env.py`."""
    asyncio.run(_run(str(context.config.attributes["database_url"])))


def create_runtime_tables() -> None:
    """The runtime's tables as of version 1, for a service's first migration."""
    op.execute("CREATE SCHEMA mesh")
    op.create_table(
        "idempotency",
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="of caller and key"),
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("method", sa.String(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=True, comment="null only inside the transaction that makes it"),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("digest"),
        schema="mesh",
        comment="The stored replies of changes, kept a day, so that a retry changes nothing.",
    )
    op.create_table(
        "inbox",
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("consumer", sa.String(), nullable=False),
        sa.Column(
            "receive_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("event_id", "consumer"),
        schema="mesh",
        comment="Events applied, written in the transaction of their effect, so that a redelivery changes nothing.",
    )
    op.create_table(
        "outbox",
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False, comment="commit order within an aggregate"),
        sa.Column(
            "create_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("event_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("aggregate_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="the aggregate's version"),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("traceparent", sa.String(), nullable=False),
        sa.Column(
            "publish_time",
            postgresql.TIMESTAMP(timezone=True),
            nullable=True,
            comment="when the stream acknowledged it",
        ),
        sa.PrimaryKeyConstraint("seq", "create_time"),
        schema="mesh",
        comment="Events, written in the transaction of their cause. A partition a day, dropped whole.",
        postgresql_partition_by="RANGE (create_time)",
    )
    op.create_index(
        "outbox_unpublished",
        "outbox",
        ["seq"],
        unique=False,
        schema="mesh",
        postgresql_where=sa.text("publish_time IS NULL"),
    )
    # Rows that no day's partition takes; empty unless a clock runs wild.
    op.execute("CREATE TABLE mesh.outbox_default PARTITION OF mesh.outbox DEFAULT")


def index_ages() -> None:
    """Since version 2: what has had its time is found by an index, for a service's second migration.

    Not BRIN: space is used again after a purge, a block range never forgets its oldest moment, and from the second day
    on it would find nothing but the whole table. This costs 0.3 us a row.
    """
    op.create_index("idempotency_create_time", "idempotency", ["create_time"], unique=False, schema="mesh")
    op.create_index("inbox_receive_time", "inbox", ["receive_time"], unique=False, schema="mesh")


def publish_by_position() -> None:
    """Since version 3: events are not marked when they are published, for a service's third migration (ADR-0017)."""
    # Whoever has drawn a number by now has ended, and none is drawn meanwhile.
    op.execute("LOCK TABLE mesh.outbox IN ACCESS EXCLUSIVE MODE")
    op.create_table(
        "outbox_position",
        sa.Column("through", sa.BigInteger(), nullable=False, comment="seq up to which all is published but the gaps"),
        sa.Column("gaps", postgresql.INT8MULTIRANGE(), nullable=False),
        schema="mesh",
        comment="How far the relay has come: one row. The view mesh.unpublished shows what is behind it.",
    )
    op.execute(
        "INSERT INTO mesh.outbox_position SELECT coalesce(max(seq), 0), "
        "coalesce(range_agg(int8range(seq, seq, '[]')) FILTER (WHERE publish_time IS NULL), '{}') FROM mesh.outbox"
    )
    op.execute("ALTER TABLE mesh.outbox ALTER COLUMN seq DROP IDENTITY")
    op.execute("CREATE SEQUENCE mesh.outbox_seq OWNED BY mesh.outbox.seq")
    op.execute("SELECT setval('mesh.outbox_seq', through + 1, false) FROM mesh.outbox_position")
    op.alter_column(
        "outbox",
        "seq",
        # A transaction has its id before it draws a number, and CASE keeps that order for `mesh.events.position`.
        server_default=sa.text("CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval('mesh.outbox_seq') END"),
        schema="mesh",
    )
    op.drop_index("outbox_unpublished", "outbox", schema="mesh")
    op.drop_column("outbox", "publish_time", schema="mesh")
    op.create_table_comment(
        "outbox",
        "Events, written in the transaction of their cause and never changed. A partition a day, dropped whole.",
        schema="mesh",
    )
    op.execute(
        "CREATE VIEW mesh.unpublished AS "
        "SELECT event.* FROM mesh.outbox_position JOIN mesh.outbox event ON event.seq > through "
        "UNION ALL "
        "SELECT event.* FROM mesh.outbox_position, unnest(gaps) AS gap "
        "JOIN mesh.outbox event ON event.seq >= lower(gap) AND event.seq < upper(gap)"
    )
    op.execute(
        "COMMENT ON VIEW mesh.unpublished IS 'Events that no stream has acknowledged yet, for people to look at.'"
    )


async def _run(database_url: str) -> None:
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=sa.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)
        await connection.commit()
    await engine.dispose()


def _migrate(connection: sa.Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        # Two processes that migrate at once take turns.
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(7340032)"))
        _require_known(context.get_context().get_current_heads())
        context.run_migrations()


def _require_known(versions: Iterable[str]) -> None:
    known = {script.revision for script in context.script.walk_revisions()}
    if unknown := set(versions) - known:
        raise DatabaseTooNew(", ".join(sorted(unknown)))


def _config(package: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).resolve().parents[2] / package / "migrations"))
    return config
