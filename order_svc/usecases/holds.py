"""Holds: what becomes of old ones, and the release of those that no order uses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from mesh import tasks
from order_svc.domain import HOLD_DECISIONS, HoldDecision, Status

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from order_svc.peers import StockPeer
    from order_svc.store import OrderStore

MAX_BATCH = 1000
"""Holds that are released in one call, as many as the product service takes."""

log = structlog.get_logger(__name__)


class Holds:
    """Decides about old holds, for the sweep of the product service."""

    def __init__(self, units: UnitsOfWork, orders: OrderStore) -> None:
        self._units = units
        self._orders = orders

    async def resolve_holds(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldDecision]:
        """What is to become of each order's hold. An id that was never placed is released, and never will be placed."""
        async with self._units.begin() as work:
            statuses = await self._orders.abandon_unknown(work, order_ids, self._units.now())
        return {order_id: HOLD_DECISIONS[status] for order_id, status in statuses.items()}


class UnusedHolds:
    """Releases holds that no order uses, in the background.

    Nobody waits for it: the orders placed beside such a hold are committed. What is not released here, because the
    product service does not answer or this process ends, is released by that service's sweep.
    """

    def __init__(self, units: UnitsOfWork, orders: OrderStore, stock: StockPeer, *, stop_timeout: float = 5.0) -> None:
        self._units = units
        self._orders = orders
        self._stock = stock
        self._stop_timeout = stop_timeout
        self._waiting: list[UUID] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Nothing to do until a hold is not used."""

    async def stop(self) -> None:
        """Let the release under way finish, for `stop_timeout` seconds at most."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=self._stop_timeout)
            await tasks.end(self._task)

    async def idle(self) -> None:
        """Wait until nothing is left to release."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def release(self, order_ids: Iterable[UUID]) -> None:
        """Release the holds made under these ids, unless an order has been placed under one; return at once."""
        self._waiting += order_ids
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._release_all(), name="unused holds")

    async def _release_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            try:
                await self._release(batch)
            except Exception:
                log.exception("unused holds not released", orders=[str(each) for each in batch])

    async def _release(self, order_ids: list[UUID]) -> None:
        # Another attempt may have adopted such a hold. The first to write the id has it.
        async with self._units.begin() as work:
            statuses = await self._orders.abandon_unknown(work, order_ids, self._units.now())
        if abandoned := [order_id for order_id, status in statuses.items() if status is Status.ABANDONED]:
            await self._stock.release(abandoned)
