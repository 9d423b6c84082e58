"""Stock: two numbers that stay within their bounds, and the movements that explain them."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from product_svc.domain import (
    HoldState,
    MovementReason,
    ProductNotFound,
    Stock,
    StockChange,
    StockChanged,
    StockInsufficient,
    StockLimitExceeded,
    StockLow,
    Stockroom,
)
from tests.unit.product.things import EARLIER, NOW, hold, product_id, stock

LIMIT = 1_000_000_000
"""The largest stock of a product by the contracts."""
QUANTITIES = st.integers(0, LIMIT)
STOCKS = st.tuples(QUANTITIES, QUANTITIES).map(lambda pair: stock(on_hand=max(pair), reserved=min(pair)))
HELD, COMMITTED, RELEASED, RETURNED = HoldState


def stockroom(stocks: Iterable[Stock]) -> Stockroom:
    """A stockroom of a clerk."""
    return Stockroom(stocks, actor="staff:clerk", now=NOW, new_id=uuid4)


def change(number: int = 1, *, delta: int | None = None, to: int | None = None) -> StockChange:
    """A correction of the stock of product `number`."""
    return StockChange(product_id(number), delta, to, MovementReason.ADJUSTMENT, "counted")


@given(STOCKS, st.integers(-LIMIT, LIMIT))
@example(stock(on_hand=LIMIT - 1, reserved=0), 1)
@example(stock(on_hand=LIMIT, reserved=0), 1)
@example(stock(on_hand=10, reserved=7), -3)
@example(stock(on_hand=10, reserved=7), -4)
def test_movement_keeps_what_orders_hold_and_the_limit(before: Stock, delta: int) -> None:
    if before.on_hand + delta < before.reserved:
        with pytest.raises(StockInsufficient) as refusal:
            before.move(delta, NOW)
        assert refusal.value.metadata == {
            "productId": str(before.product_id),
            "requested": str(-delta),
            "available": str(before.available),
        }
    elif before.on_hand + delta > LIMIT:
        with pytest.raises(StockLimitExceeded):
            before.move(delta, NOW)
    else:
        assert before.move(delta, NOW) == Stock(before.product_id, before.on_hand + delta, before.reserved, NOW, 2)


@given(STOCKS, st.data())
def test_sale_and_release_take_what_was_held(before: Stock, data: st.DataObject) -> None:
    quantity = data.draw(st.integers(0, before.reserved))
    sold, freed = before.sell(quantity, NOW), before.release(quantity, NOW)
    assert (sold.on_hand, sold.reserved, sold.version) == (before.on_hand - quantity, before.reserved - quantity, 2)
    assert (freed.on_hand, freed.reserved, freed.version) == (before.on_hand, before.reserved - quantity, 1)
    assert sold.available == before.available == freed.available - quantity
    assert sold.update_time == freed.update_time == NOW


@pytest.mark.parametrize(
    ("wanted", "on_hand", "delta"),
    [({"delta": 5}, 15, 5), ({"delta": -3}, 7, -3), ({"to": 20}, 20, 10), ({"to": 0}, 0, -10)],
)
def test_stock_changes_by_a_difference_or_to_a_new_quantity(wanted: dict[str, int], on_hand: int, delta: int) -> None:
    room = stockroom([stock(on_hand=10)])
    assert room.change(change(**wanted)) == room.stock(product_id(1)) == Stock(product_id(1), on_hand, 0, NOW, 2)
    (movement,) = room.movements
    assert (movement.delta, movement.on_hand_after, movement.reason) == (delta, on_hand, MovementReason.ADJUSTMENT)
    assert (movement.order_id, movement.note, movement.create_time, movement.actor) == (
        None,
        "counted",
        NOW,
        "staff:clerk",
    )


def test_change_to_the_same_quantity_changes_nothing() -> None:
    room = stockroom([stock(on_hand=10)])
    assert room.change(change(to=10)) == stock(on_hand=10)
    assert (room.changes, room.movements, room.facts()) == ([], [], [])


def test_rejected_change_changes_nothing() -> None:
    room = stockroom([stock(on_hand=10, reserved=7)])
    with pytest.raises(StockInsufficient):
        room.change(change(to=6))
    assert (room.changes, room.movements) == ([], [])


@pytest.mark.parametrize(
    ("state", "on_hand", "reserved", "movements"),
    [
        (COMMITTED, 6, 1, [(-4, 6, MovementReason.SALE)]),
        (RELEASED, 10, 1, []),
        (RETURNED, 14, 5, [(4, 14, MovementReason.RETURN)]),
    ],
)
def test_new_state_of_a_hold_is_applied_to_the_stock_of_each_line(
    state: HoldState, on_hand: int, reserved: int, movements: list[tuple[int, int, MovementReason]]
) -> None:
    room = stockroom([stock(1, reserved=5), stock(2, reserved=5)])
    resolved = hold({1: 4, 2: 4}, state)
    room.apply(resolved)
    for number in (1, 2):
        after = room.stock(product_id(number))
        assert (after.on_hand, after.reserved, after.update_time) == (on_hand, reserved, NOW)
        made = [each for each in room.movements if each.product_id == product_id(number)]
        assert [(each.delta, each.on_hand_after, each.reason) for each in made] == movements
        assert {each.order_id for each in made} <= {resolved.order_id}


def test_hold_that_is_not_resolved_cannot_be_applied() -> None:
    with pytest.raises(ValueError, match="has not been resolved"):
        stockroom([stock()]).apply(hold({1: 1}, HELD))


def test_stock_of_an_unknown_product_is_not_found() -> None:
    room = stockroom([stock(1)])
    with pytest.raises(ProductNotFound):
        room.change(change(2, delta=1))
    with pytest.raises(ProductNotFound):
        room.apply(hold({2: 1}, COMMITTED))


def test_changed_stocks_are_given_in_primary_key_order_with_what_was_known() -> None:
    first, unchanged, last = stock(1), stock(2), stock(3)
    room = stockroom([last, unchanged, first])
    for number in (3, 1, 3):
        room.change(change(number, delta=1))
    assert room.changes == [
        (first, Stock(product_id(1), 11, 0, NOW, 2)),
        (last, Stock(product_id(3), 12, 0, NOW, 3)),
    ]


@given(
    st.lists(st.tuples(st.sampled_from([COMMITTED, RELEASED, RETURNED]), st.integers(1, 9)), max_size=20),
    st.integers(0, 200),
)
def test_movements_lead_from_the_known_stock_to_the_new_one(steps: list[tuple[HoldState, int]], threshold: int) -> None:
    before = stock(on_hand=190, reserved=180)._replace(low_stock_threshold=threshold)
    room = stockroom([before])
    for state, quantity in steps:
        room.apply(hold({1: quantity}, state))
    after, on_hand = room.stock(product_id(1)), before.on_hand
    for movement in room.movements:
        on_hand += movement.delta
        assert movement.on_hand_after == on_hand
    assert after.on_hand == on_hand
    assert after.version == before.version + len(room.movements)
    facts = room.facts()
    assert facts[:1] == ([StockChanged(after, room.movements)] if room.movements else [])
    assert facts[1:] == ([StockLow(after, threshold)] if after.on_hand <= threshold < before.on_hand else [])


@pytest.mark.parametrize(("delta", "is_low"), [(-4, False), (-5, True), (-9, True), (1, False)])
def test_stock_is_low_when_it_falls_to_the_threshold_or_below(delta: int, is_low: bool) -> None:
    room = stockroom([stock(on_hand=10)._replace(low_stock_threshold=5)])
    room.change(change(delta=delta))
    assert any(isinstance(fact, StockLow) for fact in room.facts()) == is_low


def test_stock_that_is_low_already_does_not_become_low_again() -> None:
    room = stockroom([stock(on_hand=5)._replace(low_stock_threshold=5)])
    room.change(change(delta=-1))
    assert [type(fact) for fact in room.facts()] == [StockChanged]


def test_known_stock_is_not_changed() -> None:
    before = stock()
    room = stockroom([before])
    room.change(change(delta=1))
    assert before == stock()
    assert before.update_time == EARLIER
