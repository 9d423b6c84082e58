"""Erasures of customers: what their orders still say of them, and the erasures that are to be repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.db.columns import TIME
from mesh.db.database import Statement
from mesh.db.rows import UUIDS
from mesh.db.unit_of_work import UnitOfWork
from order_svc.domain import Status
from order_svc.store.tables import erasures, items, orders, shipping_addresses

OPEN = (Status.PENDING, Status.CONFIRMED, Status.SHIPPED, Status.CANCELLING)
"""The statuses of an order for which the data of its customer is still needed."""

_customer_id = sa.bindparam("customer", type_=sa.Uuid)
_of_customer = orders.c.customer_id == _customer_id
_ids = sa.any_(sa.bindparam("ids", type_=UUIDS))
_most = sa.bindparam("most", type_=sa.Integer)


def _in(statuses: Sequence[Status]) -> sa.ColumnElement[bool]:
    return orders.c.status.in_([sa.literal_column(f"'{status.value}'") for status in statuses])


HAS_OPEN = Statement(sa.select(orders.c.id).where(_of_customer, _in(OPEN)).limit(1), name="read an open order")
LOCK_UNSHIPPED = Statement(
    sa.select(orders.c.id)
    .where(_of_customer, _in([Status.DRAFT, Status.PLACING, Status.PENDING, Status.CONFIRMED]))
    .order_by(orders.c.id)
    .limit(_most)
    .with_for_update(),
    name="lock unshipped orders",
)
DELETE_ITEMS = Statement(sa.delete(items).where(items.c.order_id == _ids), name="delete all items")
DELETE_ORDERS = Statement(sa.delete(orders).where(orders.c.id == _ids))
DELETE_ADDRESSES = Statement(sa.delete(shipping_addresses).where(shipping_addresses.c.order_id == _ids))
_has_address = sa.exists().where(shipping_addresses.c.order_id == orders.c.id)
LOCK_PERSONAL = Statement(
    sa.select(orders.c.id)
    .where(_of_customer, (orders.c.cancel_note != "") | _has_address)
    .order_by(orders.c.id)
    .limit(_most)
    .with_for_update(of=orders),
    name="lock orders with personal data",
)
# A new version, so that no process keeps one with the address.
ERASE_ORDERS = Statement(
    sa.update(orders).where(orders.c.id == _ids).values(cancel_note="", version=orders.c.version + 1),
    name="erase orders",
)
FIND = Statement(sa.select(erasures.c.customer_id).where(erasures.c.customer_id == _customer_id), name="read erasure")
ADD = Statement(
    postgresql.insert(erasures)
    .values(
        customer_id=_customer_id,
        next_time=sa.bindparam("next_time", type_=TIME),
        last_time=sa.bindparam("last_time", type_=TIME),
    )
    .on_conflict_do_nothing(),
)
DUE = Statement(
    sa.select(erasures).where(erasures.c.next_time <= sa.bindparam("now", type_=TIME)).order_by(erasures.c.next_time)
    .limit(_most),
    name="read due erasures",
)  # fmt: skip
POSTPONE = Statement(
    sa.update(erasures).where(erasures.c.customer_id == _customer_id).values(next_time=erasures.c.last_time),
    name="postpone erasure",
)
REMOVE = Statement(sa.delete(erasures).where(erasures.c.customer_id == _customer_id))


@dataclass(frozen=True, slots=True)
class Erasure:
    """An erasure that is due. It is repeated at `last_time`, when no placing of before can still be committed."""

    customer_id: UUID
    next_time: datetime
    last_time: datetime


class ErasureStore:
    """The erasures, and the orders of the customers that they erase."""

    async def has_open_orders(self, work: UnitOfWork, customer_id: UUID) -> bool:
        """Whether the customer has an order that is neither a draft nor final."""
        return await work.transaction.fetch_one(HAS_OPEN, customer=customer_id) is not None

    async def is_begun(self, work: UnitOfWork, customer_id: UUID) -> bool:
        """Whether the erasure of a customer has begun and is not finished."""
        return await work.transaction.fetch_one(FIND, customer=customer_id) is not None

    async def begin(self, work: UnitOfWork, erasure: Erasure) -> None:
        """Write a new erasure; one of the same customer stays as it is."""
        await work.transaction.execute(
            ADD, customer=erasure.customer_id, next_time=erasure.next_time, last_time=erasure.last_time
        )

    async def list_due(self, work: UnitOfWork, now: datetime, *, most: int) -> list[Erasure]:
        """The erasures that are due at `now`, the first ones first."""
        rows = await work.transaction.fetch(DUE, now=now, most=most)
        return [Erasure(row["customer_id"], row["next_time"], row["last_time"]) for row in rows]

    async def done(self, work: UnitOfWork, erasure: Erasure, now: datetime) -> None:
        """Let an erasure be repeated at its last time, or remove it after that."""
        statement = REMOVE if erasure.last_time <= now else POSTPONE
        await work.transaction.execute(statement, customer=erasure.customer_id)

    async def lock_unshipped(self, work: UnitOfWork, customer_id: UUID, *, most: int) -> list[UUID]:
        """Lock orders of a customer that can be cancelled, drafts included; their ids."""
        return [row["id"] for row in await work.transaction.fetch(LOCK_UNSHIPPED, customer=customer_id, most=most)]

    async def delete_drafts(self, work: UnitOfWork, order_ids: Sequence[UUID]) -> None:
        """Delete locked drafts. None of them may have an open placing, which would not notice."""
        for statement in (DELETE_ITEMS, DELETE_ADDRESSES, DELETE_ORDERS):
            await work.transaction.execute(statement, ids=list(order_ids))

    async def erase_orders(self, work: UnitOfWork, customer_id: UUID, *, most: int) -> list[UUID]:
        """Delete the shipping addresses and cancel notes of at most `most` orders; the ids of these orders."""
        ids = [row["id"] for row in await work.transaction.fetch(LOCK_PERSONAL, customer=customer_id, most=most)]
        if ids:
            await work.transaction.execute(DELETE_ADDRESSES, ids=ids)
            await work.transaction.execute(ERASE_ORDERS, ids=ids)
        return ids
