"""The invariants: what is right passes, and each violation is named."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from ops.audit.invariants import Books, Charge, Check, Order, Stock, charges, holds, ledger, sales, stock

ORDER, PRODUCT = uuid4(), uuid4()
PAID = Charge(Decimal(5), refunded=Decimal(0))
REFUNDED = Charge(Decimal(5), refunded=Decimal(5))


def an_order(status: str = "CONFIRMED", total: int = 5) -> dict[UUID, Order]:
    return {ORDER: Order(status, Decimal(total), {PRODUCT: 3})}


def test_stock_that_its_ledger_and_holds_explain_is_right() -> None:
    assert stock({PRODUCT: Stock(on_hand=7, reserved=2, ledger=7, held=2)}) == Check("stock", 1)


def test_stock_that_its_ledger_or_holds_do_not_explain_is_named() -> None:
    assert stock({PRODUCT: Stock(on_hand=7, reserved=2, ledger=8, held=3)}).violations == [
        f"product {PRODUCT} has 7 on hand, but its ledger says 8",
        f"product {PRODUCT} has 2 reserved, but holds for 3",
    ]


@pytest.mark.parametrize(
    ("status", "delta"), [("CONFIRMED", -3), ("SHIPPED", -3), ("DELIVERED", -3), ("CANCELLED", 0), ("PENDING", 0)]
)
def test_a_kept_order_has_moved_its_stock_and_no_other_order_has(status: str, delta: int) -> None:
    assert sales(an_order(status), {ORDER: {PRODUCT: delta}} if delta else {}) == Check("sales", 1)
    for wrong in (delta - 3, delta + 3):
        assert len(sales(an_order(status), {ORDER: {PRODUCT: wrong}}).violations) == 1


def test_a_returned_sale_moves_no_stock() -> None:
    assert sales(an_order("CANCELLED"), {ORDER: {PRODUCT: 0}}).violations == []


def test_a_sale_that_is_missing_or_of_no_order_is_named() -> None:
    wrong = f"1 orders have moved stock wrongly, such as {ORDER}"
    [missing] = sales(an_order(), {}).violations
    assert missing == f"{wrong} (CONFIRMED): stock moved by nothing, not by -3 of {PRODUCT}"
    [of_no_order] = sales({}, {ORDER: {PRODUCT: -1}}).violations
    assert of_no_order == f"{wrong} (unknown): stock moved by -1 of {PRODUCT}, not by nothing"


@pytest.mark.parametrize(
    ("orders", "found"),
    [
        (an_order(), [PAID]),
        (an_order(), [REFUNDED]),
        (an_order(total=0), []),
        (an_order("CANCELLED"), []),
        (an_order("CANCELLED"), [REFUNDED]),
        (an_order("PENDING"), [PAID]),
        (an_order("PENDING"), []),
        (an_order("CANCELLING"), [PAID]),
    ],
)
def test_orders_that_are_charged_as_they_should_be_are_right(orders: dict[UUID, Order], found: list[Charge]) -> None:
    assert charges(orders, {ORDER: found}).violations == []


@pytest.mark.parametrize(
    ("orders", "found", "violation"),
    [
        (an_order(), [PAID, PAID], "were charged more than once"),
        (an_order("PENDING"), [PAID, REFUNDED], "were charged more than once"),
        (an_order(), [], "are confirmed and were not charged"),
        (an_order(total=6), [PAID], "were charged another amount than their total"),
        (an_order("CANCELLED"), [PAID], "are cancelled and were not refunded"),
        ({}, [PAID], "were charged and do not exist"),
    ],
)
def test_orders_that_are_charged_wrongly_are_named(
    orders: dict[UUID, Order], found: list[Charge], violation: str
) -> None:
    assert charges(orders, {ORDER: found}).violations == [f"1 orders {violation}, such as {ORDER}"]


def test_only_an_order_that_is_not_decided_may_hold_stock() -> None:
    assert holds(an_order("PENDING"), [ORDER, uuid4()]) == Check("holds", 2)
    assert holds(an_order("CANCELLED"), [ORDER]).violations == [f"1 decided orders still hold stock, such as {ORDER}"]


def test_a_payment_has_the_amounts_of_its_entries_and_of_its_provider() -> None:
    five, none = (Decimal(5), Decimal(2)), (Decimal(0), Decimal(0))
    two, zero = Decimal(2), Decimal(0)
    right = {uuid4(): Books(five, five, two, five), uuid4(): Books(none, none, zero, None)}
    assert ledger(right) == Check("ledger", 2)
    for wrong, violation in (
        (Books(five, none, two, five), "other amounts than their entries"),
        (Books(five, five, zero, five), "another amount refunded than their refunds"),
        (Books(none, none, zero, five), "other amounts than at the provider"),
    ):
        assert ledger({ORDER: wrong}).violations == [f"1 payments have {violation}, such as {ORDER}"]
