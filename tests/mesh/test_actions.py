"""Orders whose customer must act before they are paid (3-D Secure)."""

from __future__ import annotations

from uuid import UUID

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from tests.mesh.house import Buyer, House
from tests.services import eventually


async def waits(mesh: House, buyer: Buyer, product: str) -> order_pb2.Order:
    """An order whose payment waits for the buyer."""
    placed = await mesh.order(buyer, {product: 1})

    async def asked() -> bool:
        payments = await mesh.sql("payment_svc", "SELECT status FROM payments WHERE order_id = $1", UUID(placed.id))
        return [payment["status"] for payment in payments] == ["REQUIRES_ACTION"]

    await eventually(asked)
    assert (await mesh.payment(buyer, placed.id)).next_action.client_secret
    order = await mesh.read(buyer, placed.id)
    assert order.status == order_pb2.ORDER_STATUS_PENDING
    return order


async def test_order_is_confirmed_once_its_customer_has_acted(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_3ds"), await mesh.product(1)
    order = await waits(mesh, buyer, product)
    acted = "UPDATE sandbox.charges SET create_time = create_time - interval '2 hours' WHERE order_id = $1"
    await mesh.sql("payment_svc", acted, UUID(order.id))
    assert (await mesh.decided(buyer, order.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    payment = await mesh.payment(buyer, order.id)
    assert (payment.status, payment.HasField("next_action")) == (payment_pb2.PAYMENT_STATUS_CAPTURED, False)
    assert (await mesh.unreserved(product)).on_hand == 0


async def test_payment_deadline_ends_an_order_whose_customer_does_not_act(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_3ds"), await mesh.product(1)
    order = await waits(mesh, buyer, product)
    overdue = "UPDATE orders SET payment_deadline = now() - interval '1 s' WHERE id = $1"
    await mesh.sql("order_svc", overdue, UUID(order.id))
    ended = await mesh.decided(buyer, order.id)
    assert (ended.status, ended.cancel_reason) == (
        order_pb2.ORDER_STATUS_CANCELLED,
        order_pb2.CANCEL_REASON_PAYMENT_TIMEOUT,
    )
    payment = await mesh.payment(buyer, order.id)
    assert (payment.status, payment.HasField("next_action")) == (payment_pb2.PAYMENT_STATUS_VOIDED, False)
    assert (await mesh.unreserved(product)).on_hand == 1
