"""Lists of the active products: filtered and searched, in the orders of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from mesh.db.columns import AMOUNT
from mesh.db.database import Row, Statement
from mesh.ids import FIRST_ID, LAST_ID, parse_id
from product_svc.domain import Product, ProductFilter
from product_svc.store.products import read_product, select_products
from product_svc.store.tables import products, stocks

if TYPE_CHECKING:
    from mesh.db.database import Transaction

BLOCK = 1000
"""A search ranks this many matches at a time: the first ones by id, then the next ones."""
_SAMPLE: sa.ColumnElement[int] = sa.literal_column("200")
_COMMON: sa.ColumnElement[int] = sa.literal_column("10")
"""A search goes through the products, without the index of words, if so many of so many match."""

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
_LARGEST_PRICE = Decimal(10**18)

_most = sa.bindparam("most", type_=sa.Integer)
# The words of the query, separated as in the column `search`; each of them matches as a prefix. A query without words
# is NULL and matches nothing. As a subquery it is computed once, not for each row.
_query_words = sa.func.btrim(
    sa.func.regexp_replace(sa.bindparam("query", type_=sa.String), "[^[:alnum:]]+", " ", "g", type_=sa.String)
)
_search = sa.select(
    sa.func.to_tsquery(
        "simple", sa.func.replace(sa.func.nullif(_query_words, ""), " ", ":* & ", type_=sa.String) + ":*"
    )
).scalar_subquery()


class Listed(NamedTuple):
    """A product in a list."""

    product: Product
    position: list[str]
    """The place of the product in the list, as texts for a page token."""


class Conditions(NamedTuple):
    """The conditions in the statement of a list. Their values are parameters."""

    query: bool = False
    currency: bool = False
    price: bool = False
    in_stock: bool = False

    @property
    def source(self) -> sa.FromClause:
        """The products among which to choose: those that match the query, or all."""
        if not self.query:
            return products
        matching = sa.select(products).where(products.c.search.op("@@")(_search))
        # OFFSET keeps this apart from other conditions and orders, whose indexes lead to more products: PostgreSQL does
        # not know how many match.
        return matching.offset(sa.literal_column("0")).subquery("matching")

    def choose(self, statement: sa.Select[Any], source: sa.FromClause) -> sa.Select[Any]:
        """Of the rows of a statement those whose product, in `source`, meets the conditions."""
        statement = statement.where(source.c.state == sa.literal_column("'ACTIVE'"))
        if self.currency:
            statement = statement.where(source.c.currency == sa.bindparam("currency", type_=sa.String))
        if self.price:
            least, greatest = (sa.bindparam(name, type_=AMOUNT) for name in ("min_price", "max_price"))
            statement = statement.where(source.c.price.between(least, greatest))
        if self.in_stock:
            statement = statement.where(stocks.c.reserved < stocks.c.on_hand)
        return statement


class ProductLists:
    """The lists of the active products."""

    async def find(
        self, reading: Transaction, chosen: ProductFilter, *, order_by: str, after: Sequence[str], most: int
    ) -> list[Listed]:
        """The products that a filter chooses, in an order of the contract; without one, search results by their rank.

        `after` is the position of the last product of the previous page; empty for the first page.
        """
        has_price = chosen.min_price is not None or chosen.max_price is not None
        conditions = Conditions(bool(chosen.query), bool(chosen.currency), has_price, chosen.in_stock)
        values: dict[str, Any] = {}
        if conditions.query:
            values["query"] = chosen.query
        if conditions.currency:
            values["currency"] = chosen.currency
        if conditions.price:
            values["min_price"] = chosen.min_price or Decimal(0)
            values["max_price"] = _LARGEST_PRICE if chosen.max_price is None else chosen.max_price
        if conditions.query and not order_by:
            return await self._ranked(reading, conditions, values, after, most)
        return await self._ordered(reading, conditions, values, order_by, after, most)

    async def _ordered(
        self,
        reading: Transaction,
        conditions: Conditions,
        values: dict[str, Any],
        order_by: str,
        after: Sequence[str],
        most: int,
    ) -> list[Listed]:
        columns = _ORDERS[order_by]
        if after:
            values |= {
                f"after_{number}": _PARSE[column.type.python_type](text)
                for number, (column, text) in enumerate(zip(columns, after, strict=True))
            }
        statement = listing(order_by, conditions, continued=bool(after))
        rows = await reading.fetch(statement, most=most, **values)
        return [Listed(read_product(row), [_text(row[column.name]) for column in columns]) for row in rows]

    async def _ranked(
        self, reading: Transaction, conditions: Conditions, values: dict[str, Any], after: Sequence[str], most: int
    ) -> list[Listed]:
        place = _Place.of(after)
        found: list[Listed] = []
        while True:
            rows = await self._block(reading, conditions, values, place, most - len(found))
            found += [Listed(read_product(row), place.of_row(row).texts()) for row in rows]
            last = rows[-1]["last_id"] if rows else place.last_id
            if len(found) == most or last == LAST_ID:
                return found
            place = _Place(last, LAST_ID)

    async def _block(
        self, reading: Transaction, conditions: Conditions, values: Mapping[str, Any], place: _Place, most: int
    ) -> list[Row]:
        """The best matches of a block that are behind a place in it."""
        bounds = {"first_id": place.first_id, "last_id": place.last_id, "block": place.size}
        behind = {} if place.id is None else {"after_rank": place.rank, "after_id": place.id}
        statement = ranking(conditions, continued=place.id is not None)
        return await reading.fetch(statement, most=most, **values, **bounds, **behind)


class _Place(NamedTuple):
    """A place in a ranked list, which consists of blocks of matches.

    A page token contains the block, so that a product that is added later changes no page that follows.
    """

    first_id: UUID = FIRST_ID
    """The block begins after this id."""
    last_id: UUID = LAST_ID
    """The block ends with this id. A block whose end is not known yet consists of the next `BLOCK` matches."""
    rank: float = 0.0
    id: UUID | None = None
    """The product at the place, with its rank; None for the beginning of the block."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Place:
        if not texts:
            return cls()
        first_id, last_id, rank, product_id = texts
        return cls(parse_id(first_id), parse_id(last_id), float(rank), parse_id(product_id))

    def of_row(self, row: Row) -> _Place:
        return _Place(self.first_id, row["last_id"], row["rank"], row["id"])

    def texts(self) -> list[str]:
        return [str(self.first_id), str(self.last_id), repr(self.rank), str(self.id)]

    @property
    def size(self) -> int | None:
        """The greatest number of matches in the block; None once its end is known."""
        return BLOCK if self.id is None else None


