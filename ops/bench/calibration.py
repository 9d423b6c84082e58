"""R, the yardstick of a machine: one-order transactions a second by the bare driver.

Sixteen connections of raw asyncpg to the PostgreSQL of the mesh, each in a loop: BEGIN, one order, three lines with
`unnest`, one outbox row, COMMIT. Rates as ratios to R can be compared between machines.

The tables are in a schema of their own in an existing database. Dropping a database makes PostgreSQL write a
checkpoint, and after a checkpoint the load that follows would write whole pages to the log.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal

import asyncpg

from mesh.ids import new_id
from ops.running_mesh import RunningMesh
from stack.errors import StackError

SECONDS = 4.0
"""How long R is measured, before a load that is not shorter, and again after it."""
WARM_UP_S = 1.0
CONNECTIONS = 16

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
ADD_EVENT = "INSERT INTO outbox (event_id, type, aggregate_id, payload) VALUES ($1, 'commerce.bench.placed', $2, $3)"
_PAYLOAD = bytes(735)
"""As long as the event of an order of three lines."""
_PRICE = Decimal("9.99")


async def measured(mesh: RunningMesh, seconds: float) -> float:
    """R. It is measured in a process of its own, so that other work of the bench does not slow it down."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ops.bench.calibration", str(seconds)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    # The URL holds a password, and other users can see the arguments of a process.
    output, _ = await process.communicate(mesh.url_for("postgres").encode())
    if process.returncode:
        raise StackError("R could not be measured.")
    return float(output)


async def rate(url: str, *, warm_up: float = WARM_UP_S, seconds: float) -> float:
    """Transactions a second in all connections, counted for `seconds` after `warm_up` seconds. Nothing remains."""
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
    """Place orders one after another until the end; the number that was committed from `begin` on."""
    customer, products, done = new_id(), [new_id() for _ in range(3)], 0
    while (now := time.monotonic()) < end:
        order, ids = new_id(), [new_id() for _ in range(3)]
        async with connection.transaction():
            await connection.execute(_ORDER, order, customer, 3 * _PRICE, datetime.now(UTC))
            await connection.execute(_LINES, order, ids, products, ["A product"] * 3, [1] * 3, [_PRICE] * 3)
            await connection.execute(ADD_EVENT, new_id(), order, _PAYLOAD)
        done += now >= begin
    return done


if __name__ == "__main__":
    print(asyncio.run(rate(sys.stdin.read(), seconds=float(sys.argv[1]))))  # noqa: T201 - its result
