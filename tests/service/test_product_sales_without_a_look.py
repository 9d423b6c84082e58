"""Selling what is held: the stock is read without a lock, and locked only once all else is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from commerce.product.v1.events_pb2 import StockChanged
from mesh.db.unit_of_work import UnitOfWork
from product_svc.domain import HoldState
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


async def hold(process: Warehouse, product: UUID, quantity: int) -> UUID:
    """An order that holds so much."""
    return held((await process.reserve(wish({product: quantity})))[0]).order_id


async def sell(process: Warehouse, *orders: UUID) -> dict[UUID, HoldState]:
    """Sell what they hold, as an event does."""
    return await process.units.run_optimistically(lambda work: process.holds.commit(work, orders))


async def test_selling_is_a_look_and_a_write_for_one_or_64(here: Warehouse) -> None:
    products = await here.products(64, 10)
    for size in (1, 64):
        orders = [await hold(here, product, 2) for product in products[:size]]
        before = here.database.statements

        async def sale(work: UnitOfWork, orders: list[UUID] = orders) -> None:
            await here.holds.commit(work, orders)
            assert not await idle_in_transaction(here), "a look alone begins nothing"

        await here.units.run_optimistically(sale)
        assert here.database.statements - before == 2
    assert await here.stock(products[0]) == (6, 0)
    await here.require_balance(products[0])


async def test_a_hold_between_the_look_and_the_write_neither_waits_nor_matters(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(10)
    sold, attempts = await hold(here, product, 4), 0

    async def sale(work: UnitOfWork) -> None:
        nonlocal attempts
        attempts += 1
        await here.holds.commit(work, [sold])
        await hold(there, product, 3)

    await here.units.run_optimistically(sale)
    assert attempts == 1
    assert await here.stock(product) == (6, 3)
    await here.require_balance(product)


async def test_what_has_moved_on_hand_since_the_look_is_looked_at_again_under_a_lock(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(10)
    sold, looks = await hold(here, product, 4), []

    async def sale(work: UnitOfWork) -> None:
        looks.append(work.pessimistic)
        await here.holds.commit(work, [sold])
        if not work.pessimistic:
            await there.move(product, delta=5)

    await here.units.run_optimistically(sale)
    assert looks == [False, True]
    assert await here.stock(product) == (11, 0)
    await here.require_balance(product)
    assert await told(here, product) == [(5, 15), (-4, 11)]


async def test_a_hold_that_another_process_has_sold_meanwhile_is_sold_once(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    sold = await hold(here, product, 4)
    for twice in (False, True):
        results = await asyncio.gather(sell(here, sold), sell(there, sold))
        assert list(results) == [{sold: HoldState.COMMITTED}] * 2, twice
    assert await here.stock(product) == (6, 0)
    await here.require_balance(product)
    assert await told(here, product) == [(-4, 6)]


async def test_stock_is_locked_when_all_else_is_written_but_the_holds(here: Warehouse) -> None:
    product = await here.product(10)
    sold, drawn = await hold(here, product, 4), "SELECT last_value FROM mesh.outbox_seq"
    before = await here.admin.fetchval(drawn)
    async with here.admin.transaction():
        await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", product)
        sale = asyncio.create_task(sell(here, sold))
        await eventually(here.waiting)
        assert await here.admin.fetchval(drawn) == before + 1, "the event is written"
        await here.admin.execute("SELECT FROM holds WHERE order_id = $1 FOR UPDATE NOWAIT", sold)
    assert await sale == {sold: HoldState.COMMITTED}


async def test_a_call_that_sells_locks_first_for_it_is_not_done_again(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    sold = await hold(here, product, 4)
    async with here.admin.transaction():
        await here.admin.execute("UPDATE stocks SET version = version + 1 WHERE product_id = $1", product)
        call = asyncio.create_task(there.commit(sold))
        await eventually(here.waiting)
    assert await call == {sold: HoldState.COMMITTED}
    assert await here.stock(product) == (6, 0)
    await here.require_balance(product)


async def test_processes_that_sell_hold_and_move_the_same_products_leave_no_gap_in_ledger_and_events(
    here: Warehouse, there: Warehouse
) -> None:
    products = await here.products(4, 1_000)

    async def buyer(process: Warehouse, number: int) -> None:
        orders = [
            held((await process.reserve(wish(dict.fromkeys(products[number % 2 :], 1))))[0]).order_id for _ in range(3)
        ]
        await sell(process, *orders[:2])
        await process.units.run_optimistically(lambda work: process.holds.release(work, orders[1:]))

    async def clerk(process: Warehouse) -> None:
        for product in products:
            await process.move(product, delta=1)

    await asyncio.gather(*(buyer((here, there)[number // 2 % 2], number) for number in range(40)), clerk(there))
    for number, product in enumerate(products):
        buyers = 40 if number else 20
        assert await here.stock(product) == (1_001 - buyers, 0)
        await here.require_balance(product)
        left = 1_000
        for delta, on_hand_after in await told(here, product):
            left += delta
            assert on_hand_after == left
        assert left == 1_001 - buyers


async def told(process: Warehouse, product: UUID) -> list[tuple[int, int]]:
    """The movements that a stock's events tell of, in the order in which they go out: by how much, and what is left.

    Each event has a greater sequence than the one before, and tells of the stock that its last movement has left.
    """
    rows = await process.admin.fetch(
        "SELECT sequence, payload FROM mesh.outbox WHERE aggregate_id = $1 AND type = 'commerce.product.stock_changed' "
        "ORDER BY seq",
        product,
    )
    events = [StockChanged.FromString(row["payload"]) for row in rows]
    assert [row["sequence"] for row in rows] == sorted({row["sequence"] for row in rows})
    for event in events:
        assert event.stock.on_hand == event.movements[-1].on_hand_after
        assert 0 <= event.stock.reserved <= event.stock.on_hand
    return [(movement.delta, movement.on_hand_after) for event in events for movement in event.movements]


async def idle_in_transaction(process: Warehouse) -> int:
    """How many sessions have begun a transaction, and do nothing in it now."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    found: int = await process.admin.fetchval(count)
    return found
