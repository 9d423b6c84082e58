"""The product service's use cases on its real database, without the service around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from google.protobuf.wrappers_pb2 import BytesValue

from mesh.db.database import Database
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.relay import Relay
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change
from product_svc.domain import Hold, HoldState, MovementReason, NewProduct, Reservation, StockChange, Total
from product_svc.usecases import Catalogue, Holds, Inventory
from stack.servers import Servers

STAFF = Caller(Kind.STAFF, "clerk")


@dataclass
class AskedOrders:
    """The order service as the sweeper sees it: answers what the test says, and notes what it was asked."""

    wishes: dict[UUID, HoldState] = field(default_factory=dict)
    asked: list[list[UUID]] = field(default_factory=list)

    async def resolve_holds(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldState]:
        self.asked.append(list(order_ids))
        return {order_id: self.wishes[order_id] for order_id in order_ids}


@dataclass(frozen=True)
class Warehouse:
    """One process of the product service."""

    database: Database
    units: UnitsOfWork
    catalogue: Catalogue
    inventory: Inventory
    holds: Holds
    orders: AskedOrders
    admin: asyncpg.Connection

    async def product(
        self, stock: int = 0, *, name: str = "A thing", price: Decimal = Decimal("12.5"), currency: str = "EUR"
    ) -> UUID:
        """A new product with so much on hand."""
        new = NewProduct(f"SKU-{uuid4()}", name, "", price, currency, stock)
        return (await self.catalogue.create_product(change(), new)).value.id

    async def products(self, count: int, stock: int) -> list[UUID]:
        """Several, by their primary keys."""
        return sorted([await self.product(stock) for _ in range(count)])

    async def reserve(self, *reservations: Reservation) -> Sequence[Hold | Exception]:
        """Hold stock."""
        return await self.holds.reserve(reservations)

    async def commit(self, *order_ids: UUID) -> dict[UUID, HoldState]:
        """Sell what they hold."""
        return (await self.holds.commit_stock(change(), order_ids)).value

    async def release(self, *order_ids: UUID) -> dict[UUID, HoldState]:
        """Give back what they hold."""
        return (await self.holds.release_stock(change(), order_ids)).value

    async def move(self, product_id: UUID, *, delta: int | None = None, to: int | None = None) -> None:
        """Change what is on hand."""
        asked = StockChange(product_id, delta, to, MovementReason.ADJUSTMENT, "")
        await self.inventory.update_stock(change(), asked)

    async def stock(self, product_id: UUID) -> tuple[int, int]:
        """On hand and reserved."""
        found = await self.inventory.get_stock(product_id)
        return found.on_hand, found.reserved

    async def waiting(self) -> int:
        """How many sessions wait for a row that another one has locked."""
        found: int = await self.admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return found

    async def require_balance(self, product_id: UUID) -> None:
        """The ledger adds up to what is on hand, the live holds to what is reserved."""
        on_hand, reserved = await self.stock(product_id)
        row = await self.admin.fetchrow(
            "SELECT (SELECT coalesce(sum(delta), 0) FROM stock_movements WHERE product_id = $1) AS ledger, "
            "(SELECT coalesce(sum(quantity), 0) FROM hold_lines JOIN holds USING (order_id) "
            "WHERE product_id = $1 AND state = 'HELD') AS held, "
            "(SELECT on_hand_after FROM stock_movements WHERE product_id = $1 ORDER BY id DESC LIMIT 1) AS after",
            product_id,
        )
        assert row is not None
        assert on_hand == row["ledger"] == (row["after"] or 0)
        assert reserved == row["held"]
        assert 0 <= reserved <= on_hand


@asynccontextmanager
async def warehouse(servers: Servers, *, low_stock_threshold: int = 0) -> AsyncIterator[Warehouse]:
    """Open it; its relay does not run, so its events stay in the outbox."""
    url = servers.postgres.url_for("product_svc")
    database, orders, pages = Database(url, max_connections=6), AskedOrders(), Pages(b"a secret of the tests")
    await database.start()
    admin = await asyncpg.connect(url)
    units = UnitsOfWork(database, Relay("product", database, Bus(servers.nats.url, name="product")))
    inventory = Inventory(units, pages, low_stock_threshold=low_stock_threshold)
    holds = Holds(units, orders, low_stock_threshold=low_stock_threshold)
    try:
        yield Warehouse(database, units, Catalogue(units, pages), inventory, holds, orders, admin)
    finally:
        await admin.close()
        await database.stop()


def change() -> Change[Any]:
    """A change that staff ask for."""
    return Change(Call("/test", caller=STAFF), lambda _: BytesValue())


def wish(
    quantities: Mapping[UUID, int],
    *,
    key: bytes | None = None,
    order_id: UUID | None = None,
    expires_in: float = 60,
    expected_total: Total | None = None,
) -> Reservation:
    """A wish to hold stock."""
    expire_time = datetime.now(UTC) + timedelta(seconds=expires_in)
    return Reservation(
        order_id or uuid4(), key or uuid4().bytes, uuid4(), expire_time, dict(quantities), expected_total
    )


def held(result: Hold | BaseException) -> Hold:
    """The hold, or what kept it from being made."""
    if isinstance(result, BaseException):
        raise result
    return result
