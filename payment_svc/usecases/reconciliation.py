"""Reconciliation: payments are compared with the records of their providers, and nothing is corrected in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from mesh.ids import FIRST_ID, new_id
from payment_svc.domain import (
    Books,
    Comparison,
    DifferenceFound,
    EntryType,
    Payment,
    PaymentDisputed,
    Recorded,
    WalkName,
    compare,
    entries_of,
)
from payment_svc.providers import Absent, Bounded, ChargeRef, Inconclusive

if TYPE_CHECKING:
    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from payment_svc.charger import Charger
    from payment_svc.refunder import Refunder
    from payment_svc.store import PaymentStore, ReconciliationStore, RefundStore

ACTOR = "service:payment"
"""The author of what is learnt from providers."""
RECENTLY = timedelta(days=1)
"""For how long a payment is compared although it is final."""

log = structlog.get_logger(__name__)


class Reconciliation:
    """Compares payments with the records of their providers. `rounds` is how often each walk begins anew."""

    def __init__(
        self,
        units: UnitsOfWork,
        payments: PaymentStore,
        refunds: RefundStore,
        store: ReconciliationStore,
        charger: Charger,
        refunder: Refunder,
        *,
        providers: Mapping[str, Bounded],
        rounds: Mapping[WalkName, timedelta],
        timeout: float,
    ) -> None:
        self._units = units
        self._payments = payments
        self._refunds = refunds
        self._store = store
        self._charger = charger
        self._refunder = refunder
        self._providers = providers
        self._rounds = rounds
        self._timeout = timeout

    async def sweep(self, name: WalkName, *, most: int) -> None:
        """Compare the next portion of a walk, unless its round is at the end and the next one is not due."""
        async with self._units.begin() as work:
            now = self._units.now()
            walk = await self._store.lock_walk(work, name)
            if walk is None:
                return
            position = walk.position
            if position is None:
                if now < walk.begin_time + self._rounds[name]:
                    return
                position, walk = FIRST_ID, replace(walk, begin_time=now)
            if name is WalkName.RECENT:
                position = max(position, _first_id_of(now - RECENTLY))
            portion = await self._store.portion(work.transaction, position, recently=RECENTLY, most=most)
            is_last = len(portion) < most
            # Written before they are compared: if this process dies, the next round compares them.
            self._store.save_walk(work, replace(walk, position=None if is_last else portion[-1][0]))
        await self.compare({payment_id for payment_id, is_compared in portion if is_compared})

    async def look_up(self, payment_ids: Collection[UUID]) -> set[UUID]:
        """Ask the providers of these payments for all that is not known or has changed.

        Returns the payments that need not be looked up again: the answer is recorded, or a sweep will ask for it.
        """
        async with self._units.database.reading() as reading:
            payments = await self._payments.read_all(reading, payment_ids)
            pending = await self._refunds.pending(reading, payment_ids)
        due = [payment for payment in payments if payment.due]
        self._charger.resume(due)
        self._refunder.resume(pending)
        await asyncio.gather(
            *(self._charger.done(payment.id, self._timeout) for payment in due),
            *(self._refunder.done(refund.id, self._timeout) for refund in pending),
        )
        return {payment.id for payment in due} | await self.compare(set(payment_ids) - {each.id for each in due})

    async def compare(self, payment_ids: Collection[UUID]) -> set[UUID]:
        """Compare payments that have an outcome with the providers' records, and record what differs.

        Returns those whose comparison is complete: the provider has answered, and the payment has not changed since.
        """
        if not payment_ids:
            return set()
        async with self._units.database.reading() as reading:
            books = await self._books(reading, await self._payments.read_all(reading, payment_ids))
        records = await asyncio.gather(*(self._record(each.payment) for each in books))
        now = self._units.now()
        complete: set[UUID] = set()
        differing: dict[UUID, tuple[int, list[Recorded]]] = {}
        for each, record in zip(books, records, strict=True):
            if record is None:
                continue
            if compare(each, record, now).is_clean:
                complete.add(each.payment.id)
            else:
                differing[each.payment.id] = (each.payment.version, record)
        return complete | await self._record_differences(differing) if differing else complete

    async def _books(self, reading: Transaction, payments: Iterable[Payment]) -> list[Books]:
        """The books of payments that have an outcome from a provider."""
        chosen = {payment.id: payment for payment in payments if payment.provider and not payment.due}
        entries = await self._payments.entries_of(reading, chosen)
        pending = await self._refunds.pending(reading, chosen)
        findings = await self._store.findings_of(reading, chosen)
        return [
            Books(
                payment,
                [each for each in entries if each.payment_id == payment.id],
                [each for each in pending if each.payment_id == payment.id],
                [each for each in findings if each.payment_id == payment.id],
            )
            for payment in chosen.values()
        ]

    async def _record(self, payment: Payment) -> list[Recorded] | None:
        """The provider's record of a payment; none if it is not known now."""
        provider = self._providers.get(payment.provider)
        if provider is None:
            return None
        record = await provider.record(_charge_of(payment))
        if isinstance(record, Inconclusive):
            return None
        if isinstance(record, Absent):
            return []
        return [
            Recorded(EntryType(each.type), each.reference, each.amount, each.time, each.key)
            for each in record.movements
        ]

    async def _record_differences(self, differing: Mapping[UUID, tuple[int, list[Recorded]]]) -> set[UUID]:
        """Record what differs, of payments that still have the version that they were compared in."""
        async with self._units.begin() as work:
            now = self._units.now()
            locked = await self._payments.load_all(work, differing)
            unchanged = [payment for payment in locked if payment.version == differing[payment.id][0]]
            for books in await self._books(work.transaction, unchanged):
                comparison = compare(books, differing[books.payment.id][1], now)
                if not comparison.is_clean:
                    self._save(work, books, comparison, now)
        return {payment.id for payment in unchanged}

    def _save(self, work: UnitOfWork, books: Books, comparison: Comparison, now: datetime) -> None:
        payment = books.payment.add_to_ledger(now)
        disputes = [each for each in comparison.learnt if each.type is EntryType.DISPUTE]
        if disputes:
            payment = books.payment.dispute(min(each.time for each in disputes), now)
        self._payments.save(work, [(books.payment, payment)])
        ids = [new_id() for _ in (*comparison.learnt, *comparison.findings)]
        self._payments.add_entries(work, entries_of(books, comparison, ids, actor=ACTOR, now=now))
        self._store.save(work, comparison.findings)
        for each in disputes:
            fact = PaymentDisputed(payment, each.amount, each.reference)
            work.publish(fact, payment.traceparent, subject=payment.order_id, actor=ACTOR)
        for finding in comparison.findings:
            log.error(
                "books and provider differ" if finding.is_open else "books and provider agree again",
                payment=str(payment.id), type=finding.type, reference=finding.reference,
                booked=str(finding.booked), recorded=str(finding.recorded),
            )  # fmt: skip
            if finding.is_open:
                work.publish(DifferenceFound(payment, finding), payment.traceparent)


def _charge_of(payment: Payment) -> ChargeRef:
    return ChargeRef(
        payment.provider_key,
        payment.amount,
        payment.currency,
        payment.order_id,
        payment.create_time,
        payment.provider_reference,
    )


def _first_id_of(time: datetime) -> UUID:
    """The least id that is made at `time`: UUIDv7 begins with the milliseconds since 1970."""
    return UUID(int=int(time.timestamp() * 1000) << 80)
