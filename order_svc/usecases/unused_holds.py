"""Releases holds that no order uses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from mesh import tasks
from order_svc import store
from order_svc.domain import Status

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from order_svc.peers import StockPeer

MAX_BATCH = 1000
"""Holds that are released in one call, as many as the product service takes."""
STOP_SECONDS = 5.0
"""How long `stop` waits for what is still being released."""

log = structlog.get_logger(__name__)


class UnusedHolds:
    """Releases holds that no order uses, in the background.

    Nobody waits for it: the orders placed beside such a hold are committed. What is not released here, because the
    product service does not answer or this process ends, is released by that service's sweep.
    """

    def __init__(self, units: UnitsOfWork, stock: StockPeer) -> None:
        self._units = units
        self._stock = stock
        self._waiting: list[UUID] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Nothing to do until a hold is not used."""

    async def stop(self) -> None:
        """Let the release under way end, for `STOP_SECONDS` at most."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
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
        # Another attempt may have adopted such a hold. Whoever writes the id first has it.
        async with self._units.begin() as work:
            statuses = await store.abandon_unknown(work.transaction, order_ids, self._units.now())
        if abandoned := [order_id for order_id, status in statuses.items() if status is Status.ABANDONED]:
            await self._stock.release(abandoned)