@cache
def listing(order_by: str, conditions: Conditions, *, continued: bool) -> Statement:
    """The statement of a list in this order, from its beginning or from a position."""
    source = conditions.source
    columns = [source.c[column.name] for column in _ORDERS[order_by]]
    descending = order_by.endswith(" desc")
    statement = conditions.choose(select_products(source), source)
    if continued:
        here = sa.tuple_(*columns)
        there = sa.tuple_(*(sa.bindparam(f"after_{n}", type_=column.type) for n, column in enumerate(columns)))
        statement = statement.where(here < there if descending else here > there)
    direction = sa.desc if descending else sa.asc
    return Statement(statement.order_by(*map(direction, columns)).limit(_most), name="list products")


@cache
def ranking(conditions: Conditions, *, continued: bool) -> Statement:
    """The statement of a page of search results by their rank, then id, from the beginning of a block or from a place.

    It ranks only the matches of the block, since a rank costs more than a match. If many of the next products match,
    it goes through them until the block is full. Otherwise the index of words finds all matches (ADR-0050).
    """
    first, last = (sa.bindparam(name, type_=sa.Uuid) for name in ("first_id", "last_id"))
    size = sa.bindparam("block", type_=sa.Integer)
    next_products = sa.select(products.c.search).where(products.c.id > first).order_by(products.c.id).limit(_SAMPLE)
    sample = next_products.subquery()
    matching = sa.select(sa.func.count().label("count")).where(sample.c.search.op("@@")(_search)).cte("sample")
    is_common = sa.select(matching.c.count).scalar_subquery() >= _COMMON

    def block_of(source: sa.FromClause, *more: sa.ColumnElement[bool]) -> sa.Subquery:
        with_stock = source.join(stocks, stocks.c.product_id == source.c.id) if conditions.in_stock else source
        chosen = conditions.choose(sa.select(source.c.id, source.c.search).select_from(with_stock), source)
        in_block = chosen.where(source.c.id > first, source.c.id <= last, *more)
        return in_block.order_by(source.c.id).limit(size).subquery()

    in_order = sa.select(products).where(products.c.id > first, products.c.id <= last).order_by(products.c.id)
    # OFFSET keeps the index of words apart from this.
    gone_through = in_order.offset(sa.literal_column("0")).subquery("in_order")
    common = block_of(gone_through, gone_through.c.search.op("@@")(_search), is_common)
    rare = block_of(conditions.source, sa.not_(is_common))
    block = sa.union_all(sa.select(common), sa.select(rare)).cte("block")
    count = sa.select(sa.func.count()).select_from(block).scalar_subquery()
    greatest_id = sa.select(block.c.id).order_by(block.c.id.desc()).limit(1).scalar_subquery()
    last_id = sa.case((count == size, greatest_id), else_=last).label("last_id")
    ranked = sa.select(block.c.id, sa.func.ts_rank(block.c.search, _search, type_=sa.REAL).label("rank")).subquery()
    best = sa.select(ranked).order_by(ranked.c.rank.desc(), ranked.c.id).limit(_most)
    if continued:
        rank, after = sa.bindparam("after_rank", type_=sa.REAL), sa.bindparam("after_id", type_=sa.Uuid)
        best = best.where(sa.or_(ranked.c.rank < rank, sa.and_(ranked.c.rank == rank, ranked.c.id > after)))
    page = best.subquery()
    statement = select_products().join(page, page.c.id == products.c.id).add_columns(page.c.rank, last_id)
    return Statement(statement.order_by(page.c.rank.desc(), page.c.id), name="search products")


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
