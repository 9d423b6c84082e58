"""Stock and its ledger: the numbers add up after every sequence of operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commerce.product.v1.events_pb2 import StockChanged, StockLow
from mesh.errors import InvalidArgument
from mesh.rpc.wire import moment
from product_svc.domain import Hold, MovementReason, ProductNotFound, ProductUpdate, StockChange, StockInsufficient
from stack.servers import Servers
from tests.product.process import Warehouse, change, held, reservation, warehouse


@pytest.fixture(scope="module")
async def here(servers: Servers) -> AsyncIterator[Warehouse]:
    async with warehouse(servers, low_stock_threshold=5) as opened:
        yield opened


async def test_change_of_stock_is_recorded_with_its_author(here: Warehouse) -> None:
    product = await here.product(10)
    await here.move(product, delta=-3)
    await here.move(product, to=20)
    await here.move(product, to=20)
    moves, _ = await here.inventory.list_movements(product, page_size=0, page_token="")
    assert [(move.delta, move.on_hand_after) for move in moves] == [(13, 20), (-3, 7), (10, 10)]
    assert {move.actor for move in moves} == {"staff:clerk"}
    await here.require_balance(product)


async def test_stock_of_an_unknown_product_is_not_found(here: Warehouse) -> None:
    for asked in (
        here.inventory.get_stock(uuid4()),
        here.move(uuid4(), delta=1),
        here.inventory.list_movements(uuid4(), page_size=0, page_token=""),
    ):
        with pytest.raises(ProductNotFound):
            await asked


async def test_movements_are_listed_page_by_page_and_a_changed_token_is_rejected(here: Warehouse) -> None:
    product, other = await here.product(1), await here.product(1)
    for _ in range(6):
        await here.move(product, delta=1)
    seen: list[int] = []
    token, pages = "", 0
    while pages == 0 or token:
        moves, token = await here.inventory.list_movements(product, page_size=3, page_token=token)
        seen += [move.on_hand_after for move in moves]
        pages += 1
    assert (seen, pages) == ([7, 6, 5, 4, 3, 2, 1], 3)
    _, token = await here.inventory.list_movements(product, page_size=3, page_token="")
    for product_id, bad in ((product, token[:-1]), (product, token[1:]), (other, token)):
        with pytest.raises(InvalidArgument) as refusal:
            await here.inventory.list_movements(product_id, page_size=3, page_token=bad)
        assert refusal.value.reason == "PAGE_TOKEN_INVALID"


async def test_change_of_stock_is_published_and_low_stock_once_for_each_fall(here: Warehouse) -> None:
    product = await here.product(10)
    for delta in (-4, -1, -1, 5, -4):  # 6, 5 (low), 4, 9, 5 (low again)
        await here.move(product, delta=delta)
    rows = await here.admin.fetch("SELECT type FROM mesh.outbox WHERE aggregate_id = $1 ORDER BY seq", product)
    types = [row["type"].removeprefix("commerce.product.") for row in rows]
    changed, low = "stock_changed", "stock_low"
    assert types == ["created", changed, changed, low, changed, changed, changed, low]


async def test_low_stock_is_that_at_the_threshold_of_the_product_also_for_sales(here: Warehouse) -> None:
    product, other = await here.product(30), await here.product(30)

    async def set_threshold(threshold: int) -> None:
        update = ProductUpdate(low_stock_threshold=threshold)
        await here.use.catalogue.update_product(change(), product, update, etag="")

    async def sell(quantity: int) -> None:
        orders = [await here.hold(each, quantity) for each in (product, other)]
        async with here.units.begin() as work:
            await here.holds.resolve(work, commit=orders)

    await set_threshold(20)
    for quantity in (9, 1, 1):  # 21, 20 (low), 19
        await sell(quantity)
    await set_threshold(18)
    await sell(1)  # 18, low at the new threshold
    await set_threshold(25)  # a new threshold alone publishes nothing
    await here.move(product, to=26)
    await sell(1)  # 25, low again

    rows = await here.admin.fetch(
        "SELECT aggregate_id, payload FROM mesh.outbox WHERE type = 'commerce.product.stock_low' "
        "AND aggregate_id = ANY($1) ORDER BY seq",
        [product, other],
    )
    assert {row["aggregate_id"] for row in rows} == {product}, "the other one has the threshold of the settings"
    lows = [StockLow.FromString(row["payload"]) for row in rows]
    assert [(low.stock.on_hand, low.threshold) for low in lows] == [(20, 20), (18, 18), (25, 25)]


async def test_reply_and_event_of_a_change_have_the_time_at_which_the_stock_changed(here: Warehouse) -> None:
    product = await here.product(10)
    reply = await here.inventory.update_stock(change(), StockChange(product, 1, None, MovementReason.RECEIPT, ""))
    stored = await here.inventory.get_stock(product)
    assert reply.value == stored
    payload = await here.admin.fetchval(
        "SELECT payload FROM mesh.outbox WHERE aggregate_id = $1 AND type = 'commerce.product.stock_changed'", product
    )
    event = StockChanged.FromString(payload)
    assert moment(event.stock.update_time) == stored.update_time == moment(event.movements[0].create_time)


async def test_concurrent_changes_of_one_product_are_all_recorded(here: Warehouse) -> None:
    product = await here.product(100)
    changes = [here.move(product, delta=1) for _ in range(20)] + [here.move(product, delta=-2) for _ in range(20)]
    await asyncio.gather(*changes)
    assert await here.stock(product) == (80, 0)
    await here.require_balance(product)


class Model:
    """The numbers of one product by the simplest rules; each step is executed by the service as well."""

    def __init__(self, here: Warehouse, product: UUID, on_hand: int) -> None:
        self.here, self.product = here, product
        self.on_hand, self.reserved = on_hand, 0
        self.orders: dict[UUID, tuple[str, int]] = {}

    async def delta(self, number: int) -> None:
        await self._move(number, here_delta=number)

    async def set(self, number: int) -> None:
        await self._move(number - self.on_hand, here_to=number)

    async def _move(self, delta: int, *, here_delta: int | None = None, here_to: int | None = None) -> None:
        moving = self.here.move(self.product, delta=here_delta, to=here_to)
        if self.on_hand + delta < self.reserved:
            with pytest.raises(StockInsufficient):
                await moving
        else:
            await moving
            self.on_hand += delta

    async def hold(self, number: int) -> None:
        await self._hold([number])

    async def hold_together(self, number: int) -> None:
        await self._hold([1] * number)

    async def _hold(self, sizes: list[int]) -> None:
        results = await self.here.reserve(*(reservation({self.product: size}) for size in sizes))
        for size, result in zip(sizes, results, strict=True):
            if self.reserved + size <= self.on_hand:
                self.orders[held(result).order_id] = ("HELD", size)
                self.reserved += size
            else:
                assert isinstance(result, StockInsufficient)

    async def commit(self, number: int) -> None:
        await self._resolve(number, {"HELD": ("COMMITTED", -1, -1)})

    async def release(self, number: int) -> None:
        await self._resolve(number, {"HELD": ("RELEASED", 0, -1), "COMMITTED": ("RETURNED", 1, 0)})

    async def _resolve(self, number: int, steps: dict[str, tuple[str, int, int]]) -> None:
        if not self.orders:
            return
        order_id = list(self.orders)[number % len(self.orders)]
        state, size = self.orders[order_id]
        state, hands, held_ = steps.get(state, (state, 0, 0))
        resolve = self.here.commit if "COMMITTED" not in steps else self.here.release
        assert {key: value.value for key, value in (await resolve(order_id)).items()} == {order_id: state}
        self.orders[order_id] = (state, size)
        self.on_hand, self.reserved = self.on_hand + hands * size, self.reserved + held_ * size


STEPS = st.one_of(
    st.tuples(st.just(Model.delta), st.integers(-12, 12).filter(bool)),
    st.tuples(st.just(Model.set), st.integers(0, 20)),
    st.tuples(st.just(Model.hold), st.integers(1, 6)),
    st.tuples(st.just(Model.hold_together), st.integers(1, 4)),
    st.tuples(st.just(Model.commit), st.integers(0, 3)),
    st.tuples(st.just(Model.release), st.integers(0, 3)),
)


# Long enough for holds to be made, sold and returned in each.
@given(steps=st.lists(STEPS, min_size=20, max_size=40))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_every_sequence_of_operations_keeps_the_balance(
    here: Warehouse, steps: list[tuple[Callable[[Model, int], Awaitable[None]], int]]
) -> None:
    model = Model(here, await here.product(10), 10)
    for step, number in steps:
        await step(model, number)
        assert await here.stock(model.product) == (model.on_hand, model.reserved)
    await here.require_balance(model.product)


async def test_database_rejects_what_is_oversold(here: Warehouse) -> None:
    product = await here.product(3)
    for wrong in ("reserved = 4", "reserved = -1", "on_hand = -1"):
        with pytest.raises(asyncpg.CheckViolationError):
            await here.admin.execute(f"UPDATE stocks SET {wrong} WHERE product_id = $1", product)


async def test_ledger_cannot_be_altered(here: Warehouse) -> None:
    product = await here.product(3)
    for statement in (
        "UPDATE stock_movements SET delta = 1",
        "DELETE FROM stock_movements",
        "TRUNCATE stock_movements",
    ):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await here.admin.execute(statement)
    await here.require_balance(product)


async def test_concurrent_buyers_and_staff_never_sell_what_is_not_there(here: Warehouse) -> None:
    product = await here.product(30)

    async def buy() -> int:
        (result,) = await here.reserve(reservation({product: 1}))
        if not isinstance(result, Hold):
            return 0
        await here.commit(result.order_id)
        return 1

    async def shrink() -> int:
        try:
            await here.move(product, delta=-5)
        except StockInsufficient:
            return 0
        return 5

    taken = await asyncio.gather(*(buy() for _ in range(60)), *(shrink() for _ in range(6)))
    assert await here.stock(product) == (30 - sum(taken), 0)
    await here.require_balance(product)
