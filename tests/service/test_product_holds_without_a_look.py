"""Holding stock by addition: no look at it, and the database tells when there is not enough, or the offer is old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from uuid import uuid4

import pytest

from product_svc.domain import Hold, HoldKeyReused, ProductArchived, ProductNotFound, Reservation, StockInsufficient
from product_svc.store import stock
from stack.servers import Servers
from tests.service.warehouse import Warehouse, held, warehouse, wish
from tests.services import eventually


@pytest.fixture(scope="module")
async def here(servers: Servers) -> AsyncIterator[Warehouse]:
    async with warehouse(servers) as opened:
        yield opened


@pytest.fixture(scope="module")
async def there(servers: Servers) -> AsyncIterator[Warehouse]:
    """Another process of the same service."""
    async with warehouse(servers) as opened:
        yield opened


async def statements(process: Warehouse, *reservations: Reservation) -> tuple[int, Sequence[Hold | Exception]]:
    """How many statements it takes to hold these, and what comes of each."""
    before = process.database.statements
    results = await process.reserve(*reservations)
    return process.database.statements - before, results


async def test_holding_is_one_statement_for_one_or_64_once_the_offers_are_known(here: Warehouse) -> None:
    products = await here.products(64, 1_000)
    for size in (1, 64):
        commits = here.database.commits
        asked = [wish({products[number]: 1, products[0]: 1}) for number in range(size)]
        first, results = await statements(here, *asked)
        assert all(isinstance(result, Hold) for result in results)
        second, results = await statements(here, *(wish(each.quantities) for each in asked))
        assert all(isinstance(result, Hold) for result in results)
        assert (first, second) == (2, 1)
        assert here.database.commits == commits + 2
    await here.require_balance(products[0])


async def test_processes_that_hold_the_same_product_at_the_same_time_do_not_overtake_each_other(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(100)
    for process in (here, there):
        held((await process.reserve(wish({product: 1})))[0])
    lock = here.admin.transaction()
    await lock.start()
    await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", product)
    both = [asyncio.create_task(statements(process, wish({product: 2}))) for process in (here, there)]

    async def both_wait() -> bool:
        return await there.waiting() == 2

    await eventually(both_wait)
    await lock.rollback()
    for count, (result,) in await asyncio.gather(*both):
        assert isinstance(result, Hold)
        assert count == 1
    assert await here.stock(product) == (100, 6)
    await here.require_balance(product)


async def test_a_hold_that_meets_a_sale_adds_to_what_the_sale_leaves(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    sold = held((await here.reserve(wish({product: 4})))[0])
    async with here.units.begin() as work:
        await here.holds.commit(work, [sold.order_id])
        await work.transaction.fetch(stock.STOCKS, ids=[product])  # what waits for the commit is sent before a look
        late = asyncio.create_task(there.reserve(wish({product: 6})))
        await eventually(here.waiting)
    held((await late)[0])
    assert await here.stock(product) == (6, 6)
    await here.require_balance(product)


async def test_of_a_batch_that_wants_more_than_there_is_each_gets_what_it_would_get_alone(
    here: Warehouse, there: Warehouse
) -> None:
    plenty, scarce = await here.product(100), await here.product(10)
    held((await here.reserve(wish({plenty: 1, scarce: 1})))[0])
    held((await there.reserve(wish({scarce: 6})))[0])
    results = await here.reserve(
        wish({plenty: 1, scarce: 2}), wish({plenty: 1, scarce: 2}), wish({scarce: 1}), wish({plenty: 1})
    )
    assert [type(result) for result in results] == [Hold, StockInsufficient, Hold, Hold]
    assert isinstance(results[1], StockInsufficient)
    assert results[1].metadata == {"productId": str(scarce), "requested": "2", "available": "0"}
    assert await here.stock(scarce) == (10, 10)
    assert await here.stock(plenty) == (100, 3)
    for product in (plenty, scarce):
        await here.require_balance(product)


async def test_what_is_sold_out_is_not_tried_without_a_look_and_is_sold_again_once_there_is_more(
    here: Warehouse,
) -> None:
    product = await here.product(1)
    held((await here.reserve(wish({product: 1})))[0])
    # The attempt that fails, one look at the stock under lock, one for an earlier attempt's hold.
    count, (refusal,) = await statements(here, wish({product: 1}))
    assert isinstance(refusal, StockInsufficient)
    assert count == 3
    # One look at the offer, one at the stock under lock, one for an earlier attempt's hold.
    count, (refusal,) = await statements(here, wish({product: 1}))
    assert isinstance(refusal, StockInsufficient)
    assert count == 3
    await here.move(product, delta=5)
    count, (result,) = await statements(here, wish({product: 1}))
    held(result)
    assert count == 2
    assert await here.stock(product) == (6, 2)


async def test_a_price_that_was_changed_since_it_was_known_is_the_new_one(here: Warehouse) -> None:
    product, other = await here.product(10), await here.product(10)
    assert prices(await here.reserve(wish({product: 1, other: 1}))) == [Decimal("12.5"), Decimal("12.5")]
    await here.admin.execute("UPDATE products SET price = 13, version = version + 1 WHERE id = $1", product)
    assert prices(await here.reserve(wish({product: 1, other: 1}))) == [Decimal(13), Decimal("12.5")]
    assert prices(await here.reserve(wish({product: 1, other: 1}))) == [Decimal(13), Decimal("12.5")]
    assert await here.stock(product) == (10, 3)
    await here.require_balance(product)


async def test_what_was_archived_since_it_was_known_is_refused_and_the_others_of_its_batch_are_not(
    here: Warehouse,
) -> None:
    product, other = await here.product(10), await here.product(10)
    held((await here.reserve(wish({product: 1, other: 1})))[0])
    await here.admin.execute("UPDATE products SET state = 'ARCHIVED', version = version + 1 WHERE id = $1", product)
    for _ in range(2):
        refused, kept = await here.reserve(wish({product: 1}), wish({other: 1}))
        assert isinstance(refused, ProductArchived)
        held(kept)
    assert await here.stock(product) == (10, 1)
    assert await here.stock(other) == (10, 3)


async def test_a_product_that_is_not_there_is_refused_alone(here: Warehouse) -> None:
    product = await here.product(10)
    refused, kept = await here.reserve(wish({product: 1, uuid4(): 1}), wish({product: 2}))
    assert isinstance(refused, ProductNotFound)
    held(kept)
    assert await here.stock(product) == (10, 2)


async def test_a_retry_adopts_its_hold_though_nothing_is_left_and_others_of_its_batch_go_through(
    here: Warehouse, there: Warehouse
) -> None:
    product, other, key = await here.product(4), await here.product(10), uuid4().bytes
    first = held((await there.reserve(wish({product: 4}, key=key)))[0])
    held((await here.reserve(wish({other: 1})))[0])
    again, reused, fresh = await here.reserve(wish({product: 4}, key=key), wish({other: 1}, key=key), wish({other: 2}))
    assert again == first
    assert isinstance(reused, HoldKeyReused)
    held(fresh)
    assert await here.stock(product) == (4, 4)
    assert await here.stock(other) == (10, 3)


async def test_duplicates_of_one_batch_that_want_different_things_do_not_both_get_theirs(here: Warehouse) -> None:
    product, key = await here.product(10), uuid4().bytes
    held((await here.reserve(wish({product: 1})))[0])
    first, other = await here.reserve(wish({product: 2}, key=key), wish({product: 3}, key=key))
    held(first)
    assert isinstance(other, HoldKeyReused)
    assert await here.stock(product) == (10, 3)


def prices(results: Sequence[Hold | Exception]) -> list[Decimal]:
    """Of the lines of the one hold."""
    (result,) = results
    assert isinstance(result, Hold)
    return [line.unit_price for line in result.lines]
