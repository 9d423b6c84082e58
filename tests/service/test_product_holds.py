"""Holds: all lines or none, once for a key, never more than there is, and settled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from commerce.order.v1.events_pb2 import OrderConfirmed
from mesh.db.unit_of_work import UnitOfWork
from mesh.errors import Unavailable
from mesh.events.cloudevents import Received
from product_svc.domain import (
    Hold,
    HoldKeyReused,
    HoldMissing,
    HoldState,
    ProductArchived,
    ProductNotFound,
    StockInsufficient,
)
from product_svc.store.stock import STOCKS
from product_svc.usecases import ORDER_CONFIRMED
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


async def test_a_hold_sets_stock_aside_and_tells_what_the_customer_accepted(here: Warehouse) -> None:
    tea, pot = await here.product(10, name="Tea"), await here.product(3, name="Pot")
    asked = wish({tea: 4, pot: 1})
    hold = held((await here.reserve(asked))[0])
    assert (hold.order_id, hold.state) == (asked.order_id, HoldState.HELD)
    assert [(line.product_id, line.quantity, line.name) for line in hold.lines] == [(tea, 4, "Tea"), (pot, 1, "Pot")]
    assert await here.stock(tea) == (10, 4)
    assert await here.stock(pot) == (3, 1)


async def test_a_hold_is_made_for_all_lines_or_for_none(here: Warehouse) -> None:
    plenty, scarce = await here.product(100), await here.product(1)
    refusal = (await here.reserve(wish({plenty: 5, scarce: 2})))[0]
    assert isinstance(refusal, StockInsufficient)
    assert refusal.metadata == {"productId": str(scarce), "requested": "2", "available": "1"}
    assert await here.stock(plenty) == (100, 0)
    assert await here.stock(scarce) == (1, 0)


async def test_each_of_a_batch_stands_or_falls_alone(here: Warehouse) -> None:
    product, archived = await here.product(5), await here.product(5)
    await here.admin.execute("UPDATE products SET state = 'ARCHIVED' WHERE id = $1", archived)
    results = await here.reserve(
        wish({product: 3}), wish({uuid4(): 1}), wish({archived: 1}), wish({product: 3}), wish({product: 2})
    )
    assert [type(result) for result in results] == [
        Hold,
        ProductNotFound,
        ProductArchived,
        StockInsufficient,
        Hold,
    ]
    assert await here.stock(product) == (5, 5)


async def test_a_retry_gets_the_hold_of_its_first_attempt_and_its_order_id(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    first = held((await here.reserve(wish({product: 4}, key=b"k" * 16 + (key := uuid4().bytes))))[0])
    retries = await asyncio.gather(
        here.reserve(wish({product: 4}, key=b"k" * 16 + key)), there.reserve(wish({product: 4}, key=b"k" * 16 + key))
    )
    for (result,) in retries:
        assert (held(result).order_id, held(result).lines) == (first.order_id, first.lines)
    assert await here.stock(product) == (10, 4)


async def test_duplicates_in_one_batch_share_one_hold(here: Warehouse) -> None:
    product, key = await here.product(10), uuid4().bytes
    one, two = await here.reserve(wish({product: 4}, key=key), wish({product: 4}, key=key))
    assert held(one).order_id == held(two).order_id
    assert await here.stock(product) == (10, 4)


async def test_duplicates_that_two_processes_make_at_the_same_time_share_one_hold(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(1000)
    for _ in range(20):
        key = uuid4().bytes
        (one,), (two,) = await asyncio.gather(
            here.reserve(wish({product: 4}, key=key)), there.reserve(wish({product: 4}, key=key))
        )
        assert held(one).order_id == held(two).order_id
    assert await here.stock(product) == (1000, 80)
    await here.require_balance(product)


async def test_the_key_of_a_live_hold_is_refused_for_other_lines(here: Warehouse, there: Warehouse) -> None:
    product, other, key = await here.product(10), await here.product(10), uuid4().bytes
    held((await here.reserve(wish({product: 4}, key=key)))[0])
    for lines in ({product: 5}, {product: 4, other: 1}, {other: 4}):
        assert isinstance((await there.reserve(wish(lines, key=key)))[0], HoldKeyReused)
    assert await here.stock(product) == (10, 4)
    assert await here.stock(other) == (10, 0)


async def test_a_key_for_two_different_orders_at_the_same_time_holds_for_one_of_them(
    here: Warehouse, there: Warehouse
) -> None:
    one, two = await here.product(100), await here.product(100)
    for _ in range(20):
        key = uuid4().bytes
        results = [
            *(await asyncio.gather(here.reserve(wish({one: 1}, key=key)), there.reserve(wish({two: 1}, key=key))))
        ]
        assert sorted(type(result).__name__ for (result,) in results) == ["Hold", "HoldKeyReused"]
    assert sum([(await here.stock(one))[1], (await here.stock(two))[1]]) == 20


async def test_a_released_hold_is_not_adopted_by_a_retry_that_met_its_release(
    here: Warehouse, there: Warehouse
) -> None:
    """The retry looks at the hold while its release is under way: what it is given must still be held."""
    product, key = await here.product(10), uuid4().bytes
    first = held((await here.reserve(wish({product: 4}, key=key)))[0])
    async with here.units.begin() as work:
        await here.holds.release(work, [first.order_id])
        await work.transaction.fetch(STOCKS, ids=[product])  # what waits for the commit is sent before a look
        retry = asyncio.create_task(there.reserve(wish({product: 4}, key=key)))
        await eventually(here.waiting)
    second = held((await retry)[0])
    assert second.order_id != first.order_id
    assert await here.stock(product) == (10, 4)
    await here.require_balance(product)


async def test_a_hundred_buyers_of_a_stock_of_ten_get_exactly_ten_holds(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    buyers = [(here if number % 2 else there).reserve(wish({product: 1})) for number in range(100)]
    results = [result for (result,) in await asyncio.gather(*buyers)]
    assert sum(isinstance(result, Hold) for result in results) == 10
    assert sum(isinstance(result, StockInsufficient) for result in results) == 90
    assert await here.stock(product) == (10, 10)
    await here.require_balance(product)


async def test_a_hold_is_sold_released_and_returned_each_once(here: Warehouse) -> None:
    product = await here.product(10)
    sold, freed = [held((await here.reserve(wish({product: 3})))[0]).order_id for _ in range(2)]
    absent = uuid4()
    for _ in range(2):
        assert await here.commit(sold, absent) == {sold: HoldState.COMMITTED}
        assert await here.stock(product) == (7, 3)
    for _ in range(2):
        assert await here.release(freed) == {freed: HoldState.RELEASED}
        assert await here.stock(product) == (7, 0)
    for _ in range(2):
        assert await here.release(sold) == {sold: HoldState.RETURNED}
        assert await here.stock(product) == (10, 0)
    assert await here.commit(sold, freed) == {sold: HoldState.RETURNED, freed: HoldState.RELEASED}, "final is final"
    assert await here.stock(product) == (10, 0)
    moves, _ = await here.inventory.list_movements(product, page_size=0, page_token="")
    assert [(move.delta, move.on_hand_after, move.reason.value, move.order_id) for move in moves] == [
        (3, 10, "RETURN", sold),
        (-3, 7, "SALE", sold),
        (10, 10, "RECEIPT", None),
    ]
    await here.require_balance(product)


async def test_after_its_release_a_key_may_hold_again(here: Warehouse) -> None:
    product, key = await here.product(10), uuid4().bytes
    first = held((await here.reserve(wish({product: 4}, key=key)))[0])
    await here.release(first.order_id)
    second = held((await here.reserve(wish({product: 6}, key=key)))[0])
    assert second.order_id != first.order_id
    assert await here.stock(product) == (10, 6)


async def test_batches_over_the_same_products_in_opposite_order_never_deadlock(
    here: Warehouse, there: Warehouse
) -> None:
    products = await here.products(8, 100_000)

    async def buy(process: Warehouse, order: list[tuple[UUID, UUID]]) -> None:
        for _ in range(25):
            results = await process.reserve(*(wish({product: 1, other: 1}) for product, other in order))
            order_ids = [held(result).order_id for result in results]
            await process.commit(*order_ids[::2])
            await process.release(*order_ids)

    pairs = list(zip(products, reversed(products), strict=True))[:4]
    before = await deadlocks(here)
    async with asyncio.timeout(60):
        await asyncio.gather(buy(here, pairs), buy(there, pairs[::-1]), buy(here, pairs[::-1]), buy(there, pairs))
    assert await deadlocks(here) == before
    for product in products:
        assert await here.stock(product) == (100_000, 0)
        await here.require_balance(product)


async def test_settling_confirmed_and_cancelled_orders_together_never_deadlocks_with_new_holds(
    here: Warehouse, there: Warehouse
) -> None:
    """One batch of events holds both: the confirmed order's product comes after the cancelled one's."""
    low, high = await here.products(2, 100_000)
    before = await deadlocks(here)
    for _ in range(15):
        confirmed, cancelled = [held(result).order_id for result in await here.reserve(wish({high: 1}), wish({low: 1}))]

        async def settle(confirmed: UUID = confirmed, cancelled: UUID = cancelled) -> None:
            async with here.units.begin() as work:
                await here.holds.settle(work, confirmed=[confirmed], cancelled=[cancelled])

        async with asyncio.timeout(20):
            settling = asyncio.create_task(settle())
            results = await asyncio.gather(*(there.reserve(wish({low: 1, high: 1})) for _ in range(4)))
            await settling
        assert all(isinstance(result, Hold) for (result,) in results)
    assert await deadlocks(here) == before
    for product in (low, high):
        await here.require_balance(product)


async def test_a_database_lost_in_mid_batch_holds_nothing_and_the_next_call_works(here: Warehouse) -> None:
    product = await here.product(10)
    lock = here.admin.transaction()
    await lock.start()
    await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", product)
    buyers = [asyncio.create_task(here.reserve(wish({product: 1}))) for _ in range(5)]

    async def ended() -> bool:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return bool(await here.admin.fetch(query))

    await eventually(ended)
    results = [result for (result,) in await asyncio.gather(*buyers)]
    await lock.rollback()
    for result in results:
        assert isinstance(result, Unavailable)
        assert result.reason == "DEPENDENCY_UNAVAILABLE"
    assert await here.stock(product) == (10, 0)
    assert isinstance((await here.reserve(wish({product: 1})))[0], Hold)


async def test_the_sweep_asks_before_it_settles_anything(here: Warehouse) -> None:
    await here.admin.execute("UPDATE holds SET expire_time = now() + interval '1 day' WHERE state = 'HELD'")
    product = await here.product(10)
    kept, paid, gone = [
        held(result).order_id for result in await here.reserve(*(wish({product: 2}, expires_in=-1) for _ in range(3)))
    ]
    alive = held((await here.reserve(wish({product: 2})))[0]).order_id
    here.orders.asked.clear()
    here.orders.wishes = {}
    with pytest.raises(KeyError):  # the order service does not answer
        await here.holds.sweep()
    assert await here.stock(product) == (10, 8), "nothing is released on suspicion"

    here.orders.wishes = {kept: HoldState.HELD, paid: HoldState.COMMITTED, gone: HoldState.RELEASED}
    assert await here.holds.sweep() is False
    assert {frozenset(asked) for asked in here.orders.asked} == {frozenset({kept, paid, gone})}
    assert alive not in here.orders.asked[-1]
    assert await here.stock(product) == (8, 4)
    states = await here.admin.fetch("SELECT order_id, state FROM holds WHERE order_id = ANY($1)", [kept, paid, gone])
    assert {row["order_id"]: row["state"] for row in states} == {kept: "HELD", paid: "COMMITTED", gone: "RELEASED"}

    here.orders.asked.clear()
    assert await here.holds.sweep() is False
    assert not here.orders.asked, "what is kept is not asked about again at once"
    await here.require_balance(product)


async def test_a_hold_that_cannot_be_settled_is_not_in_the_way_of_the_others(here: Warehouse) -> None:
    await here.admin.execute("UPDATE holds SET expire_time = now() + interval '1 day' WHERE state = 'HELD'")
    product, wrong = await here.product(10), await here.product(10)
    holds = [
        held(result).order_id
        for result in await here.reserve(*(wish({each: 2}, expires_in=-1) for each in (product, wrong, product)))
    ]
    await here.admin.execute("UPDATE stocks SET reserved = 0 WHERE product_id = $1", wrong)
    here.orders.wishes = dict.fromkeys(holds, HoldState.RELEASED)
    assert await here.holds.sweep() is False
    assert await here.stock(product) == (10, 0)
    here.orders.asked.clear()
    assert await here.holds.sweep() is False
    assert not here.orders.asked, "and is not asked about again at once"
    await here.admin.execute("UPDATE stocks SET reserved = 2 WHERE product_id = $1", wrong)
    await here.release(holds[1])


async def test_the_sweep_says_when_there_may_be_more(here: Warehouse) -> None:
    await here.admin.execute("UPDATE holds SET expire_time = now() + interval '1 day' WHERE state = 'HELD'")
    product = await here.product(10)
    results = await here.reserve(*(wish({product: 1}, expires_in=-1) for _ in range(3)))
    here.orders.wishes = {held(result).order_id: HoldState.RELEASED for result in results}
    assert await here.holds.sweep(most=2) is True
    assert await here.holds.sweep(most=2) is False
    assert await here.stock(product) == (10, 0)


async def test_a_late_confirmation_sells_nothing_and_one_without_a_hold_is_a_fault(here: Warehouse) -> None:
    product = await here.product(10)
    released = held((await here.reserve(wish({product: 2})))[0]).order_id
    await here.release(released)

    async def confirm(*order_ids: UUID) -> None:
        events = [Received(uuid4(), ORDER_CONFIRMED, order_id, 2, "", OrderConfirmed()) for order_id in order_ids]
        async with here.units.begin() as work:
            await here.holds.on_settled(work, events)

    await confirm(released)
    assert await here.stock(product) == (10, 0)
    waiting = held((await here.reserve(wish({product: 2})))[0]).order_id
    with pytest.raises(HoldMissing):
        await confirm(waiting, uuid4())
    assert await here.stock(product) == (10, 2), "and nothing of its batch took effect"
    await confirm(waiting)
    assert await here.stock(product) == (8, 0)


async def test_an_order_that_is_paid_and_cancelled_in_one_batch_is_sold_and_returned(here: Warehouse) -> None:
    product = await here.product(10)
    order_id = held((await here.reserve(wish({product: 2})))[0]).order_id
    async with here.units.begin() as work:
        states = await here.holds.settle(work, confirmed=[order_id], cancelled=[order_id])
    assert states == {order_id: HoldState.RETURNED}
    assert await here.stock(product) == (10, 0)
    await here.require_balance(product)


async def deadlocks(here: Warehouse) -> int:
    """Deadlocks that PostgreSQL has ended in this database."""
    await here.admin.execute("SELECT pg_stat_clear_snapshot()")
    count: int = await here.admin.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


@pytest.mark.parametrize(("there_does", "becomes"), [("release", HoldState.RELEASED), ("commit", HoldState.COMMITTED)])
async def test_a_hold_that_another_process_has_settled_meanwhile_is_settled_once(
    here: Warehouse, there: Warehouse, there_does: str, becomes: HoldState
) -> None:
    product = await here.product(10)
    order_id, _ = [held(result).order_id for result in await here.reserve(wish({product: 4}), wish({product: 5}))]
    await (there.release(order_id) if there_does == "release" else there.commit(order_id))
    stock = await here.stock(product)

    async def settle(work: UnitOfWork) -> dict[UUID, HoldState]:
        return await here.holds.commit(work, [order_id])

    assert await here.units.run_optimistically(settle) == {order_id: becomes}
    assert await here.stock(product) == stock == ((10, 5) if there_does == "release" else (6, 5))
    await here.require_balance(product)
