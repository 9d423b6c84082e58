"""Stripe's webhooks: the signature over the raw body, and what the event is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import stripe

from payment_svc.providers.protocol import Webhook, WebhookSignatureInvalid

NAME = "stripe"


def parse(headers: Mapping[str, str], body: bytes, *, secret: str, tolerance: float, now: datetime) -> Webhook:
    """Verify and parse a webhook; `tolerance` in seconds. Raises WebhookSignatureInvalid."""
    signature = headers.get("stripe-signature", "")
    if not signature.isascii():
        # The SDK would fail with another error.
        raise WebhookSignatureInvalid(NAME)
    try:
        stripe.WebhookSignature.verify_header(body, signature, secret)
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        # Not `from` the error: it holds the body.
        raise WebhookSignatureInvalid(NAME) from None
    if abs(now.timestamp() - _signed_at(signature)) > tolerance:
        raise WebhookSignatureInvalid(NAME)
    event: dict[str, Any] = json.loads(body)
    # Thin events, which Stripe sends for other parts of its API, say nothing of their object.
    about: dict[str, Any] = (event.get("data") or {}).get("object") or {}
    kind, key = about.get("object"), (about.get("metadata") or {}).get("key", "")
    return Webhook(
        event_id=event["id"],
        type=event["type"],
        charge_key=key if kind in {"payment_intent", "charge"} else "",
        refund_key=key if kind == "refund" else "",
        reference=(about.get("id") if kind == "payment_intent" else about.get("payment_intent")) or "",
    )


def _signed_at(signature: str) -> int:
    """The signed time, in seconds since 1970: that of the first `t`, the only one that the signature covers."""
    return next(int(value) for name, _, value in (part.partition("=") for part in signature.split(",")) if name == "t")
