"""Watching stock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.events.watches import Watches
from product_svc.domain import ProductNotFound, Stock

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.events.bus import Bus
    from product_svc.store import StockStore


class Watching:
    """Stock as staff watch it."""

    def __init__(self, units: UnitsOfWork, stocks: StockStore, bus: Bus) -> None:
        self._units = units
        self._stocks = stocks
        # Holds change only the reserved quantity: they publish no event and leave the version as it is.
        self.watches: Watches[Stock] = Watches(
            "product", self._read_each, bus=bus, version=lambda stock: stock, is_announced=lambda _: False
        )

    async def watch_stock(self, product_id: UUID) -> AsyncGenerator[Stock, None]:
        """The stock of a product now and after each change. A slow reader misses states between.

        Raises ProductNotFound.
        """
        with self.watches.of(product_id) as watch:
            while True:
                yield await watch.next()

    async def _read_each(self, ids: Sequence[UUID]) -> list[Stock | Exception]:
        """The stock of each product, or that it does not exist."""
        async with self._units.database.reading() as reading:
            found = await self._stocks.get_each(reading, ids)
        return [found.get(product_id) or ProductNotFound(product_id) for product_id in ids]
