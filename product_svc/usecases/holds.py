"""Holds are committed and released."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING
from uuid import UUID

from mesh import tasks
from mesh.ids import new_id
from product_svc.domain import HoldDecision, HoldMissing, HoldStates, Stockroom, resolve

if TYPE_CHECKING:
    from mesh.db.history import Step
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.cloudevents import Received
    from mesh.rpc.replies import Change, Reply
    from product_svc.store import HoldStore, StockStore

_ACTOR = "service:order"
"""The author of sales and of the returns of cancelled orders."""


class Holds:
    """Holds: committed when their orders are confirmed, released when these are cancelled."""

    def __init__(self, units: UnitsOfWork, holds: HoldStore, stocks: StockStore) -> None:
        self._units = units
        self._holds = holds
        self._stocks = stocks

    async def commit_stock(self, change: Change[HoldStates], order_ids: Sequence[UUID]) -> Reply[HoldStates]:
        """Sell what these orders hold. A hold that is released stays released: a cancelled order is final."""
        async with self._units.once(change) as work:
            return work.reply(await self.resolve(work, commit=order_ids, traces=_traces(order_ids, change)))

    async def release_stock(self, change: Change[HoldStates], order_ids: Sequence[UUID]) -> Reply[HoldStates]:
        """Make available what these orders hold; return what they were sold."""
        async with self._units.once(change) as work:
            return work.reply(await self.resolve(work, release=order_ids, traces=_traces(order_ids, change)))

    async def apply_decisions(self, work: UnitOfWork, events: Sequence[Received[HoldDecision]]) -> None:
        """Resolve the holds of orders that are decided. Raises HoldMissing when a confirmed order has none."""
        commit = [event.aggregate_id for event in events if event.payload is HoldDecision.COMMIT]
        release = [event.aggregate_id for event in events if event.payload is HoldDecision.RELEASE]
        traces = {event.aggregate_id: event.traceparent for event in events}
        states = await self.resolve(work, commit=commit, release=release, traces=traces)
        for order_id in commit:
            if order_id not in states:
                raise HoldMissing(order_id)

    async def resolve(
        self,
        work: UnitOfWork,
        *,
        commit: Collection[UUID] = (),
        release: Collection[UUID] = (),
        traces: Mapping[UUID, str] = MappingProxyType({}),
    ) -> HoldStates:
        """Commit the holds of some orders and release those of others; the states of all of them.

        `traces` are the traces of what is done to the holds, by order; an order without one begins a trace.
        Both at once: stock is locked in one order, so that this never deadlocks with new holds.
        """
        loaded = await self._holds.load(work, {*commit, *release})
        resolution = resolve(loaded, commit=commit, release=release)
        if resolution.steps:
            product_ids = {line.product_id for hold in resolution.steps for line in hold.lines}
            stocks = await self._stocks.load(work, product_ids)
            stockroom = Stockroom(stocks, actor=_ACTOR, now=self._units.now(), new_id=new_id)
            async for hold in tasks.in_portions(resolution.steps):
                stockroom.apply(hold)
                work.record(hold.order_id, hold.step, traces.get(hold.order_id, ""), actor=_ACTOR)
            self._holds.save(work, loaded, resolution.holds)
            self._stocks.save(work, stockroom)
            async for fact in tasks.in_portions(stockroom.facts()):
                work.publish(fact)
        return resolution.states

    async def get_timeline(self, order_id: UUID) -> list[Step]:
        """What became of the hold of an order, oldest first."""
        async with self._units.database.reading() as reading:
            return await self._holds.history(reading, order_id)


def _traces(order_ids: Iterable[UUID], change: Change[HoldStates]) -> dict[UUID, str]:
    return dict.fromkeys(order_ids, change.trace.traceparent)
