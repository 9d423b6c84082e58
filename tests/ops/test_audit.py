"""The auditor: a generated past has no breach, and each planted breach is named, with ids, by its own check."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from commerce.order.v1 import order_pb2
from mesh.db import migrations
from mesh.events.bus import DEAD_LETTERS, Bus, Message
from mesh.ids import new_id
from ops.audit import DATABASES, NAMES, Audit, Check, Report
from stack.servers import Servers
from tests.past import LINES, Past, message_of, publish
from tests.runtime.process import new_database
from tests.services import empty_bus

ORDERS = 60


class Mesh(NamedTuple):
    """The past, a connection to each database, and a bus to publish with."""

    past: Past
    databases: dict[str, asyncpg.Connection]
    bus: Bus
    ids: dict[str, UUID]
    """Of one order, its payment and one of its products."""

    async def audit(self, *names: str, **options: object) -> Report:
        return await Audit(self.past, names=names or NAMES, **options).run()  # type: ignore[arg-type]

    async def violations(self, name: str) -> list[str]:
        return (await self.audit(name))[name].violations

    async def execute(self, service: str, query: str) -> None:
        """Run a statement, with the ids in place of their names."""
        await self.databases[service].execute(query.format(**self.ids))


@pytest.fixture(scope="module")
async def mesh(servers: Servers) -> AsyncIterator[Mesh]:
    """60 orders of the last two hours, in databases of their own. Each test repairs what it has broken."""
    await empty_bus(servers)
    async with AsyncExitStack() as stack:
        urls, databases = {}, {}
        for service, database in DATABASES.items():
            urls[database] = await stack.enter_async_context(new_database(servers))
            await asyncio.to_thread(migrations.upgrade, f"{service}_svc", urls[database])
            # What the services would not do, the triggers are there to refuse.
            databases[service] = await asyncpg.connect(
                urls[database], server_settings={"session_replication_role": "replica"}
            )
            stack.push_async_callback(databases[service].close)
        past = Past(servers.nats.url, urls.__getitem__)
        await past.make(ORDERS, days=1 / 12)
        bus = Bus(past.nats_url, name="test of the audit")
        await bus.start()
        stack.push_async_callback(bus.stop)
        await bus.connected()
        row = await databases["payment"].fetchrow("SELECT id, order_id FROM payments ORDER BY id OFFSET 7 LIMIT 1")
        assert row is not None
        product = await databases["order"].fetchval(
            "SELECT product_id FROM order_items WHERE order_id = $1 ORDER BY id LIMIT 1", row["order_id"]
        )
        ids = {"order": row["order_id"], "payment": row["id"], "product": product, "other": new_id()}
        yield Mesh(past, databases, bus, ids)
    await empty_bus(servers)


async def test_past_without_a_breach_is_clean_and_each_check_says_what_it_has_seen(mesh: Mesh) -> None:
    report = await mesh.audit()
    assert report.violations == []
    assert report.ok
    assert [check.name for check in report.checks] == list(NAMES)
    assert {check.name: check.checked for check in report.checks} == {
        **dict.fromkeys(("on-hand", "reserved"), ORDERS + LINES - 1),
        **dict.fromkeys(("sales", "captures", "amounts", "reconciliation", "charges", "replies"), ORDERS),
        **dict.fromkeys(("holds", "refunds", "deadlines"), 0),
        "outbox": 3 * ORDERS + ORDERS // 10,
        "streams": 3 * ORDERS + ORDERS // 10,
        "applied": 3 * ORDERS,
    }
    assert {check.retention for check in report.checks} == {
        "everything",
        "the 24 hours of stored replies",
        "the 7 days of the outboxes",
    }


REFUND = """
INSERT INTO refunds (id, payment_id, amount, currency, provider, provider_key, status, provider_reference,
    failure_reason, reason, actor, attempts, next_attempt_time, create_time, traceparent, charge_reference)
VALUES ('{other}', '{payment}', 31, 'EUR', 'sandbox', 'refund-{other}', 'PENDING', '', '', '', '', 0, now(), now(), '',
    '')
