"""Watching orders and stock over gRPC, from the first state to the last, whatever restarts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from commerce.order.v1 import order_pb2, order_pb2_grpc
from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc
from mesh.errors import MeshError, Unavailable
from mesh.events.watches import Watches
from mesh.rpc import status
from mesh.rpc.server import Server
from order_svc import app as order_app
from stack import pki
from stack.servers import Servers
from tests.census import Census
from tests.mesh.house import House, another_order_worker, house
from tests.services import TEST_TIMEOUT_S, Client, Keys, eventually, new_key, port_of, settings_for

DRAFT, CONFIRMED, SHIPPED, DELIVERED, CANCELLED = (
    order_pb2.OrderStatus.Value(f"ORDER_STATUS_{name}")
    for name in ("DRAFT", "CONFIRMED", "SHIPPED", "DELIVERED", "CANCELLED")
)


@pytest.fixture(scope="module")
async def mesh(servers: Servers, keys: Keys) -> AsyncIterator[House]:
    """One mesh for the tests of this module."""
    async with house(servers, keys) as running:
        yield running


class Watch:
    """An open watch, and the last state that it has shown."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._last: order_pb2.Order | None = None

    @classmethod
    def of(cls, client: Client, order_id: str) -> Watch:
        """Open a watch of an order."""
        stub = order_pb2_grpc.OrderServiceStub(client.channel)
        return cls(stub.WatchOrder(order_pb2.WatchOrderRequest(order_id=order_id), metadata=_token_of(client)))

    async def until(self, condition: Callable[[order_pb2.Order], bool]) -> order_pb2.Order:
        """The order once it is so. The test fails if the stream ends before."""
        async with asyncio.timeout(TEST_TIMEOUT_S):
            while self._last is None or not condition(self._last):
                reply = await self.stream.read()
                assert reply is not grpc.aio.EOF, f"the stream ended at {self._last}"
                self._last = reply.order
        return self._last

    async def until_status(self, wanted: int) -> order_pb2.Order:
        """The order once it has this status."""
        return await self.until(lambda order: order.status == wanted)

    async def has_ended(self) -> bool:
        """Whether the stream has no more messages and ends well."""
        async with asyncio.timeout(TEST_TIMEOUT_S):
            return await self.stream.read() is grpc.aio.EOF and await self.stream.code() is grpc.StatusCode.OK

    async def error(self) -> MeshError:
        """The error that ends the stream."""
        return await error_of(self.stream)


def _token_of(client: Client) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {client.token}"),) if client.token else ()


def watching_stock(client: Client, product_id: str) -> Any:
    """Open a watch of stock."""
    stub = inventory_pb2_grpc.InventoryServiceStub(client.channel)
    return stub.WatchStock(inventory_pb2.WatchStockRequest(product_id=product_id), metadata=_token_of(client))


async def stock_until(stream: Any, on_hand: int, reserved: int) -> None:
    """Wait until the stock is so."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        while True:
            stock = (await stream.read()).stock
            if (stock.on_hand, stock.reserved) == (on_hand, reserved):
                return


async def error_of(stream: Any) -> MeshError:
    """The error that ends a stream."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        try:
            while await stream.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as failure:
            return status.from_rpc_error(failure, "tested")
    raise AssertionError("the stream ended without an error")


async def ship(mesh: House, order_id: str, *, key: str = "") -> None:
    staff = mesh.staff["order"]
    request = order_pb2.ShipOrderRequest(order_id=order_id, carrier="Post", tracking_number="1")
    await staff(order_pb2_grpc.OrderServiceStub(staff.channel).ShipOrder, request, key=key or new_key())


async def deliver(mesh: House, order_id: str) -> None:
    staff = mesh.staff["order"]
    request = order_pb2.DeliverOrderRequest(order_id=order_id)
    await staff(order_pb2_grpc.OrderServiceStub(staff.channel).DeliverOrder, request, key=new_key())


async def test_watch_shows_each_state_that_lasts_until_the_order_is_delivered(mesh: House) -> None:
    """At the worker that places and changes the order, and at another one; to its customer, and to staff."""
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    async with another_order_worker(mesh, buyer) as there:
        order = await mesh.order(buyer, {product: 1})
        workers = (buyer.orders, there.orders)
        clients = [*workers, *(worker.as_(mesh.staff["order"].token) for worker in workers)]
        watches = [Watch.of(client, order.id) for client in clients]
        for watch in watches:
            assert (await watch.until_status(CONFIRMED)).payment_id
        await ship(mesh, order.id)
        for watch in watches:
            assert (await watch.until_status(SHIPPED)).shipment.carrier == "Post"
        await deliver(mesh, order.id)
        late = Watch.of(buyer.orders, order.id)
        for watch in (*watches, late):
            assert await watch.until_status(DELIVERED) == await mesh.read(buyer, order.id)
            assert await watch.has_ended()


