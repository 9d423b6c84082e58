"""Stock as staff see and change it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from mesh.ids import new_id, parse_id
from product_svc.domain import Movement, ProductNotFound, Stock, StockChange, Stockroom

if TYPE_CHECKING:
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from product_svc.store import StockStore


class Inventory:
    """Stock as staff see and change it."""

    def __init__(self, units: UnitsOfWork, stocks: StockStore, pages: Pages) -> None:
        self._units = units
        self._stocks = stocks
        self._pages = pages

    async def get_stock(self, product_id: UUID) -> Stock:
        """The stock of a product. Raises ProductNotFound."""
        async with self._units.database.reading() as reading:
            stock = await self._stocks.get(reading, product_id)
        if stock is None:
            raise ProductNotFound(product_id)
        return stock

    async def update_stock(self, change: Change[Stock], wanted: StockChange) -> Reply[Stock]:
        """Change stock. Raises ProductNotFound, StockLimitExceeded, or StockInsufficient when orders hold too much."""
        async with self._units.once(change) as work:
            loaded = await self._stocks.load(work, [wanted.product_id])
            stockroom = Stockroom(loaded, actor=str(change.caller), now=self._units.now(), new_id=new_id)
            stock = stockroom.change(wanted)
            self._stocks.save(work, stockroom)
            for fact in stockroom.facts():
                work.publish(fact, change.trace)
            return work.reply(stock)

    async def list_movements(self, product_id: UUID, *, page_size: int, page_token: str) -> tuple[list[Movement], str]:
        """A page of a product's movements, newest first, and the token of the next page. Raises ProductNotFound."""
        scope = f"movements\0{product_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        before = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            if await self._stocks.get(reading, product_id) is None:
                raise ProductNotFound(product_id)
            found = await self._stocks.movements(reading, product_id, before=before, most=size + 1)
        return self._pages.page(scope, found, size, lambda movement: [str(movement.id)])
