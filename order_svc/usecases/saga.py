"""What becomes of an order once it is placed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog

from mesh import tasks
from mesh.ids import parse_id
from order_svc import store, wire
from order_svc.domain import HOLD_DECISIONS, CancelReason, Cause, HoldDecision, Order, OrderNotFound

if TYPE_CHECKING:
    from mesh.db.recent import Recent
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.cloudevents import Received
    from mesh.rpc.replies import Change, Reply
    from order_svc.usecases.placement import Placed

log = structlog.get_logger(__name__)

CAUSES = {
    "commerce.payment.captured": Cause.CAPTURED,
    "commerce.payment.declined": Cause.DECLINED,
    "commerce.payment.voided": Cause.VOIDED,
    "commerce.payment.refunded": Cause.REFUNDED,
}
"""What the events of the payment service mean to an order."""


class Saga:
    """Moves placed orders to their end: what the payment service says, what customers ask, what the clock says."""

    def __init__(self, units: UnitsOfWork, recent: Recent[UUID, Placed]) -> None:
        """`recent` are the orders that `Placement` has placed in this process."""
        self._units = units
        self._recent = recent

    async def cancel_order(self, change: Change[Order], order_id: UUID, *, note: str, etag: str) -> Reply[Order]:
        """Begin to cancel; what is cancelled or being cancelled stays as it is.

        Raises OrderNotFound, EtagMismatch, or OrderState once it is too late.
        """
        reason = CancelReason.STAFF_REQUEST if change.caller.is_staff else CancelReason.CUSTOMER_REQUEST
        now = self._units.now()
        async with self._units.once(change) as work:
            order = (await store.lock(work.transaction, [order_id])).get(order_id)
            if order is None:
                raise OrderNotFound(order_id)
            change.caller.own(order.customer_id, OrderNotFound(order_id))
            order.require_etag(etag)
            cancelling = order.cancel(reason, note, now)
            if cancelling is not order:
                store.write(work.transaction, [(order, cancelling)], now)
                work.publish(wire.moved(cancelling), change.trace)
            return work.reply(cancelling)

    async def on_payment(self, work: UnitOfWork, events: Sequence[Received[Any]]) -> None:
        """What became of orders' money, causes before effects.

        Orders that this process has placed a moment ago are taken to be as they were then; the others are locked, all
        at once. Raises OrderNotFound or OrderState when the news cannot be: such an event is parked.
        """
        now = self._units.now()
        concerned = {parse_id(event.payload.payment.order_id) for event in events}
        recent = self._recent.take(concerned)
        known = {order_id: order for order_id, (order, _) in recent.items()}
        if others := concerned - known.keys():
            known |= await store.lock(work.transaction, others)
        orders = dict(known)
        async for event in tasks.in_portions(events):
            payment = event.payload.payment
            order_id = parse_id(payment.order_id)
            if order_id not in orders:
                raise OrderNotFound(order_id)
            order = orders[order_id].hear(CAUSES[event.type], parse_id(payment.id), now)
            if order is not orders[order_id]:
                orders[order_id] = order
                message = wire.later(recent[order_id][1], order) if order_id in recent else wire.order(order)
                work.publish(wire.moved(order, message), event.traceparent)
        store.write(work.transaction, ((known[order_id], order) for order_id, order in orders.items()), now)

    async def cancel_overdue(self, *, most: int = 256) -> bool:
        """Begin to cancel orders that were not paid in time; whether there may be more."""
        now = self._units.now()
        async with self._units.begin() as work:
            overdue = await store.lock_overdue(work.transaction, most)
            cancelling = [order.cancel(CancelReason.PAYMENT_TIMEOUT, "", now) for order in overdue]
            store.write(work.transaction, zip(overdue, cancelling, strict=True), now)
            async for order in tasks.in_portions(cancelling, weight=wire.size, portion=wire.PORTION):
                work.publish(wire.moved(order))
        return len(overdue) == most

    async def cancel_again(self, patience: timedelta, *, most: int = 256) -> bool:
        """Ask the payment service again about orders that are cancelling for `patience`; whether there may be more.

        Its answer, or the question, may be parked among the dead letters; it answers as often as it is asked.
        """
        now = self._units.now()
        async with self._units.begin() as work:
            stuck = await store.lock_cancelling(work.transaction, patience, most)
            cancelling = [order.still_cancelling(now) for order in stuck]
            store.write(work.transaction, zip(stuck, cancelling, strict=True), now)
            async for order in tasks.in_portions(cancelling, weight=wire.size, portion=wire.PORTION):
                work.publish(wire.moved(order))
        if stuck:
            log.warning("orders still cancelling", orders=[str(order.id) for order in stuck])
        return len(stuck) == most

    async def resolve_holds(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldDecision]:
        """What each order wants of its hold. For an order that was never placed, to release it: it never will be."""
        async with self._units.begin() as work:
            statuses = await store.abandon_unknown(work.transaction, order_ids, self._units.now())
        return {order_id: HOLD_DECISIONS[status] for order_id, status in statuses.items()}
