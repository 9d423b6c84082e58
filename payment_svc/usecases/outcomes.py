"""Outcomes: what providers answered is recorded, with the ledger and the events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID

from mesh import tasks
from mesh.errors import MeshError
from mesh.ids import new_id
from payment_svc.domain import (
    OPEN,
    ORDER_CANCELLED,
    Entry,
    EntryType,
    Payment,
    PaymentActionRequired,
    PaymentCaptured,
    PaymentDeclined,
    PaymentStatus,
    PaymentVoided,
    Refund,
    left,
)
from payment_svc.providers import ActionRequired, Approved, Declined, Inconclusive, Voided

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from payment_svc.charger import ProviderAnswer
    from payment_svc.refunder import Refunder
    from payment_svc.store import PaymentStore, RefundStore

ACTOR = "service:order"
"""On whose behalf payments are made and called off."""


class Outcomes:
    """Records the answers of providers, a batch at a time."""

    def __init__(
        self,
        units: UnitsOfWork,
        payments: PaymentStore,
        refunds: RefundStore,
        refunder: Refunder,
        *,
        lease: timedelta,
    ) -> None:
        self._units = units
        self._payments = payments
        self._refunds = refunds
        self._refunder = refunder
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
            locked=any(isinstance(answer.outcome, ActionRequired | Inconclusive) for answer in batch),
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
        # Captures that came after their orders were cancelled. Nothing of them is being refunded yet.
        late = [each for key, each in after.items() if each.cancel_requested and is_new_capture(loaded[key], each)]
        self._refund(work, late, now)
        return results

    def _refund(self, work: UnitOfWork, captured: Sequence[Payment], now: datetime) -> None:
        begun = refunds_of_cancelled(captured, [], until=now + self._lease, now=now)
        self._refunds.add(work, begun)
        work.transaction.on_commit(lambda: self._refunder.begin(begun))

    def _applied(
        self, work: UnitOfWork, payment: Payment, answer: ProviderAnswer, now: datetime
    ) -> tuple[Payment, Entry | None]:
        """The payment after an answer, and its entry in the ledger; the event is published."""
        until = now + self._lease
        entry: Entry | None = None
        fact: PaymentActionRequired | PaymentCaptured | PaymentDeclined | PaymentVoided
        match answer.outcome:
            case ActionRequired(reference):
                moved = payment.require_action(reference, now)
                if moved.version == payment.version:
                    return moved, None
                fact = PaymentActionRequired(moved)
            case Approved(reference):
                moved = payment.capture(reference, now, until)
                entry, fact = _entry(moved, EntryType.CAPTURE, moved.amount, reference, now), PaymentCaptured(moved)
            case Declined(reason):
                moved = payment.decline(reason, now)
                fact = PaymentVoided(moved) if moved.status is PaymentStatus.VOIDED else PaymentDeclined(moved)
            case Voided():
                moved = payment.void(now)
                entry, fact = _entry(moved, EntryType.VOID, moved.amount, "", now), PaymentVoided(moved)
            case _:
                # It is not postponed when something else is due by now.
                return payment.postpone(now) if payment.due is answer.due else payment, None
        if moved is payment:
            return payment, None
        work.publish(fact, moved.traceparent, subject=moved.order_id, actor="service:payment")
        return moved, entry


def is_new_capture(before: Payment, after: Payment) -> bool:
    """Whether the money was captured between these versions of a payment."""
    return before.status in OPEN and after.status is PaymentStatus.CAPTURED


def refunds_of_cancelled(
    payments: Iterable[Payment], pending: Sequence[Refund], *, until: datetime, now: datetime
) -> list[Refund]:
    """Refunds of all that is left of payments whose orders are cancelled; `pending` are those under way."""
    under_way: dict[UUID, list[Refund]] = {}
    for refund in pending:
        under_way.setdefault(refund.payment_id, []).append(refund)
    return [
        Refund.begin(
            new_id(),
            payment,
            amount,
            reason=ORDER_CANCELLED,
            actor=ACTOR,
            traceparent=payment.traceparent,
            now=now,
            until=until,
        )
        for payment in payments
        if (amount := left(payment, under_way.get(payment.id, ())))
    ]


def _entry(payment: Payment, kind: EntryType, amount: Decimal, reference: str, now: datetime) -> Entry:
    note = ORDER_CANCELLED if kind is EntryType.VOID else ""
    return Entry(new_id(), payment.id, kind, amount, reference, note, now, ACTOR, payment.trace_id)
