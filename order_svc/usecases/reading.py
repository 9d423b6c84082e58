"""Reading orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.batch.group_commit import GroupCommit
from mesh.ids import parse_id
from order_svc.domain import CustomerNotFound, Order, OrderNotFound, Status

if TYPE_CHECKING:
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call
    from order_svc.store import OrderStore


MAX_ITEMS = 2_000
"""Items of all orders of a page together. A page ends early when the next order would exceed it."""


class Reading:
    """Orders as their customers and staff read them."""

    def __init__(self, units: UnitsOfWork, orders: OrderStore, pages: Pages) -> None:
        self._units = units
        self._orders = orders
        self._pages = pages
        self.reads: GroupCommit[UUID, Order] = GroupCommit("order reads", self._read, linger=0.005)

    async def get_order(self, call: Call, order_id: UUID) -> Order:
        """One order. Raises OrderNotFound, also for a stranger's."""
        order = await self.reads.submit(order_id)
        call.caller.own(order.customer_id, OrderNotFound(order_id))
        return order

    async def _read(self, batch: Sequence[UUID]) -> list[Order | Exception]:
        """The batch behind `get_order`. Calls that come during one read share the next one."""
        found = await self._orders.find(self._units.database, set(batch))
        return [found.get(order_id) or OrderNotFound(order_id) for order_id in batch]

    async def list_orders(
        self, call: Call, *, customer_id: UUID | None, status: Status | None, page_size: int, page_token: str
    ) -> tuple[list[Order], str]:
        """A page of the caller's orders (staff: anyone's), newest first, and the token of the next one.

        The page ends after `page_size` orders, or before the order with which it would have more than `MAX_ITEMS`.
        Raises CustomerNotFound when a customer asks for another's.
        """
        if not call.caller.is_staff:
            customer_id = customer_id or call.caller.customer_id
        if customer_id is not None:
            call.caller.own(customer_id, CustomerNotFound(customer_id))
        scope = f"orders\0{customer_id}\0{status}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        async with self._units.database.reading() as reading:
            found, more = await self._orders.list_orders(
                reading,
                customer_id=customer_id,
                status=status,
                before=parse_id(position[0]) if position else None,
                most=size,
                most_items=MAX_ITEMS,
            )
        return found, self._pages.token(scope, [str(found[-1].id)]) if more else ""
