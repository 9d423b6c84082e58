"""The provider, and the fakes behind one face: what the customer's browser does, and what a fake has on record."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import httpx

from payment_svc.providers.stripe.provider import Stripe
from tests.stripe.fake import FakeStripe

SECRET_KEY, WEBHOOK_SECRET = "sk_test_fake", "whsec_fake"


class StripeServer(Protocol):
    """One of the two fakes."""

    @property
    def url(self) -> str: ...

    async def method(self, number: str) -> str:
        """A new payment method for a card, by its number."""

    async def customer(self, method: str) -> str:
        """A new customer, with the payment method attached."""

    async def authenticate(self, client_secret: str, *, success: bool) -> None:
        """The customer passes or fails 3-D Secure."""

    async def captured(self, key: str) -> list[dict[str, Any]]:
        """The PaymentIntents with this key that were paid."""


@dataclass(frozen=True)
class OurFake:
    """Our own fake."""

    fake: FakeStripe

    @property
    def url(self) -> str:
        return self.fake.url

    async def method(self, number: str) -> str:
        return self.fake.method(number)

    async def customer(self, method: str) -> str:
        return str(self.fake._customer({"payment_method": method})["id"])

    async def authenticate(self, client_secret: str, *, success: bool) -> None:
        self.fake.authenticate(client_secret, success=success)

    async def captured(self, key: str) -> list[dict[str, Any]]:
        return [each for each in self.fake.captured if each["metadata"].get("key") == key]


@dataclass(frozen=True)
class Localstripe:
    """localstripe, in a process of its own."""

    url: str
    client: httpx.AsyncClient

    async def method(self, number: str) -> str:
        card = {"number": number, "exp_month": 12, "exp_year": 2040, "cvc": "123"}
        made = await self._post("/v1/payment_methods", {"type": "card", "card": card})
        return str(made["id"])

    async def customer(self, method: str) -> str:
        return str((await self._post("/v1/customers", {"payment_method": method}))["id"])

    async def authenticate(self, client_secret: str, *, success: bool) -> None:
        intent_id = client_secret.partition("_secret_")[0]
        body = {"client_secret": client_secret, "success": success}
        await self._post(f"/v1/payment_intents/{intent_id}/_authenticate", body)

    async def captured(self, key: str) -> list[dict[str, Any]]:
        reply = await self.client.get("/v1/payment_intents", params={"limit": 1000})
        found = [each for each in reply.json()["data"] if each["metadata"].get("key") == key]
        return [each for each in found if each["status"] == "succeeded"]

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        reply = await self.client.post(path, json=body)
        reply.raise_for_status()
        made: dict[str, Any] = reply.json()
        return made


async def token(server: StripeServer, number: str) -> str:
    """What the customer service keeps of a card: `customer/payment method`."""
    method = await server.method(number)
    return f"{await server.customer(method)}/{method}"


@asynccontextmanager
async def provider_at(url: str, *, timeout: float = 20.0, secret_key: str = SECRET_KEY) -> AsyncIterator[Stripe]:
    """The provider, with Stripe's API at `url`."""
    provider = Stripe(secret_key, WEBHOOK_SECRET, api_url=url, timeout=timeout)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.stop()
