"""The refunds of payments."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from mesh.db.columns import AMOUNT, TIME
from mesh.db.database import Statement, Transaction, unnested
from mesh.db.rows import Rows
from mesh.db.unit_of_work import UnitOfWork
from payment_svc.domain import Refund, RefundNotFound
from payment_svc.store.payments import FIRST_ID, metadata, payments

refunds = sa.Table(
    "refunds",
    metadata,
    # The columns are the fields of `Refund`, in their order.
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey(payments.c.id), nullable=False),
    sa.Column("amount", AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("provider", sa.String, nullable=False),
    sa.Column("provider_key", sa.String, nullable=False),
    sa.Column("charge_reference", sa.String, nullable=False, comment="the provider's reference of the charge"),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("provider_reference", sa.String, nullable=False),
    sa.Column("failure_reason", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False, comment="for staff only"),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, comment="without an outcome"),
    sa.Column("next_attempt_time", TIME, comment="when the sweep may take it; null when it has an outcome"),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("process_time", TIME),
    sa.Column("traceparent", sa.String, nullable=False),
    sa.CheckConstraint("provider_key = 'refund-' || id::text", name="provider_key_of_one_refund"),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sa.CheckConstraint("status IN ('PENDING', 'SUCCEEDED', 'FAILED')", name="status_known"),
    sa.CheckConstraint("(status = 'PENDING') = (process_time IS NULL)", name="processed_unless_pending"),
    # No refund without an outcome can be forgotten.
    sa.CheckConstraint("(status = 'PENDING') = (next_attempt_time IS NOT NULL)", name="attempted_while_pending"),
)
_due = refunds.c.next_attempt_time.is_not(None)
sa.Index("refunds_due", refunds.c.provider, refunds.c.next_attempt_time, postgresql_where=_due)
sa.Index("refunds_payment", refunds.c.payment_id, refunds.c.id)

REFUNDS = Rows(Refund, refunds)
_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))

ADD_REFUNDS = REFUNDS.insertion()
READ_REFUNDS = Statement(sa.select(refunds).where(refunds.c.id == sa.any_(_ids)))
READ_PENDING_REFUNDS = Statement(
    sa.select(refunds).where(refunds.c.payment_id == sa.any_(_ids), _due), name="read pending refunds"
)
LIST_REFUNDS = Statement(
    sa.select(refunds)
    .where(
        refunds.c.payment_id == sa.bindparam("payment", type_=sa.Uuid),
        refunds.c.id > sa.bindparam("after", type_=sa.Uuid),
    )
    .order_by(refunds.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="list refunds",
)
# Rows are locked in primary-key order, everywhere, and those of payments before those of their refunds.
LOCK_REFUNDS = Statement(
    sa.select(refunds).where(refunds.c.id == sa.any_(_ids)).order_by(refunds.c.id).with_for_update()
)
_CHANGING = ("status", "provider_reference", "failure_reason", "attempts", "next_attempt_time", "process_time")
_changed = unnested({f"new_{name}": (name, refunds.c[name].type) for name in ("id", *_CHANGING)})
WRITE_REFUNDS = Statement(
    sa.update(refunds).where(refunds.c.id == _changed.c.id).values({name: _changed.c[name] for name in _CHANGING})
)
_overdue = (
    sa.select(refunds.c.id)
    .where(
        _due,
        refunds.c.provider == sa.bindparam("provider", type_=sa.String),
        refunds.c.next_attempt_time <= sa.func.now(),
    )
    .order_by(refunds.c.next_attempt_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("overdue")
)
LEASE_OVERDUE_REFUNDS = Statement(
    sa.update(refunds)
    .where(refunds.c.id == _overdue.c.id)
    .values(next_attempt_time=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(*refunds.c),
    name="lease overdue refunds",
)


class RefundStore:
    """The refunds of payments. Lock a payment before its refunds are changed or counted."""

    def add(self, work: UnitOfWork, begun: Iterable[Refund]) -> None:
        """Write new refunds."""
        work.transaction.add(ADD_REFUNDS, map(REFUNDS.values, begun))

    async def read(self, reading: Transaction, refund_id: UUID) -> Refund:
        """A refund as it is now. Raises RefundNotFound."""
        row = await reading.fetch_one(READ_REFUNDS, ids=[refund_id])
        if row is None:
            raise RefundNotFound(refund_id)
        return REFUNDS.read(row)

    async def read_all(self, reading: Transaction, refund_ids: Collection[UUID]) -> list[Refund]:
        """These refunds as they are now; ids without one are left out."""
        if not refund_ids:
            return []
        return [REFUNDS.read(row) for row in await reading.fetch(READ_REFUNDS, ids=sorted(refund_ids))]

    async def pending(self, reading: Transaction, payment_ids: Iterable[UUID]) -> list[Refund]:
        """The refunds of these payments that have no outcome yet."""
        rows = await reading.fetch(READ_PENDING_REFUNDS, ids=sorted(set(payment_ids)))
        return [REFUNDS.read(row) for row in rows]

    async def list_refunds(
        self, reading: Transaction, payment_id: UUID, *, after: UUID | None, most: int
    ) -> list[Refund]:
        """The refunds of a payment, oldest first; only those newer than the refund `after`, if it is given."""
        rows = await reading.fetch(LIST_REFUNDS, payment=payment_id, after=after or FIRST_ID, most=most)
        return [REFUNDS.read(row) for row in rows]

    async def load(self, work: UnitOfWork, refund_ids: Iterable[UUID]) -> dict[UUID, Refund]:
        """Lock refunds, by id."""
        rows = await work.transaction.fetch(LOCK_REFUNDS, ids=sorted(set(refund_ids)))
        return {row["id"]: REFUNDS.read(row) for row in rows}

    def save(self, work: UnitOfWork, changes: Iterable[tuple[Refund, Refund]]) -> None:
        """Write locked refunds, of each (as it was loaded, as it is now)."""
        if changed := [new for known, new in changes if new is not known]:
            work.transaction.write(
                WRITE_REFUNDS,
                **{f"new_{name}": [getattr(each, name) for each in changed] for name in ("id", *_CHANGING)},
            )

    async def lease_overdue(self, work: UnitOfWork, lease: timedelta, provider: str, *, most: int) -> list[Refund]:
        """Take up to `most` refunds of a provider whose lease is over, the longest overdue first, for `lease`."""
        rows = await work.transaction.fetch(LEASE_OVERDUE_REFUNDS, lease=lease, provider=provider, most=most)
        return [REFUNDS.read(row) for row in rows]
