"""Fulfilling orders: staff record that they were shipped and delivered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from order_svc.domain import Order, OrderMoved

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from order_svc.store import OrderStore


class Fulfilment:
    """Records the way of the goods to the customer."""

    def __init__(self, units: UnitsOfWork, orders: OrderStore) -> None:
        self._units = units
        self._orders = orders

    async def ship_order(
        self, change: Change[Order], order_id: UUID, *, carrier: str, tracking_number: str, etag: str
    ) -> Reply[Order]:
        """Record that a confirmed order was handed over to a carrier.

        Raises OrderNotFound, EtagMismatch, or OrderState unless the order is confirmed.
        """
        return await self._move(change, order_id, etag, lambda order, now: order.ship(carrier, tracking_number, now))

    async def deliver_order(self, change: Change[Order], order_id: UUID, *, etag: str) -> Reply[Order]:
        """Record that a shipped order was delivered. Raises as `ship_order`, unless the order is shipped."""
        return await self._move(change, order_id, etag, Order.deliver)

    async def _move(
        self, change: Change[Order], order_id: UUID, etag: str, move: Callable[[Order, datetime], Order]
    ) -> Reply[Order]:
        async with self._units.once(change) as work:
            order = (await self._orders.load(work, [order_id]))[order_id]
            order.require_etag(etag)
            moved = move(order, self._units.now())
            self._orders.save(work, [(order, moved)])
            work.publish(OrderMoved(moved), change.trace, subject=order_id, actor=change.caller)
            return work.reply(moved)
