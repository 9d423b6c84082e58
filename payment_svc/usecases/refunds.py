"""Refunds: staff ask for them, providers answer them, and customers see them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.db.idempotency import Replay
from mesh.ids import new_id, parse_id
from payment_svc.domain import (
    Entry,
    EntryType,
    NewRefund,
    Payment,
    PaymentNotFound,
    PaymentRefunded,
    Refund,
    RefundContradiction,
    RefundStatus,
    amount_of,
)
from payment_svc.providers import Refunded, Refused
from payment_svc.usecases.outcomes import ACTOR, refunds_of_cancelled
from payment_svc.usecases.payments import REPLY_MARGIN_S

if TYPE_CHECKING:
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.rpc.call import Call
    from mesh.rpc.replies import Change, Reply
    from payment_svc.refunder import RefundAnswer, Refunder
    from payment_svc.store import PaymentStore, RefundStore


class Refunds:
    """The refunds of payments."""

    def __init__(
        self,
        units: UnitsOfWork,
        payments: PaymentStore,
        refunds: RefundStore,
        refunder: Refunder,
        pages: Pages,
        *,
        providers: Collection[str],
        lease: timedelta,
    ) -> None:
        self._units = units
        self._payments = payments
        self._refunds = refunds
        self._refunder = refunder
        self._pages = pages
        self._providers = providers
        self._lease = lease

    async def refund_payment(
        self, change: Change[tuple[Payment, Refund]], wanted: NewRefund, refund_of: Callable[[bytes], UUID]
    ) -> Reply[tuple[Payment, Refund]]:
        """Refund a payment in part or in full, and wait for the outcome as long as the caller does.

        The refund is committed before the provider hears of it. A key stands for the refund, not for its state at that
        time: a replay returns it as it is now. `refund_of` is the id of the refund in a stored reply.

        Raises PaymentNotFound, CurrencyMismatch, EtagMismatch, PaymentStateRefused or RefundExceedsPayment.
        """
        try:
            async with self._units.once(change) as work:
                now = self._units.now()
                payment = await self._payments.load(work, wanted.payment_id)
                pending = await self._refunds.pending(work.transaction, [payment.id])
                refund = Refund.begin(
                    new_id(),
                    payment,
                    amount_of(wanted, payment, pending),
                    reason=wanted.reason,
                    actor=str(change.caller),
                    traceparent=change.trace.traceparent,
                    now=now,
                    until=now + self._lease,
                )
                begun = payment.begin_refund(now)
                self._payments.save(work, [(payment, begun)])
                self._refunds.add(work, [refund])
                work.transaction.on_commit(lambda: self._refunder.begin([refund]))
                work.reply((begun, refund))
            refund_id = refund.id
        except Replay as replay:
            refund_id = refund_of(replay.wire)
        if remaining := change.call.remaining():
            await self._refunder.done(refund_id, timeout=max(0.0, remaining - REPLY_MARGIN_S))
        async with self._units.database.reading() as reading:
            refund = await self._refunds.read(reading, refund_id)
            return change.reply((await self._payments.read(reading, refund.payment_id), refund))

    async def list_refunds(
        self, call: Call, payment_id: UUID, *, page_size: int, page_token: str
    ) -> tuple[list[Refund], str]:
        """A page of the refunds of a payment, oldest first, and the token of the next page.

        Customers see those of their own payments. Raises PaymentNotFound.
        """
        scope = f"refunds\0{payment_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        after = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            payment = await self._payments.read(reading, payment_id)
            call.caller.own(payment.customer_id, PaymentNotFound(payment_id=payment_id))
            found = await self._refunds.list_refunds(reading, payment_id, after=after, most=size + 1)
        return self._pages.page(scope, found, size, lambda refund: [str(refund.id)])

    async def sweep(self, *, most: int = 500) -> bool:
        """Take up refunds whose retry is due, or whose process has died. Returns whether there may be more.

        Those of each provider are taken up apart, so that many of one that does not answer keep no other waiting.
        """
        more = False
        for provider in self._providers:
            room = min(most, self._refunder.room(provider))
            if room <= 0:
                continue
            async with self._units.begin() as work:
                leased = await self._refunds.lease_overdue(work, self._lease, provider, most=room)
            self._refunder.resume(leased)
            more = more or len(leased) == room
        return more


class RefundOutcomes:
    """Records the answers of providers to refunds, a batch at a time."""

    def __init__(self, units: UnitsOfWork, payments: PaymentStore, refunds: RefundStore) -> None:
        self._units = units
        self._payments = payments
        self._refunds = refunds

    async def record(self, batch: Sequence[RefundAnswer]) -> list[Refund | Exception]:
        """The refunds after these answers of providers. An answer that is recorded twice counts once.

        A result is RefundContradiction when the provider has refunded another amount.
        """
        async with self._units.begin(pessimistic=True) as work:
            now = self._units.now()
            loaded = {
                payment.id: payment
                for payment in await self._payments.load_all(work, {answer.refund.payment_id for answer in batch})
            }
            known = await self._refunds.load(work, {answer.refund.id for answer in batch})
            payments, refunds = dict(loaded), dict(known)
            entries: list[Entry] = []
            rejected: dict[UUID, Exception] = {}
            for answer in batch:
                refund, payment = refunds[answer.refund.id], payments[answer.refund.payment_id]
                try:
                    after = _answered(refund, answer, now)
                except RefundContradiction as contradiction:
                    rejected[refund.id] = contradiction
                    continue
                refunds[refund.id] = after
                if after.status is RefundStatus.SUCCEEDED and after is not refund:
                    moved = payments[payment.id] = payment.refund(after.amount, now)
                    entries.append(_entry(after, now))
                    fact = PaymentRefunded(moved, after.amount, after.id)
                    work.publish(fact, after.traceparent, subject=moved.order_id, actor="service:payment")
            self._payments.save(work, ((loaded[key], payment) for key, payment in payments.items()))
            self._payments.add_entries(work, entries)
            self._refunds.save(work, ((known[key], refund) for key, refund in refunds.items()))
            failed = [each for key, each in refunds.items() if each is not known[key] and each.has_failed]
            await self._cover(work, [payments[each.payment_id] for each in failed if each.actor != ACTOR], now)
        return [rejected.get(answer.refund.id) or refunds[answer.refund.id] for answer in batch]

    async def _cover(self, work: UnitOfWork, payments: Sequence[Payment], now: datetime) -> None:
        """Refund what staff's refused refunds have left of payments whose orders are cancelled; the sweep begins it.

        A refusal of the refund of the cancelled order itself is left to staff.
        """
        cancelled = {payment.id: payment for payment in payments if payment.cancel_requested}
        if cancelled:
            pending = await self._refunds.pending(work.transaction, cancelled)
            self._refunds.add(work, refunds_of_cancelled(cancelled.values(), pending, until=now, now=now))


def _answered(refund: Refund, answer: RefundAnswer, now: datetime) -> Refund:
    """The refund after an answer. One that has an outcome keeps it."""
    if refund.status is not RefundStatus.PENDING:
        return refund
    match answer.outcome:
        case Refunded(reference, amount):
            return refund.succeed(reference, amount, now)
        case Refused(reason):
            return refund.fail(reason, now)
        case _:
            return refund.postpone(now)


def _entry(refund: Refund, now: datetime) -> Entry:
    return Entry(
        new_id(),
        refund.payment_id,
        EntryType.REFUND,
        refund.amount,
        refund.provider_reference,
        refund.reason,
        now,
        refund.actor,
        refund.trace_id,
    )
