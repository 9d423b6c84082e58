"""How a payment comes by its token: from the customer service, when it is charged, and from nowhere else."""

from __future__ import annotations

from uuid import UUID

import nats
from structlog.testing import capture_logs

from commerce.order.v1 import events_pb2, order_pb2
from commerce.payment.v1 import payment_pb2
from mesh.errors import Unavailable
from mesh.events.bus import DEAD_LETTERS
from mesh.ids import new_id
from tests.mesh.house import House, another
from tests.services import eventually, refused, running


async def test_an_order_waits_for_its_charge_while_the_customer_service_is_away(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(2)
    await mesh.services["payment"].stop()
    placed = await mesh.order(buyer, {product: 1})
    await mesh.services["customer"].stop()
    async with running(another(mesh, "payment")):

        async def tried_twice() -> bool:
            tried = "SELECT FROM payments WHERE order_id = $1 AND status = 'PENDING' AND attempts >= 2"
            return bool(await mesh.sql("payment_svc", tried, UUID(placed.id)))

        await eventually(tried_twice)
        assert isinstance(await refused(mesh.order(buyer, {product: 1})), Unavailable), "it is really away"
        assert (await mesh.read(buyer, placed.id)).status == order_pb2.ORDER_STATUS_PENDING
        async with running(another(mesh, "customer")):
            assert (await mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
            charges = "SELECT FROM sandbox.charges WHERE order_id = $1 AND status = 'APPROVED'"
            assert len(await mesh.sql("payment_svc", charges, UUID(placed.id))) == 1


async def test_an_order_whose_payment_method_is_forgotten_before_its_charge_is_cancelled(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(2)
    await mesh.services["payment"].stop()
    placed = await mesh.order(buyer, {product: 1})
    await mesh.sql("customer_svc", "DELETE FROM payment_methods WHERE id = $1", UUID(buyer.methods["tok_visa"]))
    async with running(another(mesh, "payment")):
        order = await mesh.decided(buyer, placed.id)
        assert order.status == order_pb2.ORDER_STATUS_CANCELLED
        assert order.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_DECLINED
        payment = await mesh.payment(buyer, placed.id)
        assert payment.status == payment_pb2.PAYMENT_STATUS_DECLINED
        assert payment.failure_reason == "payment_method_not_found"
        assert (await mesh.unreserved(product)).on_hand == 2


async def test_a_placed_order_that_cannot_be_charged_is_a_dead_letter_without_a_token(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(1)
    placed = await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)
    client = await nats.connect(mesh.servers.nats.url)
    context = client.jetstream()
    event = await context.get_last_msg("ORDERS", f"commerce.order.placed.{placed.id}")
    poison = events_pb2.OrderPlaced.FromString(event.data or b"")
    poison.order.id, poison.order.total_amount.units = str(new_id()), -1
    headers = {**(event.headers or {}), "ce-id": str(new_id()), "Nats-Msg-Id": str(new_id())}
    subject = f"commerce.order.placed.{poison.order.id}"
    with capture_logs() as logs:
        await context.publish(subject, poison.SerializeToString(), headers=headers)

        async def dead_letter() -> nats.js.api.RawStreamMsg | None:
            try:
                return await context.get_last_msg(DEAD_LETTERS, f"mesh.dead.payment-order.{subject}")
            except nats.js.errors.NotFoundError:
                return None

        letter = await eventually(dead_letter)
    await client.close()
    told = f"{letter.data!r} {letter.headers} {logs}"
    assert told.count(poison.order.id) > 1
    assert "event moved to dead letters" in told
    assert "tok_" not in told
