"""Pages of orders: bounded by orders and by items, read and converted in bounded portions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest

from commerce.order.v1 import order_pb2
from mesh.db.database import Database, Row, Statement, Transaction
from mesh.ids import new_id
from mesh.rpc.call import Call, Caller, Kind
from order_svc import wire
from order_svc.domain import Item, Order, Status
from order_svc.rpc import OrderService
from order_svc.usecases import reading
from tests.order.process import process_of


async def placed(
    database: Database, customer: UUID, sizes: Sequence[int], *, deadline: timedelta = timedelta(minutes=15)
) -> list[Order]:
    """Orders of a customer with so many items, oldest first; every third one is confirmed."""
    now = datetime.now(UTC)
    orders = [
        Order(
            id=new_id(),
            customer_id=customer,
            status=Status.PENDING if number % 3 else Status.CONFIRMED,
            items=tuple(Item(new_id(), uuid4(), f"SKU-{line}", "A thing", 1, Decimal(1)) for line in range(size)),
            total=Decimal(size),
            currency="EUR",
            payment_method_id=uuid4(),
            payment_id=None,
            order_date=now,
            payment_deadline=now + deadline,
            cancel_reason=None,
            cancel_note="",
            update_time=now,
            version=1,
        )
        for number, size in enumerate(sizes)
    ]
    process = process_of(database)
    async with process.units.begin() as work:
        process.orders.add(work, orders)
    return orders


def service(database: Database) -> OrderService:
    """The contract of the order service."""
    process = process_of(database)
    return OrderService(
        process.placement,
        process.drafts,
        process.reading,
        process.cancellation,
        process.fulfilment,
        process.holds,
        process.timeline,
        process.watching,
        process.erasures,
    )


async def pages(database: Database, customer: UUID, page_size: int, status: int = 0) -> list[list[order_pb2.Order]]:
    """All pages of a customer's orders."""
    listing, call, token = service(database), Call("ListOrders", caller=Caller(Kind.CUSTOMER, str(customer))), ""
    found = []
    while True:
        request = order_pb2.ListOrdersRequest(page_size=page_size, page_token=token, status=status)  # type: ignore[arg-type]
        reply = await listing.ListOrders(request, call)
        found.append(list(reply.orders))
        if not (token := reply.next_page_token):
            return found


def items(page: Sequence[order_pb2.Order]) -> int:
    """How many there are in a page."""
    return sum(len(order.items) for order in page)


async def test_page_ends_before_the_order_with_which_it_would_have_too_many_items(database: Database) -> None:
    customer = uuid4()
    orders = await placed(database, customer, [100] * 45)
    found = await pages(database, customer, 500)
    assert [len(page) for page in found] == [20, 20, 5]
    assert [items(page) for page in found] == [2_000, 2_000, 500]
    assert [order for page in found for order in page] == [wire.order(order) for order in reversed(orders)]


@pytest.mark.parametrize("seed", range(8))
async def test_pages_continue_exactly_where_the_one_before_has_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance, customer, most = random.Random(seed), uuid4(), 7
    monkeypatch.setattr(reading, "MAX_ITEMS", most)
    orders = await placed(database, customer, [chance.randint(1, most) for _ in range(40)])
    await placed(database, uuid4(), [most] * 3)
    for page_size, status in ((1, None), (3, None), (500, None), (2, Status.CONFIRMED), (500, Status.PENDING)):
        expected, page = list[list[UUID]](), list[Order]()
        for order in reversed(orders):
            if status and order.status is not status:
                continue
            if len(page) == page_size or sum(len(each.items) for each in [*page, order]) > most:
                expected.append([each.id for each in page])
                page = []
            page.append(order)
        found = await pages(database, customer, page_size, wire.STATUSES[status] if status else 0)
        assert [[UUID(order.id) for order in page] for page in found] == [*expected, [each.id for each in page]]


async def test_customer_without_orders_has_one_empty_page(database: Database) -> None:
    assert await pages(database, uuid4(), 50) == [[]]


async def test_items_are_read_only_for_the_orders_of_a_page_and_one_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer, fetch, read = uuid4(), Transaction.fetch, list[int]()
    await placed(database, customer, [90] * 40)

    async def noted(self: Transaction, statement: Statement, **values: Any) -> list[Row]:
        rows = await fetch(self, statement, **values)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(Transaction, "fetch", noted)
    found = await pages(database, customer, 500)
    assert [items(page) for page in found] == [22 * 90, 18 * 90]
    assert read == [40, 2_001, 18, 18 * 90]


@dataclass
class Converted:
    """What `wire.order` has made so far, in orders and items."""

    total: int = 0

    async def portions(self, work: Awaitable[object]) -> list[int]:
        """How much of it is made at a time during `work`, between the turns of another task."""
        task, marks = asyncio.ensure_future(work), [self.total]
        while not task.done():
            await asyncio.sleep(0)
            marks.append(self.total)
        await task
        return [later - earlier for earlier, later in pairwise(marks) if later > earlier]


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> Converted:
    """Counts what is converted from here on."""
    make, count = wire.order, Converted()

    def noted(value: Order) -> order_pb2.Order:
        count.total += 1 + len(value.items)
        return make(value)

    monkeypatch.setattr(wire, "order", noted)
    return count


@pytest.mark.parametrize("sizes", [[100] * 20, [1] * 400], ids=["large orders", "many orders"])
async def test_list_is_converted_in_portions_between_which_other_calls_run(
    database: Database, converted: Converted, sizes: list[int]
) -> None:
    customer = uuid4()
    await placed(database, customer, sizes)
    portions = await converted.portions(pages(database, customer, 500))
    assert sum(portions) == sum(1 + size for size in sizes)
    assert max(portions) <= 256


async def test_sweep_makes_its_events_in_portions(database: Database, converted: Converted) -> None:
    cancellation = process_of(database).cancellation
    orders = await placed(database, uuid4(), [100] * 9, deadline=timedelta(seconds=-1))
    portions = await converted.portions(cancellation.cancel_overdue())
    assert sum(portions) == 101 * sum(order.status is Status.PENDING for order in orders)
    assert max(portions) <= 256