"""
CHARGE = """
INSERT INTO sandbox.charges (key, status, reference, reason, token, amount, currency, order_id)
VALUES ('payment-{other}', 'APPROVED', 'ch_other', '', 'tok_visa', 30, 'EUR', '{order}')
"""
EVENT = """
INSERT INTO mesh.outbox (event_id, create_time, type, aggregate_id, sequence, payload, traceparent)
VALUES ('{other}', now() - interval '5 minutes', 'commerce.order.shipped', '{order}', 3, '', '')
"""
HOLD = """
INSERT INTO holds (order_id, key, customer_id, state, expire_time)
VALUES ('{old}', '', '{other}', 'HELD', now() - interval '4 minutes')
"""
PLANTS: Sequence[tuple[str, str, str, str, str]] = [
    (
        "on-hand",
        "product",
        "UPDATE stocks SET on_hand = on_hand - 1 WHERE product_id = '{product}'",
        "UPDATE stocks SET on_hand = on_hand + 1 WHERE product_id = '{product}'",
        "product {product} has ",
    ),
    (
        "on-hand",
        "product",
        "UPDATE stock_movements SET delta = delta - 1 WHERE order_id = '{order}' AND product_id = '{product}'",
        "UPDATE stock_movements SET delta = delta + 1 WHERE order_id = '{order}' AND product_id = '{product}'",
        "product {product} has ",
    ),
    (
        "reserved",
        "product",
        "UPDATE stocks SET reserved = 1 WHERE product_id = '{product}'",
        "UPDATE stocks SET reserved = 0 WHERE product_id = '{product}'",
        "product {product} has 1 reserved, but live holds are for 0",
    ),
    (
        "sales",
        "product",
        "UPDATE stock_movements SET delta = delta - 1 WHERE order_id = '{order}' AND product_id = '{product}'",
        "UPDATE stock_movements SET delta = delta + 1 WHERE order_id = '{order}' AND product_id = '{product}'",
        "order {order} has moved the stock of product {product} by -2, and its hold has sold 1",
    ),
    (
        "sales",
        "order",
        "UPDATE order_items SET quantity = quantity + 1 WHERE order_id = '{order}' AND product_id = '{product}'",
        "UPDATE order_items SET quantity = quantity - 1 WHERE order_id = '{order}' AND product_id = '{product}'",
        "order {order} (CONFIRMED) has other items than its hold",
    ),
    (
        "holds",
        "product",
        "UPDATE holds SET state = 'HELD' WHERE order_id = '{order}'",
        "UPDATE holds SET state = 'COMMITTED' WHERE order_id = '{order}'",
        "order {order} (CONFIRMED) is decided and still holds stock",
    ),
    (
        "holds",
        "product",
        HOLD,
        "DELETE FROM holds WHERE order_id = '{old}'",
        "order {old}, which does not exist, holds stock that its sweep has not released",
    ),
    (
        "captures",
        "order",
        "UPDATE orders SET status = 'CANCELLED' WHERE id = '{order}'",
        "UPDATE orders SET status = 'CONFIRMED' WHERE id = '{order}'",
        "order {order} (CANCELLED) has payment {payment}, which is CAPTURED",
    ),
    (
        "captures",
        "payment",
        "UPDATE payments SET order_id = '{old}' WHERE id = '{payment}'",
        "UPDATE payments SET order_id = '{order}' WHERE id = '{payment}'",
        "order {old}, which does not exist, has payment {payment}, which is CAPTURED",
    ),
    (
        "amounts",
        "payment",
        "UPDATE sandbox.charges SET amount = amount - 1 WHERE order_id = '{order}'",
        "UPDATE sandbox.charges SET amount = amount + 1 WHERE order_id = '{order}'",
        "payment {payment} of order {order} (CAPTURED) has captured 30 and refunded 0, its ledger says 30 and 0, ",
    ),
    (
        "amounts",
        "payment",
        "UPDATE payment_entries SET amount = amount + 1 WHERE payment_id = '{payment}'",
        "UPDATE payment_entries SET amount = amount - 1 WHERE payment_id = '{payment}'",
        "payment {payment} of order {order} (CAPTURED) has captured 30 and refunded 0, its ledger says 31 and 0",
    ),
    (
        "reconciliation",
        "payment",
        "INSERT INTO findings VALUES ('{payment}', 'REFUND', 're_other', 0, 5.5, now(), NULL)",
        "DELETE FROM findings",
        "payment {payment}: the refund re_other is of 0 in the books and of 5.5 at the provider",
    ),
    (
        "charges",
        "payment",
        CHARGE,
        "DELETE FROM sandbox.charges WHERE key = 'payment-{other}'",
        "order {order} was charged 2 times at the provider, as payment-",
    ),
    (
        "refunds",
        "payment",
        REFUND,
        "DELETE FROM refunds",
        "payment {payment} of order {order} has captured 30, and its refunds come to 31",
    ),
    (
        "deadlines",
        "order",
        "UPDATE orders SET status = 'PENDING' WHERE id = '{order}'",
        "UPDATE orders SET status = 'CONFIRMED' WHERE id = '{order}'",
        "order {order} is PENDING, beyond its deadline, since ",
    ),
    (
        "deadlines",
        "order",
        "UPDATE orders SET status = 'CANCELLING' WHERE id = '{order}'",
        "UPDATE orders SET status = 'CONFIRMED' WHERE id = '{order}'",
        "order {order} is CANCELLING, beyond its deadline, since ",
    ),
    (
        "outbox",
        "order",
        EVENT,
        "DELETE FROM mesh.outbox WHERE event_id = '{other}'",
        "event {other} (commerce.order.shipped) of {order} is not published since ",
    ),
    (
        "streams",
        "order",
        "UPDATE mesh.outbox SET sequence = 0 WHERE aggregate_id = '{order}' AND sequence = 2",
        "UPDATE mesh.outbox SET sequence = 2 WHERE aggregate_id = '{order}' AND sequence = 0",
        "commerce.order.confirmed of {order} has sequence 0 after 1",
    ),
    (
        "applied",
        "payment",
        "INSERT INTO mesh.inbox (event_id, consumer) VALUES ('{old}', 'payment-order')",
        "DELETE FROM mesh.inbox WHERE event_id = '{old}'",
        "payment-order has applied event {old}, which was never written",
    ),
]


@pytest.mark.parametrize(("name", "service", "plant", "repair", "breach"), PLANTS)
async def test_breach_that_is_planted_in_a_database_is_named(
    mesh: Mesh, name: str, service: str, plant: str, repair: str, breach: str
) -> None:
    # An id from within the past, of nothing that exists.
    mesh.ids["old"] = UUID(int=mesh.ids["order"].int + 1)
    await mesh.execute(service, plant)
    try:
        report = await mesh.audit(name)
    finally:
        await mesh.execute(service, repair)
    assert not report.ok
    assert any(each.startswith(breach.format(**mesh.ids)) for each in report[name].violations), report.violations


@pytest.mark.parametrize("version", [1, 3])
async def test_stored_reply_without_its_effect_is_named(mesh: Mesh, version: int) -> None:
    """Of an order that does not exist, or not yet in the version that the reply tells."""
    order_id = new_id() if version == 1 else mesh.ids["order"]
    reply = order_pb2.PlaceOrderResponse(order=order_pb2.Order(id=str(order_id), etag=str(version)))
    await mesh.databases["order"].execute(
        "INSERT INTO mesh.idempotency (digest, caller, method, request_hash, reply) VALUES ($1, '', $2, '', $3)",
        b"planted",
        "/commerce.order.v1.OrderService/PlaceOrder",
        reply.SerializeToString(),
    )
    try:
        [found] = await mesh.violations("replies")
    finally:
        await mesh.databases["order"].execute("DELETE FROM mesh.idempotency WHERE digest = 'planted'")
    fault = {
        1: f"tells of orders {order_id}, which does not exist",
        3: f"tells of version 3 of orders {order_id}, which has version 2",
    }
    assert found == f"the reply {b'planted'.hex()} of /commerce.order.v1.OrderService/PlaceOrder {fault[version]}"


async def test_event_that_a_consumer_has_not_applied_is_named_with_its_dead_letter(mesh: Mesh) -> None:
    row = await mesh.databases["order"].fetchrow("SELECT * FROM mesh.outbox WHERE type LIKE '%.confirmed' LIMIT 1")
    assert row is not None
    event_id, order_id = row["event_id"], row["aggregate_id"]
    forgotten = "DELETE FROM mesh.inbox WHERE event_id = $1 RETURNING receive_time"
    received = await mesh.databases["product"].fetchval(forgotten, event_id)
    expected = f"product-order has not applied event {event_id}, commerce.order.confirmed of {order_id} with sequence 2"
    try:
        [found] = await mesh.violations("applied")
        assert found == f"{expected}: the consumer does not exist"
        await mesh.bus.ensure_stream(DEAD_LETTERS, "mesh.dead.>", max_age=0)
        headers = {"ce-id": str(event_id), "mesh-error": "HoldMissing: no hold"}
        await publish(mesh.bus, [Message(f"mesh.dead.product-order.commerce.order.confirmed.{order_id}", b"", headers)])
        [found] = await mesh.violations("applied")
        assert found == f"{expected}: it is a dead letter (HoldMissing: no hold)"
    finally:
        await mesh.databases["product"].execute(
            "INSERT INTO mesh.inbox (event_id, consumer, receive_time) VALUES ($1, 'product-order', $2)",
            event_id,
            received,
        )
    assert await mesh.violations("applied") == []


async def test_event_that_a_stream_has_lost_is_named_until_it_is_published_again(mesh: Mesh) -> None:
    row = await mesh.databases["order"].fetchrow("SELECT * FROM mesh.outbox ORDER BY seq LIMIT 1")
    assert row is not None
    lost = await mesh.bus.jetstream.get_last_msg("ORDERS", f"{row['type']}.{row['aggregate_id']}")
    assert lost.seq is not None
    await mesh.bus.jetstream.delete_msg("ORDERS", lost.seq)
    text = f"commerce.order.placed of {row['aggregate_id']} with sequence 1"
    assert await mesh.violations("streams") == [f"ORDERS lacks event {row['event_id']}, {text}"]
    # It would be dropped as a duplicate under its own id.
    again = message_of("order", row)
    again.headers["Nats-Msg-Id"] = "again"
    await publish(mesh.bus, [again])
    assert await mesh.violations("streams") == []


async def test_stream_that_is_lost_is_named_with_the_number_of_its_events(mesh: Mesh) -> None:
    rows = await mesh.databases["product"].fetch("SELECT * FROM mesh.outbox ORDER BY seq")
    clean = await mesh.audit("streams")
    await mesh.bus.jetstream.delete_stream("PRODUCTS")
    count = ORDERS // 10
    assert await mesh.violations("streams") == [
        f"the stream PRODUCTS does not exist, and {count} events were published to it"
    ]
    assert (await mesh.audit("streams"))["streams"].breaches == count
    await mesh.bus.ensure_stream_of("product")
    # An incremental audit sees that the stream lacks its last message.
    found = (await mesh.audit("streams", since=clean.until, marks=clean.marks))["streams"].violations
    assert sorted(found) == sorted(
        f"PRODUCTS lacks event {row['event_id']}, {row['type']} of {row['aggregate_id']}"
        f" with sequence {row['sequence']}"
        for row in rows
    )
    await publish(mesh.bus, [message_of("product", row) for row in rows])
    assert await mesh.violations("streams") == []


@pytest.mark.parametrize("is_event", [True, False])
async def test_message_that_no_service_has_written_is_named(mesh: Mesh, is_event: bool) -> None:
    row = await mesh.databases["order"].fetchrow("SELECT * FROM mesh.outbox ORDER BY seq LIMIT 1")
    assert row is not None
    event_id = UUID(int=row["event_id"].int + 1)
    message = message_of("order", {**row, "event_id": event_id})  # type: ignore[arg-type]
    if not is_event:
        message = Message(message.subject, b"", {"ce-id": "mine"})
    await publish(mesh.bus, [message])
    try:
        found = await mesh.violations("streams")
    finally:
        last = await mesh.bus.jetstream.get_last_msg("ORDERS", message.subject)
        assert last.seq is not None
        await mesh.bus.jetstream.delete_msg("ORDERS", last.seq)
    text = f"event {event_id}, commerce.order.placed of {row['aggregate_id']} with sequence 1"
    expected = (
        f"{text}, which order has not written" if is_event else f"a message of {message.subject} that is no event"
    )
    assert found == [f"ORDERS has {expected}"]
    assert await mesh.violations("streams") == []


async def test_order_that_has_changed_lately_is_judged_once_the_mesh_is_at_rest(mesh: Mesh) -> None:
    await mesh.execute("order", "UPDATE orders SET status = 'CANCELLED', update_time = now() WHERE id = '{order}'")
    # An event is under way.
    await mesh.execute("order", EVENT.replace("'5 minutes'", "'1 second'"))
    try:
        assert (await mesh.audit("captures")).ok
        await mesh.execute("order", "DELETE FROM mesh.outbox WHERE event_id = '{other}'")
        assert not (await mesh.audit("captures")).ok
    finally:
        await mesh.execute("order", "DELETE FROM mesh.outbox WHERE event_id = '{other}'")
        repair = "UPDATE orders SET status = 'CONFIRMED', update_time = order_date WHERE id = '{order}'"
        await mesh.execute("order", repair)


async def test_incremental_audit_reads_only_what_has_changed(mesh: Mesh) -> None:
    since = datetime.now(UTC) - timedelta(minutes=30)
    full, narrow = await mesh.audit(), await mesh.audit(since=since)
    assert full.violations == narrow.violations == []

    def checked(report: Report, name: str) -> int:
        check: Check = report[name]
        return check.checked

    assert all(
        checked(narrow, name) < checked(full, name) for name in NAMES if checked(full, name) and name != "reserved"
    )
    assert all(checked(narrow, name) > 0 for name in ("on-hand", "sales", "captures", "streams", "applied", "replies"))
    assert narrow.as_json()["since"] == since.isoformat()
    # An older order is read when it changes.
    await mesh.execute("order", "UPDATE orders SET status = 'CANCELLED', update_time = now() WHERE id = '{order}'")
    try:
        [found] = (await mesh.audit("captures", since=since, margin=timedelta()))["captures"].violations
    finally:
        repair = "UPDATE orders SET status = 'CONFIRMED', update_time = order_date WHERE id = '{order}'"
        await mesh.execute("order", repair)
    assert str(mesh.ids["order"]) in found
