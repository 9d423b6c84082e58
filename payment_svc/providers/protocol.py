"""Payment providers: one small protocol, and what a provider can answer.

An outcome is a value, never an exception. What an adapter raises all the same, and a call that takes too long, counts
as `Unknown`. Every request names a key; the same key never moves money twice.

Amounts here are those of the books. An adapter converts them to the minor units of its provider with its own table
(`payment_svc.providers.minor_units`), and never rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from mesh.errors import Unauthenticated
from payment_svc.providers.minor_units import MinorUnits


@dataclass(frozen=True, slots=True)
class Charge:
    """A request to take money. `order_id` is noted at the provider, as what it was for."""

    key: str
    token: str = field(repr=False)
    amount: Decimal
    currency: str
    order_id: UUID


@dataclass(frozen=True, slots=True)
class ChargeRef:
    """A charge that the provider may have heard of: its key, and what else an adapter may find it by."""

    key: str
    amount: Decimal
    currency: str
    order_id: UUID
    create_time: datetime
    """When the key was made: the provider has nothing older under it."""
    reference: str = ""
    """The provider's reference of the charge; empty if it is not known."""


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """A request to refund `amount` of the charge under `charge_key`, whose reference is `charge_reference`."""

    key: str
    charge_key: str
    charge_reference: str
    amount: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class NextAction:
    """What the customer's client needs to go on. It is for the payment's owner only, and never logged or stored."""

    client_secret: str = field(repr=False)
    """The provider's secret of this one payment, for the provider's library in the client."""


@dataclass(frozen=True, slots=True)
class ActionRequired:
    """The customer must act first, as in 3-D Secure. No money was taken; it may be taken later under the key."""

    reference: str
    next_action: NextAction


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
Standing = Approved | Declined | ActionRequired | Voided
"""What can stand under the key of a charge. Only ActionRequired changes: to one of the others."""
Outcome = Standing | Inconclusive
"""The outcomes of charges and voids."""
RefundOutcome = Refunded | Refused | Inconclusive


class MovementType(StrEnum):
    """What sort of movement it is."""

    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    DISPUTE = "DISPUTE"
    FEE = "FEE"


@dataclass(frozen=True, slots=True)
class Movement:
    """One movement in a provider's record, once it is final there. A pending or refused refund is none."""

    type: MovementType
    reference: str
    """The provider's reference: no other movement of the type has it."""
    amount: Decimal
    """Above zero, in the currency of the charge; a fee in another currency is left out of the record."""
    time: datetime
    """When it was made, by the provider's clock."""
    key: str = ""
    """The key of a refund; empty for other types, and for a refund that was made elsewhere."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a provider has on record of one charge, to be compared with the books."""

    standing: Standing
    movements: Sequence[Movement]

    def total(self, movement_type: MovementType) -> Decimal:
        """The sum of the movements of one type: what was captured, refunded, disputed or taken as fees."""
        return sum((each.amount for each in self.movements if each.type is movement_type), Decimal(0))


@dataclass(frozen=True, slots=True)
class Webhook:
    """What a webhook says. It is a hint: what stands is looked up before anything changes.

    All but `event_id` and `type` may be empty, and are for a type that the adapter does not know.
    """

    event_id: str
    """The provider's id of the event, the same each time that it is sent."""
    type: str
    """In the provider's words."""
    charge_key: str = ""
    refund_key: str = ""
    reference: str = ""
    """The provider's reference of the charge."""


class WebhookSignatureInvalid(Unauthenticated):
    """The webhook has no valid signature of the provider, or the signature is too old."""

    reason = "WEBHOOK_SIGNATURE_INVALID"

    def __init__(self, provider: str) -> None:
        super().__init__(f"the webhook has no valid signature of {provider}", metadata={"provider": provider})


class Provider(Protocol):
    """A payment provider. It is a part of the service: started before its first call, stopped after its last."""

    @property
    def minor_units(self) -> MinorUnits:
        """The currencies that it takes. A call with an amount that it cannot move raises NotPayable."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def probe(self) -> None:
        """Return when the provider gives a sign of life, whatever it is. Raises if there is none."""

    async def charge(self, charge: Charge) -> Outcome:
        """Take money, once for the key: asked again, what stands under it."""

    async def lookup(self, charge: ChargeRef) -> Outcome | Absent:
        """What stands under the key of a charge."""

    async def void(self, charge: ChargeRef) -> Approved | Voided | Inconclusive:
        """Make sure that no money is ever taken under the key, in one step with finding out whether it was.

        `Approved` when it was: then it can only be refunded.
        """

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        """Give money back, once for the key: asked again, the first outcome."""

    async def lookup_refund(self, refund: RefundRequest) -> RefundOutcome | Absent:
        """What stands under the key of a refund. A refund that is pending at the provider is Unknown."""

    async def record(self, charge: ChargeRef) -> Record | Absent | Inconclusive:
        """What the provider has on record of a charge."""

    def parse_webhook(self, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Webhook:
        """Verify the signature of a webhook over its raw body, at the time `now`, and parse it.

        The names of `headers` are in lower case. Raises WebhookSignatureInvalid.
        """
