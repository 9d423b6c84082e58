"""The cards behind Stripe's PaymentMethods, by localstripe and by our own fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from stripe import AuthenticationError, StripeError

from customer_svc.domain import Card, ProviderTokenUnknown
from customer_svc.providers.stripe.provider import Stripe
from payment_svc.providers.protocol import Approved
from tests.stripe.fake import VISA, FakeStripe
from tests.stripe.fake import Refused as ErrorReply
from tests.stripe.proxy import LossyProxy
from tests.stripe.servers import SECRET_KEY, StripeServer, provider_at
from tests.stripe.test_stripe_charges import charge_with

NOW = datetime.now(UTC)
ADA, BOB = uuid4(), uuid4()


@asynccontextmanager
async def customers_at(url: str, *, secret_key: str = SECRET_KEY) -> AsyncIterator[Stripe]:
    """The customer service's provider, with Stripe's API at `url`."""
    provider = Stripe(secret_key, api_url=url)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.stop()


async def test_card_is_described_and_can_be_charged(server: StripeServer) -> None:
    method = await server.method(VISA)
    async with customers_at(server.url) as customers, provider_at(server.url) as payments:
        card = await customers.describe(method, ADA, NOW)
        assert card == Card("stripe", "visa", "4242", 12, 2040, token=card.token)
        assert card.token.endswith(f"/{method}")
        assert card.token not in repr(card)
        charge = await charge_with(server, kept=card.token)
        assert isinstance(await payments.charge(charge), Approved)


async def test_method_belongs_to_the_customer_who_added_it_first(server: StripeServer) -> None:
    method = await server.method(VISA)
    async with customers_at(server.url) as customers:
        card = await customers.describe(method, ADA, NOW)
        assert await customers.describe(method, ADA, NOW) == card
        with pytest.raises(ProviderTokenUnknown):
            await customers.describe(method, BOB, NOW)


@pytest.mark.parametrize("token", ["pm_nobody", "tok_visa", "cus_000001", "pm_x/../../customers", "pm_", ""])
async def test_what_is_no_payment_method_is_refused(fake: FakeStripe, token: str) -> None:
    async with customers_at(fake.url) as customers:
        with pytest.raises(ProviderTokenUnknown) as refusal:
            await customers.describe(token, ADA, NOW)
    assert refusal.value.__cause__ is None
    assert not token or token not in str(refusal.value)


async def test_customer_whose_reply_was_lost_is_not_made_twice(fake: FakeStripe) -> None:
    method = fake.method(VISA)
    async with LossyProxy(fake.url) as proxy, customers_at(proxy.url) as customers:
        proxy.lose_replies(b"POST /v1/customers HTTP")
        with pytest.raises(StripeError):
            await customers.describe(method, ADA, NOW)
        card = await customers.describe(method, ADA, NOW)
    [made] = fake.customers.values()
    assert card.token == f"{made['id']}/{method}"
    assert made["metadata"] == {"customer_id": str(ADA)}


async def test_transient_error_of_stripe_says_nothing_about_the_token(fake: FakeStripe) -> None:
    method = fake.method(VISA)
    async with customers_at(fake.url) as customers:
        fake.failures.append(ErrorReply(500, "api_error"))
        with pytest.raises(StripeError):
            await customers.describe(method, ADA, NOW)
    async with customers_at(fake.url, secret_key="sk_test_of_another") as customers:
        with pytest.raises(AuthenticationError):
            await customers.describe(method, ADA, NOW)
        await customers.probe()
