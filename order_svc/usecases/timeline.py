"""The timeline of an order: what every service knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from order_svc.domain import Order, OrderNotFound, TimelineEvent

if TYPE_CHECKING:
    from mesh.db.history import Step
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call
    from order_svc.peers import PaymentPeer, StockPeer
    from order_svc.store import OrderStore


class Timeline:
    """Who did what and when to an order, in the order, product and payment services."""

    def __init__(
        self,
        units: UnitsOfWork,
        orders: OrderStore,
        stock: StockPeer,
        payments: PaymentPeer,
        *,
        event_of: Callable[[Order, Step], TimelineEvent],
    ) -> None:
        """`event_of` describes a step of the order itself."""
        self._units = units
        self._orders = orders
        self._stock = stock
        self._payments = payments
        self._event_of = event_of

    async def get_timeline(self, call: Call, order_id: UUID) -> list[TimelineEvent]:
        """The events of an order of the caller's own, oldest first; of any for staff.

        Raises OrderNotFound, and Unavailable when another service does not answer.
        """
        async with self._units.database.reading() as reading:
            order = (await self._orders.read(reading, [order_id])).get(order_id)
            steps = await self._orders.history(reading, order_id)
        if order is None:
            raise OrderNotFound(order_id)
        call.caller.own(order.customer_id, OrderNotFound(order_id))
        elsewhere = await asyncio.gather(self._stock.timeline(order_id, call), self._payments.timeline(order_id, call))
        events = [self._event_of(order, step) for step in steps]
        # The product service does not know in which trace a hold was made. The first step is the placing.
        trace_id = steps[0].trace_id if steps else ""
        for part in elsewhere:
            events += [event if event.trace_id else event._replace(trace_id=trace_id) for event in part]
        return sorted(events)
