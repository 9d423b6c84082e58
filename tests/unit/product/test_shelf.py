"""How reservations are decided: in order, all lines or none, once for a key, and within the available stock."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import MeshError
from product_svc.domain import (
    CurrencyMismatch,
    Hold,
    HoldKeyReused,
    HoldState,
    Offer,
    PriceChanged,
    ProductArchived,
    ProductNotFound,
    ProductState,
    Shelf,
    StockInsufficient,
    Total,
    TotalTooLarge,
)
from tests.unit.product.things import offer, product_id, reservation

FREE = Total(Decimal(0), "")


def shelf(*offers: Offer, available: int | None = 10) -> Shelf:
    """A shelf with this quantity of each offer."""
    return Shelf(offers, available=None if available is None else {each.product_id: available for each in offers})


@pytest.mark.parametrize("available", [10, None])
def test_hold_contains_the_offers_in_the_order_of_the_request(available: int | None) -> None:
    request, products = reservation({2: 3, 1: 1}), shelf(offer(1), offer(2, price="2"), available=available)
    hold = products.reserve(request)
    assert (hold.order_id, hold.key, hold.customer_id, hold.expire_time, hold.state) == (
        request.order_id,
        request.key,
        request.customer_id,
        request.expire_time,
        HoldState.HELD,
    )
    assert [tuple(line) for line in hold.lines] == [
        (product_id(2), 3, "SKU-2", "Thing 2", Decimal(2), "EUR"),
        (product_id(1), 1, "SKU-1", "Thing 1", Decimal("12.5"), "EUR"),
    ]
    assert products.holds == [hold]
    assert products.reserved == [(offer(1), 1), (offer(2, price="2"), 3)], "in primary-key order"


REJECTED = {
    "unknown product": ([offer(1)], None, ProductNotFound),
    "archived product": ([offer(1), offer(2, state=ProductState.ARCHIVED)], None, ProductArchived),
    "two currencies": ([offer(1), offer(2, currency="USD")], None, CurrencyMismatch),
    "total too large": ([offer(1), offer(2, price="999999999999999")], None, TotalTooLarge),
    "not the expected total": ([offer(1), offer(2)], Total(Decimal(24), "EUR"), PriceChanged),
    "not free": ([offer(1), offer(2)], FREE, PriceChanged),
}


@pytest.mark.parametrize(("offers", "expected", "error"), REJECTED.values(), ids=REJECTED)
def test_rejected_reservation_reserves_none_of_its_lines(
    offers: list[Offer], expected: Total | None, error: type[MeshError]
) -> None:
    products = shelf(*offers)
    with pytest.raises(error):
        products.reserve(reservation({1: 1, 2: 1}, expected_total=expected))
    assert (products.holds, products.reserved) == ([], [])
    assert products.reserve(reservation({1: 10})).lines, "all of it is available"


def test_reservation_of_more_than_is_available_names_the_product_and_what_is_left() -> None:
    products = shelf(offer(1), offer(2))
    products.reserve(reservation({2: 8}))
    with pytest.raises(StockInsufficient) as refusal:
        products.reserve(reservation({1: 1, 2: 3}))
    assert refusal.value.metadata == {"productId": str(product_id(2)), "requested": "3", "available": "2"}
    assert products.reserved == [(offer(2), 8)], "nothing of the other line is reserved"


def test_shelf_without_quantities_assumes_that_there_is_enough() -> None:
    products = shelf(offer(1), available=None)
    for _ in range(3):
        products.reserve(reservation({1: 10_000}))
    assert products.reserved == [(offer(1), 30_000)]


@given(st.lists(st.dictionaries(st.integers(1, 3), st.integers(1, 6), min_size=1), max_size=12))
def test_each_of_a_batch_gets_what_it_would_get_alone_after_the_others(requests: list[dict[int, int]]) -> None:
    products, reserved = shelf(offer(1), offer(2), offer(3)), Counter[int]()
    for quantities in requests:
        fits = all(reserved[number] + quantity <= 10 for number, quantity in quantities.items())
        try:
            products.reserve(reservation(quantities))
        except StockInsufficient:
            assert not fits
        else:
            assert fits
            reserved.update(quantities)
    assert products.reserved == [(offer(number), quantity) for number, quantity in sorted(reserved.items())]


@pytest.fixture(params=["an earlier attempt", "an earlier reservation of the batch"])
def earlier(request: pytest.FixtureRequest) -> tuple[Shelf, Hold]:
    """A shelf on which the key `key` has a hold of four of product 1, and no more of it is available."""
    offers, first = (offer(1), offer(2)), reservation({1: 4}, key=b"key")
    if request.param == "an earlier attempt":
        hold = shelf(*offers).reserve(first)
        return Shelf(offers, available={product_id(1): 0, product_id(2): 9}, holds=[hold]), hold
    products = shelf(*offers, available=4)
    return products, products.reserve(first)


@pytest.mark.parametrize("expected", [None, Total(Decimal(50), "EUR")])
def test_reservation_whose_key_has_a_hold_gets_that_hold_and_reserves_nothing(
    earlier: tuple[Shelf, Hold], expected: Total | None
) -> None:
    products, hold = earlier
    before = products.reserved
    assert products.reserve(reservation({1: 4}, key=b"key", expected_total=expected)) is hold
    assert products.reserved == before


@pytest.mark.parametrize(
    ("quantities", "expected", "error"),
    [
        ({1: 5}, None, HoldKeyReused),
        ({1: 4, 2: 1}, None, HoldKeyReused),
        ({2: 4}, None, HoldKeyReused),
        ({1: 4}, FREE, PriceChanged),
    ],
)
def test_key_of_a_hold_is_rejected_for_other_lines_or_another_total(
    earlier: tuple[Shelf, Hold], quantities: dict[int, int], expected: Total | None, error: type[MeshError]
) -> None:
    products, _ = earlier
    before = products.reserved
    with pytest.raises(error):
        products.reserve(reservation(quantities, key=b"key", expected_total=expected))
    assert products.reserved == before
