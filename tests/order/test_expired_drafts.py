"""Drafts that nobody has changed for long are cancelled."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg

from commerce.order.v1 import events_pb2, order_pb2
from mesh.db.database import Database
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change
from order_svc.app import Settings
from order_svc.domain import CancelReason, Order, OrderRequest, Status
from tests.order.process import OrderProcess, process_of

LIFETIME = timedelta(days=30)


async def draft_of(process: OrderProcess, age: timedelta, products: list[tuple[UUID, int]]) -> UUID:
    """A draft that last changed so long ago."""
    call = Call("CreateOrder", caller=Caller(Kind.CUSTOMER, str(uuid4())))
    change: Change[Order] = Change(call, lambda _: order_pb2.CreateOrderResponse())
    draft = (await process.drafts.create_draft(change, OrderRequest(dict(products)))).value
    connection = await asyncpg.connect(process.database.url)
    await connection.execute("UPDATE orders SET update_time = now() - $2::interval WHERE id = $1", draft.id, age)
    await connection.close()
    return draft.id


async def test_draft_unchanged_for_its_lifetime_is_cancelled_once_with_an_event(database: Database) -> None:
    process = process_of(database)
    old = await draft_of(process, LIFETIME + timedelta(minutes=1), [(uuid4(), 2)])
    older = await draft_of(process, 2 * LIFETIME, [])
    young = await draft_of(process, LIFETIME - timedelta(minutes=1), [(uuid4(), 1)])
    placed = (await process.place_one()).id
    connection = await asyncpg.connect(database.url)
    await connection.execute("UPDATE orders SET update_time = now() - $2::interval WHERE id = $1", placed, 2 * LIFETIME)

    # The oldest first, and no more than it is asked for.
    assert await process.cancellation.cancel_expired_drafts(LIFETIME, most=1) is True
    assert await cancelled(process, [old, older, young, placed]) == {older}
    assert await process.cancellation.cancel_expired_drafts(LIFETIME, most=3) is False
    assert await cancelled(process, [old, older, young, placed]) == {old, older}
    assert await process.cancellation.cancel_expired_drafts(LIFETIME) is False

    events = await connection.fetch(
        "SELECT * FROM mesh.outbox WHERE type = 'commerce.order.cancelled' AND aggregate_id = ANY($1)",
        [old, older, young, placed],
    )
    await connection.close()
    assert {(row["aggregate_id"], row["sequence"]) for row in events} == {(old, 2), (older, 2)}
    for row in events:
        order = events_pb2.OrderCancelled.FromString(row["payload"]).order
        assert order.cancel_reason == order_pb2.CANCEL_REASON_DRAFT_EXPIRED


async def cancelled(process: OrderProcess, order_ids: list[UUID]) -> set[UUID]:
    """Which of these orders have expired."""
    async with process.database.reading() as reading:
        found = (await process.orders.read(reading, order_ids)).values()
    return {
        order.id
        for order in found
        if (order.status, order.cancel_reason) == (Status.CANCELLED, CancelReason.DRAFT_EXPIRED)
    }


def test_draft_lives_30_days_unless_settings_say_otherwise() -> None:
    assert timedelta(seconds=Settings.model_fields["draft_lifetime"].default) == LIFETIME
