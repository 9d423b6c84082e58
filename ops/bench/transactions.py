"""The one-order transaction by raw asyncpg, as a process: a loop, seconds and the URL of a database in, a rate out.

Its tables are in a schema of their own in that database, not in a database of their own: PostgreSQL makes a checkpoint
when a database is dropped, and after one it writes every page whole that is changed. So the load that is measured next
would pay for the yardstick.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal

import asyncpg
import uvloop

from mesh.ids import new_id

CONNECTIONS = 16
WARM_UP_S = 1.0

_SCHEMA = "bench_scratch"
_DROP = f"DROP SCHEMA IF EXISTS {_SCHEMA} CASCADE"
_TABLES = f"""
{_DROP};
CREATE SCHEMA {_SCHEMA};
CREATE TABLE orders (
    id uuid PRIMARY KEY, customer_id uuid NOT NULL, status text NOT NULL, total numeric(28, 9) NOT NULL,
    order_date timestamptz NOT NULL
);
CREATE TABLE order_items (
    order_id uuid NOT NULL, id uuid NOT NULL, product_id uuid NOT NULL, name text NOT NULL, quantity bigint NOT NULL,
    unit_price numeric(28, 9) NOT NULL, PRIMARY KEY (order_id, id)
);
CREATE TABLE outbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id uuid NOT NULL, type text NOT NULL,
    aggregate_id uuid NOT NULL, payload bytea NOT NULL, create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
"""
_ORDER = "INSERT INTO orders VALUES ($1, $2, 'PENDING', $3, $4)"
_LINES = """
INSERT INTO order_items SELECT $1, * FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::numeric[])
"""
_OUTBOX = "INSERT INTO outbox (event_id, type, aggregate_id, payload) VALUES ($1, 'commerce.order.placed', $2, $3)"
_PAYLOAD = bytes(735)
"""As long as the event that tells of an order of three lines."""
_PRICE = Decimal("9.99")


async def rate(url: str, *, warm_up: float = WARM_UP_S, seconds: float) -> float:
    """Transactions a second, over all connections, counted for `seconds` after `warm_up` seconds. Nothing stays."""
    settings = {"search_path": _SCHEMA}
    setup = await asyncpg.connect(url, server_settings=settings)
    await setup.execute(_TABLES)
    connections = [await asyncpg.connect(url, server_settings=settings) for _ in range(CONNECTIONS)]
    try:
        begin = time.monotonic() + warm_up
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_place(each, begin, begin + seconds)) for each in connections]
    finally:
        for each in connections:
            await each.close()
        await setup.execute(_DROP)
        await setup.close()
    return sum(task.result() for task in tasks) / seconds


async def _place(connection: asyncpg.Connection, begin: float, end: float) -> int:
    """Place orders one after another until the end; how many were committed from `begin` on."""
    customer, products, done = new_id(), [new_id() for _ in range(3)], 0
    while (now := time.monotonic()) < end:
        order, ids = new_id(), [new_id() for _ in range(3)]
        async with connection.transaction():
            await connection.execute(_ORDER, order, customer, 3 * _PRICE, datetime.now(UTC))
            await connection.execute(_LINES, order, ids, products, ["A product"] * 3, [1] * 3, [_PRICE] * 3)
            await connection.execute(_OUTBOX, new_id(), order, _PAYLOAD)
        done += now >= begin
    return done


LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
"""Event loops by name. On uvloop the client takes half of the CPU."""


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=LOOPS[sys.argv[1]]) as runner:
        print(runner.run(rate(sys.stdin.read(), seconds=float(sys.argv[2]))))  # noqa: T201 - this is what it is run for
