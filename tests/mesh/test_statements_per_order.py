"""The number of SQL statements for a batch of orders does not grow with it, so the number per order falls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from commerce.order.v1 import order_pb2
from mesh import tasks
from mesh.db.database import Database, Statement
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.errors import MeshError
from mesh.events.bus import Bus
from mesh.events.relay import Relay
from mesh.ids import new_id
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change, Reply
from order_svc.domain import Cause, HeldLine, Hold, HoldRequest, OrderRequest, PaymentMethod, Selection, Status
from order_svc.peers import CustomerPeer, StockPeer
from order_svc.store.tables import orders
from product_svc import wire
from product_svc.app import UseCases, use_cases
from product_svc.domain import Hold as ProductHold
from product_svc.domain import HoldDecision, Product, ProductDetails, Reservation
from product_svc.store import APPEND_HISTORY
from stack.servers import Servers
from tests.order.process import OrderProcess, placing, process_of
from tests.services import migrated, new_key

STATUSES = Statement(sa.select(orders.c.status, sa.func.count()).group_by(orders.c.status))


class Wallets(CustomerPeer):
    """A customer service whose customers all have a card."""

    def __init__(self) -> None:
        """No peer behind it."""

    async def select(
        self, wanted: Sequence[tuple[UUID, OrderRequest]], calls: Sequence[Call]
    ) -> list[Selection | MeshError]:
        """The card of each."""
        assert len(calls) == len(wanted)
        return [Selection(PaymentMethod(new_id(), "sandbox"), None) for _ in wanted]


class Stock(StockPeer):
    """The product service's holds, without the wire between."""

    def __init__(self, products: UseCases) -> None:
        self._products = products

    async def reserve(
        self,
        wanted: Sequence[HoldRequest],
        expire_time: datetime,
        calls: Sequence[Call],
    ) -> list[Hold | MeshError]:
        """Hold stock for each."""
        assert len(calls) == len(wanted)
        held = await self._products.reservations.submit_all(
            [Reservation(each.order_id, each.key, each.customer_id, expire_time, each.quantities) for each in wanted]
        )
        return [
            Hold(
                each.order_id,
                tuple(
                    HeldLine(line.product_id, line.sku, line.name, line.quantity, line.unit_price, line.currency)
                    for line in each.lines
                ),
            )
            for each in held
            if isinstance(each, ProductHold)
        ]


class NoOrders:
    """The order service of a product service whose sweep does not run."""

    async def hold_decisions(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldDecision]:
        """Never asked."""
        raise AssertionError(order_ids)


@pytest.fixture
async def databases(folder: Path) -> AsyncIterator[tuple[Database, Database]]:
    """The databases of orders and products, with no service at work on them."""
    async with Servers.started(folder, only={"postgres"}) as servers:
        await migrated(servers)
        opened = [Database(servers.postgres.url_for(role), max_connections=4) for role in ("order_svc", "product_svc")]
        for database in opened:
            await database.start()
        yield opened[0], opened[1]
        for database in opened:
            await database.stop()


async def test_statements_per_order_fall_with_the_batch(
    databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_portions, portioned = tasks.in_portions, list[int]()

    def noted(items: Collection[Any]) -> AsyncIterator[Any]:
        portioned.append(len(items))
        return in_portions(items)

    monkeypatch.setattr(tasks, "in_portions", noted)
    order_database, product_database = databases
    # Events stay in the outboxes: these relays are not started.
    bus = Bus("nats://127.0.0.1:1", name="test")
    product_units = UnitsOfWork(
        product_database, Relay("product", product_database, bus), event_of=wire.event, history=APPEND_HISTORY
    )
    products, others_products = (
        use_cases(product_units, Pages(b"secret of the test"), NoOrders(), low_stock_threshold=0) for _ in range(2)
    )
    stock = Stock(products)
    here, there = (process_of(order_database, stock, wallets=Wallets()) for _ in range(2))
    staff: Change[Product] = Change(
        Call("CreateProduct", caller=Caller(Kind.STAFF, str(uuid4()))), lambda _: order_pb2.Order()
    )
    wanted = [
        (
            await products.catalogue.create_product(
                staff, ProductDetails(f"SKU-{n}", "A thing", "", Decimal(10), "EUR"), initial_stock=1000
            )
        ).value.id
        for n in range(3)
    ]

    async def statements(count: int, process: OrderProcess, products: UseCases) -> dict[str, int]:
        mark = order_database.statements + product_database.statements

        def taken() -> int:
            nonlocal mark
            before, mark = mark, order_database.statements + product_database.statements
            return mark - before

        placed = await here.place(*(placing(uuid4(), new_key(), dict.fromkeys(wanted, 1)) for _ in range(count)))
        ids = [result.value.id for result in placed if isinstance(result, Reply)]
        assert len(ids) == count
        placing_them = taken()
        await process.apply_payment(Cause.CAPTURED, *ids)
        confirming_them = taken()
        async with product_units.begin() as work:
            await products.holds.resolve(work, commit=ids)
        return {"placing": placing_them, "confirming": confirming_them, "selling": taken()}

    first, one, many = [await statements(count, here, products) for count in (1, 1, 64)]
    assert first == one | {"placing": 3}, "what the products are sold as is read once"
    assert one == many == {"placing": 2, "confirming": 1, "selling": 2}
    # Another process reads the orders and the holds first.
    one, many = [await statements(count, there, others_products) for count in (1, 64)]
    assert one == many == {"placing": 2, "confirming": 3, "selling": 4}
    each_in_portions = [size for count in (1, 1, 64, 1, 64) for size in (count, count, len(wanted))]
    assert portioned == each_in_portions, "what was paid, what is sold, and the products of it"
    async with order_database.reading() as reading:
        confirmed = await reading.fetch(STATUSES)
    assert [tuple(row) for row in confirmed] == [(Status.CONFIRMED.value, 131)]
