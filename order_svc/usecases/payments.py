"""Payments: what the payment service tells of them moves their orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh import tasks
from order_svc.domain import OrderMoved, PaymentResult

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.cloudevents import Received
    from order_svc.store import OrderStore


class Payments:
    """Applies the results of payments to their orders."""

    def __init__(self, units: UnitsOfWork, orders: OrderStore) -> None:
        self._units = units
        self._orders = orders

    async def apply(self, work: UnitOfWork, events: Sequence[Received[PaymentResult]]) -> None:
        """Confirm the orders that were paid, and cancel those whose payment was declined, voided or refunded.

        Raises OrderNotFound, or OrderState when a result cannot follow: such an event becomes a dead letter.
        """
        now = self._units.now()
        loaded = await self._orders.load(work, {event.payload.order_id for event in events})
        orders = dict(loaded)
        async for event in tasks.in_portions(events):
            order = orders[event.payload.order_id]
            moved = orders[order.id] = order.apply_payment(event.payload, now)
            if moved is not order:
                work.publish(OrderMoved(moved), event.traceparent, subject=order.id, actor="service:payment")
        self._orders.save(work, ((loaded[order_id], order) for order_id, order in orders.items()))
