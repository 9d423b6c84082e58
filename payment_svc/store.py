"""The payment service's tables and statements: the only SQL of the service, but for the sandbox's own record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from mesh.db.database import BulkInsert, Row, Statement, Transaction, stale_write, unless_stale, unnested
from mesh.errors import StaleWrite
from payment_svc.domain import Entry, Payment, PaymentStatus

metadata = sa.MetaData()
_TIME = pg.TIMESTAMP(timezone=True)
_AMOUNT = sa.Numeric(28, 9)

payments = sa.Table(
    "payments",
    metadata,
    # The columns are the fields of `Payment`, in their order.
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("order_id", sa.Uuid, nullable=False, unique=True, comment="an order is charged once"),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("provider", sa.String, nullable=False, comment="empty if nothing was ever to be charged"),
    sa.Column("payment_method_id", sa.Uuid, comment="null for orders that cost nothing or were placed before ADR-0035"),
    sa.Column("token", sa.String, nullable=False, comment="a secret, only of orders placed before ADR-0035"),
    sa.Column("provider_key", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("refunded_amount", _AMOUNT, nullable=False),
    sa.Column("provider_reference", sa.String, nullable=False),
    sa.Column("failure_reason", sa.String, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, comment="without an outcome, of what is due now"),
    sa.Column("next_attempt_time", _TIME, comment="when the sweep may take it; null when nothing is due"),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("process_time", _TIME),
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
        " ELSE status IN ('PENDING', 'CAPTURED', 'DECLINED', 'VOIDED') AND refunded_amount = 0 END",
        name="status_as_refunded",
    ),
    sa.CheckConstraint("(status = 'PENDING') = (process_time IS NULL)", name="processed_unless_pending"),
    sa.CheckConstraint("status = 'PENDING' OR token = ''", name="token_only_while_pending"),
    # No payment with something due can be forgotten.
    sa.CheckConstraint(
        "(next_attempt_time IS NOT NULL) ="
        " (status = 'PENDING' OR cancel_requested AND status IN ('CAPTURED', 'PARTIALLY_REFUNDED'))",
        name="attempted_while_due",
    ),
)
_due = payments.c.next_attempt_time.is_not(None)
sa.Index("payments_due", payments.c.next_attempt_time, postgresql_where=_due)

entries = sa.Table(
    "payment_entries",
    metadata,
    # The columns are the fields of `Entry`, in their order.
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey(payments.c.id), nullable=False),
    sa.Column("type", sa.String, nullable=False),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("provider_reference", sa.String, nullable=False),
    sa.Column("note", sa.String, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("actor", sa.String, nullable=False),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sa.CheckConstraint("type IN ('CAPTURE', 'REFUND', 'VOID')", name="type_known"),
    # One movement of the provider's is in the ledger once.
    sa.UniqueConstraint("payment_id", "type", "provider_reference", name="movement_once"),
    comment="The ledger. Rows are only ever added.",
)
sa.Index("payment_entries_capture", entries.c.payment_id, unique=True, postgresql_where=sa.text("type = 'CAPTURE'"))

_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_MUTABLE = (
    "token", "status", "refunded_amount", "provider_reference", "failure_reason", "cancel_requested", "attempts",
    "next_attempt_time", "process_time", "traceparent", "version",
)  # fmt: skip
_rows = unnested(
    {f"new_{name}": (name, payments.c[name].type) for name in ("id", *_MUTABLE)}
    | {"known_versions": ("known_version", sa.BigInteger)}
)
_payment_values = attrgetter(*(column.name for column in payments.c))
_entry_values = attrgetter(*(column.name for column in entries.c))

ADD_PAYMENTS = BulkInsert(*payments.c, returning=[payments.c.id], skip_existing=True)
ADD_FIRST_PAYMENTS = BulkInsert(*payments.c, refusals={"payments_order_id_key": StaleWrite}, name="add first payments")
ADD_ENTRIES = BulkInsert(*entries.c)
PAYMENTS = Statement(sa.select(payments).where(payments.c.id == sa.any_(_ids)))
PAYMENTS_OF_ORDERS = Statement(
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
WRITE_PAYMENTS = Statement(
    sa.update(payments)
    .where(payments.c.id == _rows.c.id)
    .values(
        {name: _rows.c[name] for name in _MUTABLE}
        | {"version": unless_stale(payments.c.version, _rows.c.known_version, _rows.c.version)}
    ),
    refusals=stale_write(payments.c.version),
)
# What another process has locked is being worked on: it is passed over, so this waits for nobody. As a table expression
# the choice is made once; as a subquery the planner might make it again and again, and lock more than `most`.
_overdue = (
    sa.select(payments.c.id)
    .where(_due, payments.c.next_attempt_time <= sa.func.now())
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


async def add_payments(transaction: Transaction, news: Sequence[Payment]) -> list[Payment]:
    """Write new payments; those whose orders had none yet, the others change nothing."""
    rows = await transaction.insert(ADD_PAYMENTS, _payment_rows(news))
    added = {row["id"] for row in rows}
    return [payment for payment in news if payment.id in added]


def add_first_payments(transaction: Transaction, news: Sequence[Payment]) -> None:
    """Write new payments. The transaction fails with StaleWrite when an order of theirs has one."""
    transaction.add(ADD_FIRST_PAYMENTS, _payment_rows(news))


def _payment_rows(news: Sequence[Payment]) -> Iterator[tuple[Any, ...]]:
    # In one order everywhere, as with locks: two batches with the same orders must not wait for each other.
    return map(_payment_values, sorted(news, key=attrgetter("order_id")))


async def get_payment(reading: Transaction, payment_id: UUID) -> Payment | None:
    """A payment as it is now."""
    row = await reading.fetch_one(PAYMENTS, ids=[payment_id])
    return _as_payment(row) if row else None


async def get_order_payment(reading: Transaction, order_id: UUID) -> Payment | None:
    """The payment of an order as it is now."""
    row = await reading.fetch_one(PAYMENTS_OF_ORDERS, ids=[order_id])
    return _as_payment(row) if row else None


async def lock_payments(transaction: Transaction, ids: Iterable[UUID]) -> dict[UUID, Payment]:
    """Lock payments for the rest of the transaction, in primary-key order; by id."""
    rows = await transaction.fetch(LOCK_PAYMENTS, ids=sorted(set(ids)))
    return {row["id"]: _as_payment(row) for row in rows}


async def lock_order_payments(transaction: Transaction, order_ids: Iterable[UUID]) -> list[Payment]:
    """Lock the payments of orders for the rest of the transaction, in primary-key order."""
    return [_as_payment(row) for row in await transaction.fetch(LOCK_PAYMENTS_OF_ORDERS, ids=sorted(set(order_ids)))]


def write_payments(transaction: Transaction, changes: Iterable[tuple[Payment, Payment]]) -> None:
    """Write what became of payments, of each (as it is known, as it shall be).

    The transaction fails with StaleWrite when one of them has another version than is known.
    """
    # In primary-key order, as everywhere.
    in_order = sorted(((known, new) for known, new in changes if new != known), key=lambda change: change[0].id)
    if in_order:
        values = {f"new_{name}": [getattr(new, name) for _, new in in_order] for name in ("id", *_MUTABLE)}
        transaction.write(WRITE_PAYMENTS, known_versions=[known.version for known, _ in in_order], **values)


def add_entries(transaction: Transaction, news: Iterable[Entry]) -> None:
    """Append to the ledger."""
    transaction.add(ADD_ENTRIES, map(_entry_values, news))


async def lease_overdue(transaction: Transaction, lease: timedelta, *, most: int) -> list[Payment]:
    """Take up to `most` payments that nobody is working on, the longest due first, and keep them for `lease`."""
    rows = await transaction.fetch(LEASE_OVERDUE, lease=lease, most=most)
    return [_as_payment(row) for row in rows]


def _as_payment(row: Row) -> Payment:
    values: dict[str, Any] = dict(row.items())
    values["status"] = PaymentStatus(values["status"])
    return Payment(**values)
