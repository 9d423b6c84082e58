"""Orders whose total is zero, through all four services: nothing to pay, and no payment method needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from google.type.money_pb2 import Money

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from ops.audit import Audit, Check
from tests.mesh.house import Buyer, House, all_of
from tests.services import eventually, new_key, refused

FREE = Money(currency_code="EUR")


async def charged(mesh: House, order_id: str) -> int:
    """How many requests for a charge of an order have reached a provider, and entries of the ledger there are."""
    attempts = await mesh.sql("payment_svc", "SELECT FROM sandbox.attempts WHERE order_id = $1", UUID(order_id))
    entries = await mesh.sql(
        "payment_svc",
        "SELECT FROM payment_entries e JOIN payments p ON p.id = e.payment_id WHERE order_id = $1",
        UUID(order_id),
    )
    return len(attempts) + len(entries)


@pytest.fixture
async def poor(mesh: House) -> Buyer:
    """A customer without a payment method."""
    return await mesh.buyer()


async def test_free_order_is_confirmed_without_a_payment_method(mesh: House, poor: Buyer) -> None:
    products, key = [await mesh.product(5, units=0) for _ in range(2)], new_key()
    placed = await mesh.order(poor, dict.fromkeys(products, 2), key=key)
    assert placed.status == order_pb2.ORDER_STATUS_PENDING
    assert (placed.total_amount, placed.payment_method_id) == (FREE, "")
    order = await mesh.decided(poor, placed.id)
    assert order.status == order_pb2.ORDER_STATUS_CONFIRMED
    payment = await mesh.payment(poor, order.id)
    assert payment.status == payment_pb2.PAYMENT_STATUS_CAPTURED
    assert (payment.id, payment.amount, payment.provider) == (order.payment_id, FREE, "")
    assert payment.HasField("process_time")
    assert await charged(mesh, order.id) == 0
    assert [(await mesh.unreserved(product)).on_hand for product in products] == [3, 3]
    assert await mesh.order(poor, dict.fromkeys(products, 2), key=key) == placed


async def test_free_order_of_a_customer_with_a_payment_method_does_not_use_it(mesh: House) -> None:
    buyer = await mesh.buyer("tok_declined")
    product = await mesh.product(5, units=0)
    for method in ("", buyer.methods["tok_declined"]):
        placed = await mesh.order(buyer, {product: 1}, method=method)
        assert placed.payment_method_id == ""
        assert (await mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
        assert await charged(mesh, placed.id) == 0


async def test_free_line_beside_one_that_costs_something_needs_a_payment_method(mesh: House, poor: Buyer) -> None:
    buyer = await mesh.buyer("tok_visa")
    free, paid = await mesh.product(5, units=0), await mesh.product(5, units=7)
    error = await refused(mesh.order(poor, {free: 1, paid: 1}))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "PAYMENT_METHOD_MISSING")
    assert error.metadata == {"customerId": poor.id}
    assert await mesh.sql("product_svc", "SELECT FROM holds WHERE customer_id = $1", UUID(poor.id)) == []
    placed = await mesh.order(buyer, {free: 1, paid: 1})
    assert (await mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert (await mesh.payment(buyer, placed.id)).amount.units == 7


async def test_product_that_is_free_no_longer_is_not_held_without_a_payment_method(mesh: House, poor: Buyer) -> None:
    product = await mesh.product(5, units=0)
    await mesh.decided(poor, (await mesh.order(poor, {product: 1})).id)
    await mesh.sql("product_svc", "UPDATE products SET price = 1, version = version + 1 WHERE id = $1", UUID(product))
    assert (await refused(mesh.order(poor, {product: 1}))).reason == "PAYMENT_METHOD_MISSING"
    assert (await mesh.unreserved(product)).on_hand == 4


async def test_cancelled_free_order_ends_cancelled_with_its_payment_voided(mesh: House, poor: Buyer) -> None:
    product = await mesh.product(20, units=0)
    confirmed = await mesh.decided(poor, (await mesh.order(poor, {product: 1})).id)
    orders = [confirmed, *await all_of(*(mesh.order(poor, {product: 1}) for _ in range(9)))]
    await all_of(*(mesh.cancel(poor, order.id) for order in orders))
    for order in orders:

        async def cancelled(order_id: str = order.id) -> bool:
            return (await mesh.read(poor, order_id)).status == order_pb2.ORDER_STATUS_CANCELLED

        await eventually(cancelled)
        payment = await mesh.payment(poor, order.id)
        assert payment.status == payment_pb2.PAYMENT_STATUS_VOIDED
        assert (payment.amount, payment.refunded_amount, payment.provider) == (FREE, FREE, "")
        assert await charged(mesh, order.id) == 0

    async def returned() -> bool:
        stock = await mesh.stock(product)
        return (stock.on_hand, stock.reserved) == (20, 0)

    await eventually(returned)


async def test_the_invariants_hold_over_free_and_paid_orders(mesh: House) -> None:
    buyer = await mesh.buyer("tok_visa")
    since = datetime.now(UTC)
    free, paid = await mesh.product(50, units=0), await mesh.product(50, units=7)
    placed = await all_of(*(mesh.order(buyer, {product: 1}) for product in (free, paid) * 10))
    orders = [await mesh.decided(buyer, order.id) for order in placed]
    assert {order.status for order in orders} == {order_pb2.ORDER_STATUS_CONFIRMED}
    audit = Audit(mesh, since=since, margin=timedelta(), names=("charges", "amounts", "applied"))

    async def checked() -> dict[str, Check] | None:
        report = await audit.run()
        return {check.name: check for check in report.checks} if report.ok else None

    checks = await eventually(checked)
    assert (checks["charges"].checked, checks["amounts"].checked) == (10, 20)
    assert checks["applied"].checked >= 60
