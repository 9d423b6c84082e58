"""An audit: what the databases of a mesh hold, read and checked against the invariants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import asyncpg

from ops.audit import invariants
from ops.audit.invariants import Books, Charge, Check, Order, Stock

_ORDERS = """
SELECT o.id, o.status, o.total, array_agg(i.product_id) AS products, array_agg(i.quantity) AS quantities
FROM orders o JOIN order_items i ON i.order_id = o.id
WHERE o.status <> 'ABANDONED' AND ($1::uuid IS NULL OR o.id >= $1) AND ($2::uuid[] IS NULL OR o.customer_id = ANY($2))
GROUP BY o.id
"""
_CHARGES = """
SELECT c.order_id, c.amount, c.refunded_amount FROM sandbox.charges c LEFT JOIN payments p ON p.order_id = c.order_id
WHERE c.status = 'APPROVED' AND ($1::uuid IS NULL OR c.order_id >= $1)
    AND ($2::uuid[] IS NULL OR p.customer_id = ANY($2))
"""
# All in one statement, so that they are of one snapshot. The outcome of a payment that is due may not be recorded yet.
_BOOKS = """
SELECT p.id, p.next_attempt_time IS NOT NULL OR coalesce(refunds.are_due, false) AS is_due,
    coalesce(refunds.amount, 0) AS refunds,
    CASE WHEN p.status IN ('CAPTURED', 'PARTIALLY_REFUNDED', 'REFUNDED') THEN p.amount ELSE 0 END AS captured,
    p.refunded_amount AS refunded,
    coalesce(entries.captured, 0) AS entries_captured, coalesce(entries.refunded, 0) AS entries_refunded,
    CASE c.status WHEN 'APPROVED' THEN c.amount ELSE 0 END AS provider_captured,
    coalesce(c.refunded_amount, 0) AS provider_refunded
FROM payments p LEFT JOIN sandbox.charges c ON c.key = p.provider_key LEFT JOIN (
    SELECT payment_id, sum(amount) FILTER (WHERE type = 'CAPTURE') AS captured,
        sum(amount) FILTER (WHERE type = 'REFUND') AS refunded
    FROM payment_entries GROUP BY 1
) AS entries ON entries.payment_id = p.id LEFT JOIN (
    SELECT payment_id, sum(amount) FILTER (WHERE status = 'SUCCEEDED') AS amount,
        bool_or(status = 'PENDING') AS are_due
    FROM refunds GROUP BY 1
) AS refunds ON refunds.payment_id = p.id
WHERE ($1::uuid IS NULL OR p.order_id >= $1) AND ($2::uuid[] IS NULL OR p.customer_id = ANY($2))
"""
_HELD = """
SELECT order_id FROM holds
WHERE state = 'HELD' AND ($1::uuid IS NULL OR order_id >= $1) AND ($2::uuid[] IS NULL OR customer_id = ANY($2))
"""
# Both sums in one statement, so that they are of one snapshot.
_STOCK = """
WITH held AS (
    SELECT product_id, sum(quantity)::bigint AS quantity FROM holds JOIN hold_lines USING (order_id)
    WHERE state = 'HELD' GROUP BY 1
), ledger AS (
    SELECT product_id, sum(delta)::bigint AS delta FROM stock_movements
    WHERE $1::uuid[] IS NULL OR product_id = ANY($1) GROUP BY 1
)
SELECT product_id, on_hand, reserved, coalesce(delta, 0) AS ledger, coalesce(quantity, 0) AS held
FROM stocks LEFT JOIN ledger USING (product_id) LEFT JOIN held USING (product_id)
WHERE $1::uuid[] IS NULL OR product_id = ANY($1)
"""
_MOVED = """
SELECT order_id, product_id, sum(delta)::bigint AS delta FROM stock_movements
WHERE order_id IS NOT NULL AND ($1::uuid IS NULL OR order_id >= $1) AND ($2::uuid[] IS NULL OR product_id = ANY($2))
GROUP BY 1, 2
"""


class Mesh(Protocol):
    """What an audit needs to know of a mesh."""

    @property
    def nats_url(self) -> str:
        """A NATS user who may read all streams."""

    async def connect(self, database: str) -> asyncpg.Connection:
        """A connection to the database of a service, as a user who may read all of it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of the data is audited; the default is all of it."""

    customers: Sequence[UUID] | None = None
    """Orders of these customers."""
    since: UUID | None = None
    """Orders with this id or a greater one. Ids are UUIDv7, so these are the later orders."""
    products: Sequence[UUID] | None = None


class Audit:
    """An audit of a mesh. It is meant for a mesh at rest (`Activity.wait`).

    In a mesh that is busy, `sales` and `holds` also report orders whose events are still on their way.
    """

    def __init__(self, mesh: Mesh, scope: Scope | None = None) -> None:
        self._mesh = mesh
        self._scope = scope or Scope()

    async def run(self) -> list[Check]:
        """Check every invariant once."""
        scope, is_whole = self._scope, self._scope == Scope()
        # Orders first: what an order implies is then committed already.
        orders = await self._orders()
        product_ids = {product_id for order in orders.values() for product_id in order.quantities}
        charged: dict[UUID, list[Charge]] = {}
        for row in await self._fetch("payment", _CHARGES, scope.since, scope.customers):
            charged.setdefault(row["order_id"], []).append(Charge(row["amount"], row["refunded_amount"]))
        moved: dict[UUID, dict[UUID, int]] = {}
        for row in await self._fetch("product", _MOVED, scope.since, None if is_whole else list(product_ids)):
            if is_whole or row["order_id"] in orders:
                moved.setdefault(row["order_id"], {})[row["product_id"]] = row["delta"]
        held = await self._fetch("product", _HELD, scope.since, scope.customers)
        books = {
            row["id"]: Books(
                (row["captured"], row["refunded"]),
                (row["entries_captured"], row["entries_refunded"]),
                row["refunds"],
                None if row["is_due"] else (row["provider_captured"], row["provider_refunded"]),
            )
            for row in await self._fetch("payment", _BOOKS, scope.since, scope.customers)
        }
        stocks = await self._fetch("product", _STOCK, scope.products)
        return [
            invariants.stock({row["product_id"]: Stock(*list(row.values())[1:]) for row in stocks}),
            invariants.sales(orders, moved),
            invariants.charges(orders, charged),
            invariants.ledger(books),
            invariants.holds(orders, [row["order_id"] for row in held]),
        ]

    async def violations(self) -> list[str]:
        """The violations of all invariants."""
        return [violation for check in await self.run() for violation in check.violations]

    async def _orders(self) -> dict[UUID, Order]:
        orders = {}
        for row in await self._fetch("orders", _ORDERS, self._scope.since, self._scope.customers):
            quantities: Counter[UUID] = Counter()
            for product_id, quantity in zip(row["products"], row["quantities"], strict=True):
                quantities[product_id] += quantity
            orders[row["id"]] = Order(row["status"], row["total"], quantities)
        return orders

    async def _fetch(self, database: str, query: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await self._mesh.connect(database)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()
