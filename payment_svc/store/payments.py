"""The payment service's tables and statements: the only SQL of the service, but for the sandbox's own record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from mesh.db.columns import AMOUNT, TIME
from mesh.db.database import Statement, Transaction
from mesh.db.history import STEPS, Step, append_to, history, read_from
from mesh.db.rows import Rows, Versions
from mesh.db.unit_of_work import UnitOfWork
from mesh.errors import StaleWrite
from mesh.ids import LAST_ID
from payment_svc.domain import OPEN, Entry, Payment, PaymentNotFound, PaymentStatus

metadata = sa.MetaData()
BEGINNING, FIRST_ID = datetime.min.replace(tzinfo=UTC), UUID(int=0)
"""They sort before every other time and id."""
_IS_OPEN = "(status IN ('PENDING', 'REQUIRES_ACTION'))"

payments = sa.Table(
    "payments",
    metadata,
    # The columns are the fields of `Payment`, in their order.
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("order_id", sa.Uuid, nullable=False, unique=True, comment="an order is charged once"),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("amount", AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("provider", sa.String, nullable=False, comment="empty if nothing was ever to be charged"),
    sa.Column("payment_method_id", sa.Uuid, comment="null for orders that cost nothing or were placed before ADR-0035"),
    sa.Column("token", sa.String, nullable=False, comment="a secret, only of orders placed before ADR-0035"),
    sa.Column("provider_key", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("refunded_amount", AMOUNT, nullable=False),
    sa.Column("provider_reference", sa.String, nullable=False),
    sa.Column("failure_reason", sa.String, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, comment="without an outcome, of what is due now"),
    sa.Column("next_attempt_time", TIME, comment="when the sweep may take it; null when nothing is due"),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("process_time", TIME),
    sa.Column("dispute_time", TIME, comment="when the customer disputed it at the bank for the first time"),
    sa.Column("traceparent", sa.String, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    # The last word on money: whatever the code does, these do not let it.
    sa.CheckConstraint("provider_key = 'payment-' || id::text", name="provider_key_of_one_payment"),
    # No provider hears of a payment of zero.
    sa.CheckConstraint(
        "amount > 0 OR amount = 0 AND provider = '' AND status IN ('CAPTURED', 'VOIDED')", name="zero_without_provider"
    ),
    sa.CheckConstraint("0 <= refunded_amount AND refunded_amount <= amount", name="refunded_within_amount"),
    sa.CheckConstraint(
        "CASE status"
        " WHEN 'PARTIALLY_REFUNDED' THEN 0 < refunded_amount AND refunded_amount < amount"
        " WHEN 'REFUNDED' THEN refunded_amount = amount"
        " ELSE status IN ('PENDING', 'REQUIRES_ACTION', 'CAPTURED', 'DECLINED', 'VOIDED') AND refunded_amount = 0 END",
        name="status_as_refunded",
    ),
    sa.CheckConstraint(f"{_IS_OPEN} = (process_time IS NULL)", name="processed_unless_open"),
    sa.CheckConstraint("status = 'PENDING' OR token = ''", name="token_only_while_pending"),
    # No payment with something due can be forgotten.
    sa.CheckConstraint(f"(next_attempt_time IS NOT NULL) = {_IS_OPEN}", name="attempted_while_due"),
)
_due = payments.c.next_attempt_time.is_not(None)
sa.Index("payments_due", payments.c.provider, payments.c.next_attempt_time, postgresql_where=_due)
# For lists by a status that few payments have. Captured payments, the most, are found without it.
sa.Index(
    "payments_rare",
    payments.c.status,
    payments.c.id,
    postgresql_where=sa.text("status IN ('DECLINED', 'VOIDED', 'PARTIALLY_REFUNDED', 'REFUNDED')"),
)

entries = sa.Table(
    "payment_entries",
    metadata,
    # The columns are the fields of `Entry`, in their order.
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, nullable=False, comment="that it exists is checked with the sums"),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("amount", AMOUNT, nullable=False),
    sa.Column("provider_reference", sa.String, nullable=False),
    sa.Column("note", sa.String, nullable=False),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.Column("trace_id", sa.String, nullable=False, comment="empty in entries made before it was recorded"),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sa.CheckConstraint("type IN ('CAPTURE', 'REFUND', 'VOID', 'FEE', 'DISPUTE', 'DIFFERENCE')", name="type_known"),
    # One movement of the provider's is in the ledger once.
    sa.UniqueConstraint("payment_id", "type", "provider_reference", name="movement_once"),
    comment="The ledger. Rows are only ever added.",
)
_captured = sa.text("type = 'CAPTURE'")
sa.Index("payment_entries_capture", entries.c.payment_id, unique=True, postgresql_where=_captured)
# For webhooks that name a charge by the provider's reference only.
sa.Index("payment_entries_captured_reference", entries.c.provider_reference, postgresql_where=_captured)

payment_history = history("payment_history", metadata)

PAYMENTS = Rows(Payment, payments)
APPEND_HISTORY = append_to(payment_history)
READ_HISTORY = read_from(payment_history)
ENTRIES = Rows(Entry, entries)
_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))

ADD_PAYMENTS = PAYMENTS.insertion(returning=[payments.c.id], skip_existing=True)
ADD_FIRST_PAYMENTS = PAYMENTS.insertion(refusals={"payments_order_id_key": StaleWrite}, name="add first payments")
ADD_ENTRIES = ENTRIES.insertion()
READ_PAYMENTS = Statement(sa.select(payments).where(payments.c.id == sa.any_(_ids)))
READ_PAYMENTS_OF_ORDERS = Statement(
    sa.select(payments).where(payments.c.order_id == sa.any_(_ids)), name="read payments of orders"
)
# Rows are locked in primary-key order, everywhere: UPDATE … FROM unnest locks in no stated order, and deadlocks.
LOCK_PAYMENTS = Statement(
    sa.select(payments).where(payments.c.id == sa.any_(_ids)).order_by(payments.c.id).with_for_update()
)
LOCK_PAYMENTS_OF_ORDERS = Statement(
    sa.select(payments).where(payments.c.order_id == sa.any_(_ids)).order_by(payments.c.id).with_for_update(),
    name="lock payments of orders",
)
NEW_VERSIONS = Versions(
    PAYMENTS,
    [
        "token", "status", "refunded_amount", "provider_reference", "failure_reason", "cancel_requested", "attempts",
        "next_attempt_time", "process_time", "dispute_time", "traceparent",
    ],
)  # fmt: skip
# What another process has locked is being worked on: it is passed over, so this waits for nobody. As a table expression
# the choice is made once; as a subquery the planner might make it again and again, and lock more than `most`.
_overdue = (
    sa.select(payments.c.id)
    .where(
        _due,
        payments.c.provider == sa.bindparam("provider", type_=sa.String),
        payments.c.next_attempt_time <= sa.func.now(),
    )
    .order_by(payments.c.next_attempt_time)
    .limit(sa.bindparam("most", type_=sa.Integer))
    .with_for_update(skip_locked=True)
    .cte("overdue")
)
LEASE_OVERDUE = Statement(
    sa.update(payments)
    .where(payments.c.id == _overdue.c.id)
    .values(next_attempt_time=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(*payments.c),
    name="lease overdue payments",
)
READ_ENTRIES = ENTRIES.by(entries.c.payment_id)
READ_CAPTURED = Statement(
    sa.select(entries.c.provider_reference, entries.c.payment_id).where(
        _captured, entries.c.provider_reference == sa.any_(sa.bindparam("references", type_=sa.ARRAY(sa.String)))
    ),
    name="read captured references",
)
LIST_ENTRIES = Statement(
    sa.select(entries)
    .where(
        entries.c.payment_id == sa.bindparam("payment", type_=sa.Uuid),
        sa.tuple_(entries.c.create_time, entries.c.id)
        > sa.tuple_(sa.bindparam("after_time", type_=TIME), sa.bindparam("after_id", type_=sa.Uuid)),
    )
    .order_by(entries.c.create_time, entries.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="list payment entries",
)


@cache
def listing(status: PaymentStatus | None) -> Statement:
    """The statement that lists payments, with any status or one, newest first."""
    listed: sa.FromClause = payments
    if status in OPEN:
        # These few first, so that the others, which are the newest as well, are not read.
        listed = sa.select(payments).where(_due).cte("due").prefix_with("MATERIALIZED")
    chosen = sa.select(listed).where(listed.c.id < sa.bindparam("before", type_=sa.Uuid))
    if status is not None:
        # In the text, not as an argument: only so the partial index is used.
        chosen = chosen.where(listed.c.status == sa.literal_column(f"'{status}'"))
    return Statement(
        chosen.order_by(listed.c.id.desc()).limit(sa.bindparam("most", type_=sa.Integer)), name="list payments"
    )


class PaymentStore:
    """The payments and their ledger."""

    async def add(self, work: UnitOfWork, begun: Sequence[Payment]) -> list[Payment]:
        """Write new payments. Returns those whose orders had none; the others change nothing.

        The orders of all are assumed to have none, unless `work` is pessimistic or some payment is called off:
        cancelling orders have one. If the assumption is wrong, the transaction fails with StaleWrite.
        """
        if work.pessimistic or any(payment.cancel_requested for payment in begun):
            return await self.add_unless_known(work, begun)
        work.transaction.add(ADD_FIRST_PAYMENTS, _in_order(begun))
        return list(begun)

    async def add_unless_known(self, work: UnitOfWork, begun: Sequence[Payment]) -> list[Payment]:
        """Write new payments. Returns those whose orders had none; the others change nothing."""
        rows = await work.transaction.insert(ADD_PAYMENTS, _in_order(begun))
        added = {row["id"] for row in rows}
        return [payment for payment in begun if payment.id in added]

    async def read(self, reading: Transaction, payment_id: UUID) -> Payment:
        """A payment as it is now. Raises PaymentNotFound."""
        row = await reading.fetch_one(READ_PAYMENTS, ids=[payment_id])
        if row is None:
            raise PaymentNotFound(payment_id=payment_id)
        return PAYMENTS.read(row)

    async def read_of_order(self, reading: Transaction, order_id: UUID) -> Payment:
        """The payment of an order as it is now. Raises PaymentNotFound."""
        payment = await self.find_of_order(reading, order_id)
        if payment is None:
            raise PaymentNotFound(order_id=order_id)
        return payment

    async def list_payments(
        self, reading: Transaction, *, status: PaymentStatus | None, before: UUID | None, most: int
    ) -> list[Payment]:
        """Payments, newest first; only those older than the payment `before`, if it is given."""
        rows = await reading.fetch(listing(status), before=before or LAST_ID, most=most)
        return [PAYMENTS.read(row) for row in rows]

    async def find_of_order(self, reading: Transaction, order_id: UUID) -> Payment | None:
        """The payment of an order, if it has one."""
        row = await reading.fetch_one(READ_PAYMENTS_OF_ORDERS, ids=[order_id])
        return PAYMENTS.read(row) if row else None

    async def list_entries(
        self, reading: Transaction, payment_id: UUID, *, after: tuple[datetime, UUID] | None, most: int
    ) -> list[Entry]:
        """The entries of a payment, oldest first; only those newer than that of time and id `after`, if it is given."""
        time, entry_id = after or (BEGINNING, FIRST_ID)
        rows = await reading.fetch(LIST_ENTRIES, payment=payment_id, after_time=time, after_id=entry_id, most=most)
        return [ENTRIES.read(row) for row in rows]

    async def read_of_orders(self, reading: Transaction, order_ids: Sequence[UUID]) -> list[Payment]:
        """The payments of these orders as they are now; orders without one are left out."""
        return [PAYMENTS.read(row) for row in await reading.fetch(READ_PAYMENTS_OF_ORDERS, ids=list(order_ids))]

    async def read_all(self, reading: Transaction, payment_ids: Collection[UUID]) -> list[Payment]:
        """These payments as they are now; ids without one are left out."""
        if not payment_ids:
            return []
        return [PAYMENTS.read(row) for row in await reading.fetch(READ_PAYMENTS, ids=sorted(payment_ids))]

    async def captured(self, reading: Transaction, references: Collection[str]) -> dict[str, UUID]:
        """The payments that were captured under these references of providers, by reference."""
        if not references:
            return {}
        rows = await reading.fetch(READ_CAPTURED, references=sorted(references))
        return {row["provider_reference"]: row["payment_id"] for row in rows}

    async def entries_of(self, reading: Transaction, payment_ids: Collection[UUID]) -> list[Entry]:
        """All entries of these payments."""
        return [ENTRIES.read(row) for row in await reading.fetch(READ_ENTRIES, keys=sorted(payment_ids))]

    async def history(self, reading: Transaction, order_id: UUID) -> list[Step]:
        """The events of the payment of an order, oldest first."""
        return [STEPS.read(row) for row in await reading.fetch(READ_HISTORY, subject=order_id)]

    async def load_asked(self, work: UnitOfWork, asked: Sequence[Payment], *, locked: bool) -> dict[UUID, Payment]:
        """Payments that a provider was asked about, by id: as they were then, or locked and as they are now.

        They are locked if `work` is pessimistic, or if `locked` requires it.
        """
        if not (locked or work.pessimistic):
            return {payment.id: payment for payment in asked}
        rows = await work.transaction.fetch(LOCK_PAYMENTS, ids=sorted({payment.id for payment in asked}))
        return {row["id"]: PAYMENTS.read(row) for row in rows}

    async def load(self, work: UnitOfWork, payment_id: UUID) -> Payment:
        """Lock a payment. Raises PaymentNotFound."""
        found = await self.load_all(work, [payment_id])
        if not found:
            raise PaymentNotFound(payment_id=payment_id)
        return found[0]

    async def load_all(self, work: UnitOfWork, payment_ids: Iterable[UUID]) -> list[Payment]:
        """Lock payments, in primary-key order."""
        rows = await work.transaction.fetch(LOCK_PAYMENTS, ids=sorted(set(payment_ids)))
        return [PAYMENTS.read(row) for row in rows]

    async def load_of_orders(self, work: UnitOfWork, order_ids: Iterable[UUID]) -> list[Payment]:
        """Lock the payments of orders, in primary-key order."""
        rows = await work.transaction.fetch(LOCK_PAYMENTS_OF_ORDERS, ids=sorted(set(order_ids)))
        return [PAYMENTS.read(row) for row in rows]

    def save(self, work: UnitOfWork, changes: Iterable[tuple[Payment, Payment]]) -> None:
        """Write new versions of payments, of each (as it was loaded, as it is now).

        The transaction fails with StaleWrite if a payment has another version than the loaded one.
        """
        NEW_VERSIONS.write(work.transaction, changes)

    def add_entries(self, work: UnitOfWork, added: Iterable[Entry]) -> None:
        """Append to the ledger."""
        # In one order everywhere, as with locks: batches that capture the same payments wait for each other's entries.
        work.transaction.add(ADD_ENTRIES, map(ENTRIES.values, sorted(added, key=attrgetter("payment_id"))))

    async def lease_overdue(self, work: UnitOfWork, lease: timedelta, provider: str, *, most: int) -> list[Payment]:
        """Take up to `most` payments of a provider whose lease is over, the longest overdue first, for `lease`."""
        return [
            PAYMENTS.read(row)
            for row in await work.transaction.fetch(LEASE_OVERDUE, lease=lease, provider=provider, most=most)
        ]


def _in_order(begun: Sequence[Payment]) -> Iterator[Sequence[Any]]:
    # In one order everywhere, as with locks: two batches with the same orders must not wait for each other.
    return map(PAYMENTS.values, sorted(begun, key=attrgetter("order_id")))
