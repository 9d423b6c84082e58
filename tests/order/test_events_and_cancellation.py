"""What moves placed orders: results of payments, requests to cancel, and sweeps."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from commerce.order.v1 import events_pb2, order_pb2
from mesh.db.database import Database
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change
from order_svc.domain import Cause, Order, Status
from tests.order.process import OrderProcess, process_of


async def test_order_cancelling_for_long_is_asked_about_once_in_that_time(database: Database) -> None:
    process, timeout = process_of(database), timedelta(minutes=5)
    stuck, young, paid = [(await process.place_one()).id for _ in range(3)]
    connection = await asyncpg.connect(database.url)
    for order_id, status, age in ((stuck, "CANCELLING", 6), (young, "CANCELLING", 4), (paid, "CONFIRMED", 6)):
        await connection.execute(
            "UPDATE orders SET status = $2, update_time = now() - $3::interval WHERE id = $1",
            order_id,
            status,
            timedelta(minutes=age),
        )
    assert await process.cancellation.cancel_again(timeout, most=1) is True
    assert await process.cancellation.cancel_again(timeout, most=1) is False
    asked = await connection.fetch(
        "SELECT * FROM mesh.outbox WHERE type = 'commerce.order.cancelling' AND aggregate_id = ANY($1)",
        [stuck, young, paid],
    )
    assert [(row["aggregate_id"], row["sequence"]) for row in asked] == [(stuck, 2)]
    assert events_pb2.OrderCancelling.FromString(asked[0]["payload"]).order.etag == "2"
    await connection.close()


async def test_order_that_this_process_has_placed_is_confirmed_without_a_read(database: Database) -> None:
    process = process_of(database)
    order = await process.place_one()
    before = database.statements
    await process.apply_payment(Cause.CAPTURED, order.id)
    assert database.statements == before + 1
    assert await status_of(process, order.id) == (Status.CONFIRMED, 2)


@pytest.mark.parametrize(
    ("cause", "becomes"), [(Cause.CAPTURED, (Status.CANCELLING, 2)), (Cause.VOIDED, (Status.CANCELLED, 3))]
)
async def test_payment_event_applies_to_the_current_version_of_an_order_changed_elsewhere(
    database: Database, cause: Cause, becomes: tuple[Status, int]
) -> None:
    here, there = process_of(database), process_of(database)
    order = await here.place_one()
    clerk = Call("CancelOrder", caller=Caller(Kind.STAFF, "clerk"))
    change: Change[Order] = Change(clerk, lambda _: order_pb2.CancelOrderResponse())
    await there.cancellation.cancel_order(change, order.id, note="", etag="")
    # A pending order cannot be voided, and captured would confirm it.
    await here.apply_payment(cause, order.id)
    assert await status_of(here, order.id) == becomes


async def status_of(process: OrderProcess, order_id: UUID) -> tuple[Status, int]:
    """The status of an order, and its version."""
    async with process.database.reading() as reading:
        order = (await process.orders.read(reading, [order_id]))[order_id]
    return order.status, order.version