async def test_watch_of_an_order_ends_when_it_is_cancelled(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_declined"), await mesh.product(5)
    watch = Watch.of(buyer.orders, (await mesh.order(buyer, {product: 1})).id)
    assert (await watch.until_status(CANCELLED)).cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_DECLINED
    assert await watch.has_ended()


async def test_watch_of_a_draft_shows_its_edits_at_any_worker(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    async with another_order_worker(mesh, buyer) as there:
        made = await buyer.orders(stub.CreateOrder, order_pb2.CreateOrderRequest(draft=True), key=new_key())
        watches = [Watch.of(client, made.order.id) for client in (buyer.orders, there.orders)]
        for watch in watches:
            assert await watch.until_status(DRAFT) == made.order
        add = order_pb2.AddOrderItemRequest(order_id=made.order.id, product_id=product, quantity=2)
        edited = (await buyer.orders(stub.AddOrderItem, add, key=new_key())).order
        for watch in watches:
            assert await watch.until(lambda order: order.etag == edited.etag) == edited
        await buyer.orders(stub.PlaceOrder, order_pb2.PlaceOrderRequest(order_id=made.order.id), key=new_key())
        for watch in watches:
            assert (await watch.until_status(CONFIRMED)).total_amount.units == 20
            watch.stream.cancel()


async def test_watch_of_a_strangers_or_unknown_order_is_not_found(mesh: House) -> None:
    buyer, stranger, product = await mesh.buyer("tok_visa"), await mesh.buyer("tok_visa"), await mesh.product(5)
    order = await mesh.order(buyer, {product: 1})
    for order_id in (order.id, str(uuid4())):
        assert (await Watch.of(stranger.orders, order_id).error()).reason == "ORDER_NOT_FOUND"
    assert (await Watch.of(buyer.orders, "7").error()).reason == "VALIDATION_FAILED"
    assert (await Watch.of(buyer.orders.as_(""), order.id).error()).reason == "TOKEN_MISSING"


async def test_watch_of_stock_shows_holds_sales_and_changes(mesh: House) -> None:
    product, staff, order_id = await mesh.product(5), mesh.staff["product"], str(uuid4())
    stub = inventory_pb2_grpc.InventoryServiceStub(staff.channel)
    watch = watching_stock(staff, product)
    await stock_until(watch, 5, 0)
    async with mesh.as_service("order", to="product") as service:
        orders = inventory_pb2_grpc.InventoryServiceStub(service.channel)
        hold = inventory_pb2.Reservation(
            order_id=order_id,
            hold_key=uuid4().bytes,
            customer_id=str(uuid4()),
            lines=[inventory_pb2.ReservationLine(product_id=product, quantity=2)],
        )
        hold.expire_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        await service(orders.ReserveStock, inventory_pb2.ReserveStockRequest(reservations=[hold]))
        await stock_until(watch, 5, 2)
        await service(orders.CommitStock, inventory_pb2.CommitStockRequest(order_ids=[order_id]))
        await stock_until(watch, 3, 0)
    update = inventory_pb2.UpdateStockRequest(
        product_id=product, delta=4, reason=inventory_pb2.STOCK_MOVEMENT_REASON_RECEIPT
    )
    await staff(stub.UpdateStock, update, key=new_key())
    await stock_until(watch, 7, 0)
    watch.cancel()


async def test_watch_of_stock_is_for_staff_and_of_products_that_exist(mesh: House) -> None:
    buyer, product, staff = await mesh.buyer("tok_visa"), await mesh.product(5), mesh.staff["product"]
    assert (await error_of(watching_stock(staff.as_(buyer.orders.token), product))).reason == "ROLE_REQUIRED"
    assert (await error_of(watching_stock(staff, str(uuid4())))).reason == "PRODUCT_NOT_FOUND"


async def test_watch_misses_no_state_when_nats_is_killed(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    order = await mesh.order(buyer, {product: 1})
    watch = Watch.of(buyer.orders, order.id)
    await watch.until(bool)
    mesh.servers.supervisor["nats"].kill()
    await watch.until_status(CONFIRMED)
    mesh.servers.supervisor["nats"].kill()
    await ship(mesh, order.id)
    await watch.until_status(SHIPPED)
    await deliver(mesh, order.id)
    await watch.until_status(DELIVERED)
    assert await watch.has_ended()


async def test_watch_survives_the_end_of_all_sessions_of_its_database(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    order, key = await mesh.order(buyer, {product: 1}), new_key()
    watch = Watch.of(buyer.orders, order.id)
    await watch.until_status(CONFIRMED)
    admin = await mesh.connect("orders")
    try:
        ended = await admin.fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    finally:
        await admin.close()
    assert ended

    async def is_shipped() -> bool:
        try:
            await ship(mesh, order.id, key=key)
        except Unavailable:
            return False
        return True

    await eventually(is_shipped)
    await watch.until_status(SHIPPED)
    watch.stream.cancel()


async def test_watch_of_an_expired_token_ends_and_goes_on_with_a_new_one(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    order = await mesh.order(buyer, {product: 1})
    brief = pki.access_token(
        mesh.keys.signing.private, role="customer", subject=UUID(buyer.id), lifetime=timedelta(seconds=3)
    )
    error = await Watch.of(buyer.orders.as_(brief), order.id).error()
    assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
    again = Watch.of(buyer.orders, order.id)
    await again.until_status(CONFIRMED)
    again.stream.cancel()


async def test_watch_of_a_draining_worker_ends_and_goes_on_at_another(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    targets = {f"{name}_target": (address,) for name, address in mesh.addresses.items()}
    worker = order_app.build(settings_for(order_app.Settings, "order", mesh.servers, mesh.keys, **targets))
    await worker.start()
    client = Client(f"127.0.0.1:{port_of(worker)}", "order", mesh.keys, token=buyer.orders.token)
    order = await mesh.order(buyer, {product: 1})
    watch = Watch.of(client, order.id)
    await watch.until(bool)
    stopping = asyncio.create_task(worker.stop())
    error = await watch.error()
    await stopping
    await client.close()
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
    assert error.retry_after is not None
    again = Watch.of(buyer.orders, order.id)
    await again.until_status(CONFIRMED)
    again.stream.cancel()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("connects", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_watches_leave_nothing_behind(mesh: House, connects: int) -> None:
    """A third ends with a final order, a third with an error, and of a third the client leaves."""
    buyer, stranger, product = await mesh.buyer("tok_visa"), await mesh.buyer(), await mesh.product(5)
    declined = await mesh.order(await mesh.buyer("tok_declined"), {product: 1})
    paid = await mesh.order(buyer, {product: 1})
    await mesh.decided(buyer, paid.id)
    staff = mesh.staff["order"]

    async def is_cancelled() -> bool:
        stub = order_pb2_grpc.OrderServiceStub(staff.channel)
        found = await staff(stub.GetOrder, order_pb2.GetOrderRequest(order_id=declined.id))
        return bool(found.order.status == CANCELLED)

    await eventually(is_cancelled)
    server = next(part for part in mesh.services["order"].parts if isinstance(part, Server))
    watches: Watches[Any] = next(part for part in mesh.services["order"].parts if isinstance(part, Watches))

    async def is_over() -> bool:
        return server.streams.count == watches.count == 0

    async def is_quiet() -> bool:
        return not watches.is_subscribed

    async def connect(number: int) -> None:
        if number % 3 == 0:
            watch = Watch.of(staff, declined.id)
            await watch.until_status(CANCELLED)
            assert await watch.has_ended()
        elif number % 3 == 1:
            assert (await Watch.of(stranger.orders, paid.id).error()).reason == "ORDER_NOT_FOUND"
        else:
            watch = Watch.of(buyer.orders, paid.id)
            await watch.until_status(CONFIRMED)
            watch.stream.cancel()

    async def connect_all(count: int) -> None:
        for _ in range(count // 30):
            await asyncio.gather(*map(connect, range(30)))
            await eventually(is_over)

    await connect_all(300)
    censuses = [Census.taken()]
    for _ in range(2):
        await connect_all(connects // 2)
        censuses.append(Census.taken())
    # Other parts of the mesh make objects once. A leak grows in both halves.
    first, second = (after.grown_since(before, by=connects // 8) for before, after in pairwise(censuses))
    assert first.keys() & second.keys() == set()
    await eventually(is_quiet)
