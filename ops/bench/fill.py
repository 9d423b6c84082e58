"""A past for the mesh: confirmed orders, written straight into the databases as the services would have left them.

Every sum holds over them. What a million orders would have left in the outboxes is not written: those rows are dropped
by the day. Ids are made from numbers, so that the databases agree without asking each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ops.running_mesh import RunningMesh

_AT_A_TIME = 100_000
_SPACING_MS = 2_000
"""From one order to the next."""
_DAY_MS = 24 * 3600 * 1000

# Inlined by the planner. Orders are numbered from 0, products too; the k-th line of order n is of product (3n + k)
# modulo the number of products, one piece for 9.99.
_FUNCTIONS = """
CREATE FUNCTION pg_temp.ms(n bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS
    $$ SELECT {begin} + n * {spacing} $$;
CREATE FUNCTION pg_temp.id(ms bigint, kind int, n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
    $$ SELECT (lpad(to_hex(ms), 12, '0') || '7' || lpad(to_hex(kind), 3, '0') || '8'
        || substr(md5(kind || '/' || n), 1, 15))::uuid $$;
CREATE FUNCTION pg_temp.at(n bigint, later int) RETURNS timestamptz IMMUTABLE LANGUAGE sql AS
    $$ SELECT to_timestamp((pg_temp.ms(n) + later) / 1000.0) $$;
CREATE FUNCTION pg_temp.hash(what text, n bigint) RETURNS bytea IMMUTABLE LANGUAGE sql AS
    $$ SELECT sha256((what || n)::bytea) $$;
CREATE FUNCTION pg_temp.ordered(n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
    $$ SELECT pg_temp.id(pg_temp.ms(n), 1, n) $$;
CREATE FUNCTION pg_temp.paid(n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
    $$ SELECT pg_temp.id(pg_temp.ms(n), 2, n) $$;
CREATE FUNCTION pg_temp.buyer(n bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
    $$ SELECT pg_temp.id({begin} - 1, 3, n % 10000) $$;
CREATE FUNCTION pg_temp.product(p bigint) RETURNS uuid IMMUTABLE LANGUAGE sql AS
    $$ SELECT pg_temp.id({begin} - 1, 4, p) $$;
CREATE FUNCTION pg_temp.bought(n bigint, k bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS
    $$ SELECT (3 * n + k) % {products} $$;
CREATE FUNCTION pg_temp.stock_after(n bigint, k bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS
    $$ SELECT 10000000 - 1 - (3 * n + k) / {products} $$;
-- Consistent by construction, and written for speed: a crash would only mean to begin again.
SET session_replication_role = replica;
SET synchronous_commit = off;
SET statement_timeout = 0;
"""

# Products, from $1 to $2.
_PRODUCTS = [
    """
INSERT INTO products (id, sku, name, description, price, currency, state, create_time, update_time, version)
SELECT pg_temp.product(p), 'BENCH-' || p, 'Bench product ' || p, 'Of the past.', 9.99, 'EUR', 'ACTIVE',
    pg_temp.at(0, -1), pg_temp.at(0, -1), 1
FROM generate_series($1::bigint, $2::bigint) p
""",
    """
INSERT INTO stock_movements (
    id, product_id, delta, on_hand_after, reason, order_id, note, create_time, actor)
SELECT pg_temp.id(pg_temp.ms(0) - 1, 5, p), pg_temp.product(p), 10000000, 10000000, 'RECEIPT', NULL, '',
    pg_temp.at(0, -1), 'staff'
FROM generate_series($1::bigint, $2::bigint) p
""",
]
# After the sales.
_STOCKS = """
INSERT INTO stocks (product_id, on_hand, reserved, update_time, version)
SELECT product_id, sum(delta), 0, max(create_time), count(*) FROM stock_movements
WHERE product_id BETWEEN pg_temp.id(pg_temp.ms(0) - 1, 0, 0) AND pg_temp.id(pg_temp.ms(0), 0, 0) GROUP BY 1
"""

_INBOX = """
INSERT INTO mesh.inbox (event_id, consumer, receive_time)
SELECT pg_temp.id(pg_temp.ms(n), 6, n), '{consumer}', pg_temp.at(n, 100)
FROM generate_series($1::bigint, $2::bigint) n
"""
# Orders, from $1 to $2, by database.
_ORDERS = {
    "orders": [
        """
INSERT INTO orders (
    id, customer_id, status, total, currency, payment_method_id, payment_id, order_date, payment_deadline,
    cancel_note, update_time, version)
SELECT pg_temp.ordered(n), pg_temp.buyer(n), 'CONFIRMED', 29.97, 'EUR', pg_temp.buyer(n), pg_temp.paid(n),
    pg_temp.at(n, 0), pg_temp.at(n, 900000), '', pg_temp.at(n, 100), 2
FROM generate_series($1::bigint, $2::bigint) n
""",
        """
INSERT INTO order_items (order_id, id, product_id, sku, name, quantity, unit_price)
SELECT pg_temp.ordered(n), pg_temp.id(pg_temp.ms(n), 16 + k, n), pg_temp.product(pg_temp.bought(n, k)),
    'BENCH-' || pg_temp.bought(n, k), 'Bench product ' || pg_temp.bought(n, k), 1, 9.99
FROM generate_series($1::bigint, $2::bigint) n, generate_series(0, 2) k
""",
        """
INSERT INTO mesh.idempotency (digest, caller, method, request_hash, reply)
SELECT pg_temp.hash('key', n), 'customer:' || pg_temp.buyer(n), '/commerce.order.v1.OrderService/CreateOrder',
    pg_temp.hash('request', n), decode(repeat(md5(n::text), 40), 'hex')
FROM generate_series($1::bigint, $2::bigint) n
""",
        _INBOX.format(consumer="order-payment"),
    ],
    "product": [
        """
INSERT INTO holds (order_id, key, customer_id, state, expire_time, create_time)
SELECT pg_temp.ordered(n), pg_temp.hash('key', n), pg_temp.buyer(n), 'COMMITTED', pg_temp.at(n, 1200000),
    pg_temp.at(n, 0)
FROM generate_series($1::bigint, $2::bigint) n
""",
        """
INSERT INTO hold_lines (order_id, product_id, quantity, sku, name, unit_price, currency)
SELECT pg_temp.ordered(n), pg_temp.product(pg_temp.bought(n, k)), 1, 'BENCH-' || pg_temp.bought(n, k),
    'Bench product ' || pg_temp.bought(n, k), 9.99, 'EUR'
FROM generate_series($1::bigint, $2::bigint) n, generate_series(0, 2) k
""",
        """
INSERT INTO stock_movements (
    id, product_id, delta, on_hand_after, reason, order_id, note, create_time, actor)
SELECT pg_temp.id(pg_temp.ms(n), 32 + k, n), pg_temp.product(pg_temp.bought(n, k)), -1, pg_temp.stock_after(n, k),
    'SALE', pg_temp.ordered(n), '', pg_temp.at(n, 200), 'service:order'
FROM generate_series($1::bigint, $2::bigint) n, generate_series(0, 2) k
""",
        _INBOX.format(consumer="product-order"),
    ],
    "payment": [
        """
INSERT INTO payments (
    id, order_id, customer_id, amount, currency, provider, payment_method_id, token, provider_key, status,
    refunded_amount, provider_reference, failure_reason, cancel_requested, attempts, create_time, process_time,
    traceparent, version)
SELECT pg_temp.paid(n), pg_temp.ordered(n), pg_temp.buyer(n), 29.97, 'EUR', 'sandbox', pg_temp.buyer(n), '',
    'payment-' || pg_temp.paid(n), 'CAPTURED', 0, 'ch_past_' || n, '', false, 0, pg_temp.at(n, 0),
    pg_temp.at(n, 50), '', 2
FROM generate_series($1::bigint, $2::bigint) n
""",
        """
INSERT INTO payment_entries (id, payment_id, type, amount, provider_reference, note, create_time, actor)
SELECT pg_temp.id(pg_temp.ms(n), 7, n), pg_temp.paid(n), 'CAPTURE', 29.97, 'ch_past_' || n, '', pg_temp.at(n, 50),
    'service:order'
FROM generate_series($1::bigint, $2::bigint) n
""",
        """
INSERT INTO sandbox.charges (key, status, reference, reason, token, amount, currency, order_id, create_time)
SELECT 'payment-' || pg_temp.paid(n), 'APPROVED', 'ch_past_' || n, '', 'tok_visa', 29.97, 'EUR',
    pg_temp.ordered(n), pg_temp.at(n, 40)
FROM generate_series($1::bigint, $2::bigint) n
""",
        """
INSERT INTO sandbox.attempts (key, token, amount, order_id, create_time)
SELECT 'payment-' || pg_temp.paid(n), 'tok_visa', 29.97, pg_temp.ordered(n), pg_temp.at(n, 40)
FROM generate_series($1::bigint, $2::bigint) n
""",
        _INBOX.format(consumer="payment-order"),
    ],
}

# As autovacuum would have done by and by. Not the outbox, which it leaves alone: a vacuum would let new events into
# what is free at the end of each of its old pages.
_VACUUMED = """
SELECT string_agg(oid::regclass::text, ', ') FROM pg_class
WHERE relkind = 'r' AND relnamespace IN ('public'::regnamespace, to_regnamespace('mesh'), to_regnamespace('sandbox'))
    AND NOT coalesce(reloptions, '{}') @> '{autovacuum_enabled=off}'
"""


async def fill(target: RunningMesh, *, orders: int, products: int, tell: Callable[[str], None]) -> None:
    """Write that many products, and confirmed orders of three lines; once in the life of a mesh."""
    begin = int(time.time() * 1000) - _DAY_MS - orders * _SPACING_MS
    for database, statements in _ORDERS.items():
        connection = await target.connect(database)
        try:
            await connection.execute(_FUNCTIONS.format(begin=begin, spacing=_SPACING_MS, products=products))
            if database == "product":
                for statement in _PRODUCTS:
                    await connection.execute(statement, 0, products - 1)
            for first in range(0, orders, _AT_A_TIME):
                tell(f"filling {database}: {first:,} of {orders:,} orders")
                for statement in statements:
                    await connection.execute(statement, first, min(first + _AT_A_TIME, orders) - 1)
            if database == "product":
                await connection.execute(_STOCKS)
            tell(f"analyzing {database}")
            await connection.execute(f"VACUUM (ANALYZE) {await connection.fetchval(_VACUUMED)}")
        finally:
            await connection.close()
