"""Stock as staff see and change it, and how its movements are written down."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from mesh import tasks
from mesh.ids import new_id, parse_id
from product_svc import store, wire
from product_svc.domain import Movement, MovementReason, ProductNotFound, Shelf, Stock, StockChange

if TYPE_CHECKING:
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.rpc.replies import Change, Reply


class Inventory:
    """Stock as staff see and change it."""

    def __init__(self, units: UnitsOfWork, pages: Pages, *, low_stock_threshold: int) -> None:
        self._units = units
        self._pages = pages
        self._threshold = low_stock_threshold

    async def get_stock(self, product_id: UUID) -> Stock:
        """The stock now. Raises ProductNotFound."""
        async with self._units.database.reading() as reading:
            stock = await store.get_stock(reading, product_id)
        if stock is None:
            raise ProductNotFound(product_id)
        return stock

    async def update_stock(self, change: Change[Stock], wanted: StockChange) -> Reply[Stock]:
        """Move stock. Raises ProductNotFound, StockInsufficient (what orders hold stays) or StockLimitExceeded."""
        now = self._units.now()
        async with self._units.once(change) as work:
            shelf = Shelf(await store.lock_stocks(work.transaction, [wanted.product_id]), [])
            before = shelf.stock(wanted.product_id)
            delta = wanted.delta_from(before)
            if delta:
                shelf.put(before.move(delta))
                moved = movement(
                    shelf, wanted.product_id, delta, wanted.reason, None, wanted.note, now, str(change.caller)
                )
                await write_down(work, shelf, [moved], now, self._threshold, change.trace.traceparent)
            return work.reply(shelf.stock(wanted.product_id))

    async def list_movements(self, product_id: UUID, *, page_size: int, page_token: str) -> tuple[list[Movement], str]:
        """A page of a product's ledger, newest first, and the token of the next one. Raises ProductNotFound."""
        scope = f"movements\0{product_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        async with self._units.database.reading() as reading:
            if await store.get_stock(reading, product_id) is None:
                raise ProductNotFound(product_id)
            before = parse_id(position[0]) if position else None
            found = await store.list_movements(reading, product_id, before=before, most=size + 1)
        if len(found) <= size:
            return found, ""
        return found[:size], self._pages.token(scope, [str(found[size - 1].id)])


def movement(
    shelf: Shelf,
    product_id: UUID,
    delta: int,
    reason: MovementReason,
    order_id: UUID | None,
    note: str,
    now: datetime,
    actor: str,
) -> Movement:
    """The ledger's row of a change that was just made on the shelf."""
    on_hand = shelf.stock(product_id).on_hand
    return Movement(new_id(), product_id, delta, on_hand, reason, order_id, note, now, actor)


async def write_down(
    work: UnitOfWork, shelf: Shelf, movements: Sequence[Movement], now: datetime, threshold: int, trace: str
) -> None:
    """Write what the shelf has become, its ledger, and one event a product that moved."""
    store.change_stocks(work.transaction, shelf.changes, now)
    store.add_movements(work.transaction, movements)
    by_product: dict[UUID, list[Movement]] = {}
    for each in movements:
        by_product.setdefault(each.product_id, []).append(each)
    async for product_id, moved in tasks.in_portions(by_product.items()):
        stock = shelf.stock(product_id)
        work.publish(wire.stock_changed(stock, moved), trace)
        before = moved[0].on_hand_after - moved[0].delta
        if stock.on_hand <= threshold < before:
            work.publish(wire.stock_low(stock, threshold), trace)
