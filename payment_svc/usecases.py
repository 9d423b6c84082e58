"""What the payment service can do. Transactions begin and end here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mesh import tasks
from mesh.db.idempotency import Replay
from mesh.errors import MeshError, StaleWrite
from mesh.ids import new_id
from payment_svc import store, wire
from payment_svc.domain import (
    PROVIDER_UNKNOWN,
    UNCHARGED,
    Due,
    Entry,
    EntryType,
    NewPayment,
    Payment,
    PaymentNotFound,
    PaymentStatus,
    ProviderNotFound,
)
from payment_svc.providers import Approved, Declined, Refunded, Unsettled, Voided

if TYPE_CHECKING:
    from decimal import Decimal

    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.cloudevents import Received
    from mesh.rpc.call import Call
    from mesh.rpc.replies import Change, Reply
    from payment_svc.charger import Charger, Settlement

ORDER_PLACED, ORDER_CANCELLING = "commerce.order.placed", "commerce.order.cancelling"
ACTOR = "service:order"
"""On whose behalf payments are made and called off."""
ANSWER_SECONDS = 0.5
"""How long before a caller's deadline an outcome is no longer waited for, so that there is an answer in time."""


class Payments:
    """Payments as others begin them, call them off and read them."""

    def __init__(self, units: UnitsOfWork, charger: Charger, *, providers: Collection[str], lease: timedelta) -> None:
        self._units = units
        self._charger = charger
        self._providers = providers
        self._lease = lease

    async def get_payment(self, call: Call, payment_id: UUID) -> Payment:
        """A payment of the caller's own; any for staff. Raises PaymentNotFound."""
        refusal = PaymentNotFound(payment_id=payment_id)
        async with self._units.database.reading() as reading:
            return _own(call, await store.get_payment(reading, payment_id), refusal)

    async def get_order_payment(self, call: Call, order_id: UUID) -> Payment:
        """The payment of an order of the caller's own; of any for staff. Raises PaymentNotFound."""
        refusal = PaymentNotFound(order_id=order_id)
        async with self._units.database.reading() as reading:
            return _own(call, await store.get_order_payment(reading, order_id), refusal)

    async def process_payment(self, change: Change[Payment], new: NewPayment) -> Reply[Payment]:
        """Charge an order, or find what it was charged, and wait for the outcome as long as the caller does.

        A key stands for the payment, not for how it stood: its replay answers with the payment as it is by then.
        Raises ProviderNotFound, or PaymentStateRefused when the order is charged another amount or is cancelled.
        """
        if new.provider not in self._providers:
            raise ProviderNotFound(new.provider)
        try:
            async with self._units.once(change) as work:
                now = self._units.now()
                begun = Payment.begin(new_id(), new, change.trace.traceparent, now, now + self._lease)
                self._start(work, await store.add_payments(work.transaction, [begun]))
                payment = await _of_order(work.transaction, new.order_id)
                payment.require_same(new)
                work.reply(payment)
        except Replay:
            async with self._units.database.reading() as reading:
                payment = await _of_order(reading, new.order_id)
        if remaining := change.call.remaining():
            await self._charger.done(payment.id, timeout=max(0.0, remaining - ANSWER_SECONDS))
        async with self._units.database.reading() as reading:
            return change.reply(await _of_order(reading, new.order_id))

    async def on_orders(self, work: UnitOfWork, events: Sequence[Received[Any]]) -> None:
        """Orders were placed, or are to be cancelled. They come together: rows are written in one order.

        Placed: their payments begin, and are charged once that is committed. A payment of zero is captured at once. An
        order that has a payment, also one called off before this came, gets no other.

        To be cancelled: each gets one answer, `voided`, or `refunded` once the money is given back. A payment that is
        final already is answered for at once; what is due of the others is carried out after the commit. An order
        without a payment gets one that is voided, so that `placed`, should it come, charges nothing.

        Orders that are all new are taken to have no payment, until that has failed.
        """
        now = self._units.now()
        until = now + self._lease
        traces: dict[UUID, str] = {}
        news: list[Payment] = []
        for event in events:
            if event.type == ORDER_PLACED:
                news.append(self._begun(wire.placed(event.payload), event.traceparent, now))
            else:
                new = wire.cancelled(event.payload)
                traces[new.order_id] = event.traceparent
                news.append(Payment.called_off(new_id(), new, event.traceparent, now))
        if traces or work.pessimistic:
            added = await store.add_payments(work.transaction, news)
        else:
            store.add_first_payments(work.transaction, news)
            added = news
        self._start(work, [payment for payment in added if not payment.cancel_requested])
        called_off = [payment for payment in added if payment.cancel_requested]
        for payment in called_off:
            work.publish(wire.voided(payment), payment.traceparent)
        known = traces.keys() - {payment.order_id for payment in called_off}
        if not known:
            return
        locked = await store.lock_order_payments(work.transaction, known)
        cancelled = [payment.request_cancel(traces[payment.order_id], now, until) for payment in locked]
        store.write_payments(work.transaction, zip(locked, cancelled, strict=True))
        for payment in cancelled:
            if payment.status in UNCHARGED:
                work.publish(wire.voided(payment), traces[payment.order_id])
            elif payment.status is PaymentStatus.REFUNDED:
                work.publish(wire.refunded(payment, payment.refundable), traces[payment.order_id])
        due = [payment for payment in cancelled if payment.due]
        work.transaction.on_commit(lambda: self._charger.resume(due))

    async def sweep(self, *, most: int = 500) -> bool:
        """Take up payments that nobody is working on: a retry is due, or a process has died; whether there are more."""
        most = min(most, self._charger.room)
        if most <= 0:
            return False
        async with self._units.begin() as work:
            taken = await store.lease_overdue(work.transaction, self._lease, most=most)
        self._charger.resume(taken)
        return len(taken) == most

    def _begun(self, new: NewPayment, traceparent: str, now: datetime) -> Payment:
        """The payment of an order that was placed."""
        if not new.amount:
            return Payment.free(new_id(), new, traceparent, now)
        begun = Payment.begin(new_id(), new, traceparent, now, now + self._lease)
        return begun if begun.provider in self._providers else begun.decline(PROVIDER_UNKNOWN, now)

    def _start(self, work: UnitOfWork, added: Sequence[Payment]) -> None:
        for payment in added:
            if payment.status is PaymentStatus.DECLINED:
                work.publish(wire.declined(payment), payment.traceparent)
            elif payment.status is PaymentStatus.CAPTURED:
                work.publish(wire.captured(payment), payment.traceparent)
        due = [payment for payment in added if payment.due]
        work.transaction.on_commit(lambda: self._charger.begin(due))


