"""The invariants, as functions of what the databases hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from uuid import UUID

KEPT = frozenset({"CONFIRMED", "SHIPPED", "DELIVERED"})
"""The statuses of an order that is paid for and has its goods."""
DECIDED = KEPT | {"CANCELLED"}
"""The statuses of an order whose payment has come to its result."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order and its lines, from the order service's database."""

    status: str
    total: Decimal
    quantities: Mapping[UUID, int]
    """How much of each product it is for."""


@dataclass(frozen=True, slots=True)
class Stock:
    """The stock of a product, from one snapshot of the product service's database."""

    on_hand: int
    reserved: int
    ledger: int
    """The sum of all its movements."""
    held: int
    """The sum of all holds that are neither committed nor released."""


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge that the payment provider has approved."""

    amount: Decimal
    refunded: Decimal


@dataclass(frozen=True, slots=True)
class Books:
    """What the payment service, its ledger and the provider say of one payment, each as (captured, refunded)."""

    payment: tuple[Decimal, Decimal]
    entries: tuple[Decimal, Decimal]
    refunds: Decimal
    """The sum of its refunds that have succeeded."""
    provider: tuple[Decimal, Decimal] | None
    """None while the outcome of a request to the provider is not recorded."""


@dataclass(frozen=True, slots=True)
class Check:
    """One invariant that was checked."""

    name: str
    checked: int
    """How many rows it was checked for."""
    violations: list[str] = field(default_factory=list)


def stock(stocks: Mapping[UUID, Stock]) -> Check:
    """The stock of each product is what its ledger and its holds say. True at any time."""
    violations = []
    for product_id, found in stocks.items():
        if found.on_hand != found.ledger:
            violations.append(f"product {product_id} has {found.on_hand} on hand, but its ledger says {found.ledger}")
        if found.reserved != found.held:
            violations.append(f"product {product_id} has {found.reserved} reserved, but holds for {found.held}")
    return Check("stock", len(stocks), violations)


def sales(orders: Mapping[UUID, Order], moved: Mapping[UUID, Mapping[UUID, int]]) -> Check:
    """Each kept order has taken its goods from the stock once, and no other order has. True of a mesh at rest.

    `moved` is by how much the movements of each order have changed the stock of each product.
    """
    wrong = {}
    for order_id in orders.keys() | moved.keys():
        order = orders.get(order_id)
        expected = {}
        if order and order.status in KEPT:
            expected = {product_id: -quantity for product_id, quantity in order.quantities.items()}
        found = {product_id: delta for product_id, delta in moved.get(order_id, {}).items() if delta}
        if found != expected:
            status = order.status if order else "unknown"
            wrong[order_id] = f"({status}): stock moved by {_text(found)}, not by {_text(expected)}"
    violations = [f"{_counted(list(wrong), 'orders have moved stock wrongly')} {wrong[min(wrong)]}"] if wrong else []
    return Check("sales", len(orders), violations)


def charges(orders: Mapping[UUID, Order], charged: Mapping[UUID, Sequence[Charge]]) -> Check:
    """Each kept order is charged once, with its total; a cancelled one is refunded; no unknown order is charged.

    True of a mesh at rest. An order whose total is zero is not charged. Staff may refund a kept order.
    """
    wrong: dict[str, list[UUID]] = {}
    for order_id in orders.keys() | charged.keys():
        order, found = orders.get(order_id), charged.get(order_id, ())
        if fault := _charging_fault(order, found):
            wrong.setdefault(fault, []).append(order_id)
    return Check("charges", len(orders), [_counted(ids, f"orders {fault}") for fault, ids in wrong.items()])


def _charging_fault(order: Order | None, found: Sequence[Charge]) -> str:
    kept = [charge for charge in found if charge.refunded < charge.amount]
    if order is None:
        return "were charged and do not exist" if found else ""
    if len(found) > 1:
        return "were charged more than once"
    if order.status not in DECIDED:
        return ""
    if order.status not in KEPT:
        return "are cancelled and were not refunded" if kept else ""
    if not found:
        return "are confirmed and were not charged" if order.total else ""
    return "were charged another amount than their total" if found[0].amount != order.total else ""


def holds(orders: Mapping[UUID, Order], held: Sequence[UUID]) -> Check:
    """No decided order still holds stock. True of a mesh at rest. `held` are the orders of the live holds."""
    late = [order_id for order_id in held if (order := orders.get(order_id)) and order.status in DECIDED]
    violations = [_counted(late, "decided orders still hold stock")] if late else []
    return Check("holds", len(held), violations)


def ledger(books: Mapping[UUID, Books]) -> Check:
    """The amounts of each payment are those of its entries, its refunds and the provider. True at any time."""
    wrong: dict[str, list[UUID]] = {}
    for payment_id, found in books.items():
        if found.entries != found.payment:
            wrong.setdefault("payments have other amounts than their entries", []).append(payment_id)
        if found.refunds != found.payment[1]:
            wrong.setdefault("payments have another amount refunded than their refunds", []).append(payment_id)
        if found.provider not in (None, found.payment):
            wrong.setdefault("payments have other amounts than at the provider", []).append(payment_id)
    return Check("ledger", len(books), [_counted(ids, what) for what, ids in wrong.items()])


def _counted(ids: Sequence[UUID], what: str) -> str:
    return f"{len(ids)} {what}, such as {min(ids)}"


def _text(deltas: Mapping[UUID, int]) -> str:
    return ", ".join(f"{delta:+} of {product_id}" for product_id, delta in sorted(deltas.items())) or "nothing"
