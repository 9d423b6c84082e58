"""The sums that must hold after a load: each breach is seen and named."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from ops.bench.driver import Answers, Tally
from ops.bench.sums import Order, accepted_and_there, one_charge_each, stock_down_by_what_was_sold

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def tally_of(*orders: UUID, unknown: int = 0) -> Tally:
    answers = Answers()
    answers.times.extend([0.0] * len(orders))
    return Tally(answers={"place": answers}, orders={str(each).encode() for each in orders}, unknown=unknown)


def there(*orders: UUID) -> dict[UUID, Order]:
    return {each: Order("CONFIRMED", Decimal(1), NOW, NOW) for each in orders}


def test_accepted_orders_that_are_there_are_right() -> None:
    orders = [uuid4(), uuid4()]
    assert accepted_and_there(tally_of(*orders), there(*orders)) == []


def test_a_lost_order_is_named() -> None:
    kept, lost = uuid4(), uuid4()
    assert accepted_and_there(tally_of(kept, lost), there(kept)) == [f"1 accepted orders are not there, as {lost}"]


def test_two_acceptances_of_one_order_are_named() -> None:
    order = uuid4()
    assert accepted_and_there(tally_of(order, order), there(order)) == ["2 orders were accepted under 1 ids"]


def test_an_order_that_nobody_was_told_of_is_right_only_if_somebody_was_cut_off() -> None:
    more = uuid4()
    assert accepted_and_there(tally_of(unknown=1), there(more)) == []
    assert accepted_and_there(tally_of(), there(more)) == [f"1 orders are there that nobody was told of, as {more}"]


def test_stock_must_be_down_by_exactly_what_was_sold() -> None:
    product = uuid4()
    assert stock_down_by_what_was_sold({product: 10}, {product: 3}, {product: (7, 0)}) == []
    assert stock_down_by_what_was_sold({product: 10}, {product: 3}, {product: (6, 1)}) == [
        f"product {product} has 6 on hand, not 7",
        f"product {product} has 1 reserved",
    ]
    assert stock_down_by_what_was_sold({}, {product: 3}, {}) == [
        f"product {product} was sold, and is none of the load's"
    ]


def test_every_confirmed_order_is_charged_once_and_its_total_and_no_other_is() -> None:
    once, twice, never, other = (uuid4() for _ in range(4))
    confirmed = {once: Decimal(5), twice: Decimal(5), never: Decimal(5)}
    assert one_charge_each({once: Decimal(5)}, [(once, Decimal(5))]) == []
    assert one_charge_each({once: Decimal(5), never: Decimal("0E-9")}, [(once, Decimal(5))]) == []
    assert one_charge_each({never: Decimal(0)}, [(never, Decimal(1))]) == [
        f"1 orders were charged another amount than their total, as {never}"
    ]
    charges = [(once, Decimal(6)), (twice, Decimal(5)), (twice, Decimal(5)), (other, Decimal(5))]
    assert one_charge_each(confirmed, charges) == [
        f"1 orders were charged more than once, as {twice}",
        f"1 orders are confirmed and were never charged, as {never}",
        f"1 orders were charged and are not confirmed, as {other}",
        f"1 orders were charged another amount than their total, as {once}",
    ]
