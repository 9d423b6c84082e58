"""Orders: what the order, payment and product services know of each must fit together.

Orders are read in portions by their ids, and with each portion what the other two services have of these ids. So the
memory of an audit does not depend on the number of orders. The three databases are read one after the other, the order
service first. What one snapshot misses of another is excluded in two ways: an order that has changed within the window
is not judged, and one that seems wrong is read again, together with its version before and after.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from mesh.ids import FIRST_ID, LAST_ID
from ops.audit.reading import Reading, first_id, time_of
from ops.audit.report import Check

PORTION = 5_000
"""The number of orders that are in memory at a time."""
SWEEP = timedelta(minutes=3)
"""How long after its expiry a hold may wait for its sweep. One that is kept is swept again after a minute."""
KEPT = frozenset({"CONFIRMED", "SHIPPED", "DELIVERED"})
"""The statuses of an order that is paid for and has its goods."""
_CAPTURED = frozenset({"CAPTURED", "PARTIALLY_REFUNDED"})
_CLOCKS = timedelta(minutes=1)
"""By how much the clocks of two machines differ at most."""
_MOST_CHANGED = 200_000
"""More orders than this are not read by their ids; then all are."""

# The lines of an order or a hold are compared by this sum.
_LINES = "sum(quantity * ('x' || right(product_id::text, 12))::bit(48)::bigint)"
_ORDER = f"""
SELECT id, status, total, update_time, version,
    (SELECT {_LINES} FROM order_items WHERE order_id = orders.id) AS lines FROM orders
"""
_PAYMENT = "SELECT order_id, id, status, amount, coalesce(process_time, create_time) AS time FROM payments"
_HOLD = f"""
SELECT order_id, state, expire_time, create_time,
    (SELECT {_LINES} FROM hold_lines WHERE hold_lines.order_id = holds.order_id) AS lines FROM holds
"""
_LAST = "SELECT id FROM orders WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1"
_CHANGED = f"SELECT id FROM orders WHERE id < $1 AND update_time >= $2 LIMIT {_MOST_CHANGED + 1}"
_LIVE = f"SELECT order_id FROM holds WHERE state = 'HELD' AND order_id < $1 LIMIT {_MOST_CHANGED + 1}"
_MOVED = """
SELECT coalesce(moved.order_id, sold.order_id) AS order_id, coalesce(moved.product_id, sold.product_id) AS product_id,
    coalesce(moved.delta, 0) AS delta, coalesce(sold.delta, 0) AS expected
