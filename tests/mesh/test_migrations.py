"""The migrations of each service make exactly the tables that its store speaks to."""

from __future__ import annotations

import asyncio
import re

import asyncpg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import customer_svc.store
import order_svc.store
import payment_svc.providers.sandbox.tables
import payment_svc.store
import product_svc.store
from mesh.db import migrations, schema
from stack.servers import Servers
from tests.runtime.process import migrate, new_database, scratch_database
from tests.services import eventually

TABLES = {
    "customer_svc": [customer_svc.store.metadata],
    "order_svc": [order_svc.store.metadata],
    "payment_svc": [payment_svc.store.metadata, payment_svc.providers.sandbox.tables.metadata],
    "product_svc": [product_svc.store.metadata],
}


@pytest.mark.parametrize("role", TABLES)
async def test_the_migrations_make_the_tables_of_the_store(servers: Servers, role: str) -> None:
    url = make_url(servers.postgres.url_for(role)).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url)
    expected = [*TABLES[role], schema.metadata]

    def differences(connection: sa.Connection) -> list[object]:
        names = {table.fullname for metadata in expected for table in metadata.tables.values()}

        def is_ours(_: object, name: str | None, kind: str, reflected: bool, *__: object) -> bool:
            # The outbox's partitions come and go by themselves.
            passing = re.fullmatch(r"outbox_(\d{8}|default)|alembic_version", name or "")
            return not (kind == "table" and reflected and passing)

        options = {"include_schemas": True, "include_object": is_ours, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert names
        return [
            *compare_metadata(context, expected),  # type: ignore[arg-type]  # it takes several
            # It does not look at these.
            *(table for metadata in expected for table in metadata.tables.values() if _key_differs(connection, table)),
        ]

    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


def _key_differs(connection: sa.Connection, table: sa.Table) -> bool:
    key = sa.inspect(connection).get_pk_constraint(table.name, table.schema)
    return key["constrained_columns"] != table.primary_key.columns.keys()


async def test_migrating_twice_changes_nothing(servers: Servers) -> None:
    await asyncio.gather(
        *(asyncio.to_thread(migrations.upgrade, role, servers.postgres.url_for(role)) for role in ("order_svc",))
    )
    assert migrations.head("order_svc") == "0013"


async def test_tables_of_one_migration_are_not_locked_while_the_next_one_runs(servers: Servers) -> None:
    async with new_database(servers) as url:
        await asyncio.to_thread(migrations.upgrade, "order_svc", url, to="0009")
        other, observer = await asyncpg.connect(url), await asyncpg.connect(url)
        # 0010 changes the orders, and 0012 copies the outbox.
        async with other.transaction():
            await other.execute("LOCK TABLE mesh.outbox IN ACCESS EXCLUSIVE MODE")
            upgrading = asyncio.create_task(asyncio.to_thread(migrations.upgrade, "order_svc", url))

            async def copying() -> bool:
                waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'mesh.outbox'::regclass"
                return bool(await observer.fetch(waiting))

            await eventually(copying)
            await observer.execute("SET lock_timeout = 1")
            await observer.execute("UPDATE orders SET version = version")
        await upgrading
        assert await migrations.is_migrated("order_svc", url)
        await other.close()
        await observer.close()


async def test_what_was_not_published_before_events_had_no_mark_is_what_the_position_leaves(servers: Servers) -> None:
    before = [migrations.create_runtime_tables, migrations.index_ages]
    async with scratch_database(servers, before) as scratch:
        await scratch.admin.execute(
            "CREATE TABLE mesh.outbox_20260101 PARTITION OF mesh.outbox "
            "FOR VALUES FROM ('2026-01-01Z') TO ('2026-01-02Z'); "
            "INSERT INTO mesh.outbox "
            "(event_id, type, aggregate_id, sequence, payload, traceparent, create_time, publish_time) "
            "SELECT gen_random_uuid(), 'commerce.test.happened', gen_random_uuid(), 1, '', '', day, published "
            "FROM unnest(ARRAY['2026-01-01', '2026-01-05']::timestamptz[]) AS day, "
            "unnest(ARRAY[now(), NULL, NULL, now(), NULL]) AS published"
        )
        unpublished = await scratch.admin.fetch(
            "SELECT seq, event_id FROM mesh.outbox WHERE publish_time IS NULL ORDER BY seq"
        )
        assert len(unpublished) == 6
        await migrate(scratch.url, migrations.publish_by_position)
        left = await scratch.admin.fetch("SELECT seq, event_id FROM mesh.unpublished ORDER BY seq")
        assert left == unpublished
        (number,) = await scratch.admin.fetchrow(
            "INSERT INTO mesh.outbox (event_id, type, aggregate_id, sequence, payload, traceparent, create_time) "
            "VALUES (gen_random_uuid(), 'commerce.test.happened', gen_random_uuid(), 1, '', '', '2026-01-01') "
            "RETURNING seq"
        ) or (0,)
        assert number == 11, "numbers go on behind the last one"
        assert await scratch.count("mesh.unpublished") == 7
