"""The provider `stripe`.

A charge is one PaymentIntent, created and confirmed off-session by one request under the charge's key as idempotency
key, with the key in its metadata. Stripe keeps idempotency keys for 24 hours at least, and does not find an object by
one. So a charge whose reply was lost is looked up among the newest PaymentIntents, which Stripe lists without delay,
and then by search, which may lag behind by a minute. If it is not found, the same request under the same key is safe.

A void cancels the PaymentIntent; Stripe refuses to confirm a cancelled one. If there is none, the void creates one that
is not confirmed, under the charge's key, and cancels it: a request for the charge that comes later is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import stripe

from payment_svc.providers.protocol import (
    Absent,
    ActionRequired,
    Approved,
    Charge,
    ChargeRef,
    Declined,
    Inconclusive,
    NextAction,
    Outcome,
    Record,
    Refunded,
    RefundOutcome,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
    Webhook,
)
from payment_svc.providers.stripe import objects, webhooks
from payment_svc.providers.stripe.currencies import MINOR_UNITS
from payment_svc.providers.stripe.errors import inconclusive, named, reason
from payment_svc.providers.stripe.objects import failure_of, key_of

if TYPE_CHECKING:
    from payment_svc.providers.stripe.settings import StripeSettings

PAGE = 100
"""Objects in a page of a list: the most that Stripe returns."""
PAGES = 3
"""Pages of the newest PaymentIntents that are read before Stripe's search is asked."""
SKEW = timedelta(minutes=5)
"""By how much Stripe's clock may differ from that of the database."""
UNPAYABLE = frozenset({"amount_too_small", "amount_too_large"})
"""Stripe's codes for amounts that it takes from nobody."""
CANCELED = "canceled"
"""Why a payment is declined whose PaymentIntent was cancelled, by a void or in Stripe's dashboard."""


