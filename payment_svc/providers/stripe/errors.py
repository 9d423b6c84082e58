"""What Stripe's errors mean. Their texts may quote tokens and keys, so only types, codes and ids are used."""

from __future__ import annotations

import httpx
import stripe

from payment_svc.providers.protocol import ProviderUnavailable, Unknown

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def inconclusive(error: stripe.StripeError) -> ProviderUnavailable | Unknown:
    """The outcome of a request that has failed with neither a result nor a refusal."""
    refused_before = isinstance(error, stripe.RateLimitError | stripe.AuthenticationError | stripe.PermissionError)
    if refused_before or isinstance(error.__cause__, _NEVER_SENT):
        return ProviderUnavailable(named(error))
    return Unknown(named(error))


def named(error: stripe.StripeError) -> str:
    """The error for logs: its type, status, code and Stripe's id of the request."""
    parts = [type(error).__name__, error.http_status, error.code, error.request_id]
    return " ".join(str(part) for part in parts if part)


def reason(error: stripe.StripeError) -> str:
    """Why a request was refused, in Stripe's words: the issuer's code if there is one, else Stripe's."""
    details = error.error
    decline_code = getattr(details, "decline_code", None) if details is not None else None
    return str(decline_code or error.code or "invalid_request")
