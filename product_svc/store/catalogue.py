"""Products: what is said of them, and how they are found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Row, Statement, Transaction
from product_svc.domain import Product, ProductState, SkuTaken, Stock
from product_svc.store.tables import products, stocks

_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_product_columns = (
    *(column for column in products.c if column.name != "search"),
    (stocks.c.on_hand - stocks.c.reserved).label("available"),
)
_product = sa.select(*_product_columns).join(stocks, stocks.c.product_id == products.c.id)

# A taken SKU is no error for PostgreSQL, which would log the row that it refuses.
ADD_PRODUCT = BulkInsert(
    *(column for column in products.c if column.name != "search"), returning=[products.c.id], skip_existing=True
)
ADD_STOCK = BulkInsert(*stocks.c)
PRODUCTS = Statement(_product.where(products.c.id == sa.any_(_ids)))

_BY_NAME = (products.c.name, products.c.id)
_BY_CREATE_TIME = (products.c.create_time, products.c.id)
# Amounts of different currencies have no order.
_BY_PRICE = (products.c.currency, products.c.price, products.c.id)
_ORDERS: dict[str, tuple[Sequence[sa.ColumnElement[Any]], bool]] = {
    "": (_BY_NAME, False),
    "createTime": (_BY_CREATE_TIME, False),
    "createTime desc": (_BY_CREATE_TIME, True),
    "name": (_BY_NAME, False),
    "name desc": (_BY_NAME, True),
    "price": (_BY_PRICE, False),
    "price desc": (_BY_PRICE, True),
}


async def add_product(transaction: Transaction, product: Product, stock: Stock) -> None:
    """Raises SkuTaken."""
    row = (
        product.id,
        product.sku,
        product.name,
        product.description,
        product.price,
        product.currency,
        product.state,
        product.create_time,
        product.update_time,
        product.version,
    )
    if not await transaction.insert(ADD_PRODUCT, [row]):
        raise SkuTaken(product.sku)
    await transaction.insert(
        ADD_STOCK, [(stock.product_id, stock.on_hand, stock.reserved, stock.update_time, stock.version)]
    )


async def get_products(reading: Transaction, ids: Iterable[UUID]) -> dict[UUID, Product]:
    """Those that exist, by id."""
    return {row["id"]: _as_product(row) for row in await reading.fetch(PRODUCTS, ids=list(ids))}


async def list_products(
    reading: Transaction, *, query: str, order_by: str, after: Sequence[Any], most: int
) -> list[Product]:
    """Active products that match all words of `query` (each as a prefix), in the given order.

    `after` are the values that the last product of the previous page has in the columns of the order; empty for the
    first page.
    """
    values: dict[str, Any] = {"most": most}
    if query:
        words = "".join(character if character.isalnum() else " " for character in query).split()
        # A query of punctuation only matches nothing.
        values["search"] = " & ".join(f"{word}:*" for word in words)
    values |= {f"after_{number}": value for number, value in enumerate(after)}
    statement = _listing(order_by, searching=bool(query), continued=bool(after))
    return [_as_product(row) for row in await reading.fetch(statement, **values)]


@cache
def _listing(order_by: str, *, searching: bool, continued: bool) -> Statement:
    """The statement of a list in this order, with or without a query, from its beginning or from a position."""
    columns, descending = _ORDERS[order_by]
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


def _as_product(row: Row) -> Product:
    return Product(
        row["id"],
        row["sku"],
        row["name"],
        row["description"],
        row["price"],
        row["currency"],
        ProductState(row["state"]),
        row["available"],
        row["create_time"],
        row["update_time"],
        row["version"],
    )
