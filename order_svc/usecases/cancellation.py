"""Cancelling orders: on request, when they are not paid in time, when drafts expire, and again when no answer comes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from mesh import tasks
from order_svc.domain import CancelReason, Order, OrderMoved, OrderNotFound

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from order_svc.store import OrderStore

_PORTION = 256
"""Orders and items that are converted without letting other tasks run."""

_ACTOR = "service:order"
"""Who cancels what is overdue."""

log = structlog.get_logger(__name__)


class Cancellation:
    """Cancels orders. They are CANCELLING until the payment service says what became of the money."""

    def __init__(self, units: UnitsOfWork, orders: OrderStore) -> None:
        self._units = units
        self._orders = orders

    async def cancel_order(self, change: Change[Order], order_id: UUID, *, note: str, etag: str) -> Reply[Order]:
        """Cancel an order of the caller's own; any for staff. Cancelling it again changes nothing.

        Raises OrderNotFound, EtagMismatch, or OrderState once it is too late.
        """
        reason = CancelReason.STAFF_REQUEST if change.caller.is_staff else CancelReason.CUSTOMER_REQUEST
        async with self._units.once(change) as work:
            order = (await self._orders.load(work, [order_id]))[order_id]
            change.caller.own(order.customer_id, OrderNotFound(order_id))
            order.require_etag(etag)
            cancelling = order.cancel(reason, note, self._units.now())
            self._orders.save(work, [(order, cancelling)])
            if cancelling is not order:
                work.publish(OrderMoved(cancelling), change.trace, subject=order_id, actor=change.caller)
            return work.reply(cancelling)

    async def cancel_overdue(self, *, most: int = 256) -> bool:
        """Cancel orders that were not paid in time. Returns whether there may be more."""
        now = self._units.now()
        async with self._units.begin() as work:
            overdue = await self._orders.load_overdue(work, most)
            await self._save(work, overdue, [order.cancel(CancelReason.PAYMENT_TIMEOUT, "", now) for order in overdue])
        return len(overdue) == most

    async def cancel_expired_drafts(self, lifetime: timedelta, *, most: int = 256) -> bool:
        """Cancel drafts that are unchanged for `lifetime`. Returns whether there may be more."""
        now = self._units.now()
        async with self._units.begin() as work:
            expired = await self._orders.load_expired_drafts(work, lifetime, most)
            await self._save(work, expired, [order.cancel(CancelReason.DRAFT_EXPIRED, "", now) for order in expired])
        return len(expired) == most

    async def cancel_unfinished(self, timeout: timedelta, *, most: int = 256) -> bool:
        """Cancel drafts whose placing began before `timeout` and was never finished. Returns as above.

        Their stock may be held, by an attempt whose outcome is not known.
        """
        now = self._units.now()
        async with self._units.begin() as work:
            unfinished = await self._orders.load_unfinished(work, timeout, most)
            cancelled = [order.cancel(CancelReason.DRAFT_EXPIRED, "", now) for order in unfinished]
            await self._save(work, unfinished, cancelled)
        return len(unfinished) == most

    async def cancel_again(self, timeout: timedelta, *, most: int = 256) -> bool:
        """Ask the payment service again about orders that are CANCELLING for `timeout`. Returns as `cancel_overdue`.

        Its answer, or the question, may be a dead letter; it answers as often as it is asked.
        """
        now = self._units.now()
        async with self._units.begin() as work:
            stuck = await self._orders.load_cancelling(work, timeout, most)
            asked = [order.still_cancelling(now) for order in stuck]
            self._orders.save(work, zip(stuck, asked, strict=True))
            for order in asked:
                work.publish(OrderMoved(order))
        if stuck:
            log.warning("orders still cancelling", orders=[str(order.id) for order in stuck])
        return len(stuck) == most

    async def _save(self, work: UnitOfWork, loaded: Sequence[Order], cancelling: Sequence[Order]) -> None:
        self._orders.save(work, zip(loaded, cancelling, strict=True))
        async for order in tasks.in_portions(cancelling, weight=attrgetter("size"), portion=_PORTION):
            work.publish(OrderMoved(order), subject=order.id, actor=_ACTOR)
