"""Watching orders."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.events.watches import Watches
from order_svc.domain import Order, OrderNotFound

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.events.bus import Bus
    from mesh.rpc.call import Call
    from order_svc.store import OrderStore


class Watching:
    """Orders as their customers and staff watch them."""

    def __init__(self, units: UnitsOfWork, orders: OrderStore, bus: Bus) -> None:
        self._units = units
        self._orders = orders
        self.watches: Watches[Order] = Watches(
            "order",
            self._read_each,
            bus=bus,
            version=attrgetter("version"),
            is_announced=lambda order: not order.is_draft,
        )

    async def watch_order(self, call: Call, order_id: UUID) -> AsyncGenerator[Order, None]:
        """An order now and after each change, until it is final. A slow reader misses states between.

        Raises OrderNotFound, also for a stranger's, and when a draft is deleted.
        """
        with self.watches.of(order_id) as watch:
            while True:
                order = await watch.next()
                call.caller.own(order.customer_id, OrderNotFound(order_id))
                yield order
                if order.is_final:
                    return

    async def _read_each(self, ids: Sequence[UUID]) -> list[Order | Exception]:
        """Each order as it is now, or that it does not exist."""
        async with self._units.database.reading() as reading:
            found = await self._orders.read(reading, set(ids))
        return [found.get(order_id) or OrderNotFound(order_id) for order_id in ids]
