"""The product service's tables and statements: the only SQL of the service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from mesh.database import BulkInsert, Row, Statement, Transaction, overtaken, unless_overtaken
from mesh.errors import Overtaken
from product_svc.domain import (
    Hold,
    HoldLine,
    HoldState,
    Movement,
    MovementReason,
    Offer,
    Product,
    ProductState,
    SkuTaken,
    Stock,
)


class HoldKeyTaken(Overtaken):
    """A hold is under one of these keys: an earlier attempt has made it, or one that was quicker."""


metadata = sa.MetaData()
_TIME = pg.TIMESTAMP(timezone=True)
_AMOUNT = sa.Numeric(28, 9)

products = sa.Table(
    "products",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("sku", sa.String, nullable=False, unique=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("description", sa.String, nullable=False),
    sa.Column("price", _AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("update_time", _TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column(
        "search",
        pg.TSVECTOR,
        sa.Computed("to_tsvector('simple', sku || ' ' || name || ' ' || description)", persisted=True),
    ),
    sa.CheckConstraint("price >= 0", name="price_not_negative"),
)
sa.Index("products_search", products.c.search, postgresql_using="gin")
sa.Index("products_create_time", products.c.create_time, products.c.id)
sa.Index("products_name", products.c.name, products.c.id)
sa.Index("products_price", products.c.price, products.c.id)

stocks = sa.Table(
    "stocks",
    metadata,
    sa.Column("product_id", sa.Uuid, sa.ForeignKey(products.c.id), primary_key=True),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("update_time", _TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    # The last word on overselling: whatever the code does, this does not let it.
    sa.CheckConstraint("0 <= reserved AND reserved <= on_hand", name="reserved_within_on_hand"),
    postgresql_with={"fillfactor": "50"},
)

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("expire_time", _TIME, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
)
_held = sa.text("state = 'HELD'")
# A key holds once at a time; once its hold is settled, the same key may hold anew.
sa.Index("holds_live_key", holds.c.key, unique=True, postgresql_where=_held)
sa.Index("holds_expiring", holds.c.expire_time, postgresql_where=_held)

hold_lines = sa.Table(
    "hold_lines",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("product_id", sa.Uuid, primary_key=True),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("sku", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("unit_price", _AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.CheckConstraint("quantity > 0", name="quantity_positive"),
)

movements = sa.Table(
    "stock_movements",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("delta", sa.BigInteger, nullable=False),
    sa.Column("on_hand_after", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("order_id", sa.Uuid),
    sa.Column("note", sa.String, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.CheckConstraint("on_hand_after >= 0", name="on_hand_not_negative"),
)
sa.Index("stock_movements_product", movements.c.product_id, movements.c.id)

_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_product_columns = (
    *(column for column in products.c if column.name != "search"),
    (stocks.c.on_hand - stocks.c.reserved).label("available"),
)
_product = sa.select(*_product_columns).join(stocks, stocks.c.product_id == products.c.id)

ADD_PRODUCT = BulkInsert(*(column for column in products.c if column.name != "search"))
ADD_STOCK = BulkInsert(*stocks.c)
ADD_MOVEMENTS = BulkInsert(*movements.c)
ADD_HOLDS = BulkInsert(
    *(column for column in holds.c if column.name != "create_time"), refusals={"holds_live_key": HoldKeyTaken}
)
ADD_HOLD_LINES = BulkInsert(*hold_lines.c)
PRODUCTS = Statement(_product.where(products.c.id == sa.any_(_ids)))
STOCKS = Statement(sa.select(stocks).where(stocks.c.product_id == sa.any_(_ids)))
# Rows are locked in primary-key order, everywhere: UPDATE … FROM unnest locks in no stated order, and deadlocks.
LOCK_STOCKS = Statement(
    sa.select(stocks).where(stocks.c.product_id == sa.any_(_ids)).order_by(stocks.c.product_id).with_for_update()
)
_offer = (
    *(products.c[name] for name in ("sku", "name", "price", "currency", "state")),
    products.c.version.label("offer_version"),
)
LOCK_OFFERS = Statement(
    sa.select(stocks, *_offer)
    .join(products, products.c.id == stocks.c.product_id)
    .where(stocks.c.product_id == sa.any_(_ids))
    .order_by(stocks.c.product_id)
    .with_for_update(of=stocks)
)
OFFERS = Statement(
    sa.select(products.c.id.label("product_id"), *_offer, (stocks.c.on_hand - stocks.c.reserved).label("available"))
    .join(stocks, stocks.c.product_id == products.c.id)
    .where(products.c.id == sa.any_(_ids))
)
HOLDS = Statement(sa.select(holds).where(holds.c.order_id == sa.any_(_ids)))
LIVE_HOLDS = Statement(
    sa.select(holds).where(
        holds.c.key == sa.any_(sa.bindparam("keys", type_=sa.ARRAY(sa.LargeBinary))),
        _held,
    )
)
HOLD_LINES = Statement(sa.select(hold_lines).where(hold_lines.c.order_id == sa.any_(_ids)))
EXPIRED_HOLDS = Statement(
    sa.select(holds.c.order_id)
    .where(_held, holds.c.expire_time < sa.bindparam("now", type_=_TIME))
    .order_by(holds.c.expire_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
)

_rows = (
    sa.func.unnest(
        sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid)),
        sa.bindparam("on_hands", type_=sa.ARRAY(sa.BigInteger)),
        sa.bindparam("reserveds", type_=sa.ARRAY(sa.BigInteger)),
        sa.bindparam("versions", type_=sa.ARRAY(sa.BigInteger)),
    )
    .table_valued(
        sa.column("id", sa.Uuid),
        sa.column("on_hand", sa.BigInteger),
        sa.column("reserved", sa.BigInteger),
        sa.column("version", sa.BigInteger),
        name="row",
    )
    .render_derived()
)
WRITE_STOCKS = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == _rows.c.id)
    .values(
        on_hand=_rows.c.on_hand,
        reserved=_rows.c.reserved,
        version=_rows.c.version,
        update_time=sa.bindparam("now", type_=_TIME),
    )
)
_taken = (
    sa.func.unnest(
        sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid)),
        sa.bindparam("quantities", type_=sa.ARRAY(sa.BigInteger)),
        sa.bindparam("offer_versions", type_=sa.ARRAY(sa.BigInteger)),
    )
    .table_valued(
        sa.column("id", sa.Uuid),
        sa.column("quantity", sa.BigInteger),
        sa.column("offer_version", sa.BigInteger),
        name="row",
    )
    .render_derived()
)
_version_now = sa.select(products.c.version).where(products.c.id == _taken.c.id).scalar_subquery()
# What is added to a number needs no look at it: this takes its turn with whoever else is at these rows, and the check
# on the table is asked whether there was enough.
SET_ASIDE = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == _taken.c.id)
    .values(
        reserved=unless_overtaken(_version_now, _taken.c.offer_version, stocks.c.reserved + _taken.c.quantity),
        update_time=sa.bindparam("now", type_=_TIME),
    ),
    refusals=overtaken(stocks.c.reserved),
)
WRITE_HOLDS = Statement(
    sa.update(holds)
    .where(holds.c.order_id == sa.any_(_ids))
    .values(
        state=unless_overtaken(
            holds.c.state, sa.bindparam("known_state", type_=sa.String), sa.bindparam("new_state", type_=sa.String)
        )
    ),
    refusals=overtaken(holds.c.state),
)
# A hold that somebody has locked is being settled: it is passed over, so this waits for nobody.
_still_held = (
    sa.select(holds.c.order_id)
    .where(holds.c.order_id == sa.any_(_ids), _held)
    .with_for_update(skip_locked=True)
    .cte("still_held")
)
POSTPONE_HOLDS = Statement(
    sa.update(holds)
    .where(holds.c.order_id == _still_held.c.order_id)
    .values(expire_time=sa.bindparam("until", type_=_TIME))
)

_ORDERS: dict[str, tuple[sa.ColumnElement[Any], bool]] = {
    "": (products.c.name, False),
    "createTime": (products.c.create_time, False),
    "createTime desc": (products.c.create_time, True),
    "name": (products.c.name, False),
    "name desc": (products.c.name, True),
    "price": (products.c.price, False),
    "price desc": (products.c.price, True),
}


async def add_product(transaction: Transaction, product: Product, stock: Stock) -> None:
    """Raises SkuTaken."""
    try:
        await transaction.insert(
            ADD_PRODUCT,
            [
                (
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
            ],
        )
    except asyncpg.UniqueViolationError as error:
        raise SkuTaken(product.sku) from error
    await transaction.insert(
        ADD_STOCK, [(stock.product_id, stock.on_hand, stock.reserved, stock.update_time, stock.version)]
    )


async def get_products(reading: Transaction, ids: Iterable[UUID]) -> dict[UUID, Product]:
    """Those that exist, by id."""
    return {row["id"]: _as_product(row) for row in await reading.fetch(PRODUCTS, ids=list(ids))}


async def list_products(
    reading: Transaction, *, query: str, order_by: str, after: tuple[Any, UUID] | None, most: int
) -> list[Product]:
    """Active products that match all words of `query` (each as a prefix), in the given order, after a position."""
    values: dict[str, Any] = {"most": most}
    if query:
        words = "".join(character if character.isalnum() else " " for character in query).split()
        # A query of punctuation only matches nothing.
        values["search"] = " & ".join(f"{word}:*" for word in words)
    if after is not None:
        values["position"], values["id_there"] = after
    statement = _listing(order_by, searching=bool(query), continued=after is not None)
    return [_as_product(row) for row in await reading.fetch(statement, **values)]


@cache
def _listing(order_by: str, *, searching: bool, continued: bool) -> Statement:
    """The statement of a list in this order, with or without a query, from its beginning or from a position."""
    column, descending = _ORDERS[order_by]
    statement = _product.where(products.c.state == sa.literal_column("'ACTIVE'"))
    if searching:
        search = sa.func.to_tsquery("simple", sa.bindparam("search", type_=sa.String))
        statement = statement.where(products.c.search.op("@@")(search))
    if continued:
        here = sa.tuple_(column, products.c.id)
        there = sa.tuple_(sa.bindparam("position", type_=column.type), sa.bindparam("id_there", type_=sa.Uuid))
        statement = statement.where(here < there if descending else here > there)
    direction = sa.desc if descending else sa.asc
    return Statement(
        statement.order_by(direction(column), direction(products.c.id)).limit(sa.bindparam("most", type_=sa.Integer))
    )


async def get_stock(reading: Transaction, product_id: UUID) -> Stock | None:
    """The stock of a product as it is now."""
    row = await reading.fetch_one(STOCKS, ids=[product_id])
    return _as_stock(row) if row else None


async def lock_stocks(transaction: Transaction, ids: Iterable[UUID]) -> list[Stock]:
    """Lock stock rows for the rest of the transaction, in primary-key order."""
    return [_as_stock(row) for row in await transaction.fetch(LOCK_STOCKS, ids=sorted(set(ids)))]


async def lock_offers(transaction: Transaction, ids: Iterable[UUID]) -> tuple[list[Stock], list[Offer]]:
    """Lock stock rows as `lock_stocks` does; with what their products are sold as."""
    rows = await transaction.fetch(LOCK_OFFERS, ids=sorted(set(ids)))
    return [_as_stock(row) for row in rows], [_as_offer(row) for row in rows]


async def get_offers(reading: Transaction, ids: Iterable[UUID]) -> list[tuple[Offer, int]]:
    """What products are sold as, and how many of each can be sold now."""
    return [(_as_offer(row), row["available"]) for row in await reading.fetch(OFFERS, ids=list(ids))]


def set_aside(transaction: Transaction, taken: Iterable[tuple[Offer, int]], now: datetime) -> None:
    """Set stock aside, so many of each offer, without a look at what there is.

    The transaction fails with Overtaken when one of them is not sold as this offer now, and by the table's check when
    there is not enough of it.
    """
    # In primary-key order, as everywhere.
    in_order = sorted(taken)
    transaction.write(
        SET_ASIDE,
        ids=[offer.product_id for offer, _ in in_order],
        quantities=[quantity for _, quantity in in_order],
        offer_versions=[offer.version for offer, _ in in_order],
        now=now,
    )


def write_stocks(transaction: Transaction, changed: Sequence[Stock], now: datetime) -> None:
    """Write the numbers of locked stock rows."""
    if changed:
        transaction.write(
            WRITE_STOCKS,
            ids=[stock.product_id for stock in changed],
            on_hands=[stock.on_hand for stock in changed],
            reserveds=[stock.reserved for stock in changed],
            versions=[stock.version for stock in changed],
            now=now,
        )


def add_movements(transaction: Transaction, news: Iterable[Movement]) -> None:
    """Append to the ledger."""
    transaction.add(
        ADD_MOVEMENTS,
        (
            (m.id, m.product_id, m.delta, m.on_hand_after, m.reason, m.order_id, m.note, m.create_time, m.actor)
            for m in news
        ),
    )


async def list_movements(reading: Transaction, product_id: UUID, *, before: UUID | None, most: int) -> list[Movement]:
    """The ledger of a product, newest first."""
    statement = sa.select(movements).where(movements.c.product_id == product_id)
    if before is not None:
        statement = statement.where(movements.c.id < before)
    rows = await reading.fetch(Statement(statement.order_by(movements.c.id.desc()).limit(most)))
    return [
        Movement(
            row["id"],
            row["product_id"],
            row["delta"],
            row["on_hand_after"],
            MovementReason(row["reason"]),
            row["order_id"],
            row["note"],
            row["create_time"],
            row["actor"],
        )
        for row in rows
    ]


async def live_holds(reading: Transaction, keys: Sequence[bytes]) -> dict[bytes, Hold]:
    """The holds that stand under these keys; to ask for none costs nothing."""
    if not keys:
        return {}
    rows = await reading.fetch(LIVE_HOLDS, keys=list(keys))
    return {hold.key: hold for hold in await _with_lines(reading, rows)}


async def get_holds(reading: Transaction, order_ids: Iterable[UUID]) -> dict[UUID, Hold]:
    """The holds of orders as they are now, by order; those that exist."""
    rows = await reading.fetch(HOLDS, ids=list(order_ids))
    return {hold.order_id: hold for hold in await _with_lines(reading, rows)}


def add_holds(transaction: Transaction, news: Sequence[Hold]) -> None:
    """Write new holds with their lines. The transaction fails with HoldKeyTaken when one of the keys holds by now."""
    transaction.add(
        ADD_HOLDS,
        ((hold.order_id, hold.key, hold.customer_id, hold.state, hold.expire_time) for hold in news),
    )
    transaction.add(
        ADD_HOLD_LINES,
        (
            (hold.order_id, line.product_id, line.quantity, line.sku, line.name, line.unit_price, line.currency)
            for hold in news
            for line in hold.lines
        ),
    )


def write_hold_states(transaction: Transaction, moves: Iterable[tuple[UUID, HoldState, HoldState]]) -> None:
    """Write what became of holds, of each (order, the state that is known, the new one).

    The transaction fails with Overtaken when one of them is not in the state that is known. Whoever moves a hold has
    locked the stock of all its lines before, and so waits for nobody here.
    """
    by_step: dict[tuple[HoldState, HoldState], list[UUID]] = {}
    for order_id, known, new in moves:
        by_step.setdefault((known, new), []).append(order_id)
    for (known, new), ids in sorted(by_step.items()):
        transaction.write(WRITE_HOLDS, ids=sorted(ids), known_state=known, new_state=new)


async def expired_holds(reading: Transaction, now: datetime, most: int) -> list[UUID]:
    """Orders whose holds should have been settled by now."""
    return [row["order_id"] for row in await reading.fetch(EXPIRED_HOLDS, now=now, most=most)]


async def postpone_holds(transaction: Transaction, order_ids: Sequence[UUID], until: datetime) -> None:
    """Ask about these holds again, but not before `until`."""
    await transaction.execute(POSTPONE_HOLDS, ids=list(order_ids), until=until)


async def _with_lines(reading: Transaction, rows: Sequence[Row]) -> list[Hold]:
    if not rows:
        return []
    lines: dict[UUID, list[HoldLine]] = {row["order_id"]: [] for row in rows}
    for line in await reading.fetch(HOLD_LINES, ids=list(lines)):
        lines[line["order_id"]].append(
            HoldLine(
                line["product_id"], line["quantity"], line["sku"], line["name"], line["unit_price"], line["currency"]
            )
        )
    return [
        Hold(
            row["order_id"],
            row["key"],
            row["customer_id"],
            row["expire_time"],
            HoldState(row["state"]),
            tuple(lines[row["order_id"]]),
        )
        for row in rows
    ]


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


def _as_offer(row: Row) -> Offer:
    return Offer(
        row["product_id"],
        row["sku"],
        row["name"],
        row["price"],
        row["currency"],
        ProductState(row["state"]),
        row["offer_version"],
    )


def _as_stock(row: Row) -> Stock:
    return Stock(row["product_id"], row["on_hand"], row["reserved"], row["update_time"], row["version"])
