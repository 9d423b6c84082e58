"""The order service's tables and statements: the only SQL of the service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from operator import attrgetter
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from mesh.db.database import BulkInsert, Row, Statement, Transaction, stale_write, unless_stale, unnested
from order_svc.domain import CancelReason, HoldLost, Item, Order, Status

metadata = sa.MetaData()
_TIME = pg.TIMESTAMP(timezone=True)
_AMOUNT = sa.Numeric(28, 9)
NOBODY = UUID(int=0)
"""Whose the rows of abandoned orders are."""

orders = sa.Table(
    "orders",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("total", _AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("payment_method_id", sa.Uuid, comment="null if nothing is to be paid"),
    sa.Column("payment_id", sa.Uuid),
    sa.Column("order_date", _TIME, nullable=False),
    sa.Column("payment_deadline", _TIME, nullable=False),
    sa.Column("cancel_reason", sa.String),
    sa.Column("cancel_note", sa.String, nullable=False),
    sa.Column("update_time", _TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.CheckConstraint("total >= 0", name="total_not_negative"),
)
sa.Index("orders_customer", orders.c.customer_id, orders.c.id)
sa.Index("orders_overdue", orders.c.payment_deadline, postgresql_where=sa.text("status = 'PENDING'"))
sa.Index("orders_cancelling", orders.c.update_time, postgresql_where=sa.text("status = 'CANCELLING'"))

items = sa.Table(
    "order_items",
    metadata,
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("sku", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False),
    sa.Column("unit_price", _AMOUNT, nullable=False),
    sa.CheckConstraint("quantity > 0", name="quantity_positive"),
)

_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_placed = orders.c.status != Status.ABANDONED.value

ADD_ORDERS = BulkInsert(*orders.c, refusals={"orders_pkey": HoldLost})
ADD_ITEMS = BulkInsert(*items.c)
ABANDON = BulkInsert(*orders.c, skip_existing=True, name="abandon orders")
GET = Statement(sa.select(orders).where(orders.c.id == sa.any_(_ids), _placed))
ITEMS = Statement(sa.select(items).where(items.c.order_id == sa.any_(_ids)).order_by(items.c.order_id, items.c.id))
# In the order of a list, so that its limit ends the scan of the index.
NEWEST_ITEMS = Statement(
    sa.select(items)
    .where(items.c.order_id == sa.any_(_ids))
    .order_by(items.c.order_id.desc(), items.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="read newest items",
)
LOCK = Statement(sa.select(orders).where(orders.c.id == sa.any_(_ids), _placed).order_by(orders.c.id).with_for_update())
LOCK_OVERDUE = Statement(
    sa.select(orders)
    .where(orders.c.status == sa.literal_column("'PENDING'"), orders.c.payment_deadline < sa.func.now())
    .order_by(orders.c.payment_deadline)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True),
    name="lock overdue orders",
)
LOCK_CANCELLING = Statement(
    sa.select(orders)
    .where(
        orders.c.status == sa.literal_column("'CANCELLING'"),
        orders.c.update_time < sa.func.now() - sa.bindparam("patience", type_=sa.Interval),
    )
    .order_by(orders.c.update_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True),
    name="lock cancelling orders",
)
STATUSES = Statement(
    sa.select(orders.c.id, orders.c.status).where(orders.c.id == sa.any_(_ids)), name="read order statuses"
)

_rows = unnested(
    {
        "ids": ("id", sa.Uuid),
        "statuses": ("status", sa.String),
        "payment_ids": ("payment_id", sa.Uuid),
        "cancel_reasons": ("cancel_reason", sa.String),
        "cancel_notes": ("cancel_note", sa.String),
        "known_versions": ("known_version", sa.BigInteger),
        "versions": ("version", sa.BigInteger),
    }
)
WRITE = Statement(
    sa.update(orders)
    .where(orders.c.id == _rows.c.id)
    .values(
        status=_rows.c.status,
        payment_id=_rows.c.payment_id,
        cancel_reason=_rows.c.cancel_reason,
        cancel_note=_rows.c.cancel_note,
        version=unless_stale(orders.c.version, _rows.c.known_version, _rows.c.version),
        update_time=sa.bindparam("now", type_=_TIME),
    ),
    refusals=stale_write(orders.c.version),
)


@cache
def _listing(filters: frozenset[str]) -> Statement:
    """The statement of a list with these filters."""
    conditions = {
        "customer_id": orders.c.customer_id == sa.bindparam("customer_id", type_=sa.Uuid),
        "status": orders.c.status == sa.bindparam("status", type_=sa.String),
        "before": orders.c.id < sa.bindparam("before", type_=sa.Uuid),
    }
    return Statement(
        sa.select(orders)
        .where(_placed, *(conditions[name] for name in sorted(filters)))
        .order_by(orders.c.id.desc())
        .limit(sa.bindparam("most", type_=sa.Integer)),
        name="list orders",
    )


def add_orders(transaction: Transaction, news: Sequence[Order]) -> None:
    """Write new orders with their items. The transaction fails with HoldLost when the id of one was given up."""
    # In the order of the key, as everywhere: an id of these may be given up at the same time.
    in_order = sorted(news, key=attrgetter("id"))
    transaction.add(ADD_ORDERS, (_as_row(order) for order in in_order))
    transaction.add(
        ADD_ITEMS,
        (
            (order.id, item.id, item.product_id, item.sku, item.name, item.quantity, item.unit_price)
            for order in news
            for item in order.items
        ),
    )


async def get(reading: Transaction, ids: Iterable[UUID]) -> dict[UUID, Order]:
    """Orders as they are now, by id; those that exist."""
    return {order.id: order for order in await _with_items(reading, await reading.fetch(GET, ids=list(ids)))}


async def lock(transaction: Transaction, ids: Iterable[UUID]) -> dict[UUID, Order]:
    """Lock orders for the rest of the transaction, in primary-key order."""
    rows = await transaction.fetch(LOCK, ids=sorted(set(ids)))
    return {order.id: order for order in await _with_items(transaction, rows)}


async def lock_overdue(transaction: Transaction, most: int) -> list[Order]:
    """Lock orders whose payment deadline has passed, leaving those that another process is at."""
    return await _with_items(transaction, await transaction.fetch(LOCK_OVERDUE, most=most))


async def lock_cancelling(transaction: Transaction, patience: timedelta, most: int) -> list[Order]:
    """Lock orders that are being cancelled and have not moved for `patience`, leaving those that others are at."""
    return await _with_items(transaction, await transaction.fetch(LOCK_CANCELLING, patience=patience, most=most))


def write(transaction: Transaction, changes: Iterable[tuple[Order, Order]], now: datetime) -> None:
    """Write what became of orders, of each (as it is known, as it shall be).

    The transaction fails with StaleWrite when one of them is not as it is known.
    """
    # In primary-key order, as everywhere.
    in_order = sorted(((known, new) for known, new in changes if new is not known), key=lambda change: change[0].id)
    if in_order:
        changed = [new for _, new in in_order]
        transaction.write(
            WRITE,
            ids=[order.id for order in changed],
            statuses=[order.status for order in changed],
            payment_ids=[order.payment_id for order in changed],
            cancel_reasons=[order.cancel_reason for order in changed],
            cancel_notes=[order.cancel_note for order in changed],
            known_versions=[known.version for known, _ in in_order],
            versions=[order.version for order in changed],
            now=now,
        )


async def list_orders(
    reading: Transaction,
    *,
    customer_id: UUID | None,
    status: Status | None,
    before: UUID | None,
    most: int,
    most_items: int,
) -> tuple[list[Order], bool]:
    """Orders, newest first, of one customer or of all, in one status or in any; and whether there are more.

    At most `most` orders, and as many as have `most_items` items together. One order alone may not have more of them.
    """
    filters = {
        name: value
        for name, value in (("customer_id", customer_id), ("status", status), ("before", before))
        if value is not None
    }
    rows = await reading.fetch(_listing(frozenset(filters)), most=most + 1, **filters)
    page = rows[:most]
    lines = await reading.fetch(NEWEST_ITEMS, ids=[row["id"] for row in page], most=most_items + 1) if page else []
    if len(lines) > most_items:
        # The order of the last line is too much, or not all of its lines are here.
        last = lines[-1]["order_id"]
        page = [row for row in page if row["id"] > last]
        lines = [line for line in lines if line["order_id"] > last]
    return _assembled(page, reversed(lines)), len(page) < len(rows)


async def abandon_unknown(transaction: Transaction, ids: Sequence[UUID], now: datetime) -> dict[UUID, Status]:
    """The statuses of orders. Ids that no order has are taken for good, so that none ever will.

    The primary key decides between this and a placing under way: whoever writes the id first has it.
    """
    fences = (
        Order(
            order_id, NOBODY, Status.ABANDONED, (), Decimal(0), "XXX", NOBODY, None, now, now, None, "", now, version=1
        )
        for order_id in sorted(ids)
    )
    await transaction.insert(ABANDON, (_as_row(fence) for fence in fences))
    return {row["id"]: Status(row["status"]) for row in await transaction.fetch(STATUSES, ids=list(ids))}


async def _with_items(reading: Transaction, rows: Sequence[Row]) -> list[Order]:
    return _assembled(rows, await reading.fetch(ITEMS, ids=[row["id"] for row in rows])) if rows else []


def _assembled(rows: Sequence[Row], lines: Iterable[Row]) -> list[Order]:
    """Orders of these rows, each with its items in the order of these lines."""
    by_order: dict[UUID, list[Item]] = {row["id"]: [] for row in rows}
    for line in lines:
        by_order[line["order_id"]].append(
            Item(line["id"], line["product_id"], line["sku"], line["name"], line["quantity"], line["unit_price"])
        )
    return [
        Order(
            id=row["id"],
            customer_id=row["customer_id"],
            status=Status(row["status"]),
            items=tuple(by_order[row["id"]]),
            total=row["total"],
            currency=row["currency"],
            payment_method_id=row["payment_method_id"],
            payment_id=row["payment_id"],
            order_date=row["order_date"],
            payment_deadline=row["payment_deadline"],
            cancel_reason=CancelReason(row["cancel_reason"]) if row["cancel_reason"] else None,
            cancel_note=row["cancel_note"],
            update_time=row["update_time"],
            version=row["version"],
        )
        for row in rows
    ]


def _as_row(order: Order) -> tuple[object, ...]:
    return (
        order.id,
        order.customer_id,
        order.status,
        order.total,
        order.currency,
        order.payment_method_id,
        order.payment_id,
        order.order_date,
        order.payment_deadline,
        order.cancel_reason,
        order.cancel_note,
        order.update_time,
        order.version,
    )
