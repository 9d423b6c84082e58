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
from product_svc import wire
from product_svc.app import UseCases, use_cases
from product_svc.domain import (
    Hold,
    HoldDecision,
    HoldState,
    MovementReason,
    ProductDetails,
    Reservation,
    StockChange,
    Total,
)
from product_svc.store import APPEND_HISTORY
from product_svc.usecases import Holds, Inventory
from stack.servers import Servers

STAFF = Caller(Kind.STAFF, "clerk")


@dataclass
class DecidedOrders:
    """An order service that decides as the test says, and records what it was asked."""

    decisions: dict[UUID, HoldDecision] = field(default_factory=dict)
    asked: list[list[UUID]] = field(default_factory=list)

    async def hold_decisions(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldDecision]:
        self.asked.append(list(order_ids))
        return {order_id: self.decisions[order_id] for order_id in order_ids}


@dataclass(frozen=True)
class Warehouse:
    """One process of the product service."""

    database: Database
    units: UnitsOfWork
    use: UseCases
    orders: DecidedOrders
    admin: asyncpg.Connection

    @property
    def inventory(self) -> Inventory:
        """What staff do with stock."""
        return self.use.inventory

    @property
    def holds(self) -> Holds:
        """What becomes of holds."""
        return self.use.holds

    async def product(
        self, stock: int = 0, *, name: str = "A thing", price: Decimal = Decimal("12.5"), currency: str = "EUR"
    ) -> UUID:
        """A new product with this quantity on hand."""
        details = ProductDetails(f"SKU-{uuid4()}", name, "", price, currency)
        return (await self.use.catalogue.create_product(change(), details, initial_stock=stock)).value.id

    async def products(self, count: int, stock: int) -> list[UUID]:
        """Several products, in the order of their primary keys."""
        return sorted([await self.product(stock) for _ in range(count)])

    async def reserve(self, *reservations: Reservation) -> Sequence[Hold | Exception]:
        """Make holds; a result for each."""
        return await self.use.reservations.submit_all(reservations)

    async def hold(self, product_id: UUID, quantity: int = 1) -> UUID:
        """An order that holds this quantity."""
        (result,) = await self.reserve(reservation({product_id: quantity}))
        return held(result).order_id

    async def commit(self, *order_ids: UUID) -> dict[UUID, HoldState]:
        """Commit the holds of these orders."""
        return (await self.holds.commit_stock(change(), order_ids)).value

    async def release(self, *order_ids: UUID) -> dict[UUID, HoldState]:
        """Release the holds of these orders."""
        return (await self.holds.release_stock(change(), order_ids)).value

    async def move(self, product_id: UUID, *, delta: int | None = None, to: int | None = None) -> None:
        """Change the quantity on hand."""
        asked = StockChange(product_id, delta, to, MovementReason.ADJUSTMENT, "")
        await self.inventory.update_stock(change(), asked)

    async def stock(self, product_id: UUID) -> tuple[int, int]:
        """On hand and reserved."""
        found = await self.inventory.get_stock(product_id)
        return found.on_hand, found.reserved

    async def waiting(self) -> int:
        """The number of sessions that wait for a row which another one has locked."""
        found: int = await self.admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return found

    async def require_balance(self, product_id: UUID) -> None:
        """The ledger adds up to the quantity on hand, the live holds to the reserved one."""
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
    database, orders, pages = Database(url, max_connections=6), DecidedOrders(), Pages(b"a secret of the tests")
    await database.start()
    admin = await asyncpg.connect(url)
    relay = Relay("product", database, Bus(servers.nats.url, name="product"))
    units = UnitsOfWork(database, relay, event_of=wire.event, history=APPEND_HISTORY)
    try:
        yield Warehouse(
            database,
            units,
            use_cases(units, pages, orders, low_stock_threshold=low_stock_threshold),
            orders,
            admin,
        )
    finally:
        await admin.close()
        await database.stop()


def change() -> Change[Any]:
    """A change that staff request."""
    return Change(Call("/test", caller=STAFF), lambda _: BytesValue())


def reservation(
    quantities: Mapping[UUID, int],
    *,
    key: bytes | None = None,
    order_id: UUID | None = None,
    expires_in: float = 60,
    expected_total: Total | None = None,
) -> Reservation:
    """A request for a hold."""
    expire_time = datetime.now(UTC) + timedelta(seconds=expires_in)
    return Reservation(
        order_id or uuid4(), key or uuid4().bytes, uuid4(), expire_time, dict(quantities), expected_total
    )


def held(result: Hold | BaseException) -> Hold:
    """The hold; its rejection is raised."""
    if isinstance(result, BaseException):
        raise result
    return result
