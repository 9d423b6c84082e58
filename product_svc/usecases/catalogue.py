"""Products: made by staff, read by anyone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from mesh.batch.group_commit import GroupCommit
from mesh.ids import new_id, parse_id
from product_svc import store, wire
from product_svc.domain import Movement, MovementReason, NewProduct, Product, ProductNotFound, ProductState, Stock

if TYPE_CHECKING:
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply


class Catalogue:
    """Products: made by staff, read by anyone."""

    def __init__(self, units: UnitsOfWork, pages: Pages) -> None:
        self._units = units
        self._pages = pages
        self.reads: GroupCommit[UUID, Product] = GroupCommit("product reads", self._read, linger=0.005)

    async def create_product(self, change: Change[Product], new: NewProduct) -> Reply[Product]:
        """Add a product with its first stock. Raises SkuTaken."""
        now = self._units.now()
        product = Product(
            new_id(),
            new.sku,
            new.name,
            new.description,
            new.price,
            new.currency,
            ProductState.ACTIVE,
            new.initial_stock,
            now,
            now,
            version=1,
        )
        stock = Stock(product.id, new.initial_stock, 0, now, version=1)
        async with self._units.once(change) as work:
            await store.add_product(work.transaction, product, stock)
            if new.initial_stock:
                received = Movement(
                    new_id(),
                    product.id,
                    new.initial_stock,
                    new.initial_stock,
                    MovementReason.RECEIPT,
                    None,
                    "initial stock",
                    now,
                    str(change.caller),
                )
                store.add_movements(work.transaction, [received])
            work.publish(wire.product_created(product), change.trace)
            return work.reply(product)

    async def get_product(self, product_id: UUID) -> Product:
        """One product, archived or not. Raises ProductNotFound."""
        return await self.reads.submit(product_id)

    async def _read(self, batch: Sequence[UUID]) -> list[Product | Exception]:
        """The batch behind `get_product`: what is asked for while one look is under way is found by the next."""
        async with self._units.database.reading() as reading:
            found = await store.get_products(reading, set(batch))
        return [found.get(product_id) or ProductNotFound(product_id) for product_id in batch]

    async def get_products(self, ids: Sequence[UUID]) -> list[Product]:
        """These products, in that order. Raises ProductNotFound for the first that is missing."""
        async with self._units.database.reading() as reading:
            found = await store.get_products(reading, ids)
        for product_id in ids:
            if product_id not in found:
                raise ProductNotFound(product_id)
        return [found[product_id] for product_id in ids]

    async def list_products(
        self, *, query: str, order_by: str, page_size: int, page_token: str
    ) -> tuple[list[Product], str]:
        """A page of the active products, and the token of the next one."""
        fields = _ORDERS[order_by.removesuffix(" desc")]
        # The list by price was once not grouped by currency: a page token of that list must not be valid here.
        scope = f"products\0{query}\0{order_by.replace('price', 'currency, price')}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token) or []
        after = [field.parse(text) for field, text in zip(fields, position, strict=bool(position))]
        async with self._units.database.reading() as reading:
            found = await store.list_products(reading, query=query, order_by=order_by, after=after, most=size + 1)
        if len(found) <= size:
            return found, ""
        last = found[size - 1]
        return found[:size], self._pages.token(scope, [field.text(last) for field in fields])


class _Field(NamedTuple):
    """A part of the position of a product in an order, as a page token contains it."""

    text: Callable[[Product], str]
    parse: Callable[[str], Any]


_ID = _Field(lambda product: str(product.id), parse_id)
_NAME = _Field(lambda product: product.name, str)
_CREATE_TIME = _Field(lambda product: product.create_time.isoformat(), datetime.fromisoformat)
_CURRENCY = _Field(lambda product: product.currency, str)
_PRICE = _Field(lambda product: str(product.price), Decimal)

_ORDERS: dict[str, tuple[_Field, ...]] = {
    "": (_NAME, _ID),
    "createTime": (_CREATE_TIME, _ID),
    "name": (_NAME, _ID),
    "price": (_CURRENCY, _PRICE, _ID),
}
"""The positions in each order: the columns of the same order in the store."""
