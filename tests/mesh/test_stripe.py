"""Orders that are paid through Stripe, of which our own fake is at the other end, behind a proxy that loses replies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from stack.servers import Servers
from tests.mesh.house import Buyer, House, house
from tests.services import Keys, eventually
from tests.stripe.fake import DECLINED, VISA, FakeStripe
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
