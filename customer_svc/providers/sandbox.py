"""The sandbox: a provider without money. What becomes of a charge is in the name of the token."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from customer_svc.domain import Card, ProviderTokenUnknown
from mesh.settings import DatabaseSettings, split_list

NAME = "sandbox"
_CARDS = {
    "tok_visa": ("visa", "4242"),
    "tok_declined": ("visa", "0002"),
    "tok_insufficient_funds": ("visa", "9995"),
    "tok_slow": ("mastercard", "4444"),
    "tok_timeout": ("mastercard", "8210"),
    "tok_flaky": ("amex", "0005"),
    "tok_refund_fails": ("visa", "5126"),
    "tok_dispute": ("visa", "0259"),
    "tok_3ds": ("visa", "3155"),
    "tok_late_capture": ("visa", "7726"),
}
_YEARS = 3


class SandboxSettings(DatabaseSettings):
    """The settings of the sandbox."""

    sandbox_currencies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_list)] = ()
    """The currencies that the sandbox takes, separated by commas; all if empty. The same as in the payment service."""


class Sandbox:
    """The provider `sandbox`. It needs no call: it knows its tokens."""

    def __init__(self, currencies: Collection[str] = ()) -> None:
        self.currencies = currencies

    @classmethod
    def of(cls, settings: SandboxSettings) -> Sandbox:
        """The sandbox that the settings describe."""
        return cls(settings.sandbox_currencies)

    async def start(self) -> None:
        """Do nothing."""

    async def stop(self) -> None:
        """Do nothing."""

    async def probe(self) -> None:
        """Do nothing: it is always there."""

    async def describe(self, token: str, customer_id: UUID, now: datetime) -> Card:  # noqa: ARG002 - the protocol's
        """As the protocol says. A card is three years from its end, whenever it is asked for."""
        try:
            brand, last4 = _CARDS[token]
        except KeyError:
            # Not `from` the KeyError: that one's text is the token.
            raise ProviderTokenUnknown(NAME) from None
        return Card(NAME, brand, last4, now.month, now.year + _YEARS, token)
