"""The whole product service: holds over gRPC, resolved by events, by calls and by the sweep."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import nats
import pytest
from google.type.money_pb2 import Money
from nats.aio.client import Client as Bus

from commerce.order.v1 import events_pb2, order_pb2
from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc, product_pb2, product_pb2_grpc
from mesh.errors import Unavailable
from mesh.events.bus import DEAD_LETTERS
from mesh.events.cloudevents import headers
from mesh.rpc import status, wire
from mesh.rpc.call import Call
from mesh.rpc.server import Server
from product_svc.app import Settings, build
from stack.servers import Servers
from tests.runtime import served
from tests.services import Client, Keys, eventually, new_key, refused, running, settings_for


@dataclass
class Orders:
    """An order service that decides about holds as the test says."""

    decisions: dict[str, order_pb2.HoldResolution.ValueType] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    is_down: bool = False

    async def ResolveHolds(self, request: Any, call: Call) -> order_pb2.ResolveHoldsResponse:
        assert call.peer == "product"
        self.asked += request.order_ids
        if self.is_down:
            raise Unavailable("down")
        return order_pb2.ResolveHoldsResponse(
            decisions=[
                order_pb2.HoldDecision(
                    order_id=each, resolution=self.decisions.get(each, order_pb2.HOLD_RESOLUTION_KEEP)
                )
                for each in request.order_ids
            ]
        )


@dataclass(frozen=True)
class Shop:
    """The running service, and its callers."""

    staff: Client
    order: Client
    orders: Orders
    bus: Bus

    async def product(self, stock: int) -> str:
        request = product_pb2.CreateProductRequest(
            sku=f"SKU-{uuid4()}", name="Tea", price=Money(currency_code="EUR", units=2), initial_stock=stock
        )
        stub = product_pb2_grpc.ProductServiceStub(self.staff.channel)
        made = await self.staff(stub.CreateProduct, request, key=new_key())
        return str(made.product.id)

    async def stock(self, product_id: str) -> tuple[int, int]:
        stub = inventory_pb2_grpc.InventoryServiceStub(self.staff.channel)
        reply = await self.staff(stub.GetStock, inventory_pb2.GetStockRequest(product_id=product_id))
        return reply.stock.on_hand, reply.stock.reserved

    async def hold(self, product_id: str, quantity: int, *, expires_in: float = 600) -> inventory_pb2.ReservationResult:
        reservation = inventory_pb2.Reservation(
            order_id=str(uuid4()),
            hold_key=uuid4().bytes,
            customer_id=str(uuid4()),
            lines=[inventory_pb2.ReservationLine(product_id=product_id, quantity=quantity)],
            expire_time=wire.timestamp(datetime.now(UTC) + timedelta(seconds=expires_in)),
        )
        stub = inventory_pb2_grpc.InventoryServiceStub(self.order.channel)
        reply = await self.order(stub.ReserveStock, inventory_pb2.ReserveStockRequest(reservations=[reservation]))
        result: inventory_pb2.ReservationResult = reply.results[0]
        return result

    async def publish(self, event: str, order_id: str) -> None:
        """Publish an event of an order."""
        payload = {"confirmed": events_pb2.OrderConfirmed, "cancelled": events_pb2.OrderCancelled}[event]()
        kind = f"commerce.order.{event}"
        header = headers(
            event_id=uuid4(), event_type=kind, source="order", aggregate_id=UUID(order_id), sequence=2,
            time=datetime.now(UTC), traceparent="",
        )  # fmt: skip
        await self.bus.jetstream().publish(f"{kind}.{order_id}", payload.SerializeToString(), headers=header)

    async def becomes(self, product_id: str, on_hand: int, reserved: int) -> None:
        async def is_so() -> bool:
            return await self.stock(product_id) == (on_hand, reserved)

        await eventually(is_so)


@pytest.fixture(scope="module")
async def shop(servers: Servers, keys: Keys) -> AsyncIterator[Shop]:
    orders = Orders()
    peer = Server(served.settings(keys, "order"), {"commerce.order.v1.OrderService": orders}, checks=())
    async with AsyncExitStack() as stack:
        await peer.start()
        stack.push_async_callback(peer.stop)
        settings = settings_for(
            Settings,
            "product",
            servers,
            keys,
            order_target=(f"127.0.0.1:{peer.port}",),
            hold_sweep_seconds=0.05,
            event_attempts=2,
        )
        address = await stack.enter_async_context(running(build(settings)))
        staff = Client(address, "product", keys, token=keys.token("staff", uuid4()))
        order = Client(address, "product", keys, peer="order")
        bus = await nats.connect(servers.nats.url)
        for client in (staff, order, bus):
            stack.push_async_callback(client.close)
        yield Shop(staff, order, orders, bus)


async def test_hold_of_a_confirmed_order_is_committed_and_that_of_a_cancelled_one_released(shop: Shop) -> None:
    product = await shop.product(10)
    sold, freed = (await shop.hold(product, 3)).hold.order_id, (await shop.hold(product, 2)).hold.order_id
    assert await shop.stock(product) == (10, 5)
    await shop.publish("confirmed", sold)
    await shop.publish("cancelled", freed)
    await shop.becomes(product, 7, 0)
    await shop.publish("confirmed", freed)  # late: its stock is available already
    await shop.publish("cancelled", sold)
    await shop.becomes(product, 10, 0)


async def test_confirmation_of_an_order_without_a_hold_becomes_a_dead_letter(
    shop: Shop,
) -> None:
    order_id = str(uuid4())
    await shop.publish("confirmed", order_id)
    subject = f"mesh.dead.product-order.commerce.order.confirmed.{order_id}"

    async def is_dead() -> bool:
        info = await shop.bus.jetstream().stream_info(DEAD_LETTERS, subjects_filter=subject)
        return bool(info.state.subjects)

    await eventually(is_dead)
    message = await shop.bus.jetstream().get_last_msg(DEAD_LETTERS, subject)
    assert "has no hold" in (message.headers or {})["mesh-error"]


async def test_rejected_reservation_names_the_product(shop: Shop) -> None:
    product = await shop.product(1)
    result = await shop.hold(product, 2)
    error = status.from_status(result.error)
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "STOCK_INSUFFICIENT")
    assert error.metadata == {"productId": product, "requested": "2", "available": "1"}


async def test_sweep_asks_the_order_service_and_resolves_holds_as_it_decides(shop: Shop) -> None:
    product = await shop.product(10)
    shop.orders.is_down = True
    kept, paid, gone = [(await shop.hold(product, 2, expires_in=-1)).hold.order_id for _ in range(3)]

    async def asked() -> bool:
        return {kept, paid, gone} <= set(shop.orders.asked)

    await eventually(asked)
    assert await shop.stock(product) == (10, 6), "while the order service is down nothing is released"
    shop.orders.decisions = {paid: order_pb2.HOLD_RESOLUTION_COMMIT, gone: order_pb2.HOLD_RESOLUTION_RELEASE}
    shop.orders.is_down = False
    await shop.becomes(product, 8, 2)


@pytest.mark.parametrize("method", ["CommitStock", "ReleaseStock"])
async def test_holds_are_resolved_once_for_a_key_and_each_order_has_a_result(shop: Shop, method: str) -> None:
    product, key = await shop.product(10), new_key()
    order_id, other = [(await shop.hold(product, 2)).hold.order_id for _ in range(2)]
    absent = str(uuid4())
    resolve = getattr(inventory_pb2_grpc.InventoryServiceStub(shop.order.channel), method)
    request = getattr(inventory_pb2, f"{method}Request")
    reply = await shop.order(resolve, request(order_ids=[absent, order_id]), key=key)
    state = {
        "CommitStock": inventory_pb2.HOLD_STATE_COMMITTED,
        "ReleaseStock": inventory_pb2.HOLD_STATE_RELEASED,
    }[method]
    assert [(each.order_id, each.state) for each in reply.results] == [
        (absent, inventory_pb2.HOLD_STATE_ABSENT),
        (order_id, state),
    ]
    stock = await shop.stock(product)
    assert stock == {"CommitStock": (8, 2), "ReleaseStock": (10, 2)}[method]

    # The stored reply does not change when the hold does.
    stub = inventory_pb2_grpc.InventoryServiceStub(shop.order.channel)
    await shop.order(stub.ReleaseStock, inventory_pb2.ReleaseStockRequest(order_ids=[order_id]), key=new_key())
    assert await shop.order(resolve, request(order_ids=[absent, order_id]), key=key) == reply
    error = await refused(shop.order(resolve, request(order_ids=[other]), key=key))
    assert (error.code.name, error.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")
    assert (await shop.stock(product))[1] == 2, "the other hold stands"


async def test_stock_is_changed_once_for_a_key(shop: Shop) -> None:
    product = await shop.product(10)
    stub, key = inventory_pb2_grpc.InventoryServiceStub(shop.staff.channel), new_key()
    receipt = inventory_pb2.STOCK_MOVEMENT_REASON_RECEIPT
    request = inventory_pb2.UpdateStockRequest(product_id=product, delta=5, reason=receipt, note="box 1")
    first = await shop.staff(stub.UpdateStock, request, key=key)
    assert await shop.staff(stub.UpdateStock, request, key=key) == first
    assert await shop.stock(product) == (15, 0)
    request.delta = 6
    assert (await refused(shop.staff(stub.UpdateStock, request, key=key))).reason == "IDEMPOTENCY_KEY_REUSED"
    moves = await shop.staff(stub.ListStockMovements, inventory_pb2.ListStockMovementsRequest(product_id=product))
    assert [(move.delta, move.note) for move in moves.stock_movements] == [(5, "box 1"), (10, "initial stock")]