async def _of_order(reading: Transaction, order_id: UUID) -> Payment:
    payment = await store.get_order_payment(reading, order_id)
    if payment is None:
        raise PaymentNotFound(order_id=order_id)
    return payment


def _own(call: Call, payment: Payment | None, refusal: PaymentNotFound) -> Payment:
    if payment is None:
        raise refusal
    call.caller.own(payment.customer_id, refusal)
    return payment


class Settlements:
    """Writes down what providers answered, a batch at a time: the payments, their ledger, their events."""

    def __init__(self, units: UnitsOfWork, *, lease: timedelta) -> None:
        self._units = units
        self._lease = lease

    async def settle(self, batch: Sequence[Settlement]) -> list[Payment | Exception]:
        """The payments as they are afterwards. Written down twice, an answer counts once.

        A result is ProviderContradiction when an answer cannot be true beside what is written already.
        """
        return await self._units.run_optimistically(partial(self._settle, batch))

    async def _settle(self, batch: Sequence[Settlement], work: UnitOfWork) -> list[Payment | Exception]:
        now = self._units.now()
        known = {each.payment.id: each.payment for each in batch}
        # To postpone a payment does not change its version, so that a stale write of it would go unnoticed. Such a
        # payment may also hold a token, and PostgreSQL shows the row that it refuses.
        if work.pessimistic or any(isinstance(each.outcome, Unsettled) for each in batch):
            known = await store.lock_payments(work.transaction, known)
        after = dict(known)
        entries: list[Entry] = []
        results: list[Payment | Exception] = []
        async for settlement in tasks.in_portions(batch):
            try:
                payment, entry = self._applied(work, after[settlement.payment.id], settlement, now)
            except MeshError as contradiction:
                if not work.pessimistic:
                    # It may contradict only what is known here.
                    raise StaleWrite from contradiction
                results.append(contradiction)
                continue
            after[payment.id] = payment
            if entry is not None:
                entries.append(entry)
            results.append(payment)
        store.write_payments(work.transaction, ((known[key], payment) for key, payment in after.items()))
        store.add_entries(work.transaction, entries)
        return results

    def _applied(
        self, work: UnitOfWork, payment: Payment, settlement: Settlement, now: datetime
    ) -> tuple[Payment, Entry | None]:
        """The payment after an answer, and what that adds to the ledger; what others must know is published."""
        until = now + self._lease
        entry: Entry | None = None
        match settlement.outcome:
            case Approved(reference):
                moved = payment.capture(reference, now, until)
                entry, event = _entry(moved, EntryType.CAPTURE, moved.amount, reference, now), wire.captured(moved)
            case Declined(reason):
                moved = payment.decline(reason, now)
                event = wire.voided(moved) if moved.status is PaymentStatus.VOIDED else wire.declined(moved)
            case Voided():
                moved = payment.void(now)
                entry, event = _entry(moved, EntryType.VOID, moved.amount, "", now), wire.voided(moved)
            case Refunded(reference, amount):
                if payment.due is not Due.REFUND:
                    # Another process has written it down.
                    return payment, entry
                moved = payment.refund(amount, now, until)
                entry, event = _entry(moved, EntryType.REFUND, amount, reference, now), wire.refunded(moved, amount)
            case _:
                # Nothing was learnt. It is not put off when something else is due by now.
                return payment.postpone(now) if payment.due is settlement.due else payment, entry
        if moved is payment:
            return payment, None
        work.publish(event, moved.traceparent)
        return moved, entry


def _entry(payment: Payment, kind: EntryType, amount: Decimal, reference: str, now: datetime) -> Entry:
    note = "the order was cancelled" if payment.cancel_requested and kind is not EntryType.CAPTURE else ""
    return Entry(new_id(), payment.id, kind, amount, reference, note, now, ACTOR)
