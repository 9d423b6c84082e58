"""Payment providers, as far as customers are concerned: the card behind a token."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Protocol
from uuid import UUID

from customer_svc.domain import Card


class Provider(Protocol):
    """A payment provider. It is a part of the service: started before its first call, stopped after its last."""

    @property
    def currencies(self) -> Collection[str]:
        """The currencies that it takes, by their ISO 4217 codes; empty if it takes all of them."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def probe(self) -> None:
        """Return when the provider gives a sign of life, whatever it is. Raises if there is none."""

    async def describe(self, token: str, customer_id: UUID, now: datetime) -> Card:
        """The card behind a token that a customer gives, at the time `now`.

        Raises ProviderTokenUnknown. Any other exception means that the provider has not answered.
        """
