"""Runs Alembic from code: the migrations in each service's `migrations/versions` upgrade its database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from alembic import command, context, op
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine


class DatabaseTooNew(Exception):
    """A later version of the code has migrated the database. The message is the database's version."""


def upgrade(package: str, database_url: str, *, to: str = "head") -> None:
    """Upgrade the database of a service to its newest version. Idempotent. Must not be called inside an event loop.

    Each version is committed on its own. After an error, the next call goes on with the version that failed.

    Args:
        package: The package of the service, such as `order_svc`.
        database_url: The URL of its database.
        to: The version at which to stop.

    Raises:
        DatabaseTooNew: The database has a version that this code does not know. It is not changed.
    """
    config = _config(package)
    config.attributes["database_url"] = database_url
    command.upgrade(config, to)


async def is_migrated(package: str, database_url: str) -> bool:
    """Whether the database has the newest version of this code, or one of later code.

    Raises the driver's errors, or TimeoutError, when the database does not answer.
    """
    script = ScriptDirectory.from_config(_config(package))
    engine = create_async_engine(_sqlalchemy_url(database_url), poolclass=sa.NullPool, connect_args={"timeout": 10})
    try:
        async with engine.connect() as connection:
            heads = await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_heads())
    finally:
        await engine.dispose()
    known = {each.revision for each in script.walk_revisions()}
    return bool(heads) and (set(heads) == set(script.get_heads()) or not known.issuperset(heads))


def head(package: str) -> str | None:
    """The newest version among the migrations of `package`."""
    return ScriptDirectory.from_config(_config(package)).get_current_head()


def run_env() -> None:
    """The body of every `migrations/env.py`."""
    asyncio.run(_run(str(context.config.attributes["database_url"])))


def create_runtime_tables() -> None:
    """Create the runtime's tables as of version 1, in a service's first migration."""
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
    # For rows that belong to no partition; empty unless a clock is wrong.
    op.execute("CREATE TABLE mesh.outbox_default PARTITION OF mesh.outbox DEFAULT")


def index_ages() -> None:
    """Version 2: index the rows that are purged by age, in a service's second migration.

    A BRIN index would not work: a block range keeps the oldest time it ever contained, but a purge frees its space for
    new rows. After a day every range would match. A B-tree costs 0.3 µs for each row.
    """
    op.create_index("idempotency_create_time", "idempotency", ["create_time"], unique=False, schema="mesh")
    op.create_index("inbox_receive_time", "inbox", ["receive_time"], unique=False, schema="mesh")


def publish_by_position() -> None:
    """Version 3: replace the mark on published events by a position, in a service's third migration (ADR-0017)."""
    # After this lock, every transaction that drew a number has ended, and no other one draws a number.
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


def count_attempts() -> None:
    """Version 4: record the attempts at redelivered events (`mesh.db.attempts`)."""
    op.create_table(
        "attempts",
        sa.Column("consumer", sa.String(), nullable=False),
        sa.Column(
            "event",
            sa.String(),
            nullable=False,
            comment="the event's id, or the place of a message that has none",
        ),
        sa.Column("unfinished", sa.Integer(), nullable=False, comment="attempts that have begun and did not end"),
        sa.Column(
            "begin_time",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("consumer", "event"),
        schema="mesh",
        comment="Attempts at redelivered events. What is left here ended its process, or is under way.",
    )
    op.create_index("attempts_begin_time", "attempts", ["begin_time"], unique=False, schema="mesh")


async def _run(database_url: str) -> None:
    engine = create_async_engine(_sqlalchemy_url(database_url), poolclass=sa.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)
        await connection.commit()
    await engine.dispose()


def _sqlalchemy_url(database_url: str) -> sa.URL:
    return make_url(database_url).set(drivername="postgresql+asyncpg")


def _migrate(connection: sa.Connection) -> None:
    # Processes that migrate at the same time take turns. The lock ends with the connection.
    connection.execute(sa.text("SELECT pg_advisory_lock(7340032)"))
    connection.commit()
    # A transaction each: the tables that one locks are not locked while the next one copies rows.
    context.configure(connection=connection, transaction_per_migration=True)
    _require_known(context.get_context().get_current_heads())
    with context.begin_transaction():
        context.run_migrations()


def _require_known(versions: Iterable[str]) -> None:
    known = {script.revision for script in context.script.walk_revisions()}
    if unknown := set(versions) - known:
        raise DatabaseTooNew(", ".join(sorted(unknown)))


def _config(package: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).resolve().parents[2] / package / "migrations"))
    return config
