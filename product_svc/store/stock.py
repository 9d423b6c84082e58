"""Stock, what it is sold as, and the ledger of its movements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Row, Statement, Transaction, stale_write, unless_stale, unnested
from mesh.ids import LAST_ID
from product_svc.domain import Movement, MovementReason, Offer, ProductState, Stock
from product_svc.store.tables import TIME, movements, products, stocks

_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))

ADD_MOVEMENTS = BulkInsert(*movements.c)
LIST_MOVEMENTS = Statement(
    sa.select(movements)
    .where(
        movements.c.product_id == sa.bindparam("product", type_=sa.Uuid),
        movements.c.id < sa.bindparam("before", type_=sa.Uuid),
    )
    .order_by(movements.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)
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
    .with_for_update(of=stocks),
    name="lock offers",
)
OFFERS = Statement(
    sa.select(products.c.id.label("product_id"), *_offer, (stocks.c.on_hand - stocks.c.reserved).label("available"))
    .join(stocks, stocks.c.product_id == products.c.id)
    .where(products.c.id == sa.any_(_ids)),
    name="read offers",
)

# What is added to a number needs no look at it: this takes its turn with whoever else is at these rows, and the check
# on the table is asked whether there was enough.
_changes = unnested(
    {
        "ids": ("id", sa.Uuid),
        "on_hands": ("on_hand", sa.BigInteger),
        "reserveds": ("reserved", sa.BigInteger),
        "known_versions": ("known_version", sa.BigInteger),
        "versions": ("version", sa.BigInteger),
    }
)
CHANGE_STOCKS = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == _changes.c.id)
    .values(
        on_hand=stocks.c.on_hand + _changes.c.on_hand,
        reserved=stocks.c.reserved + _changes.c.reserved,
        version=unless_stale(stocks.c.version, _changes.c.known_version, _changes.c.version),
        update_time=sa.bindparam("now", type_=TIME),
    ),
    refusals=stale_write(stocks.c.version),
)

_taken = unnested(
    {
        "ids": ("id", sa.Uuid),
        "quantities": ("quantity", sa.BigInteger),
        "offer_versions": ("offer_version", sa.BigInteger),
    }
)
_version_now = sa.select(products.c.version).where(products.c.id == _taken.c.id).scalar_subquery()
SET_ASIDE = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == _taken.c.id)
    .values(
        reserved=unless_stale(_version_now, _taken.c.offer_version, stocks.c.reserved + _taken.c.quantity),
        update_time=sa.bindparam("now", type_=TIME),
    ),
    refusals=stale_write(stocks.c.reserved),
    name="reserve stocks",
)


async def get_stock(reading: Transaction, product_id: UUID) -> Stock | None:
    """The stock of a product as it is now."""
    row = await reading.fetch_one(STOCKS, ids=[product_id])
    return _as_stock(row) if row else None


async def peek_stocks(transaction: Transaction, ids: Iterable[UUID]) -> list[Stock]:
    """Stock rows as they are now, which nobody keeps from changing."""
    return [_as_stock(row) for row in await transaction.peek(STOCKS, ids=list(ids))]


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

    The transaction fails with StaleWrite when one of them is not sold as this offer now, and by the table's check when
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


def change_stocks(transaction: Transaction, changes: Sequence[tuple[Stock, Stock]], now: datetime) -> None:
    """Add to stock what the second of each pair, in primary-key order, has more than the first, or less.

    Holds that came in between do not matter. The transaction fails with StaleWrite when one has moved on hand since.
    """
    if changes:
        transaction.write(
            CHANGE_STOCKS,
            ids=[new.product_id for _, new in changes],
            on_hands=[new.on_hand - old.on_hand for old, new in changes],
            reserveds=[new.reserved - old.reserved for old, new in changes],
            known_versions=[old.version for old, _ in changes],
            versions=[new.version for _, new in changes],
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
    rows = await reading.fetch(LIST_MOVEMENTS, product=product_id, before=before or LAST_ID, most=most)
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
