"""Products, and the changes of their prices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from mesh.db.database import Row, Statement
from mesh.db.rows import Rows, Versions
from mesh.ids import LAST_ID
from product_svc.domain import PriceChange, Product, ProductNotFound, SkuTaken
from product_svc.store.tables import price_changes, products, stocks

if TYPE_CHECKING:
    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitOfWork

_rows = Rows(Product, products, elsewhere=("available", "low_stock_threshold"), apart=("search",))
_price_changes = Rows(PriceChange, price_changes)


def select_products(source: sa.FromClause = products) -> sa.Select[Any]:
    """The columns of products with their available quantity. `source` is the table, or some of its rows."""
    columns = (source.c[column.name] for column in _rows.columns)
    available = (stocks.c.on_hand - stocks.c.reserved).label("available")
    return sa.select(*columns, available, stocks.c.low_stock_threshold).join(stocks, stocks.c.product_id == source.c.id)


# A SKU that is taken is no error for PostgreSQL, which would log the row that it rejects.
ADD_PRODUCTS = _rows.insertion(returning=[products.c.id], skip_existing=True)
PRODUCTS = Statement(select_products().where(products.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid)))))
# The stock first, as `LOCK_OFFERS` does: two transactions never wait for each other.
LOCK_PRODUCT = Statement(
    select_products().where(products.c.id == sa.bindparam("id", type_=sa.Uuid)).with_for_update(of=[stocks, products]),
)
NEW_VERSIONS = Versions(_rows, ["name", "description", "price", "currency", "state", "update_time"])
WRITE_THRESHOLD = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == sa.bindparam("id", type_=sa.Uuid))
    .values(low_stock_threshold=sa.bindparam("threshold", type_=sa.BigInteger)),
    name="write low stock threshold",
)

ADD_PRICE_CHANGES = _price_changes.insertion()
LIST_PRICE_CHANGES = Statement(
    sa.select(*_price_changes.columns)
    .where(
        price_changes.c.product_id == sa.bindparam("product", type_=sa.Uuid),
        price_changes.c.id < sa.bindparam("before", type_=sa.Uuid),
    )
    .order_by(price_changes.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="list price changes",
)


class ProductStore:
    """The products."""

    async def add(self, work: UnitOfWork, product: Product) -> None:
        """Add a product. Raises SkuTaken."""
        if not await work.transaction.insert(ADD_PRODUCTS, [_rows.values(product)]):
            raise SkuTaken(product.sku)

    async def load(self, work: UnitOfWork, product_id: UUID) -> Product:
        """A product, to be changed. It and its stock are locked. Raises ProductNotFound."""
        row = await work.transaction.fetch_one(LOCK_PRODUCT, id=product_id)
        if row is None:
            raise ProductNotFound(product_id)
        return read_product(row)

    def save(self, work: UnitOfWork, loaded: Product, changed: Product, price_change: PriceChange | None) -> None:
        """Write the new version of a loaded product, and the change of its price."""
        NEW_VERSIONS.write(work.transaction, [(loaded, changed)])
        if changed.low_stock_threshold != loaded.low_stock_threshold:
            work.transaction.write(WRITE_THRESHOLD, id=changed.id, threshold=changed.low_stock_threshold)
        if price_change is not None:
            work.transaction.add(ADD_PRICE_CHANGES, [_price_changes.values(price_change)])

    async def price_changes(
        self, reading: Transaction, product_id: UUID, *, before: UUID | None, most: int
    ) -> list[PriceChange]:
        """The changes of a product's price, newest first; only those older than the change `before`, if given."""
        rows = await reading.fetch(LIST_PRICE_CHANGES, product=product_id, before=before or LAST_ID, most=most)
        return [_price_changes.read(row) for row in rows]

    async def get(self, reading: Transaction, ids: Iterable[UUID]) -> dict[UUID, Product]:
        """The products with these ids that exist, by id."""
        return {row["id"]: read_product(row) for row in await reading.fetch(PRODUCTS, ids=list(ids))}


def read_product(row: Row) -> Product:
    """The product of a row of `select_products`."""
    return _rows.read(row, available=row["available"], low_stock_threshold=row["low_stock_threshold"])
