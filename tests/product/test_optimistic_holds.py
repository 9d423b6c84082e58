"""Holds without a read of the stock: the database decides whether there is enough and whether the offer is current."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from uuid import uuid4

from product_svc.domain import Hold, HoldKeyReused, ProductArchived, ProductNotFound, Reservation, StockInsufficient
from product_svc.store.stock import STOCKS
from tests.product.process import Warehouse, held, reservation
from tests.services import eventually


async def statements(process: Warehouse, *reservations: Reservation) -> tuple[int, Sequence[Hold | Exception]]:
    """The number of statements for these reservations, and their results."""
    before = process.database.statements
    results = await process.reserve(*reservations)
    return process.database.statements - before, results


async def test_reservations_with_known_offers_take_one_statement_for_one_or_64(here: Warehouse) -> None:
    products = await here.products(64, 1_000)
    for size in (1, 64):
        commits = here.database.commits
        requests = [reservation({products[number]: 1, products[0]: 1}) for number in range(size)]
        first, results = await statements(here, *requests)
        assert all(isinstance(result, Hold) for result in results)
        second, results = await statements(here, *(reservation(each.quantities) for each in requests))
        assert all(isinstance(result, Hold) for result in results)
        assert (first, second) == (2, 1)
        assert here.database.commits == commits + 2
    await here.require_balance(products[0])


async def test_concurrent_holds_of_one_product_in_two_processes_are_not_stale(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(100)
    for process in (here, there):
        held((await process.reserve(reservation({product: 1})))[0])
    lock = here.admin.transaction()
    await lock.start()
    await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", product)
    both = [asyncio.create_task(statements(process, reservation({product: 2}))) for process in (here, there)]

    async def both_wait() -> bool:
        return await there.waiting() == 2

    await eventually(both_wait)
    await lock.rollback()
    for count, (result,) in await asyncio.gather(*both):
        assert isinstance(result, Hold)
        assert count == 1
    assert await here.stock(product) == (100, 6)
    await here.require_balance(product)


async def test_hold_that_waits_for_a_sale_adds_to_what_the_sale_leaves(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    sold = await here.hold(product, 4)
    async with here.units.begin() as work:
        await here.holds.resolve(work, commit=[sold])
        await work.transaction.fetch(STOCKS, keys=[product])  # this sends the writes that wait for the commit
        late = asyncio.create_task(there.reserve(reservation({product: 6})))
        await eventually(here.waiting)
    held((await late)[0])
    assert await here.stock(product) == (6, 6)
    await here.require_balance(product)


async def test_batch_for_more_than_there_is_gives_each_what_it_would_get_alone(
    here: Warehouse, there: Warehouse
) -> None:
    plenty, scarce = await here.product(100), await here.product(10)
    held((await here.reserve(reservation({plenty: 1, scarce: 1})))[0])
    held((await there.reserve(reservation({scarce: 6})))[0])
    results = await here.reserve(
        reservation({plenty: 1, scarce: 2}),
        reservation({plenty: 1, scarce: 2}),
        reservation({scarce: 1}),
        reservation({plenty: 1}),
    )
    assert [type(result) for result in results] == [Hold, StockInsufficient, Hold, Hold]
    assert isinstance(results[1], StockInsufficient)
    assert results[1].metadata == {"productId": str(scarce), "requested": "2", "available": "1"}
    assert await here.stock(scarce) == (10, 10)
    assert await here.stock(plenty) == (100, 3)
    for product in (plenty, scarce):
        await here.require_balance(product)


async def test_sold_out_product_is_locked_at_once_until_there_is_more_of_it(
    here: Warehouse,
) -> None:
    product = await here.product(1)
    held((await here.reserve(reservation({product: 1})))[0])
    # The attempt that fails; the offers, under a lock; the holds under the key.
    count, (refusal,) = await statements(here, reservation({product: 1}))
    assert isinstance(refusal, StockInsufficient)
    assert count == 3
    # The offers, which show that there is too little; the offers under a lock; the holds under the key.
    count, (refusal,) = await statements(here, reservation({product: 1}))
    assert isinstance(refusal, StockInsufficient)
    assert count == 3
    await here.move(product, delta=5)
    count, (result,) = await statements(here, reservation({product: 1}))
    held(result)
    assert count == 2
    assert await here.stock(product) == (6, 2)


async def test_hold_has_the_current_price_if_the_remembered_one_is_outdated(here: Warehouse) -> None:
    product, other = await here.product(10), await here.product(10)
    assert prices(await here.reserve(reservation({product: 1, other: 1}))) == [Decimal("12.5"), Decimal("12.5")]
    await here.admin.execute("UPDATE products SET price = 13, version = version + 1 WHERE id = $1", product)
    assert prices(await here.reserve(reservation({product: 1, other: 1}))) == [Decimal(13), Decimal("12.5")]
    assert prices(await here.reserve(reservation({product: 1, other: 1}))) == [Decimal(13), Decimal("12.5")]
    assert await here.stock(product) == (10, 3)
    await here.require_balance(product)


async def test_product_that_was_archived_since_it_was_read_is_rejected_alone(
    here: Warehouse,
) -> None:
    product, other = await here.product(10), await here.product(10)
    held((await here.reserve(reservation({product: 1, other: 1})))[0])
    await here.admin.execute("UPDATE products SET state = 'ARCHIVED', version = version + 1 WHERE id = $1", product)
    for _ in range(2):
        refused, kept = await here.reserve(reservation({product: 1}), reservation({other: 1}))
        assert isinstance(refused, ProductArchived)
        held(kept)
    assert await here.stock(product) == (10, 1)
    assert await here.stock(other) == (10, 3)


async def test_unknown_product_is_rejected_alone(here: Warehouse) -> None:
    product = await here.product(10)
    refused, kept = await here.reserve(reservation({product: 1, uuid4(): 1}), reservation({product: 2}))
    assert isinstance(refused, ProductNotFound)
    held(kept)
    assert await here.stock(product) == (10, 2)


async def test_retry_gets_its_hold_though_nothing_is_left_and_others_of_its_batch_succeed(
    here: Warehouse, there: Warehouse
) -> None:
    product, other, key = await here.product(4), await here.product(10), uuid4().bytes
    first = held((await there.reserve(reservation({product: 4}, key=key)))[0])
    held((await here.reserve(reservation({other: 1})))[0])
    again, reused, fresh = await here.reserve(
        reservation({product: 4}, key=key), reservation({other: 1}, key=key), reservation({other: 2})
    )
    assert again == first
    assert isinstance(reused, HoldKeyReused)
    held(fresh)
    assert await here.stock(product) == (4, 4)
    assert await here.stock(other) == (10, 3)


async def test_duplicates_of_one_batch_with_different_lines_make_one_hold(here: Warehouse) -> None:
    product, key = await here.product(10), uuid4().bytes
    held((await here.reserve(reservation({product: 1})))[0])
    first, other = await here.reserve(reservation({product: 2}, key=key), reservation({product: 3}, key=key))
    held(first)
    assert isinstance(other, HoldKeyReused)
    assert await here.stock(product) == (10, 3)


def prices(results: Sequence[Hold | Exception]) -> list[Decimal]:
    """The prices of the lines of the only hold."""
    (result,) = results
    assert isinstance(result, Hold)
    return [line.unit_price for line in result.lines]
