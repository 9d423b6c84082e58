"""Expired holds are resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from mesh.batch.group_commit import run_batch
from product_svc.domain import HoldDecision

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from product_svc.store import HoldStore
    from product_svc.usecases.holds import Holds

_PAUSE = timedelta(minutes=1)
"""The time until the order service is asked again about a hold that it has decided to keep."""

log = structlog.get_logger(__name__)


class Orders(Protocol):
    """The order service, as the sweep needs it."""

    async def hold_decisions(self, order_ids: Sequence[UUID]) -> Mapping[UUID, HoldDecision]:
        """The decision about the hold of each order. An order whose hold is released can never be placed."""


class HoldSweep:
    """Resolves holds that have expired."""

    def __init__(self, units: UnitsOfWork, store: HoldStore, holds: Holds, orders: Orders) -> None:
        self._units = units
        self._store = store
        self._holds = holds
        self._orders = orders

    async def run(self, *, most: int = 500) -> bool:
        """Resolve expired holds, each as the order service decides; whether there may be more.

        No hold is released on suspicion. A hold that is kept, or that cannot be resolved, is postponed, so that it does
        not delay the others.
        """
        async with self._units.database.reading() as reading:
            expired = await self._store.expired(reading, most)
        if not expired:
            return False
        decisions = await self._orders.hold_decisions(expired)
        kept = [order_id for order_id in expired if decisions[order_id] is HoldDecision.KEEP]
        decided = [order_id for order_id in expired if decisions[order_id] is not HoldDecision.KEEP]
        failed = await self._resolve(decided, decisions)
        async with self._units.begin() as work:
            await self._store.postpone(work, kept + failed, _PAUSE)
        return len(expired) == most

    async def _resolve(self, order_ids: Sequence[UUID], decisions: Mapping[UUID, HoldDecision]) -> list[UUID]:
        """Resolve the holds of these orders; the orders for which that fails."""

        async def resolve(batch: Sequence[UUID]) -> list[None]:
            commit = [order_id for order_id in batch if decisions[order_id] is HoldDecision.COMMIT]
            release = [order_id for order_id in batch if decisions[order_id] is HoldDecision.RELEASE]
            await self._units.run_optimistically(partial(self._holds.resolve, commit=commit, release=release))
            return [None] * len(batch)

        failed = []
        for order_id, failure in zip(order_ids, await run_batch(resolve, order_ids), strict=True):
            if failure is not None:
                log.error("hold not resolved", order=str(order_id), exc_info=failure)
                failed.append(order_id)
        return failed
