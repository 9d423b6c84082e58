"""Erasure: orders forget their customer's personal data, and stay."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.db import idempotency
from order_svc.domain import CancelReason, CustomerHasOpenOrders, Order, OrderMoved, Status
from order_svc.store.erasures import Erasure

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from order_svc.store import ErasureStore, OrderStore

PORTION = 256
"""Orders of one transaction."""

_ACTOR = "service:order"
"""Who cancels orders that came after the erasure had begun."""


class Erasures:
    """Erases customers from their orders: at once, and again when no placing from before can still be committed.

    Placing does not know of erasures. It asks the customer service, which no longer knows a customer whose erasure has
    begun. An order that was asked for before that may be committed later, while its stock is held: it is cancelled.
    """

    def __init__(
        self, units: UnitsOfWork, orders: OrderStore, erasures: ErasureStore, *, longest_placing: timedelta
    ) -> None:
        self._units = units
        self._orders = orders
        self._erasures = erasures
        self._longest_placing = longest_placing

    async def erase_customer(self, customer_id: UUID, *, only_check: bool) -> None:
        """Erase a customer from their orders, or only check whether that is possible.

        Raises CustomerHasOpenOrders, and changes nothing then. Once begun, an erasure is not refused any more.
        """
        async with self._units.begin() as work:
            if not await self._erasures.is_begun(work, customer_id):
                if await self._erasures.has_open_orders(work, customer_id):
                    raise CustomerHasOpenOrders(customer_id)
                if not only_check:
                    now = self._units.now()
                    await self._erasures.begin(work, Erasure(customer_id, now, now + self._longest_placing))
        if not only_check:
            await self._erase(customer_id)

    async def repeat(self, *, most: int = 100) -> bool:
        """Finish what is due, with the stored replies. Returns whether there may be more."""
        async with self._units.begin() as work:
            due = await self._erasures.list_due(work, self._units.now(), most=most)
        for erasure in due:
            await self._erase(erasure.customer_id)
            # Also those of staff who have changed an order of the customer.
            await idempotency.erase(self._units.database, str(erasure.customer_id))
            async with self._units.begin() as work:
                await self._erasures.done(work, erasure, self._units.now())
        return len(due) == most

    async def _erase(self, customer_id: UUID) -> None:
        while await self._cancel(customer_id):
            pass
        while await self._erase_orders(customer_id):
            pass

    async def _cancel(self, customer_id: UUID) -> bool:
        """Cancel a portion of the orders that can be cancelled. Returns whether there were any.

        These are drafts, and orders that came after the erasure had begun. Drafts are deleted as well, unless a placing
        is under way: it finds that its draft is cancelled, but would not find that it is gone.
        """
        now = self._units.now()
        async with self._units.begin(pessimistic=True) as work:
            ids = await self._erasures.lock_unshipped(work, customer_id, most=PORTION)
            orders = (await self._orders.load(work, ids)).values()
            cancelled = [(order, order.cancel(CancelReason.CUSTOMER_REQUEST, "", now)) for order in orders]
            self._orders.save(work, [(order, new) for order, new in cancelled if not _is_editable(order)])
            await self._erasures.delete_drafts(work, [order.id for order in orders if _is_editable(order)])
            # Also for drafts: stock is released that an earlier placing may hold.
            for order, new in cancelled:
                work.publish(OrderMoved(new), subject=None if _is_editable(order) else order.id, actor=_ACTOR)
        return bool(ids)

    async def _erase_orders(self, customer_id: UUID) -> bool:
        """Erase a portion of the orders. Returns whether there were any."""
        async with self._units.begin() as work:
            erased = await self._erasures.erase_orders(work, customer_id, most=PORTION)
            self._orders.forget(work, erased)
        return bool(erased)


def _is_editable(order: Order) -> bool:
    return order.status is Status.DRAFT
