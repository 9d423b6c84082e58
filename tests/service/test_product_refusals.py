"""Reservations that are refused for the products, prices or currencies of their lines, before anything is held."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from mesh.db.database import Transaction
from mesh.errors import MeshError, Violation
from product_svc import store
from product_svc.domain import (
    TOTAL_LIMIT,
    CurrencyMismatch,
    Offer,
    PriceChanged,
    ProductNotFound,
    Stock,
    Total,
    TotalTooLarge,
)
from stack.servers import Servers
from tests.service.warehouse import Warehouse, held, warehouse, wish

FREE = Total(Decimal(0), "")


@pytest.fixture(scope="module")
async def here(servers: Servers) -> AsyncIterator[Warehouse]:
    async with warehouse(servers) as opened:
        yield opened


@dataclass(frozen=True)
class Case:
    """How the second of two products is sold, and what a reservation of both is refused with."""

    price: Decimal
    currency: str
    error: type[MeshError]
    expected_total: Total | None = None


CASES = {
    "two currencies": Case(Decimal("12.5"), "USD", CurrencyMismatch),
    "too large": Case(TOTAL_LIMIT, "EUR", TotalTooLarge),
    "not the expected total": Case(Decimal("12.51"), "EUR", PriceChanged, Total(Decimal(25), "EUR")),
    "not free": Case(Decimal("12.5"), "EUR", PriceChanged, FREE),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("remembered", ["nothing", "the offers as they are", "the offers as they were before"])
async def test_refused_reservation_holds_nothing_and_the_others_of_its_batch_are_held(
    here: Warehouse, case: Case, remembered: str
) -> None:
    first, second = await here.product(10), await here.product(10)
    sold_as = "UPDATE products SET price = $2, currency = $3, version = version + 1 WHERE id = $1"
    if remembered == "the offers as they were before":
        held((await here.reserve(wish({first: 1, second: 1})))[0])
    await here.admin.execute(sold_as, second, case.price, case.currency)
    if remembered == "the offers as they are":
        held((await here.reserve(wish({first: 1})))[0])
        held((await here.reserve(wish({second: 1})))[0])
    reserved = [(await here.stock(each))[1] for each in (first, second)]
    refused = wish({first: 1, second: 1}, expected_total=case.expected_total)
    results = await here.reserve(wish({first: 2}), refused, wish({first: 3}))
    assert isinstance(results[1], case.error)
    assert [held(results[index]).lines[0].quantity for index in (0, 2)] == [2, 3]
    assert [(await here.stock(each))[1] for each in (first, second)] == [reserved[0] + 5, reserved[1]]
    assert await here.admin.fetchval("SELECT count(*) FROM holds WHERE order_id = $1", refused.order_id) == 0


async def test_only_the_products_of_refused_reservations_are_locked(
    here: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    euros, dollars, other, unknown = (
        await here.product(9),
        await here.product(9, currency="USD"),
        await here.product(9),
        uuid4(),
    )
    lock_offers, locked = store.lock_offers, list[set[UUID]]()

    async def noted(transaction: Transaction, ids: Iterable[UUID]) -> tuple[list[Stock], list[Offer]]:
        locked.append(set(ids))
        return await lock_offers(transaction, ids)

    monkeypatch.setattr(store, "lock_offers", noted)
    results = await here.reserve(wish({other: 1}), wish({euros: 1, dollars: 1}), wish({unknown: 1}), wish({other: 1}))
    assert [type(results[index]) for index in (1, 2)] == [CurrencyMismatch, ProductNotFound]
    assert [held(results[index]).lines[0].product_id for index in (0, 3)] == [other, other]
    assert locked == [{euros, dollars, unknown}]


async def test_refusal_of_currencies_names_them_and_the_lines(here: Warehouse) -> None:
    euros, dollars = await here.product(1), await here.product(1, currency="USD")
    (error,) = await here.reserve(wish({dollars: 1, euros: 1}))
    assert isinstance(error, CurrencyMismatch)
    assert error.metadata == {"currencies": "EUR,USD"}
    assert error.violations == (Violation("lines", "are sold in different currencies"),)


async def test_largest_total_is_held_and_the_least_amount_more_is_refused(here: Warehouse) -> None:
    most = await here.product(20_000, price=TOTAL_LIMIT / 10_000)
    least = await here.product(1, price=Decimal("0.000000001"))
    assert TOTAL_LIMIT == 999_999_999_999_999
    exact = Total(TOTAL_LIMIT, "EUR")
    held((await here.reserve(wish({most: 10_000}, expected_total=exact)))[0])
    (error,) = await here.reserve(wish({most: 10_000, least: 1}))
    assert isinstance(error, TotalTooLarge)
    (violation,) = error.violations
    assert violation == Violation("lines", "come to 999999999999999.000000001 EUR: must be at most 999999999999999")


@pytest.mark.parametrize("currency", ["EUR", "JPY"])
async def test_free_reservation_is_held_whatever_its_currency(here: Warehouse, currency: str) -> None:
    product = await here.product(2, price=Decimal(0), currency=currency)
    for expected in (FREE, Total(Decimal(0), currency)):
        held((await here.reserve(wish({product: 1}, expected_total=expected)))[0])
    (error,) = await here.reserve(wish({product: 1}, expected_total=Total(Decimal(0), "USD")))
    assert isinstance(error, PriceChanged)
    assert error.metadata == {"expectedTotal": "0 USD", "total": f"0 {currency}"}


async def test_retry_does_not_adopt_a_hold_of_another_total_than_it_expects(here: Warehouse) -> None:
    product, key = await here.product(2), uuid4().bytes
    hold = held((await here.reserve(wish({product: 1}, key=key)))[0])
    assert (await here.reserve(wish({product: 1}, key=key, expected_total=Total(Decimal("12.50"), "EUR"))))[0] == hold
    (error,) = await here.reserve(wish({product: 1}, key=key, expected_total=FREE))
    assert isinstance(error, PriceChanged)
    assert error.metadata == {"expectedTotal": "0", "total": "12.5 EUR"}
    assert await here.stock(product) == (2, 1)