FROM (
    SELECT order_id, product_id, sum(delta) AS delta FROM stock_movements
    WHERE order_id >= $1 OR order_id = ANY($2) GROUP BY 1, 2 HAVING sum(delta) <> 0
) AS moved FULL JOIN (
    SELECT order_id, product_id, -quantity AS delta FROM holds JOIN hold_lines USING (order_id)
    WHERE state = 'COMMITTED' AND (order_id >= $1 OR order_id = ANY($2))
) AS sold USING (order_id, product_id)
WHERE moved.delta IS DISTINCT FROM sold.delta LIMIT 10000
"""


class Order(NamedTuple):
    """An order of the order service."""

    status: str
    total: Decimal
    update_time: datetime
    version: int
    lines: Decimal | None


class Payment(NamedTuple):
    """The payment of an order, of the payment service."""

    id: UUID
    status: str
    amount: Decimal
    time: datetime


class Hold(NamedTuple):
    """The hold of an order, of the product service."""

    state: str
    expire_time: datetime
    create_time: datetime
    lines: Decimal | None


class Known(NamedTuple):
    """What is known of an order, by service; None if a service knows nothing."""

    order: Order | None
    payment: Payment | None
    hold: Hold | None


def faults(order_id: UUID, known: Known, *, now: datetime, until: datetime) -> dict[str, str]:
    """What is wrong with an order, by the name of the check. Nothing if it has changed after `until`."""
    order, payment, hold = known
    if (order.update_time if order else time_of(order_id)) >= until:
        return {}
    found = {
        "captures": _wrong_payment(order, payment, until),
        "sales": _wrong_sale(order, hold),
        "holds": _wrong_hold(order, hold, now),
    }
    subject = f"order {order_id} ({order.status})" if order else f"order {order_id}, which does not exist,"
    return {name: f"{subject} {fault}" for name, fault in found.items() if fault}


def _wrong_payment(order: Order | None, payment: Payment | None, until: datetime) -> str:
    """What is wrong with the payment of an order."""
    is_kept = order is not None and order.status in KEPT
    if payment is None:
        return "has no payment" if is_kept else ""
    is_captured = payment.status in _CAPTURED
    if is_captured and not is_kept and not (order and order.status == "CANCELLING"):
        # A captured payment confirms its order a moment later.
        if order and order.status == "PENDING" and payment.time >= until:
            return ""
        return f"has payment {payment.id}, which is {payment.status}"
    if order is None or not is_kept:
        return ""
    if not is_captured and payment.status != "REFUNDED":
        return f"has payment {payment.id}, which is {payment.status}"
    return (
        "" if payment.amount == order.total else f"has a total of {order.total:f}, but its payment {payment.amount:f}"
    )


def _wrong_sale(order: Order | None, hold: Hold | None) -> str:
    """What is wrong with the goods of an order."""
    if order is not None and order.status in KEPT:
        if hold is None:
            return "has no hold"
        if hold.state != "COMMITTED":
            return f"has not taken its goods: its hold is {hold.state}"
        return "" if hold.lines == order.lines else "has other items than its hold"
    if hold is not None and hold.state == "COMMITTED" and not (order and order.status in ("CANCELLING", "PENDING")):
        return "has taken goods: its hold is COMMITTED"
    return ""


def _wrong_hold(order: Order | None, hold: Hold | None, now: datetime) -> str:
    """What is wrong with the live hold of an order."""
    if order and order.status == "PENDING" and (hold is None or hold.state not in ("HELD", "COMMITTED")):
        return f"holds no stock: its hold is {hold.state if hold else 'missing'}"
    if hold is None or hold.state != "HELD":
        return ""
    if order and order.status in ("PENDING", "CANCELLING", "PLACING"):
        return ""
    if order and order.status in ("CANCELLED", *KEPT):
        return "is decided and still holds stock"
    # The attempt to place it may still be under way, or has failed.
    return "" if hold.expire_time + SWEEP >= now else "holds stock that its sweep has not released"


class Orders:
    """Compares the orders of the three services, portion by portion."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    async def check(self) -> list[Check]:
        """Check the three invariants of orders in one pass."""
        checks = {
            "captures": Check(
                "captures",
                "every captured payment has one order, CONFIRMED or later or CANCELLING, and every such order is paid",
                "everything",
            ),
            "sales": Check(
                "sales", "every order that is kept has taken its goods once, and no other has", "everything"
            ),
            "holds": Check(
                "holds", "every live hold has an order that waits, or is younger than its sweep", "everything"
            ),
        }
        first, changed = await self._changed()
        window = self._reading.window
        async for portion in self._portions(first, changed):
            suspects = []
            for order_id, known in portion.items():
                checks["captures"].checked += known.payment is not None
                checks["sales"].checked += known.order is not None
                checks["holds"].checked += known.hold is not None and known.hold.state == "HELD"
                if faults(order_id, known, now=window.now, until=window.until):
                    suspects.append(order_id)
            for start in range(0, len(suspects), 1000):
                for name, fault in await self._confirmed(suspects[start : start + 1000]):
                    checks[name].breach(fault)
        for row in await self._reading.fetch("product", _MOVED, first, changed):
            checks["sales"].breach(
                f"order {row['order_id']} has moved the stock of product {row['product_id']} by {row['delta']},"
                f" and its hold has sold {-row['expected']}"
            )
        return list(checks.values())

    async def _changed(self) -> tuple[UUID, list[UUID]]:
        """The first id of the orders that are read in their order, and older ones that have changed."""
        since = self._reading.window.since
        if since is None:
            return FIRST_ID, []
        first = first_id(since - _CLOCKS)
        changed = {row["id"] for row in await self._reading.fetch("order", _CHANGED, first, since)}
        # A hold without an order is judged when it expires.
        changed |= {row["order_id"] for row in await self._reading.fetch("product", _LIVE, first)}
        return (FIRST_ID, []) if len(changed) > _MOST_CHANGED else (first, sorted(changed))

    async def _portions(self, first: UUID, changed: Sequence[UUID]) -> AsyncIterator[Mapping[UUID, Known]]:
        for start in range(0, len(changed), PORTION):
            yield await self._read("= ANY($1)", changed[start : start + PORTION])
        begin = UUID(int=max(0, first.int - 1))
        while begin < LAST_ID:
            end = await self._reading.value("order", _LAST, begin, PORTION - 1) or LAST_ID
            yield await self._read("> $1 AND {} <= $2", begin, end)
            begin = end

    async def _confirmed(self, order_ids: Sequence[UUID]) -> list[tuple[str, str]]:
        """The faults of orders that are still there when they are read again, each with the name of its check."""
        known = await self._read("= ANY($1)", order_ids)
        after = {row["id"]: row["version"] for row in await self._reading.fetch("order", _VERSIONS, order_ids)}
        window = self._reading.window
        return [
            found
            for order_id, each in known.items()
            if (each.order and each.order.version) == after.get(order_id)
            for found in faults(order_id, each, now=window.now, until=window.until).items()
        ]

    async def _read(self, condition: str, *arguments: object) -> dict[UUID, Known]:
        """What the services know of the orders with these ids."""
        orders = await self._reading.fetch("order", f"{_ORDER} WHERE id {condition.format('id')}", *arguments)
        payments = await self._reading.fetch(
            "payment", f"{_PAYMENT} WHERE order_id {condition.format('order_id')}", *arguments
        )
        holds = await self._reading.fetch(
            "product", f"{_HOLD} WHERE order_id {condition.format('order_id')}", *arguments
        )
        by_id = {row["id"]: Order(*_values(row)) for row in orders}
        paid = {row["order_id"]: Payment(*_values(row)) for row in payments}
        held = {row["order_id"]: Hold(*_values(row)) for row in holds}
        return {
            order_id: Known(by_id.get(order_id), paid.get(order_id), held.get(order_id))
            for order_id in by_id.keys() | paid.keys() | held.keys()
        }


_VERSIONS = "SELECT id, version FROM orders WHERE id = ANY($1)"


def _values(row: Iterable[Any]) -> list[Any]:
    """The values of a row without its first one."""
    return list(row)[1:]
