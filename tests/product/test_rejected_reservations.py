"""Reservations that are rejected because of the products, prices or currencies of their lines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from uuid import uuid4

import pytest

from mesh.errors import MeshError
from product_svc.domain import (
    TOTAL_LIMIT,
    CurrencyMismatch,
    PriceChanged,
    ProductNotFound,
    Total,
    TotalTooLarge,
)
from tests.product.process import Warehouse, held, reservation
from tests.services import eventually


@dataclass(frozen=True)
class Case:
    """The offer of the second of two products, and the error of a reservation of both."""

    price: Decimal
    currency: str
    error: type[MeshError]
    expected_total: Total | None = None


CASES = {
    "two currencies": Case(Decimal("12.5"), "USD", CurrencyMismatch),
    "too large": Case(TOTAL_LIMIT, "EUR", TotalTooLarge),
    "not the expected total": Case(Decimal("12.51"), "EUR", PriceChanged, Total(Decimal(25), "EUR")),
    "not free": Case(Decimal("12.5"), "EUR", PriceChanged, Total(Decimal(0), "")),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("remembered", ["nothing", "the offers as they are", "the offers as they were before"])
async def test_rejected_reservation_holds_nothing_and_the_others_of_its_batch_are_held(
    here: Warehouse, case: Case, remembered: str
) -> None:
    first, second = await here.product(10), await here.product(10)
    sold_as = "UPDATE products SET price = $2, currency = $3, version = version + 1 WHERE id = $1"
    if remembered == "the offers as they were before":
        held((await here.reserve(reservation({first: 1, second: 1})))[0])
    await here.admin.execute(sold_as, second, case.price, case.currency)
    if remembered == "the offers as they are":
        held((await here.reserve(reservation({first: 1})))[0])
        held((await here.reserve(reservation({second: 1})))[0])
    reserved = [(await here.stock(each))[1] for each in (first, second)]
    rejected = reservation({first: 1, second: 1}, expected_total=case.expected_total)
    results = await here.reserve(reservation({first: 2}), rejected, reservation({first: 3}))
    assert isinstance(results[1], case.error)
    assert [held(results[index]).lines[0].quantity for index in (0, 2)] == [2, 3]
    assert [(await here.stock(each))[1] for each in (first, second)] == [reserved[0] + 5, reserved[1]]
    assert await here.admin.fetchval("SELECT count(*) FROM holds WHERE order_id = $1", rejected.order_id) == 0


async def test_accepted_reservations_are_committed_before_the_products_of_the_others_are_locked(
    here: Warehouse,
) -> None:
    euros, dollars = await here.product(9), await here.product(9, currency="USD")
    other, unknown = await here.product(9), uuid4()
    accepted = reservation({other: 1}), reservation({other: 2})
    mixed, absent = reservation({euros: 1, dollars: 1}), reservation({unknown: 1})
    async with here.admin.transaction():
        await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", dollars)
        reserving = asyncio.create_task(here.reserve(accepted[0], mixed, absent, accepted[1]))
        await eventually(here.waiting)
        made = await here.admin.fetch(
            "SELECT FROM holds WHERE order_id = ANY($1)", [each.order_id for each in accepted]
        )
        assert len(made) == 2
        await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE NOWAIT", other)
    first, rejected, not_found, last = await reserving
    assert (type(rejected), type(not_found)) == (CurrencyMismatch, ProductNotFound)
    assert [held(result).order_id for result in (first, last)] == [each.order_id for each in accepted]
