"""Outcomes: what providers answered is recorded, with the ledger and the events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from mesh import tasks
from mesh.errors import MeshError
from mesh.ids import new_id
from payment_svc.domain import (
    Due,
    Entry,
    EntryType,
    Payment,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentStatus,
    PaymentVoided,
)
from payment_svc.providers import Approved, Declined, Inconclusive, Refunded, Voided

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from payment_svc.charger import ProviderAnswer
    from payment_svc.store import PaymentStore

ACTOR = "service:order"
"""On whose behalf payments are made and called off."""


class Outcomes:
    """Records the answers of providers, a batch at a time."""

    def __init__(self, units: UnitsOfWork, payments: PaymentStore, *, lease: timedelta) -> None:
        self._units = units
        self._payments = payments
        self._lease = lease

    async def record(self, batch: Sequence[ProviderAnswer]) -> list[Payment | Exception]:
        """The payments after these answers. An answer that is recorded twice counts once.

        A result is ProviderContradiction when an answer cannot be true beside what is recorded already.
        """
        return await self._units.run_each_optimistically(self._record, batch)

    async def _record(self, work: UnitOfWork, batch: Sequence[ProviderAnswer]) -> list[Payment | Exception]:
        now = self._units.now()
        loaded = await self._payments.load_asked(
            work,
            [answer.payment for answer in batch],
            # A postponed payment keeps its version, so that a stale write of it would go unnoticed.
            locked=any(isinstance(answer.outcome, Inconclusive) for answer in batch),
        )
        after = dict(loaded)
        entries: list[Entry] = []
        results: list[Payment | Exception] = []
        async for answer in tasks.in_portions(batch):
            try:
                payment, entry = self._applied(work, after[answer.payment.id], answer, now)
            except MeshError as contradiction:
                results.append(contradiction)
                continue
            after[payment.id] = payment
            if entry is not None:
                entries.append(entry)
            results.append(payment)
        self._payments.save(work, ((loaded[key], payment) for key, payment in after.items()))
        self._payments.add_entries(work, entries)
        return results

    def _applied(
        self, work: UnitOfWork, payment: Payment, answer: ProviderAnswer, now: datetime
    ) -> tuple[Payment, Entry | None]:
        """The payment after an answer, and its entry in the ledger; the event is published."""
        until = now + self._lease
        entry: Entry | None = None
        fact: PaymentCaptured | PaymentDeclined | PaymentVoided | PaymentRefunded
        match answer.outcome:
            case Approved(reference):
                moved = payment.capture(reference, now, until)
                entry, fact = _entry(moved, EntryType.CAPTURE, moved.amount, reference, now), PaymentCaptured(moved)
            case Declined(reason):
                moved = payment.decline(reason, now)
                fact = PaymentVoided(moved) if moved.status is PaymentStatus.VOIDED else PaymentDeclined(moved)
            case Voided():
                moved = payment.void(now)
                entry, fact = _entry(moved, EntryType.VOID, moved.amount, "", now), PaymentVoided(moved)
            case Refunded(reference, amount):
                if payment.due is not Due.REFUND:
                    # Another process has recorded it.
                    return payment, None
                moved = payment.refund(amount, now, until)
                entry, fact = _entry(moved, EntryType.REFUND, amount, reference, now), PaymentRefunded(moved, amount)
            case _:
                # It is not postponed when something else is due by now.
                return payment.postpone(now) if payment.due is answer.due else payment, None
        if moved is payment:
            return payment, None
        work.publish(fact, moved.traceparent, subject=moved.order_id, actor="service:payment")
        return moved, entry


def _entry(payment: Payment, kind: EntryType, amount: Decimal, reference: str, now: datetime) -> Entry:
    note = "the order was cancelled" if payment.cancel_requested and kind is not EntryType.CAPTURE else ""
    return Entry(new_id(), payment.id, kind, amount, reference, note, now, ACTOR, payment.trace_id)
