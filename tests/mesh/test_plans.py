"""How PostgreSQL carries out the services' statements: row by row, by index, however few rows there are yet.

A plan is kept by its session. While a table is small, to read all of it is cheapest, and a plan from then would read
all of it at every batch until statistics are taken again, however it has grown meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from itertools import chain, pairwise, product
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa

from mesh.db import attempts, housekeeping, idempotency, inbox, migrations, schema
from mesh.db.database import SESSION, Statement
from mesh.db.rows import Versions
from payment_svc.domain import OPEN, PaymentStatus
from payment_svc.providers.sandbox import tables as sandbox
from payment_svc.store.payments import listing as listing_payments
from product_svc.store.lists import Conditions, listing, ranking
from stack.servers import Servers
from tests.runtime.process import kept_plan, new_database

_CHECKS = """
    SELECT conrelid::regclass AS table, quote_ident(conname) AS name FROM pg_constraint
    WHERE contype = 'c' AND connamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
"""
"""What rows of no meaning would break."""
_TABLES = """
    SELECT oid::regclass AS name FROM pg_class
    WHERE relkind = 'r' AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
"""
ROOMS = ("customer_svc", "order_svc", "product_svc", "payment_svc")


@pytest.fixture(scope="module", params=ROOMS)
async def room(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A service and its database, with nothing in it, as one of the service's sessions sees it."""
    async with new_database(servers) as url:
        await asyncio.to_thread(migrations.upgrade, request.param, url)
        connection = await asyncpg.connect(url, server_settings=SESSION)
        for check in await connection.fetch(_CHECKS):
            await connection.execute(f"ALTER TABLE {check['table']} DROP CONSTRAINT {check['name']}")
        for table in await connection.fetch(_TABLES):
            # While the test is slow, PostgreSQL would take statistics of its own accord.
            await connection.execute(f"ALTER TABLE {table['name']} SET (autovacuum_enabled = false)")
        yield request.param, connection
        await connection.close()


def modules(name: str) -> list[ModuleType]:
    """Where a service's statements are. Those of the relay have a session of their own, and a test of their own."""
    return [*own_modules(name), attempts, inbox, housekeeping, idempotency]


def statements_in(module: ModuleType) -> dict[str, Statement]:
    """The statements of a module, by name: those that it defines, and those of its row mappings."""
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, Versions):
            found[name] = value.statement
        elif isinstance(value, Statement):
            found[name] = value
    return found


def own_modules(name: str) -> list[ModuleType]:
    """Those of it that are the service's own: a store is a module, or a folder of them."""
    store = import_module(f"{name}.store")
    parts = [import_module(f"{store.__name__}.{part.name}") for part in iter_modules(getattr(store, "__path__", []))]
    return [store, *parts, *([sandbox] if name == "payment_svc" else [])]


async def test_every_statement_finds_its_rows_by_index(room: tuple[str, asyncpg.Connection]) -> None:
    name, connection = room
    found = {
        f"{module.__name__}.{each}": value for module in modules(name) for each, value in statements_in(module).items()
    }
    assert len(found) >= 10
    for rows in (0, 10, 40, 50, 100, 200, 400, 2_000):
        await _fill(connection, name, rows)
        whole = {each: plan for each, value in found.items() if _reads_all(plan := await kept_plan(connection, value))}
        assert not whole, f"with {rows} rows"


@pytest.mark.parametrize("room", ["product_svc"], indirect=True)
@pytest.mark.parametrize("continued", [False, True])
async def test_lists_of_products_read_an_index_in_their_order(
    room: tuple[str, asyncpg.Connection], continued: bool
) -> None:
    name, connection = room
    await _fill(connection, name, 2_000)
    for order_by in ("", "name desc", "price", "price desc", "createTime", "createTime desc"):
        plan = "\n".join(await kept_plan(connection, listing(order_by, Conditions(), continued=continued)))
        assert "Sort" not in plan
        assert "Seq Scan on products" not in plan
        assert f"Index Scan{' Backward' * order_by.endswith('desc')} using products_" in plan


@pytest.mark.parametrize("room", ["payment_svc"], indirect=True)
async def test_lists_of_payments_by_a_rare_status_read_an_index_of_these(room: tuple[str, asyncpg.Connection]) -> None:
    name, connection = room
    await _fill(connection, name, 2_000)
    for status in (*OPEN, PaymentStatus.DECLINED, PaymentStatus.REFUNDED):
        plan = "\n".join(await kept_plan(connection, listing_payments(status)))
        assert ("payments_due" if status in OPEN else "payments_rare") in plan


@pytest.mark.parametrize("room", ["product_svc"], indirect=True)
async def test_searches_of_products_read_the_index_of_words(room: tuple[str, asyncpg.Connection]) -> None:
    name, connection = room
    await _fill(connection, name, 2_000)
    for filtered, continued in product((False, True), repeat=2):
        conditions = Conditions(query=True, currency=filtered, price=filtered, in_stock=filtered)
        for statement in (ranking(conditions, continued=continued), listing("name", conditions, continued=continued)):
            plan = "\n".join(await kept_plan(connection, statement))
            assert "Bitmap Index Scan on products_search" in plan
            assert "Seq Scan on" not in plan


def _reads_all(plan: list[str]) -> bool:
    """Whether a table is read from end to end, be it by an index, which ends early only at a limit without a sort."""
    text = "\n".join(plan)
    may_be_whole = "Limit" in text and "Sort" not in text
    return any(
        "Seq Scan on" in line or (not may_be_whole and " using " in line and "Index Cond" not in below)
        for line, below in pairwise([*plan, ""])
    )


async def _fill(connection: asyncpg.Connection, name: str, rows: int) -> None:
    """Add rows of no meaning to every table. Statistics know nothing of them."""
    await connection.execute("SET session_replication_role = replica")
    for table in _tables(name):
        columns = [column for column in table.c if column.computed is None and column.identity is None]
        names = ", ".join(column.name for column in columns)
        values = ", ".join(_value(column) for column in columns)
        await connection.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM generate_series(1, {rows})")


def _tables(name: str) -> set[sa.Table]:
    own = (getattr(module, "metadata", sa.MetaData()).tables.values() for module in own_modules(name))
    return {schema.inbox, schema.idempotency, *chain.from_iterable(own)}


_VALUES: dict[type[sa.types.TypeEngine[Any]], str] = {
    sa.Uuid: "gen_random_uuid()",
    sa.LargeBinary: "uuid_send(gen_random_uuid())",
    sa.Boolean: "false",
    sa.DateTime: "now()",
    sa.ARRAY: "'{}'",
    sa.JSON: "'{}'",
}


def _value(column: sa.Column[object]) -> str:
    if isinstance(column.type, sa.String):
        return f"left(gen_random_uuid()::text, {column.type.length or 36})"
    return next((value for kind, value in _VALUES.items() if isinstance(column.type, kind)), "1")


async def test_rows_are_changed_in_the_order_in_which_they_are_given(room: tuple[str, asyncpg.Connection]) -> None:
    """In that of the primary key: where rows are changed without a lock before, two batches must not deadlock."""
    name, connection = room
    changes = [
        value
        for module in own_modules(name)
        for value in statements_in(module).values()
        if value.sql.startswith("UPDATE") and "unnest" in value.sql
    ]
    assert changes
    for rows in (0, 10, 100, 2_000):
        await _fill(connection, name, rows)
        for change in changes:
            update, *steps = await kept_plan(connection, change)
            assert [update.split()[0], *(step.split()[1] for step in steps[:3])] == [
                "Update",
                "Nested",
                "Function",
                "Index",
            ]
