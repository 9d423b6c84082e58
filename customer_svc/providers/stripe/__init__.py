"""The provider `stripe`, as far as customers are concerned: what card is behind a PaymentMethod (docs/stripe.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from customer_svc.providers.stripe.settings import StripeSettings

if TYPE_CHECKING:
    from customer_svc.providers.protocol import Provider

__all__ = ["StripeSettings", "make"]


def make(settings: StripeSettings) -> Provider:
    """The provider. Raises SettingsInvalid."""
    settings.require_valid()
    # Not above: the SDK takes a second and 25 MB, which processes without Stripe need not spend.
    from customer_svc.providers.stripe.provider import Stripe  # noqa: PLC0415

    return Stripe.of(settings)
