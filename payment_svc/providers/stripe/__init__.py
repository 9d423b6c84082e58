"""The provider `stripe`: PaymentIntents and Refunds by Stripe's own SDK.

What the tests cover, and what was never tried against the real service, is in docs/stripe.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from payment_svc.providers.stripe.settings import StripeSettings

if TYPE_CHECKING:
    from payment_svc.providers.protocol import Provider

__all__ = ["StripeSettings", "make"]


def make(settings: StripeSettings) -> Provider:
    """The provider. Raises SettingsInvalid."""
    settings.require_valid()
    # Not above: the SDK takes a second and 25 MB, which processes without Stripe need not spend.
    from payment_svc.providers.stripe.provider import Stripe  # noqa: PLC0415

    return Stripe.of(settings)
