"""Reconciliation: what the books say of a payment is compared with what the provider has on record.

The provider alone knows of disputes and fees, so these become entries of the ledger. Captures and refunds are made by
this service; if the provider has others, or other amounts, that is a difference. It is recorded as a finding, with an
entry and an event, and nobody's money is corrected: a person must look at it. A finding is resolved when books and
record agree again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from payment_svc.domain.ledger import Entry, EntryType
from payment_svc.domain.payments import Payment
from payment_svc.domain.refunds import Refund

COMPARED = (EntryType.CAPTURE, EntryType.REFUND)
"""The movements that this service makes. They must be in the books and at the provider."""
LEARNT = (EntryType.DISPUTE, EntryType.FEE)
"""The movements that only the provider makes."""


class MovementId(NamedTuple):
    """What identifies a movement of a payment, in the books and at the provider."""

    type: EntryType
    reference: str


@dataclass(frozen=True, slots=True)
class Recorded:
    """A movement that the provider has on record."""

    type: EntryType
    reference: str
    amount: Decimal
    time: datetime
    key: str
    """The key of a refund that this service has asked for; else empty."""

    @property
    def id(self) -> MovementId:
        """What identifies it."""
        return MovementId(self.type, self.reference)


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference between the books and the provider's record of one movement. One that is resolved may come back."""

    payment_id: UUID
    type: EntryType
    reference: str
    booked: Decimal
    """The amount in the books; zero if the movement is not there."""
    recorded: Decimal
    """The amount at the provider; zero if the movement is not there."""
    create_time: datetime
    resolve_time: datetime | None

    @property
    def id(self) -> MovementId:
        """The movement that differs."""
        return MovementId(self.type, self.reference)

    @property
    def is_open(self) -> bool:
        """Whether the difference is still there."""
        return self.resolve_time is None


@dataclass(frozen=True, slots=True)
class Books:
    """All that is known of a payment: it, its entries, its refunds without an outcome, its findings."""

    payment: Payment
    entries: Sequence[Entry]
    pending: Collection[Refund]
    findings: Sequence[Finding]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison has shown: what is to be added to the books, and which findings are new or have changed."""

    learnt: Sequence[Recorded]
    """Disputes and fees that are not in the books."""
    findings: Sequence[Finding]
    """Findings to write: new, changed or resolved."""

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing to write."""
        return not self.learnt and not self.findings


def compare(books: Books, record: Iterable[Recorded], now: datetime) -> Comparison:
    """Compare a payment with the provider's record. Refunds without an outcome are left to their own look-up."""
    pending = {refund.provider_key for refund in books.pending}
    movements = [each for each in record if not (each.type is EntryType.REFUND and each.key in pending)]
    booked = {MovementId(entry.type, entry.provider_reference): entry.amount for entry in books.entries}
    recorded = {each.id: each.amount for each in movements}
    known = {finding.id: finding for finding in books.findings}
    differing = {
        each: (booked.get(each, Decimal(0)), recorded.get(each, Decimal(0)))
        for each in booked.keys() | recorded.keys()
        if each.type in COMPARED and booked.get(each) != recorded.get(each)
    }
    found = [_found(books.payment.id, each, amounts, known.get(each), now) for each, amounts in differing.items()]
    resolved = [
        replace(finding, resolve_time=now)
        for finding in books.findings
        if finding.is_open and finding.id not in differing
    ]
    return Comparison(
        learnt=[each for each in movements if each.type in LEARNT and each.id not in booked],
        findings=[finding for finding in (*found, *resolved) if finding != known.get(finding.id)],
    )


def _found(
    payment_id: UUID, movement: MovementId, amounts: tuple[Decimal, Decimal], known: Finding | None, now: datetime
) -> Finding:
    booked, recorded = amounts
    since = known.create_time if known and known.is_open else now
    return Finding(payment_id, movement.type, movement.reference, booked, recorded, since, None)


def entries_of(books: Books, comparison: Comparison, ids: Iterable[UUID], *, actor: str, now: datetime) -> list[Entry]:
    """The entries of what a comparison has shown, each with one of `ids`. A difference gets one entry, once."""
    payment = books.payment
    known = {entry.provider_reference for entry in books.entries if entry.type is EntryType.DIFFERENCE}
    made = [(each.type, each.reference, each.amount, "") for each in comparison.learnt]
    for finding in comparison.findings:
        if finding.is_open and finding.reference not in known:
            known.add(finding.reference)
            amount = abs(finding.booked - finding.recorded)
            made.append((EntryType.DIFFERENCE, finding.reference, amount, _note(finding, payment.currency)))
    return [
        Entry(entry_id, payment.id, kind, amount, reference, note, now, actor, payment.trace_id)
        for entry_id, (kind, reference, amount, note) in zip(ids, made, strict=False)
    ]


def _note(finding: Finding, currency: str) -> str:
    amounts = f"{finding.booked.normalize():f} {currency} in the books, {finding.recorded.normalize():f} {currency}"
    return f"{finding.type}: {amounts} at the provider"


class PaymentDisputed(NamedTuple):
    """The customer disputes a payment at the bank: `amount` of it."""

    payment: Payment
    amount: Decimal
    reference: str


class DifferenceFound(NamedTuple):
    """The books and the provider's record differ."""

    payment: Payment
    finding: Finding


class WalkName(StrEnum):
    """The walks of the sweep over the payments."""

    RECENT = "RECENT"
    """Over those of the last day."""
    ALL = "ALL"
    """Over all; only those are compared that are not final, or have changed in the last day."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How far a walk has come, in the order of ids. Processes take portions of it in turn."""

    name: WalkName
    position: UUID | None
    """The last payment that was taken; none when the round has come to its end."""
    begin_time: datetime
    """When the round began."""
