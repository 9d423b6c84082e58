"""Holds on the real database: once for a key, never more than there is, and resolved once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from mesh.db.unit_of_work import UnitOfWork
from mesh.errors import Unavailable
from mesh.events.cloudevents import Received
from product_svc.domain import (
    Hold,
    HoldDecision,
    HoldKeyReused,
    HoldMissing,
    HoldResolved,
    HoldState,
    PriceChanged,
    StockInsufficient,
    Total,
)
from product_svc.store.stock import STOCKS
from tests.product.process import Warehouse, held, reservation
from tests.services import TEST_TIMEOUT_S, eventually


def prices(results: Sequence[Hold | Exception]) -> list[Decimal]:
    """The unit prices of a hold."""
    (hold,) = map(held, results)
    return [line.unit_price for line in hold.lines]


async def test_hold_reserves_stock_and_contains_the_offers(here: Warehouse) -> None:
    tea, pot = await here.product(10, name="Tea"), await here.product(3, name="Pot")
    request = reservation({tea: 4, pot: 1})
    hold = held((await here.reserve(request))[0])
    assert (hold.order_id, hold.state) == (request.order_id, HoldState.HELD)
    assert [(line.product_id, line.quantity, line.name) for line in hold.lines] == [(tea, 4, "Tea"), (pot, 1, "Pot")]
    assert await here.stock(tea) == (10, 4)
    assert await here.stock(pot) == (3, 1)


async def test_retry_in_any_process_gets_the_hold_of_the_first_attempt(here: Warehouse, there: Warehouse) -> None:
    product, key = await here.product(10), uuid4().bytes
    first = held((await here.reserve(reservation({product: 4}, key=key)))[0])
    retries = await asyncio.gather(*(process.reserve(reservation({product: 4}, key=key)) for process in (here, there)))
    for (result,) in retries:
        assert held(result) == first
    assert await here.stock(product) == (10, 4)


async def test_concurrent_duplicates_in_two_processes_get_one_hold(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(1000)
    for _ in range(20):
        key = uuid4().bytes
        (one,), (two,) = await asyncio.gather(
            here.reserve(reservation({product: 4}, key=key)), there.reserve(reservation({product: 4}, key=key))
        )
        assert held(one).order_id == held(two).order_id
    assert await here.stock(product) == (1000, 80)
    await here.require_balance(product)


async def test_concurrent_reservations_of_one_key_for_different_products_make_one_hold(
    here: Warehouse, there: Warehouse
) -> None:
    one, two = await here.product(100), await here.product(100)
    for _ in range(20):
        key = uuid4().bytes
        results = await asyncio.gather(
            here.reserve(reservation({one: 1}, key=key)), there.reserve(reservation({two: 1}, key=key))
        )
        assert {type(result) for (result,) in results} == {Hold, HoldKeyReused}
    assert sum([(await here.stock(one))[1], (await here.stock(two))[1]]) == 20


async def test_retry_during_the_release_of_its_hold_makes_another_hold(here: Warehouse, there: Warehouse) -> None:
    product, key = await here.product(10), uuid4().bytes
    first = held((await here.reserve(reservation({product: 4}, key=key)))[0])
    async with here.units.begin() as work:
        await here.holds.resolve(work, release=[first.order_id])
        await work.transaction.fetch(STOCKS, keys=[product])  # this sends the writes that wait for the commit
        retry = asyncio.create_task(there.reserve(reservation({product: 4}, key=key)))
        await eventually(here.waiting)
    second = held((await retry)[0])
    assert second.order_id != first.order_id
    assert await here.stock(product) == (10, 4)
    await here.require_balance(product)


async def test_key_of_a_released_hold_gets_another_hold_when_stock_is_short(here: Warehouse, there: Warehouse) -> None:
    product, key = await here.product(4), uuid4().bytes
    first = held((await here.reserve(reservation({product: 4}, key=key)))[0])
    await here.release(first.order_id)
    # There is too little for both, so this process locks the stock and reads the holds under the keys.
    second, rejected = await there.reserve(reservation({product: 4}, key=key), reservation({product: 1}))
    assert held(second).order_id != first.order_id
    assert isinstance(rejected, StockInsufficient)
    assert await here.stock(product) == (4, 4)
    await here.require_balance(product)


async def test_order_whose_hold_is_resolved_gets_no_other_and_the_next_to_it_is_held(here: Warehouse) -> None:
    product = await here.product(10)
    for resolve in (here.commit, here.release):
        request = reservation({product: 1})
        held((await here.reserve(request))[0])
        await resolve(request.order_id)
        late, other = await asyncio.gather(here.reserve(request), here.reserve(reservation({product: 1})))
        assert isinstance(late[0], HoldResolved)
        held(other[0])
    assert await here.stock(product) == (9, 2)


async def test_hold_is_renewed_at_the_current_prices_under_another_key_and_adopted_under_its_own(
    here: Warehouse, there: Warehouse
) -> None:
    product, order_id = await here.product(4), uuid4()
    first, second = (reservation({product: 4}, order_id=order_id) for _ in range(2))
    assert prices(await here.reserve(first)) == [Decimal("12.5")]

    async def sell_at(price: int) -> None:
        await here.admin.execute("UPDATE products SET price = $2, version = version + 1 WHERE id = $1", product, price)

    await sell_at(15)
    assert prices(await there.reserve(first)) == [Decimal("12.5")], "a retry"
    refused = (await there.reserve(second._replace(expected_total=Total(Decimal(50), "EUR"))))[0]
    assert isinstance(refused, PriceChanged)
    other_lines = (await there.reserve(reservation({product: 3}, order_id=order_id)))[0]
    assert isinstance(other_lines, HoldKeyReused)
    assert prices(await here.reserve(first)) == [Decimal("12.5")], "a refusal changes nothing"
    beside = reservation({await here.product(1): 1})
    renewed, other = map(held, await there.reserve(second, beside))
    assert (renewed.order_id, renewed.key, renewed.lines[0].unit_price) == (order_id, second.key, Decimal(15))
    assert (other.order_id, await here.stock(product)) == (beside.order_id, (4, 4))
    await sell_at(16)
    assert prices(await here.reserve(second)) == [Decimal(15)], "a retry"
    assert await here.commit(order_id) == {order_id: HoldState.COMMITTED}
    assert await here.stock(product) == (0, 0)
    await here.require_balance(product)


async def test_concurrent_attempts_to_place_one_order_share_one_hold(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(20)
    for _ in range(20):
        order_id = uuid4()
        attempts = [reservation({product: 1}, order_id=order_id) for _ in range(6)]
        results = await asyncio.gather(
            *(process.reserve(*attempts[place::3]) for place, process in enumerate((here, there, here)))
        )
        assert {held(result).order_id for each in results for result in each} == {order_id}
    assert await here.stock(product) == (20, 20)
    await here.require_balance(product)


async def test_a_hundred_buyers_of_a_stock_of_ten_get_ten_holds(here: Warehouse, there: Warehouse) -> None:
    product = await here.product(10)
    buyers = [(here if number % 2 else there).reserve(reservation({product: 1})) for number in range(100)]
    results = [result for (result,) in await asyncio.gather(*buyers)]
    assert sum(isinstance(result, Hold) for result in results) == 10
    assert sum(isinstance(result, StockInsufficient) for result in results) == 90
    assert await here.stock(product) == (10, 10)
    await here.require_balance(product)


async def test_hold_is_committed_released_and_returned_once_each(here: Warehouse) -> None:
    product = await here.product(10)
    sold, freed = await here.hold(product, 3), await here.hold(product, 3)
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
    moves, _ = await here.inventory.list_movements(product, page_size=0, page_token="")
    assert [(move.delta, move.on_hand_after, move.reason.value, move.order_id, move.actor) for move in moves] == [
        (3, 10, "RETURN", sold, "service:order"),
        (-3, 7, "SALE", sold, "service:order"),
        (10, 10, "RECEIPT", None, "staff:clerk"),
    ]
    await here.require_balance(product)


async def test_batches_over_the_same_products_in_opposite_order_never_deadlock(
    here: Warehouse, there: Warehouse
) -> None:
    products = await here.products(8, 100_000)

    async def buy(process: Warehouse, order: list[tuple[UUID, UUID]]) -> None:
        for _ in range(25):
            results = await process.reserve(*(reservation({product: 1, other: 1}) for product, other in order))
            order_ids = [held(result).order_id for result in results]
            await process.commit(*order_ids[::2])
            await process.release(*order_ids)

    pairs = list(zip(products, reversed(products), strict=True))[:4]
    before = await deadlocks(here)
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await asyncio.gather(buy(here, pairs), buy(there, pairs[::-1]), buy(here, pairs[::-1]), buy(there, pairs))
    assert await deadlocks(here) == before
    for product in products:
        assert await here.stock(product) == (100_000, 0)
        await here.require_balance(product)


async def test_commits_and_releases_of_one_batch_never_deadlock_with_new_holds(
    here: Warehouse, there: Warehouse
) -> None:
    """The product of the confirmed order comes after that of the cancelled one."""
    low, high = await here.products(2, 100_000)
    before = await deadlocks(here)
    for _ in range(15):
        confirmed, cancelled = await here.hold(high), await here.hold(low)

        async def resolve(confirmed: UUID = confirmed, cancelled: UUID = cancelled) -> None:
            async with here.units.begin() as work:
                await here.holds.resolve(work, commit=[confirmed], release=[cancelled])

        async with asyncio.timeout(TEST_TIMEOUT_S):
            resolving = asyncio.create_task(resolve())
            results = await asyncio.gather(*(there.reserve(reservation({low: 1, high: 1})) for _ in range(4)))
            await resolving
        assert all(isinstance(result, Hold) for (result,) in results)
    assert await deadlocks(here) == before
    for product in (low, high):
        await here.require_balance(product)


async def test_batch_whose_database_is_lost_holds_nothing_and_the_next_call_works(here: Warehouse) -> None:
    product = await here.product(10)
    lock = here.admin.transaction()
    await lock.start()
    await here.admin.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", product)
    buyers = [asyncio.create_task(here.reserve(reservation({product: 1}))) for _ in range(5)]

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
    assert isinstance((await here.reserve(reservation({product: 1})))[0], Hold)


async def test_confirmation_of_a_released_hold_sells_nothing_and_one_without_a_hold_fails(here: Warehouse) -> None:
    product = await here.product(10)
    released = await here.hold(product, 2)
    await here.release(released)

    async def confirm(*order_ids: UUID) -> None:
        events = [
            Received(uuid4(), "commerce.order.confirmed", order_id, 2, "", HoldDecision.COMMIT)
            for order_id in order_ids
        ]
        async with here.units.begin() as work:
            await here.holds.apply_decisions(work, events)

    await confirm(released)
    assert await here.stock(product) == (10, 0)
    waiting = await here.hold(product, 2)
    with pytest.raises(HoldMissing):
        await confirm(waiting, uuid4())
    assert await here.stock(product) == (10, 2), "and nothing of its batch took effect"
    await confirm(waiting)
    assert await here.stock(product) == (8, 0)


async def test_order_that_is_confirmed_and_cancelled_in_one_batch_is_sold_and_returned(here: Warehouse) -> None:
    product = await here.product(10)
    order_id = await here.hold(product, 2)
    async with here.units.begin() as work:
        states = await here.holds.resolve(work, commit=[order_id], release=[order_id])
    assert states == {order_id: HoldState.RETURNED}
    assert await here.stock(product) == (10, 0)
    await here.require_balance(product)


async def deadlocks(here: Warehouse) -> int:
    """Deadlocks that PostgreSQL has ended in this database."""
    await here.admin.execute("SELECT pg_stat_clear_snapshot()")
    count: int = await here.admin.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


RESOLVED_THERE = pytest.mark.parametrize(
    ("there_does", "state", "stock"),
    [("release", HoldState.RELEASED, (10, 5)), ("commit", HoldState.COMMITTED, (6, 5))],
)


@RESOLVED_THERE
async def test_event_about_a_hold_that_another_process_has_resolved_changes_nothing(
    here: Warehouse, there: Warehouse, there_does: str, state: HoldState, stock: tuple[int, int]
) -> None:
    product = await here.product(10)
    order_id, _ = await here.hold(product, 4), await here.hold(product, 5)
    await (there.release(order_id) if there_does == "release" else there.commit(order_id))

    async def resolve(work: UnitOfWork) -> dict[UUID, HoldState]:
        return await here.holds.resolve(work, commit=[order_id])

    assert await here.units.run_optimistically(resolve) == {order_id: state}
    assert await here.stock(product) == stock
    await here.require_balance(product)


@RESOLVED_THERE
async def test_call_about_a_hold_that_another_process_has_resolved_changes_nothing(
    here: Warehouse, there: Warehouse, there_does: str, state: HoldState, stock: tuple[int, int]
) -> None:
    product = await here.product(10)
    order_id, _ = await here.hold(product, 4), await here.hold(product, 5)
    await (there.release(order_id) if there_does == "release" else there.commit(order_id))
    assert await here.commit(order_id) == {order_id: state}
    assert await here.stock(product) == stock
    await here.require_balance(product)


async def test_call_that_waits_while_another_process_resolves_its_hold_changes_nothing(
    here: Warehouse, there: Warehouse
) -> None:
    product = await here.product(10)
    order_id = await here.hold(product, 4)
    async with here.units.begin() as work:
        await here.holds.resolve(work, commit=[order_id])
        await work.transaction.fetch(STOCKS, keys=[product])  # this sends the writes that wait for the commit
        call = asyncio.create_task(there.commit(order_id))
        await eventually(here.waiting)
    assert await call == {order_id: HoldState.COMMITTED}
    assert await here.stock(product) == (6, 0)
    await here.require_balance(product)
