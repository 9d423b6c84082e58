"""Orders that are paid through Stripe, of which our own fake is at the other end, behind a proxy that loses replies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from google.api.httpbody_pb2 import HttpBody
from pydantic import SecretStr

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2, payment_pb2_grpc
from stack.servers import Servers
from tests.mesh.house import Buyer, House, house
from tests.services import Keys, eventually, refused
from tests.stripe.fake import AUTHENTICATED, DECLINED, VISA, FakeStripe
from tests.stripe.proxy import LossyProxy

CREATE, REFUND = b"POST /v1/payment_intents HTTP", b"POST /v1/refunds HTTP"


@dataclass
class Shop:
    """A mesh that takes cards through Stripe, and the sandbox's tokens, too."""

    mesh: House
    fake: FakeStripe
    proxy: LossyProxy

    async def order(self, number: str, units: int) -> tuple[Buyer, order_pb2.Order]:
        """An order of somebody who pays with this card."""
        buyer = await self.mesh.buyer(self.fake.method(number))
        return buyer, await self.mesh.order(buyer, {await self.mesh.product(5, units=units): 1})

    async def webhook(self, kind: str, about: dict[str, Any], *, secret: str = "") -> None:
        """Stripe sends a webhook, which the edge passes on."""
        body = self.fake.event(kind, about)
        payload = HttpBody(content_type="application/json", data=body)
        async with self.mesh.as_service("gateway", to="payment") as edge:
            stub = payment_pb2_grpc.PaymentServiceStub(edge.channel)
            request = payment_pb2.ReceiveWebhookRequest(provider="stripe", payload=payload)
            await edge(stub.ReceiveWebhook, request, metadata=(*self.fake.signed(body, secret=secret).items(),))

    async def refunded(self, buyer: Buyer, order_id: str) -> payment_pb2.Payment:
        """The payment of an order once it is refunded."""

        async def is_refunded() -> payment_pb2.Payment | None:
            payment = await self.mesh.payment(buyer, order_id)
            return payment if payment.status == payment_pb2.PAYMENT_STATUS_REFUNDED else None

        return await eventually(is_refunded)


@asynccontextmanager
async def opened(servers: Servers, keys: Keys) -> AsyncIterator[Shop]:
    """A shop that is open."""
    async with FakeStripe() as fake, LossyProxy(fake.url) as proxy:
        stripe: dict[str, Any] = {
            "payment_providers": ("stripe", "sandbox"),
            "stripe_secret_key": SecretStr(fake.secret_key),
            "stripe_api_url": proxy.url,
        }
        payment = {**stripe, "stripe_webhook_secret": SecretStr(fake.webhook_secret), "provider_timeout": 20.0}
        async with house(servers, keys, customer=stripe, payment=payment) as mesh:
            yield Shop(mesh, fake, proxy)


@pytest.fixture
async def shop(servers: Servers, keys: Keys) -> AsyncIterator[Shop]:
    async with opened(servers, keys) as shop:
        yield shop


async def test_orders_paid_through_stripe_are_confirmed_declined_and_refunded(shop: Shop) -> None:
    buyer, placed = await shop.order(VISA, 12)
    poor, hopeless = await shop.order(DECLINED, 13)
    confirmed = await shop.mesh.decided(buyer, placed.id)
    assert confirmed.status == order_pb2.ORDER_STATUS_CONFIRMED
    [intent] = shop.fake.captured
    assert (intent["amount"], intent["currency"], intent["metadata"]["order_id"]) == (1200, "eur", placed.id)
    payment = await shop.mesh.payment(buyer, placed.id)
    assert (payment.provider, payment.provider_reference) == ("stripe", intent["id"])
    declined = await shop.mesh.decided(poor, hopeless.id)
    assert declined.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_DECLINED
    assert (await shop.mesh.payment(poor, hopeless.id)).failure_reason == "generic_decline"
    await shop.mesh.cancel(buyer, placed.id)
    refunded = await shop.refunded(buyer, placed.id)
    assert refunded.refunded_amount == placed.total_amount
    [refund] = shop.fake.refunds.values()
    assert (refund["amount"], refund["payment_intent"]) == (1200, intent["id"])
    # The sandbox is there as well, for those who name it.
    other = await shop.mesh.buyer("tok_visa", provider="sandbox")
    sandboxed = await shop.mesh.order(other, {await shop.mesh.product(1): 1})
    assert (await shop.mesh.decided(other, sandboxed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert len(shop.fake.captured) == 1


async def test_replies_of_stripe_that_are_lost_move_no_money_twice(shop: Shop) -> None:
    shop.proxy.lose_replies(CREATE)
    buyer, placed = await shop.order(VISA, 12)
    assert (await shop.mesh.decided(buyer, placed.id)).status == order_pb2.ORDER_STATUS_CONFIRMED
    assert shop.proxy.lost == 1
    # It was found by look-up: the charge was not asked for again.
    assert shop.fake.requests.count("POST /v1/payment_intents") == len(shop.fake.captured) == 1
    shop.proxy.lose_replies(REFUND)
    await shop.mesh.cancel(buyer, placed.id)
    await shop.refunded(buyer, placed.id)
    assert shop.proxy.lost == 2
    assert shop.fake.requests.count("POST /v1/refunds") == len(shop.fake.refunds) == 1


@pytest.mark.parametrize("success", [True, False])
async def test_customer_ends_3d_secure_and_stripes_webhook_decides_the_order(shop: Shop, success: bool) -> None:
    buyer, placed = await shop.order(AUTHENTICATED, 14)

    async def waits() -> bool:
        found = "SELECT id FROM payments WHERE order_id = $1 AND status = 'REQUIRES_ACTION'"
        return bool(await shop.mesh.sql("payment_svc", found, UUID(placed.id)))

    await eventually(waits)
    payment = await shop.mesh.payment(buyer, placed.id)
    secret = payment.next_action.client_secret
    assert payment.status == payment_pb2.PAYMENT_STATUS_REQUIRES_ACTION
    assert (await shop.mesh.read(buyer, placed.id)).status == order_pb2.ORDER_STATUS_PENDING
    # Only the webhook can tell it now: the sweep asks again in hours.
    later = "UPDATE payments SET next_attempt_time = now() + interval '2 hours' WHERE id = $1 RETURNING id"
    await shop.mesh.sql("payment_svc", later, UUID(payment.id))
    shop.fake.authenticate(secret, success=success)
    intent = shop.fake.intents[payment.provider_reference]
    await shop.webhook("payment_intent.succeeded" if success else "payment_intent.payment_failed", intent)
    order = await shop.mesh.decided(buyer, placed.id)
    ended = await shop.mesh.payment(buyer, placed.id)
    assert not ended.HasField("next_action")
    if success:
        assert order.status == order_pb2.ORDER_STATUS_CONFIRMED
        assert [each["id"] for each in shop.fake.captured] == [payment.provider_reference]
    else:
        assert order.cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_DECLINED
        assert ended.failure_reason == "payment_intent_authentication_failure"
        assert (shop.fake.captured, intent["status"]) == ([], "canceled")
    error = await refused(shop.webhook("payment_intent.succeeded", intent, secret="whsec_of_another"))
    assert error.reason == "WEBHOOK_SIGNATURE_INVALID"
