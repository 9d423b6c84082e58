"""The one-order transaction by raw asyncpg, as a process: the URL of an empty database in, a rate out."""

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
SECONDS = 4.0
WARM_UP_S = 1.0

_SCHEMA = """
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
_PAYLOAD = bytes(400)
"""As long as the event of an order of three lines."""
_PRICE = Decimal("9.99")


async def rate(url: str) -> float:
    """Transactions a second, over all connections."""
    setup = await asyncpg.connect(url)
    await setup.execute(_SCHEMA)
    await setup.close()
    connections = [await asyncpg.connect(url) for _ in range(CONNECTIONS)]
    begin = time.monotonic() + WARM_UP_S
    done = await asyncio.gather(*(_place(each, begin, begin + SECONDS) for each in connections))
    for each in connections:
        await each.close()
    return sum(done) / SECONDS


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


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(rate(sys.stdin.read())))  # noqa: T201 - this is what it is run for
