"""Payment providers, as far as customers are concerned: what card is behind a token."""

from __future__ import annotations

from datetime import datetime

from customer_svc.domain import Card, ProviderTokenUnknown

SANDBOX = "sandbox"
"""The provider without money. What becomes of a charge is in the name of the token."""

_SANDBOX_CARDS = {
    "tok_visa": ("visa", "4242"),
    "tok_declined": ("visa", "0002"),
    "tok_insufficient_funds": ("visa", "9995"),
    "tok_slow": ("mastercard", "4444"),
    "tok_timeout": ("mastercard", "8210"),
    "tok_flaky": ("amex", "0005"),
    "tok_dispute": ("visa", "0259"),
    "tok_3ds": ("visa", "3155"),
    "tok_late_capture": ("visa", "7726"),
}
_SANDBOX_YEARS = 3


def card_of(token: str, now: datetime) -> Card:
    """The card behind a provider's token. Raises ProviderTokenUnknown.

    A card of the sandbox is three years from its end, whenever it is asked for.
    """
    try:
        brand, last4 = _SANDBOX_CARDS[token]
    except KeyError:
        # Not `from` the KeyError: that one's text is the token.
        raise ProviderTokenUnknown(SANDBOX) from None
    return Card(SANDBOX, brand, last4, now.month, now.year + _SANDBOX_YEARS)
