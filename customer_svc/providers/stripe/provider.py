"""The provider `stripe`: the cards behind Stripe's PaymentMethods.

A PaymentMethod can be charged more than once only if it is attached to a Customer of Stripe. So each gets one, made by
one request with nothing about the person but our id. What is kept and charged later is `customer/payment method`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

import stripe

from customer_svc.domain import Card, ProviderTokenUnknown
from customer_svc.providers.stripe.currencies import CURRENCIES

if TYPE_CHECKING:
    from customer_svc.providers.stripe.settings import StripeSettings

NAME = "stripe"
_TOKEN = re.compile("pm_[A-Za-z0-9_]+")


class Stripe:
    """The provider `stripe`. `timeout` of a request is in seconds."""

    currencies = CURRENCIES

    def __init__(self, secret_key: str, *, api_url: str = "https://api.stripe.com", timeout: float = 20.0) -> None:
        self._secret_key = secret_key
        self._api_url = api_url.rstrip("/")
        self._timeout = timeout

    @classmethod
    def of(cls, settings: StripeSettings) -> Stripe:
        """The provider with these settings."""
        return cls(
            settings.stripe_secret_key.get_secret_value(),
            api_url=str(settings.stripe_api_url),
            timeout=settings.stripe_timeout,
        )

    async def start(self) -> None:
        """Open the client."""
        self._http = stripe.HTTPXClient(timeout=self._timeout)
        client = stripe.StripeClient(
            self._secret_key, base_addresses={"api": self._api_url}, max_network_retries=0, http_client=self._http
        )
        self._methods, self._customers, self._balance = (
            client.v1.payment_methods,
            client.v1.customers,
            client.v1.balance,
        )

    async def stop(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]  # the SDK leaves it without types

    async def probe(self) -> None:
        """As the protocol says: any answer is a sign of life, a refusal too."""
        try:
            await self._balance.retrieve_async()
        except stripe.StripeError as error:
            if error.http_status is None or error.http_status >= 500:
                raise

    async def describe(self, token: str, customer_id: UUID, now: datetime) -> Card:  # noqa: ARG002 - the protocol's
        """As the protocol says. A card that Stripe does not attach is unknown, and so is that of another customer."""
        if not _TOKEN.fullmatch(token):
            raise ProviderTokenUnknown(NAME)
        try:
            method = await self._methods.retrieve_async(token)
            owner = await self._owner(method, customer_id)
        except (stripe.InvalidRequestError, stripe.CardError):
            # Not `from` the error: its text has the token.
            raise ProviderTokenUnknown(NAME) from None
        card = method.card
        if card is None or owner is None:
            raise ProviderTokenUnknown(NAME)
        return Card(NAME, card.brand, card.last4, card.exp_month, card.exp_year, token=f"{owner}/{method.id}")

    async def _owner(self, method: stripe.PaymentMethod, customer_id: UUID) -> str | None:
        """The Customer of Stripe that the method is attached to, a new one if there is none; none if it is not ours."""
        if method.card is None:
            return None
        if method.customer is None:
            made = await self._customers.create_async(
                {"payment_method": method.id, "metadata": {"customer_id": str(customer_id)}},
                {"idempotency_key": f"{method.id}-{customer_id}"},
            )
            return made.id
        owner = await self._customers.retrieve_async(str(method.customer))
        metadata = owner.metadata
        is_ours = metadata is not None and "customer_id" in metadata and metadata["customer_id"] == str(customer_id)
        return owner.id if is_ours else None
