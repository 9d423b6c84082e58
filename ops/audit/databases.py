"""What must be true within one database. Each statement sees one snapshot, so these hold at any time, under any load.

The statements return only breaches. `$1`, in those that read all rows otherwise, is the time since which something has
changed, null for everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import asyncpg

from commerce.order.v1 import events_pb2
from mesh.events.cloudevents import type_of
from ops.audit.reading import Reading
from ops.audit.report import Check

CANCELLING_LIMIT = "15 minutes"
"""After this time, an order that is still being cancelled is a breach: its refund was refused, or an answer is lost."""
GRACE = "1 minute"
"""How long a sweep may take to come."""
_MOST = 10_000
"""Breaches that are read of one check; there may be more."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """An invariant of one database."""

    name: str
    what: str
    service: str
    count: str
    """The statement that counts the things that are checked."""
    breaches: str
    """The statement whose rows are the breaches."""
    text: str
    """The text of a breach, with the columns of its row."""

    async def check(self, reading: Reading) -> Check:
        """Check it."""
        check = Check(self.name, self.what, "everything")
        [counted] = await self._rows(reading, self.count)
        check.checked = counted[0]
        rows = await self._rows(reading, f"{self.breaches} LIMIT {_MOST}")
        check.breach_each(self.text.format(**{name: _plain(value) for name, value in row.items()}) for row in rows)
        return check

    async def _rows(self, reading: Reading, query: str) -> list[asyncpg.Record]:
        return await reading.fetch(self.service, query, *([reading.window.since] if "$1" in query else []))


def _plain(value: Any) -> Any:
    """A number without the zeros at its end."""
    return f"{value.normalize():f}" if hasattr(value, "normalize") else value


_CHANGED_PRODUCTS = "$1::timestamptz IS NULL OR update_time >= $1"

ON_HAND = Invariant(
    "on-hand",
    "the stock on hand of each product is the sum of its stock ledger",
    "product",
    f"SELECT count(*) FROM stocks WHERE {_CHANGED_PRODUCTS}",
    f"""
    SELECT product_id, on_hand, coalesce(ledger, 0) AS ledger FROM stocks LEFT JOIN (
        SELECT product_id, sum(delta) AS ledger FROM stock_movements
        WHERE $1::timestamptz IS NULL OR product_id IN (SELECT product_id FROM stocks WHERE update_time >= $1)
        GROUP BY 1
    ) AS sums USING (product_id)
    WHERE ({_CHANGED_PRODUCTS}) AND on_hand <> coalesce(ledger, 0)
    """,
    "product {product_id} has {on_hand} on hand, but its ledger says {ledger}",
)

RESERVED = Invariant(
    "reserved",
    "the reserved stock of each product is the sum of its live holds",
    "product",
    "SELECT count(*) FROM stocks",
    """
    SELECT product_id, reserved, coalesce(held, 0) AS held FROM stocks FULL JOIN (
        SELECT product_id, sum(quantity) AS held FROM holds JOIN hold_lines USING (order_id)
        WHERE state = 'HELD' GROUP BY 1
    ) AS sums USING (product_id)
    WHERE reserved IS DISTINCT FROM coalesce(held, 0)
    """,
    "product {product_id} has {reserved} reserved, but live holds are for {held}",
)

# The outcome of a payment or a refund that is due may stand at the provider already.
AMOUNTS = Invariant(
    "amounts",
    "the amounts of each payment are those of its ledger, its refunds and the provider",
    "payment",
    """
    SELECT count(*) FROM payments WHERE $1::timestamptz IS NULL OR create_time >= $1 OR process_time >= $1
        OR id IN (SELECT payment_id FROM refunds WHERE process_time >= $1)
    """,
    """
    SELECT * FROM (
        SELECT p.id, p.order_id, p.status,
            CASE WHEN p.status IN ('CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED') THEN p.amount ELSE 0 END AS captured,
            p.refunded_amount AS refunded, p.provider = 'sandbox' AND p.next_attempt_time IS NULL AS is_known,
            coalesce(ledger.captured, 0) AS ledger_captured, coalesce(ledger.refunded, 0) AS ledger_refunded,
            coalesce(refunds.succeeded, 0) AS refunds, coalesce(refunds.are_due, false) AS are_due,
            CASE c.status WHEN 'APPROVED' THEN c.amount ELSE 0 END AS provider_captured,
            coalesce(c.refunded_amount, 0) AS provider_refunded
        FROM payments p LEFT JOIN sandbox.charges c ON c.key = p.provider_key LEFT JOIN (
            SELECT payment_id, sum(amount) FILTER (WHERE type = 'CAPTURE') AS captured,
                sum(amount) FILTER (WHERE type = 'REFUND') AS refunded
            FROM payment_entries GROUP BY 1
        ) AS ledger ON ledger.payment_id = p.id LEFT JOIN (
            SELECT payment_id, sum(amount) FILTER (WHERE status = 'SUCCEEDED') AS succeeded,
                bool_or(status = 'PENDING') AS are_due
            FROM refunds GROUP BY 1
        ) AS refunds ON refunds.payment_id = p.id
        WHERE $1::timestamptz IS NULL OR p.create_time >= $1 OR p.process_time >= $1
            OR p.id IN (SELECT payment_id FROM refunds WHERE process_time >= $1)
    ) AS books
    WHERE (captured, refunded) <> (ledger_captured, ledger_refunded) OR refunded <> refunds
        OR is_known AND captured <> coalesce(provider_captured, 0)
        OR is_known AND NOT are_due AND refunded <> provider_refunded
    """,
    "payment {id} of order {order_id} ({status}) has captured {captured} and refunded {refunded}, its ledger says"
    " {ledger_captured} and {ledger_refunded}, its refunds {refunds}, and the provider {provider_captured} and"
    " {provider_refunded}",
)

# The payment service asks the providers; it resolves a finding when both agree again.
RECONCILIATION = Invariant(
    "reconciliation",
    "the payment service has found no difference to the records of the providers that is still there",
    "payment",
    AMOUNTS.count,
    "SELECT payment_id, lower(type) AS type, reference, booked, recorded FROM findings WHERE resolve_time IS NULL",
    "payment {payment_id}: the {type} {reference} is of {booked} in the books and of {recorded} at the provider",
)

CHARGES = Invariant(
    "charges",
    "the provider has charged each order once at most, and only for payments that exist",
    "payment",
    "SELECT count(*) FROM sandbox.charges WHERE $1::timestamptz IS NULL OR create_time >= $1",
    """
    SELECT order_id, charges, keys FROM (
        SELECT c.order_id, count(*) AS charges, string_agg(c.key, ', ' ORDER BY c.key) AS keys,
            bool_and(p.id IS NOT NULL) AS are_known
        FROM sandbox.charges c LEFT JOIN payments p ON p.provider_key = c.key AND p.order_id = c.order_id
        WHERE c.status = 'APPROVED' AND ($1::timestamptz IS NULL OR c.order_id IN (
            SELECT order_id FROM sandbox.charges WHERE create_time >= $1
        ))
        GROUP BY 1
    ) AS charged WHERE charges > 1 OR NOT are_known
    """,
    "order {order_id} was charged {charges} times at the provider, as {keys}, and has not as many payments",
)

REFUNDS = Invariant(
    "refunds",
    "the refunds of a payment never exceed what was captured",
    "payment",
    """
    SELECT count(*) FROM refunds
    WHERE $1::timestamptz IS NULL OR create_time >= $1 OR process_time >= $1 OR process_time IS NULL
    """,
    """
    SELECT * FROM (
        SELECT p.id, p.order_id,
            CASE WHEN p.status IN ('CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED') THEN p.amount ELSE 0 END AS captured,
            greatest(p.refunded_amount, each.refunds, (
                SELECT sum(amount) FROM payment_entries WHERE payment_id = p.id AND type = 'REFUND'
            ), (
                SELECT sum(amount) FROM sandbox.refunds WHERE charge_key = p.provider_key AND status = 'SUCCEEDED'
            )) AS refunded
        FROM payments p JOIN (
            SELECT payment_id, sum(amount) FILTER (WHERE status <> 'FAILED') AS refunds FROM refunds GROUP BY 1
        ) AS each ON each.payment_id = p.id
        WHERE $1::timestamptz IS NULL OR p.id IN (
            SELECT payment_id FROM refunds WHERE create_time >= $1 OR process_time >= $1 OR process_time IS NULL
        )
    ) AS books WHERE refunded > captured
    """,
    "payment {id} of order {order_id} has captured {captured}, and its refunds come to {refunded}",
)

# An order that is still cancelling is changed again whenever the payment service is asked again. So its history tells
# since when.
DEADLINES = Invariant(
    "deadlines",
    f"no order is PENDING {GRACE} after its deadline, or CANCELLING for {CANCELLING_LIMIT}",
    "order",
    "SELECT count(*) FROM orders WHERE status IN ('PENDING', 'CANCELLING')",
    f"""
    SELECT * FROM (
        SELECT id, status, payment_deadline AS since FROM orders
        WHERE status = 'PENDING' AND payment_deadline < now() - interval '{GRACE}'
        UNION ALL
        SELECT id, status, coalesce((
            SELECT max(time) FROM order_history WHERE subject_id = id AND type = '{type_of(events_pb2.OrderCancelling)}'
        ), update_time) FROM orders WHERE status = 'CANCELLING'
    ) AS late
    WHERE status = 'PENDING' OR since < now() - interval '{CANCELLING_LIMIT}'
    """,
    "order {id} is {status}, beyond its deadline, since {since:%Y-%m-%d %H:%M:%S}",
)

INVARIANTS = (ON_HAND, RESERVED, AMOUNTS, RECONCILIATION, CHARGES, REFUNDS, DEADLINES)
