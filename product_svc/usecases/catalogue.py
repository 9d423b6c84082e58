"""Products: created and changed by staff, read by anyone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.ids import new_id, parse_id
from product_svc.domain import (
    PriceChange,
    Product,
    ProductCreated,
    ProductDetails,
    ProductFilter,
    ProductNotFound,
    ProductUpdate,
    ProductUpdated,
    ProductWasArchived,
    opening_stock,
)

if TYPE_CHECKING:
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from product_svc.store import ProductLists, ProductStore, StockStore


class Catalogue:
    """Products: created and changed by staff, read by anyone."""

    def __init__(
        self,
        units: UnitsOfWork,
        products: ProductStore,
        lists: ProductLists,
        stocks: StockStore,
        pages: Pages,
        *,
        low_stock_threshold: int,
    ) -> None:
        """`low_stock_threshold` is that of new products for which staff choose none."""
        self._units = units
        self._products = products
        self._lists = lists
        self._stocks = stocks
        self._threshold = low_stock_threshold
        self._pages = pages

    async def create_product(
        self,
        change: Change[Product],
        details: ProductDetails,
        *,
        initial_stock: int,
        low_stock_threshold: int | None = None,
    ) -> Reply[Product]:
        """Add a product with its first stock. Raises SkuTaken."""
        threshold = self._threshold if low_stock_threshold is None else low_stock_threshold
        product = details.create(new_id(), initial_stock, self._units.now(), low_stock_threshold=threshold)
        stock, movements = opening_stock(product, actor=str(change.caller), new_id=new_id)
        async with self._units.once(change) as work:
            await self._products.add(work, product)
            self._stocks.add(work, stock, movements)
            work.publish(ProductCreated(product), change.trace)
            return work.reply(product)

    async def update_product(
        self, change: Change[Product], product_id: UUID, update: ProductUpdate, *, etag: str
    ) -> Reply[Product]:
        """Give a product new values; when none differs, nothing changes.

        Raises ProductNotFound, EtagMismatch or ProductArchived.
        """

        def updated(product: Product, now: datetime) -> Product:
            return product.updated(update, now)

        return await self._change(change, product_id, updated, ProductUpdated, etag=etag)

    async def archive_product(self, change: Change[Product], product_id: UUID, *, etag: str) -> Reply[Product]:
        """Take a product out of the lists and off sale. Raises ProductNotFound or EtagMismatch."""
        return await self._change(change, product_id, Product.archived, ProductWasArchived, etag=etag)

    async def unarchive_product(self, change: Change[Product], product_id: UUID, *, etag: str) -> Reply[Product]:
        """Offer an archived product for sale again. Raises ProductNotFound or EtagMismatch."""
        return await self._change(change, product_id, Product.unarchived, ProductUpdated, etag=etag)

    async def _change(
        self,
        change: Change[Product],
        product_id: UUID,
        new: Callable[[Product, datetime], Product],
        fact: Callable[[Product], ProductUpdated | ProductWasArchived],
        *,
        etag: str,
    ) -> Reply[Product]:
        async with self._units.once(change) as work:
            product = await self._products.load(work, product_id)
            product.require_etag(etag)
            changed = new(product, self._units.now())
            if changed is not product:
                price_change = PriceChange.between(product, changed, change_id=new_id(), actor=str(change.caller))
                self._products.save(work, product, changed, price_change)
                work.publish(fact(changed), change.trace)
            return work.reply(changed)

    async def list_price_changes(
        self, product_id: UUID, *, page_size: int, page_token: str
    ) -> tuple[list[PriceChange], str]:
        """A page of the changes of a product's price, newest first, and the token of the next page.

        Raises ProductNotFound.
        """
        scope = f"price changes\0{product_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        before = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            if not await self._products.get(reading, [product_id]):
                raise ProductNotFound(product_id)
            found = await self._products.price_changes(reading, product_id, before=before, most=size + 1)
        return self._pages.page(scope, found, size, lambda price_change: [str(price_change.id)])

    async def get_each(self, ids: Sequence[UUID]) -> list[Product | ProductNotFound]:
        """Each product, archived or not, or that it does not exist."""
        async with self._units.database.reading() as reading:
            found = await self._products.get(reading, set(ids))
        return [found.get(product_id) or ProductNotFound(product_id) for product_id in ids]

    async def get_products(self, ids: Sequence[UUID]) -> list[Product]:
        """These products, in that order. Raises ProductNotFound for the first that does not exist."""
        products = []
        for product in await self.get_each(ids):
            if isinstance(product, ProductNotFound):
                raise product
            products.append(product)
        return products

    async def list_products(
        self, chosen: ProductFilter, *, order_by: str, page_size: int, page_token: str
    ) -> tuple[list[Product], str]:
        """A page of the active products that a filter chooses, and the token of the next one.

        Without `order_by` the results of a query are sorted by rank, and other products by name.
        """
        scope = f"products by {order_by or ('rank' if chosen.query else 'name')}\0{chosen!r}"
        size = self._pages.size(page_size)
        after = self._pages.position(scope, page_token) or []
        async with self._units.database.reading() as reading:
            found = await self._lists.find(reading, chosen, order_by=order_by, after=after, most=size + 1)
        page, token = self._pages.page(scope, found, size, lambda listed: listed.position)
        return [listed.product for listed in page], token
