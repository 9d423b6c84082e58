"""Products, and how they are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from mesh.db.database import Row, Statement
from mesh.db.rows import Rows, Versions
from mesh.ids import LAST_ID, parse_id
from product_svc.domain import PriceChange, Product, ProductNotFound, SkuTaken
from product_svc.store.tables import price_changes, products, stocks

if TYPE_CHECKING:
    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitOfWork

_rows = Rows(Product, products, elsewhere=("available",), apart=("search",))
_price_changes = Rows(PriceChange, price_changes)
_product = sa.select(*_rows.columns, (stocks.c.on_hand - stocks.c.reserved).label("available")).join(
    stocks, stocks.c.product_id == products.c.id
)

# A SKU that is taken is no error for PostgreSQL, which would log the row that it rejects.
ADD_PRODUCTS = _rows.insertion(returning=[products.c.id], skip_existing=True)
PRODUCTS = Statement(_product.where(products.c.id == sa.any_(sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid)))))
# The stock first, as `LOCK_OFFERS` does: two transactions never wait for each other.
LOCK_PRODUCT = Statement(
    _product.where(products.c.id == sa.bindparam("id", type_=sa.Uuid)).with_for_update(of=[stocks, products]),
)
NEW_VERSIONS = Versions(_rows, ["name", "description", "price", "currency", "state", "update_time"])

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

_BY_NAME = (products.c.name, products.c.id)
_BY_CREATE_TIME = (products.c.create_time, products.c.id)
# Amounts of different currencies have no order.
_BY_PRICE = (products.c.currency, products.c.price, products.c.id)
_ORDERS: Mapping[str, Sequence[sa.Column[Any]]] = {
    "": _BY_NAME,
    "createTime": _BY_CREATE_TIME,
    "createTime desc": _BY_CREATE_TIME,
    "name": _BY_NAME,
    "name desc": _BY_NAME,
    "price": _BY_PRICE,
    "price desc": _BY_PRICE,
}
"""The columns of each order of the contract."""
_PARSE: Mapping[type, Callable[[str], Any]] = {
    UUID: parse_id,
    datetime: datetime.fromisoformat,
    Decimal: Decimal,
    str: str,
}
"""Makes the value of a column, by its type, from the text in a position."""


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
        return _read(row)

    def save(self, work: UnitOfWork, loaded: Product, changed: Product, price_change: PriceChange | None) -> None:
        """Write the new version of a loaded product, and the change of its price."""
        NEW_VERSIONS.write(work.transaction, [(loaded, changed)])
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
        return {row["id"]: _read(row) for row in await reading.fetch(PRODUCTS, ids=list(ids))}

    async def find(
        self, reading: Transaction, *, query: str, order_by: str, after: Sequence[str], most: int
    ) -> list[Product]:
        """Active products that match all words of `query`, each as a prefix, in the order of the contract.

        `after` is the position of the last product of the previous page; empty for the first page.
        """
        values: dict[str, Any] = {"most": most}
        if query:
            words = "".join(character if character.isalnum() else " " for character in query).split()
            # A query of punctuation only matches nothing.
            values["search"] = " & ".join(f"{word}:*" for word in words)
        if after:
            columns = _ORDERS[order_by]
            values |= {
                f"after_{number}": _PARSE[column.type.python_type](text)
                for number, (column, text) in enumerate(zip(columns, after, strict=True))
            }
        statement = listing(order_by, searching=bool(query), continued=bool(after))
        return [_read(row) for row in await reading.fetch(statement, **values)]

    def position(self, product: Product, order_by: str) -> list[str]:
        """The position of a product in an order, as texts for a page token."""
        values = (getattr(product, column.name) for column in _ORDERS[order_by])
        return [value.isoformat() if isinstance(value, datetime) else str(value) for value in values]


@cache
def listing(order_by: str, *, searching: bool, continued: bool) -> Statement:
    """The statement of a list in this order, with or without a query, from its beginning or from a position."""
    columns = _ORDERS[order_by]
    descending = order_by.endswith(" desc")
    statement = _product.where(products.c.state == sa.literal_column("'ACTIVE'"))
    if searching:
        search = sa.func.to_tsquery("simple", sa.bindparam("search", type_=sa.String))
        statement = statement.where(products.c.search.op("@@")(search))
    if continued:
        here = sa.tuple_(*columns)
        there = sa.tuple_(*(sa.bindparam(f"after_{n}", type_=column.type) for n, column in enumerate(columns)))
        statement = statement.where(here < there if descending else here > there)
    direction = sa.desc if descending else sa.asc
    return Statement(
        statement.order_by(*map(direction, columns)).limit(sa.bindparam("most", type_=sa.Integer)), name="list products"
    )


def _read(row: Row) -> Product:
    return _rows.read(row, available=row["available"])
