"""Erasures: the mark on customers who are being erased, and the deletion of all their rows."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from customer_svc.domain import BegunErasure, Customer, CustomerNotFound
from customer_svc.store.customers import CUSTOMERS, addresses, customers, payment_methods
from mesh.cache.versioned import VersionedCache
from mesh.db.columns import TIME
from mesh.db.database import Statement, Transaction
from mesh.db.unit_of_work import UnitOfWork

_customer_id = sa.bindparam("customer", type_=sa.Uuid)
_is_it = customers.c.id == _customer_id

LOCK_TO_ERASE = Statement(sa.select(*CUSTOMERS.columns).where(_is_it).with_for_update(), name="lock customer to erase")
MARK = Statement(
    sa.update(customers).where(_is_it).values(erase_time=sa.bindparam("time", type_=TIME)), name="begin erasure"
)
UNMARK = Statement(
    sa.update(customers)
    .where(_is_it, customers.c.erase_time == sa.bindparam("time", type_=TIME))
    .values(erase_time=None),
    name="call off erasure",
)
ERASING = Statement(
    sa.select(customers.c.id, customers.c.email, customers.c.erase_time)
    .where(
        customers.c.erase_time.is_not(None),
        customers.c.erase_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
    )
    .order_by(customers.c.erase_time)
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="read erasures",
)
DELETE_ADDRESSES = Statement(
    sa.delete(addresses).where(addresses.c.customer_id == _customer_id), name="delete all addresses"
)
DELETE_PAYMENT_METHODS = Statement(
    sa.delete(payment_methods).where(payment_methods.c.customer_id == _customer_id), name="delete all payment methods"
)
DELETE_CUSTOMER = Statement(sa.delete(customers).where(_is_it))


class ErasureStore:
    """Customers who are being erased. For all other statements of the service they are gone already."""

    def __init__(self, cache: VersionedCache[Customer]) -> None:
        """`cache` is that of the customers."""
        self._cache = cache

    async def find(self, work: UnitOfWork, customer_id: UUID) -> Customer | None:
        """Lock a customer, also one who is being erased; None once they are erased."""
        row = await work.transaction.fetch_one(LOCK_TO_ERASE, customer=customer_id)
        return CUSTOMERS.read(row) if row else None

    async def load(self, work: UnitOfWork, customer_id: UUID) -> Customer:
        """Lock a customer, also one who is being erased. Raises CustomerNotFound."""
        if (customer := await self.find(work, customer_id)) is None:
            raise CustomerNotFound(customer_id)
        return customer

    def mark(self, work: UnitOfWork, customer_id: UUID, time: datetime) -> None:
        """Begin the erasure of a loaded customer, or begin it again."""
        work.transaction.write(MARK, customer=customer_id, time=time)

    async def forget(self, customer_id: UUID) -> None:
        """Delete a marked customer from the cache: the process that has set the mark may have died before."""
        await self._cache.forget([customer_id])

    async def unmark(self, work: UnitOfWork, customer_id: UUID, time: datetime) -> None:
        """Call off the erasure of a customer that began at `time`, unless it has begun again since."""
        await work.transaction.execute(UNMARK, customer=customer_id, time=time)

    async def list_begun(self, reading: Transaction, age: timedelta, *, most: int) -> list[BegunErasure]:
        """Erasures that began more than `age` ago, the first ones first."""
        rows = await reading.fetch(ERASING, age=age, most=most)
        return [BegunErasure(row["id"], row["email"], row["erase_time"]) for row in rows]

    async def delete(self, work: UnitOfWork, customer_id: UUID) -> None:
        """Delete a loaded customer and all that belongs to them."""
        for statement in (DELETE_ADDRESSES, DELETE_PAYMENT_METHODS, DELETE_CUSTOMER):
            await work.transaction.execute(statement, customer=customer_id)
