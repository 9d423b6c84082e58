"""Payment providers: one small protocol, and what a provider can answer.

An outcome is a value, never an exception. What an adapter raises all the same, and a call that takes too long, counts
as `Unknown`. Every request names a key; the same key never moves money twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Charge:
    """A request to take money. `order_id` is noted at the provider, as what it was for."""

    key: str
    token: str = field(repr=False)
    amount: Decimal
    currency: str
    order_id: UUID


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A request to refund `amount` of the charge under `charge_key`."""

    key: str
    charge_key: str
    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class Approved:
    """The money was taken; `reference` is the provider's name for the charge."""

    reference: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The money was not taken, and never will be under this key; `reason` in the provider's words."""

    reason: str


@dataclass(frozen=True, slots=True)
class Voided:
    """There is no charge under the key, and the provider refuses any to come."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The provider has not heard of the key."""


@dataclass(frozen=True, slots=True)
class Refunded:
    """The money was refunded, now or when the key was first used."""

    reference: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Refused:
    """The money was not refunded, and never will be under this key; `reason` in the provider's words."""

    reason: str


@dataclass(frozen=True, slots=True)
class ProviderUnavailable:
    """The provider surely did nothing; it may do so later."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The provider may have done it or not."""

    reason: str


Inconclusive = ProviderUnavailable | Unknown
"""Outcomes after which the provider is to be asked again."""
Outcome = Approved | Declined | Voided | Inconclusive
"""The outcomes of charges and voids."""
RefundOutcome = Refunded | Refused | Inconclusive


class Provider(Protocol):
    """A payment provider."""

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | ProviderUnavailable | Unknown:
        """Take money, once for the key: asked again, the first outcome."""

    async def lookup(self, key: str) -> Approved | Declined | Voided | Absent | ProviderUnavailable | Unknown:
        """What stands under the key of a charge."""

    async def void(self, key: str) -> Approved | Voided | ProviderUnavailable | Unknown:
        """Make sure that no money is ever taken under the key, in one step with finding out whether it was.

        `Approved` when it was: then it can only be refunded.
        """

    async def refund(self, refund: RefundRequest) -> Refunded | Refused | ProviderUnavailable | Unknown:
        """Give money back, once for the key: asked again, the first outcome."""

    async def lookup_refund(self, key: str) -> Refunded | Refused | Absent | ProviderUnavailable | Unknown:
        """What stands under the key of a refund."""
