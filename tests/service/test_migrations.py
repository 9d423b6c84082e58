"""The migrations of each service make exactly the tables that its store speaks to."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import customer_svc.store
import order_svc.store
import payment_svc.providers.sandbox
import payment_svc.store
import product_svc.store
from mesh import migrations, schema
from stack.servers import Servers

TABLES = {
    "customer_svc": [customer_svc.store.metadata],
    "order_svc": [order_svc.store.metadata],
    "payment_svc": [payment_svc.store.metadata, payment_svc.providers.sandbox.metadata],
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
            return not (kind == "table" and reflected and (name or "").startswith(("outbox_", "alembic_version")))

        options = {"include_schemas": True, "include_object": is_ours, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert names
        return list(compare_metadata(context, expected))  # type: ignore[arg-type]  # it takes several

    try:
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


async def test_migrating_twice_changes_nothing(servers: Servers) -> None:
    await asyncio.gather(
        *(asyncio.to_thread(migrations.upgrade, role, servers.postgres.url_for(role)) for role in ("order_svc",))
    )
    assert migrations.head("order_svc") == "0002"
