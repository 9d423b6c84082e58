"""Sales: the stock is read without a lock, and locked only when everything else is written (ADR-0022)."""

from __future__ import annotations

import asyncio
from uuid import UUID

from commerce.product.v1.events_pb2 import StockChanged
from mesh.db.unit_of_work import UnitOfWork
from product_svc.domain import HoldState
from tests.product.process import Warehouse, held, reservation
from tests.services import eventually


async def sell(process: Warehouse, *orders: UUID) -> dict[UUID, HoldState]:
    """Commit the holds of these orders, as an event does."""
    return await process.units.run_optimistically(lambda work: process.holds.resolve(work, commit=orders))


async def test_sales_take_one_read_and_one_write_for_one_or_64(here: Warehouse) -> None:
    products = await here.products(64, 10)
    for size in (1, 64):
        orders = [await here.hold(product, 2) for product in products[:size]]
        before = here.database.statements

        async def sale(work: UnitOfWork, orders: list[UUID] = orders) -> None:
            await here.holds.resolve(work, commit=orders)
            assert not await idle_in_transaction(here), "the read alone begins no transaction"

        await here.units.run_optimistically(sale)
        assert here.database.statements - before == 2
    assert await here.stock(products[0]) == (6, 0)
    await here.require_balance(products[0])


async def test_hold_between_read_and_write_of_a_sale_does_not_wait_or_make_it_stale(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(10)
    sold, attempts = await here.hold(product, 4), 0

    async def sale(work: UnitOfWork) -> None:
        nonlocal attempts
        attempts += 1
        await here.holds.resolve(work, commit=[sold])
        await there.hold(product, 3)

    await here.units.run_optimistically(sale)
    assert attempts == 1
    assert await here.stock(product) == (6, 3)
    await here.require_balance(product)


async def test_sale_is_repeated_under_a_lock_if_the_quantity_on_hand_has_changed(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(10)
    sold, attempts = await here.hold(product, 4), []

    async def sale(work: UnitOfWork) -> None:
        attempts.append(work.pessimistic)
        await here.holds.resolve(work, commit=[sold])
        if not work.pessimistic:
            await there.move(product, delta=5)

    await here.units.run_optimistically(sale)
    assert attempts == [False, True]
    assert await here.stock(product) == (11, 0)
    await here.require_balance(product)
    assert await published(here, product) == [(5, 15), (-4, 11)]


async def test_hold_that_two_processes_commit_at_the_same_time_is_sold_once(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    sold = await here.hold(product, 4)
    for twice in (False, True):
        results = await asyncio.gather(sell(here, sold), sell(there, sold))
        assert list(results) == [{sold: HoldState.COMMITTED}] * 2, twice
    assert await here.stock(product) == (6, 0)
    await here.require_balance(product)
    assert await published(here, product) == [(-4, 6)]


async def test_sale_locks_stock_after_all_other_writes_but_the_holds(here: Warehouse) -> None:
    product = await here.product(10)
    sold, drawn = await here.hold(product, 4), "SELECT last_value FROM mesh.outbox_seq"
    before = await here.admin.fetchval(drawn)
    async with here.admin.transaction():
        await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", product)
        sale = asyncio.create_task(sell(here, sold))
        await eventually(here.waiting)
        assert await here.admin.fetchval(drawn) == before + 1, "the event is written"
        await here.admin.execute("SELECT FROM holds WHERE order_id = $1 FOR UPDATE NOWAIT", sold)
    assert await sale == {sold: HoldState.COMMITTED}


async def test_call_that_commits_locks_before_it_reads_since_it_has_one_attempt(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(10)
    sold = await here.hold(product, 4)
    async with here.admin.transaction():
        await here.admin.execute("UPDATE stocks SET version = version + 1 WHERE product_id = $1", product)
        call = asyncio.create_task(there.commit(sold))
        await eventually(here.waiting)
    assert await call == {sold: HoldState.COMMITTED}
    assert await here.stock(product) == (6, 0)
    await here.require_balance(product)


async def test_concurrent_sales_holds_and_receipts_leave_no_gap_in_ledger_and_events(
    here: Warehouse, there: Warehouse
) -> None:
    products = await here.products(4, 1_000)

    async def buyer(process: Warehouse, number: int) -> None:
        orders = [
            held((await process.reserve(reservation(dict.fromkeys(products[number % 2 :], 1))))[0]).order_id
            for _ in range(3)
        ]
        await sell(process, *orders[:2])
        await process.units.run_optimistically(lambda work: process.holds.resolve(work, release=orders[1:]))

    async def clerk(process: Warehouse) -> None:
        for product in products:
            await process.move(product, delta=1)

    await asyncio.gather(*(buyer((here, there)[number // 2 % 2], number) for number in range(40)), clerk(there))
    for number, product in enumerate(products):
        buyers = 40 if number else 20
        assert await here.stock(product) == (1_001 - buyers, 0)
        await here.require_balance(product)
        left = 1_000
        for delta, on_hand_after in await published(here, product):
            left += delta
            assert on_hand_after == left
        assert left == 1_001 - buyers


async def published(process: Warehouse, product: UUID) -> list[tuple[int, int]]:
    """The movements in the events of a stock, in the order of the outbox: the change, and the quantity on hand then.

    Each event has a greater sequence than the one before, and contains the stock after its last movement.
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
    """The number of sessions that have begun a transaction and execute no statement."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
    found: int = await process.admin.fetchval(count)
    return found
