"""Orders: placing one begins its payment, cancelling one voids or refunds it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.ids import new_id
from payment_svc.domain import (
    PROVIDER_UNKNOWN,
    UNCHARGED,
    NewPayment,
    OrderCancelling,
    OrderPlaced,
    Payment,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    PaymentStatus,
    PaymentVoided,
)
from payment_svc.usecases.outcomes import refunds_of_cancelled

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.cloudevents import Received
    from payment_svc.charger import Charger
    from payment_svc.refunder import Refunder
    from payment_svc.store import PaymentStore, RefundStore

ACTOR = "service:payment"
"""The author of payments."""


class Orders:
    """Applies the events of orders to their payments. Both kinds come together: rows are locked in one order."""

    def __init__(
        self,
        units: UnitsOfWork,
        payments: PaymentStore,
        refunds: RefundStore,
        charger: Charger,
        refunder: Refunder,
        *,
        providers: Collection[str],
        lease: timedelta,
    ) -> None:
        self._units = units
        self._payments = payments
        self._refunds = refunds
        self._charger = charger
        self._refunder = refunder
        self._providers = providers
        self._lease = lease

    async def apply(self, work: UnitOfWork, events: Sequence[Received[OrderPlaced | OrderCancelling]]) -> None:
        """Begin the payments of placed orders, and call off those of cancelling ones.

        Placed: the payment is charged after the commit. A payment of zero is captured at once. An order that has a
        payment, also one that was called off before, gets no other.

        Cancelling: each gets one event, `voided`, or `refunded` once the money is refunded. A payment that is final is
        answered for at once; what is due of the others is done after the commit. An order without a payment gets one
        that is voided, so that a later `placed` charges nothing.
        """
        now = self._units.now()
        traces: dict[UUID, str] = {}
        begun: list[Payment] = []
        for event in events:
            new = event.payload.payment
            if isinstance(event.payload, OrderPlaced):
                begun.append(self._begun(new, event.traceparent, now))
            else:
                traces[new.order_id] = event.traceparent
                begun.append(Payment.called_off(new_id(), new, event.traceparent, now))
        added = await self._payments.add(work, begun)
        self._start(work, added)
        if known := traces.keys() - {payment.order_id for payment in added if payment.cancel_requested}:
            await self._call_off(work, {order_id: traces[order_id] for order_id in known}, now)

    def _begun(self, new: NewPayment, traceparent: str, now: datetime) -> Payment:
        """The payment of an order that was placed."""
        if not new.amount:
            return Payment.free(new_id(), new, traceparent, now)
        begun = Payment.begin(new_id(), new, traceparent, now, now + self._lease)
        return begun if begun.provider in self._providers else begun.decline(PROVIDER_UNKNOWN, now)

    def _start(self, work: UnitOfWork, added: Sequence[Payment]) -> None:
        """Publish what is decided already, and charge the others after the commit."""
        for payment in added:
            trace = payment.traceparent
            match payment.status:
                case PaymentStatus.DECLINED:
                    work.publish(PaymentDeclined(payment), trace, subject=payment.order_id, actor=ACTOR)
                case PaymentStatus.CAPTURED:
                    work.publish(PaymentCaptured(payment), trace, subject=payment.order_id, actor=ACTOR)
                case PaymentStatus.VOIDED:
                    work.publish(PaymentVoided(payment), trace, subject=payment.order_id, actor=ACTOR)
        due = [payment for payment in added if payment.due]
        work.transaction.on_commit(lambda: self._charger.begin(due))

    async def _call_off(self, work: UnitOfWork, traces: dict[UUID, str], now: datetime) -> None:
        """Call off the payments that these orders have."""
        locked = await self._payments.load_of_orders(work, traces)
        cancelled = [payment.request_cancel(traces[payment.order_id], now, now + self._lease) for payment in locked]
        # An order that is cancelled again has its refund. If the provider has refused that, it is up to staff.
        held = [each for before, each in zip(locked, cancelled, strict=True) if each is not before and each.refundable]
        pending = await self._refunds.pending(work.transaction, [payment.id for payment in held]) if held else []
        refunds = refunds_of_cancelled(held, pending, until=now + self._lease, now=now)
        self._payments.save(work, zip(locked, cancelled, strict=True))
        self._refunds.add(work, refunds)
        for before, payment in zip(locked, cancelled, strict=True):
            # An answer to a repeated question is no step in the history.
            subject = payment.order_id if payment is not before else None
            if payment.status in UNCHARGED:
                work.publish(PaymentVoided(payment), traces[payment.order_id], subject=subject, actor=ACTOR)
            elif payment.status is PaymentStatus.REFUNDED:
                fact = PaymentRefunded(payment, payment.refundable)
                work.publish(fact, traces[payment.order_id], subject=subject, actor=ACTOR)
        due = [payment for payment in cancelled if payment.due]
        work.transaction.on_commit(lambda: self._charger.resume(due))
        work.transaction.on_commit(lambda: self._refunder.begin(refunds))