class Stripe:
    """The provider `stripe`. Each call takes one request, and one or two more if the charge was not simply approved."""

    minor_units = MINOR_UNITS

    def __init__(
        self,
        secret_key: str,
        webhook_secret: str,
        *,
        api_url: str = "https://api.stripe.com",
        timeout: float = 20.0,
        webhook_tolerance: float = 300.0,
    ) -> None:
        """`timeout` of a request and `webhook_tolerance`, the age of a signature, are in seconds."""
        self._secret_key = secret_key
        self._webhook_secret = webhook_secret
        self._api_url = api_url.rstrip("/")
        self._timeout = timeout
        self._webhook_tolerance = webhook_tolerance

    @classmethod
    def of(cls, settings: StripeSettings) -> Stripe:
        """The provider with these settings."""
        return cls(
            settings.stripe_secret_key.get_secret_value(),
            settings.stripe_webhook_secret.get_secret_value(),
            api_url=str(settings.stripe_api_url),
            timeout=settings.stripe_timeout,
            webhook_tolerance=settings.stripe_webhook_tolerance_seconds,
        )

    async def start(self) -> None:
        """Open the client. Its retries are switched off: the caller knows better when to ask again."""
        self._http = stripe.HTTPXClient(timeout=self._timeout)
        client = stripe.StripeClient(
            self._secret_key,
            base_addresses={"api": self._api_url},
            max_network_retries=0,
            http_client=self._http,
        )
        self._intents, self._refunds = client.v1.payment_intents, client.v1.refunds
        self._disputes, self._balance = client.v1.disputes, client.v1.balance

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

    async def charge(self, charge: Charge) -> Outcome:
        """As the protocol says."""
        customer, _, method = charge.token.partition("/")
        try:
            intent = await self._intents.create_async(
                {
                    "amount": self.minor_units.of(charge.amount, charge.currency),
                    "currency": charge.currency.lower(),
                    "customer": customer,
                    "payment_method": method,
                    "allowed_payment_method_types": ["card"],
                    "confirm": True,
                    "off_session": True,
                    "metadata": {"key": charge.key, "order_id": str(charge.order_id)},
                },
                {"idempotency_key": charge.key},
            )
        except stripe.CardError as error:
            return await self._after_decline(error, charge.key)
        except stripe.IdempotencyError as error:
            # The first request under the key was another one: that of a void.
            return await self._standing_of(charge.key) or Unknown(named(error))
        except stripe.InvalidRequestError as error:
            return Declined(reason(error))
        except stripe.StripeError as error:
            return inconclusive(error)
        if _is_replay(intent):
            # The reply shows the intent as it was then.
            return await self._standing_of(charge.key, reference=intent.id) or Unknown("the replayed intent is gone")
        return await self._standing(intent)

    async def lookup(self, charge: ChargeRef) -> Outcome | Absent:
        """As the protocol says. A charge that has failed is cancelled, so that no client can pay it any more."""
        since = charge.create_time - SKEW
        return await self._standing_of(charge.key, reference=charge.reference, since=since) or Absent()

    async def void(self, charge: ChargeRef) -> Approved | Voided | Inconclusive:
        """As the protocol says."""
        try:
            intent = await self._find(charge.key, charge.reference, charge.create_time - SKEW) or await self._fence(
                charge
            )
            if intent.status not in {"succeeded", CANCELED}:
                intent = await self._cancel(intent)
        except stripe.InvalidRequestError as error:
            # Stripe takes no charge of this amount, under whichever key.
            return Voided() if error.code in UNPAYABLE else Unknown(named(error))
        except stripe.StripeError as error:
            return inconclusive(error)
        match intent.status:
            case "succeeded":
                return Approved(intent.id)
            case "canceled":
                return Voided()
            case status:
                return Unknown(f"the payment intent is {status}")

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        """As the protocol says."""
        try:
            made = await self._refunds.create_async(
                {
                    "payment_intent": refund.charge_reference,
                    "amount": self.minor_units.of(refund.amount, refund.currency),
                    "metadata": {"key": refund.key},
                },
                {"idempotency_key": refund.key},
            )
            if _is_replay(made):
                made = await self._refunds.retrieve_async(made.id)
        except (stripe.InvalidRequestError, stripe.CardError) as error:
            return Refused(reason(error))
        except stripe.StripeError as error:
            return inconclusive(error)
        return self._refund_outcome(made)

    async def lookup_refund(self, refund: RefundRequest) -> RefundOutcome | Absent:
        """As the protocol says."""
        try:
            for made in await self._refunds_of(refund.charge_reference):
                if key_of(made) == refund.key:
                    return self._refund_outcome(made)
        except stripe.StripeError as error:
            return inconclusive(error)
        return Absent()

    async def record(self, charge: ChargeRef) -> Record | Absent | Inconclusive:
        """As the protocol says."""
        try:
            intent = await self._find(charge.key, charge.reference, charge.create_time - SKEW)
            if intent is None:
                return Absent()
            standing = await self._standing(intent)
            if isinstance(standing, Inconclusive):
                return standing
            if not isinstance(standing, Approved):
                return Record(standing, ())
            paid = await self._intents.retrieve_async(intent.id, {"expand": ["latest_charge.balance_transaction"]})
            movements = objects.of_charge(paid, await self._refunds_of(intent.id))
            if objects.is_disputed(paid):
                disputes = await self._disputes.list_async({"payment_intent": intent.id, "limit": PAGE})
                movements += objects.of_disputes(disputes.data, paid.currency)
        except stripe.StripeError as error:
            return inconclusive(error)
        return Record(standing, movements)

    def parse_webhook(self, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Webhook:
        """As the protocol says."""
        return webhooks.parse(headers, body, secret=self._webhook_secret, tolerance=self._webhook_tolerance, now=now)

    async def _standing_of(self, key: str, *, reference: str = "", since: datetime | None = None) -> Outcome | None:
        try:
            intent = await self._find(key, reference, since)
        except stripe.StripeError as error:
            return inconclusive(error)
        return await self._standing(intent) if intent is not None else None

    async def _find(self, key: str, reference: str, since: datetime | None) -> stripe.PaymentIntent | None:
        """The PaymentIntent of a charge: by its id, among the newest, or by search."""
        if reference:
            return await self._intents.retrieve_async(reference)
        page = await self._intents.list_async({"limit": PAGE})
        for _ in range(PAGES):
            for intent in page.data:
                if key_of(intent) == key:
                    return intent
            if not page.has_more or (since is not None and page.data[-1].created < since.timestamp()):
                return None
            page = await page.next_page_async()
        found = await self._intents.search_async({"query": f"metadata['key']:'{key}'", "limit": 1})
        return await self._intents.retrieve_async(found.data[0].id) if found.data else None

    async def _standing(self, intent: stripe.PaymentIntent) -> Outcome:
        """What a PaymentIntent means. One that has failed is cancelled, or handed to the customer."""
        try:
            if failure_of(intent) == "authentication_required" and intent.status == "requires_payment_method":
                intent = await self._ask_customer(intent)
            failure = failure_of(intent)
            if intent.status == "requires_payment_method":
                intent = await self._cancel(intent)
        except stripe.StripeError as error:
            return Unknown(named(error))
        match intent.status:
            case "succeeded":
                return Approved(intent.id)
            case "canceled":
                return Declined(failure or CANCELED)
            case "requires_action" if intent.client_secret:
                return ActionRequired(intent.id, NextAction(intent.client_secret))
            case status:
                return Unknown(f"the payment intent is {status}")

    async def _after_decline(self, error: stripe.CardError, key: str) -> Outcome:
        """What stands after a declined request: the intent is there, and could be paid with another card."""
        details = error.error
        declined = getattr(details, "payment_intent", None) if details is not None else None
        standing = await self._standing_of(key, reference=declined.id if declined is not None else "")
        return standing or Declined(reason(error))

    async def _ask_customer(self, intent: stripe.PaymentIntent) -> stripe.PaymentIntent:
        """Confirm again, this time as if the customer were there, so that the intent waits for 3-D Secure."""
        failed = intent.last_payment_error
        if failed is None or failed.payment_method is None:
            return intent
        # If it is declined by now, the intent says so.
        with suppress(stripe.CardError):
            await self._intents.confirm_async(
                intent.id,
                {"payment_method": failed.payment_method.id},
                {"idempotency_key": f"{key_of(intent)}/confirm"},
            )
        return await self._intents.retrieve_async(intent.id)

    async def _fence(self, charge: ChargeRef) -> stripe.PaymentIntent:
        """A PaymentIntent that takes the key of a charge that has not come, and is not confirmed."""
        return await self._intents.create_async(
            {
                "amount": self.minor_units.of(charge.amount, charge.currency),
                "currency": charge.currency.lower(),
                "allowed_payment_method_types": ["card"],
                "metadata": {"key": charge.key, "order_id": str(charge.order_id)},
            },
            {"idempotency_key": charge.key},
        )

    async def _cancel(self, intent: stripe.PaymentIntent) -> stripe.PaymentIntent:
        """Cancel a PaymentIntent; it is returned as it stands if that is not possible, or no longer."""
        try:
            return await self._intents.cancel_async(intent.id)
        except stripe.InvalidRequestError:
            return await self._intents.retrieve_async(intent.id)

    async def _refunds_of(self, intent_id: str) -> list[stripe.Refund]:
        page = await self._refunds.list_async({"payment_intent": intent_id, "limit": PAGE})
        return [refund async for refund in page.auto_paging_iter()]

    def _refund_outcome(self, refund: stripe.Refund) -> RefundOutcome:
        match refund.status:
            case "succeeded":
                currency = refund.currency.upper()
                return Refunded(refund.id, self.minor_units.amount(refund.amount, currency))
            case "failed" | "canceled":
                return Refused(refund.failure_reason or str(refund.status))
            case status:
                return Unknown(f"the refund is {status}")


def _is_replay(made: stripe.StripeObject) -> bool:
    """Whether Stripe has returned the result of an earlier request under the same key."""
    response = made.last_response
    return response is not None and response.headers.get("idempotent-replayed") == "true"
