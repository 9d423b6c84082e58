"""A generated past: orders that were placed, paid and delivered to nobody, in all databases and streams.

For tests of the audit, and to measure it: `python -m tests.past 100000` starts servers in a temporary folder, makes a
past of so many orders, and prints the time and the memory that a full and an incremental audit of it take.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from commerce.order.v1 import order_pb2
from mesh.events import cloudevents
from mesh.events.bus import Bus, Message
from ops.audit import DATABASES, Audit
from stack.servers import Servers
from tests.services import migrated

PRODUCTS = 100
LINES = 3
_PLACEHOLDER = "0" * 36
_BATCH = 512
_CHUNK = 250_000
"""The orders that one statement makes."""

_FUNCTIONS = """
CREATE FUNCTION pg_temp.at(n bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
    $$ SELECT to_timestamp({begin} + n * {step}) $$;
CREATE FUNCTION pg_temp.id(kind text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$ SELECT (
    lpad(to_hex((({begin} + n * {step}) * 1000)::bigint), 12, '0') || '7' || substr(md5(kind || n), 1, 3)
    || '8' || substr(md5(n || kind), 1, 15)
)::uuid $$;
"""
_PUBLISHED = """
INSERT INTO mesh.outbox (event_id, create_time, type, aggregate_id, sequence, payload, traceparent)
SELECT pg_temp.id('{kind}', n), pg_temp.at(n), 'commerce.{kind}', pg_temp.id('{of}', {number}), {sequence}, '', ''
FROM generate_series($1::bigint, $2) n {where}
"""
_APPLIED = """
INSERT INTO mesh.inbox (event_id, consumer, receive_time)
SELECT pg_temp.id('{kind}', n), '{consumer}', pg_temp.at(n) + interval '1 s' FROM generate_series($1::bigint, $2) n
"""
_EACH = "FROM generate_series($1::bigint, $2) n"
_LINES_OF_EACH = f"{_EACH}, generate_series(0, {LINES - 1}) k"
_PRODUCT = f"pg_temp.id('product', (n + k) % {PRODUCTS})"
_STATEMENTS = {
    "order": [
        f"""
        INSERT INTO orders (id, customer_id, status, total, currency, payment_method_id, payment_id, order_date,
            payment_deadline, cancel_note, update_time, version)
        SELECT pg_temp.id('order', n), pg_temp.id('customer', n % 1000), 'CONFIRMED', {10 * LINES}, 'EUR',
            pg_temp.id('method', n % 1000), pg_temp.id('payment', n), pg_temp.at(n),
            pg_temp.at(n) + interval '900 s', '', pg_temp.at(n) + interval '1 s', 2 {_EACH}
        """,
        f"""
        INSERT INTO order_items (order_id, id, product_id, sku, name, quantity, unit_price)
        SELECT pg_temp.id('order', n), pg_temp.id('item', n * {LINES} + k), {_PRODUCT}, 'SKU', 'A thing', 1, 10
        {_LINES_OF_EACH}
        """,
        _PUBLISHED.format(kind="order.placed", of="order", number="n", sequence=1, where=""),
        _PUBLISHED.format(kind="order.confirmed", of="order", number="n", sequence=2, where=""),
        _APPLIED.format(kind="payment.captured", consumer="order-payment"),
        f"""
        INSERT INTO mesh.idempotency (digest, caller, method, request_hash, reply, create_time)
        SELECT sha256(n::text::bytea), 'customer', '/commerce.order.v1.OrderService/CreateOrder', '',
            '\\x{{before}}'::bytea || pg_temp.id('order', n)::text::bytea || '\\x{{after}}'::bytea, pg_temp.at(n)
        {_EACH} WHERE pg_temp.at(n) > now() - interval '1 day'
        """,
    ],
    "payment": [
        f"""
        INSERT INTO payments (id, order_id, customer_id, amount, currency, provider, payment_method_id, token,
            provider_key, status, refunded_amount, provider_reference, failure_reason, cancel_requested, attempts,
            create_time, process_time, traceparent, version)
        SELECT pg_temp.id('payment', n), pg_temp.id('order', n), pg_temp.id('customer', n % 1000), {10 * LINES}, 'EUR',
            'sandbox', pg_temp.id('method', n % 1000), '', 'payment-' || pg_temp.id('payment', n), 'CAPTURED', 0,
            'ch_' || n, '', false, 0, pg_temp.at(n), pg_temp.at(n) + interval '1 s', '', 2 {_EACH}
        """,
        f"""
        INSERT INTO payment_entries (id, payment_id, type, amount, provider_reference, note, create_time, actor,
            trace_id)
        SELECT pg_temp.id('entry', n), pg_temp.id('payment', n), 'CAPTURE', {10 * LINES}, 'ch_' || n, '',
            pg_temp.at(n), 'service:order', '' {_EACH}
        """,
        f"""
        INSERT INTO sandbox.charges (key, status, reference, reason, token, amount, currency, order_id, create_time)
        SELECT 'payment-' || pg_temp.id('payment', n), 'APPROVED', 'ch_' || n, '', 'tok_visa', {10 * LINES}, 'EUR',
            pg_temp.id('order', n), pg_temp.at(n) {_EACH}
        """,
        _PUBLISHED.format(kind="payment.captured", of="payment", number="n", sequence=2, where=""),
        _APPLIED.format(kind="order.placed", consumer="payment-order"),
    ],
    "product": [
        f"""
        INSERT INTO holds (order_id, key, customer_id, state, expire_time, create_time)
        SELECT pg_temp.id('order', n), sha256(n::text::bytea), pg_temp.id('customer', n % 1000), 'COMMITTED',
            pg_temp.at(n) + interval '1200 s', pg_temp.at(n) {_EACH}
        """,
        f"""
        INSERT INTO hold_lines (order_id, product_id, quantity, sku, name, unit_price, currency)
        SELECT pg_temp.id('order', n), {_PRODUCT}, 1, 'SKU', 'A thing', 10, 'EUR' {_LINES_OF_EACH}
        """,
        f"""
        INSERT INTO stock_movements (id, product_id, delta, on_hand_after, reason, order_id, note, create_time, actor)
        SELECT pg_temp.id('movement', n * {LINES} + k), {_PRODUCT}, -1, 0, 'SALE', pg_temp.id('order', n), '',
            pg_temp.at(n), 'service:order' {_LINES_OF_EACH}
        """,
        # A batch of sales tells once of each of its products.
        _PUBLISHED.format(
            kind="product.stock_changed",
            of="product",
            number=f"n / 10 % {PRODUCTS}",
            sequence="n",
            where="WHERE n % 10 = 0",
        ),
        _APPLIED.format(kind="order.confirmed", consumer="product-order"),
    ],
    "customer": [],
}
_FINALLY = {
    "product": f"""
    INSERT INTO products (id, sku, name, description, price, currency, state, create_time, update_time, version)
    SELECT pg_temp.id('product', n), 'SKU-' || n, 'A thing', '', 10, 'EUR', 'ACTIVE', pg_temp.at(0), pg_temp.at(0), 1
    FROM generate_series(0, {PRODUCTS - 1}) n;
    INSERT INTO stocks (product_id, on_hand, reserved, update_time, version)
    SELECT product_id, sum(delta) + 1000000000, 0, max(create_time), 1 FROM stock_movements GROUP BY 1;
    INSERT INTO stock_movements (id, product_id, delta, on_hand_after, reason, order_id, note, create_time, actor)
    SELECT gen_random_uuid(), product_id, 1000000000, 0, 'RECEIPT', NULL, '', pg_temp.at(0), 'staff' FROM stocks;
    """
}


@dataclass(frozen=True)
class Past:
    """A mesh with a generated past, for an audit."""

    nats_url: str
    url_of: Callable[[str], str]

    def audit_url(self, database: str) -> str:
        """The URL of a database."""
        return self.url_of(database)

    async def make(self, orders: int, *, days: float = 6.0, say: Callable[[str], None] = lambda _: None) -> None:
        """Make `orders` orders, evenly in the last `days`, the last of them 10 minutes ago."""
        begin = datetime.now(UTC) - timedelta(days=days)
        step = (timedelta(days=days) - timedelta(minutes=10)).total_seconds() / orders
        reply = order_pb2.CreateOrderResponse(order=order_pb2.Order(id=_PLACEHOLDER, etag="1")).SerializeToString()
        before, after = reply.split(_PLACEHOLDER.encode())
        for service, database in DATABASES.items():
            connection = await asyncpg.connect(self.url_of(database), command_timeout=3600)
            try:
                await connection.execute(_FUNCTIONS.format(begin=begin.timestamp(), step=step))
                await connection.execute("SET session_replication_role = replica; SET synchronous_commit = off")
                for statement in _STATEMENTS[service]:
                    text = statement.replace("{before}", before.hex()).replace("{after}", after.hex())
                    for first in range(1, orders + 1, _CHUNK):
                        await connection.execute(text, first, min(first + _CHUNK - 1, orders))
                await connection.execute(_FINALLY.get(service, "SELECT"))
                await connection.execute(
                    "UPDATE mesh.outbox_position SET through = (SELECT coalesce(max(seq), 0) FROM mesh.outbox)"
                )
                await connection.execute("ANALYZE")
                say(f"{database} is made")
                await self._publish(service, connection)
                say(f"the events of {service} are published")
            finally:
                await connection.close()

    async def _publish(self, service: str, connection: asyncpg.Connection) -> None:
        bus = Bus(self.nats_url, name="past")
        await bus.start()
        await bus.connected()
        try:
            await bus.ensure_stream_of(service)
            async with connection.transaction():
                messages: list[Message] = []
                async for row in connection.cursor("SELECT * FROM mesh.outbox ORDER BY seq", prefetch=10 * _BATCH):
                    messages.append(message_of(service, row))
                    if len(messages) == _BATCH:
                        await publish(bus, messages)
                        messages = []
                await publish(bus, messages)
        finally:
            await bus.stop()


def message_of(service: str, row: asyncpg.Record) -> Message:
    """The message of a row of an outbox."""
    headers = cloudevents.headers(
        event_id=row["event_id"],
        event_type=row["type"],
        source=service,
        aggregate_id=row["aggregate_id"],
        sequence=row["sequence"],
        time=row["create_time"],
        traceparent="",
    )
    return Message(f"{row['type']}.{row['aggregate_id']}", b"", headers)


async def publish(bus: Bus, messages: list[Message]) -> None:
    """Publish all messages."""
    stored = await bus.publish(messages, timeout=60)
    assert stored == len(messages), f"{stored} of {len(messages)} messages were stored"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def _audited(past: Past, since: datetime | None) -> None:
    """Audit, and print the time, the memory and each check."""
    report = await Audit(past, since=since).run()
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    kind = "full" if since is None else "incremental"
    _say(f"{kind}: {report.seconds:.1f} s, CPU {cpu:.1f} s, peak {peak:.0f} MiB, ok {report.ok}")
    for check in report.checks:
        _say(f"  {check.name:10} {check.checked:>12,} {check.seconds:8.2f} s {check.breaches} {check.violations[:1]}")


async def _measure(orders: int) -> None:
    with tempfile.TemporaryDirectory(prefix="past-") as folder:
        os.chmod(folder, 0o711)  # noqa: PTH101 - PostgreSQL may run as another user
        async with Servers.started(Path(folder)) as servers:
            await migrated(servers)
            past = Past(servers.nats.url, servers.postgres.superuser_url_of)
            started = time.monotonic()
            await past.make(orders, say=lambda text: _say(f"{time.monotonic() - started:.0f} s: {text}"))
            # A process of its own for each, so that its memory is its own.
            for since in (None, (datetime.now(UTC) - timedelta(hours=1)).isoformat()):
                urls = {database: past.url_of(database) for database in DATABASES.values()}
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.past"), stdin=asyncio.subprocess.PIPE
                )
                await process.communicate(json.dumps({"nats": past.nats_url, "urls": urls, "since": since}).encode())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(_measure(int(sys.argv[1])))
    else:
        given = json.load(sys.stdin)
        since = datetime.fromisoformat(given["since"]) if given["since"] else None
        asyncio.run(_audited(Past(given["nats"], given["urls"].__getitem__), since))
