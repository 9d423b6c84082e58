"""Shipping and delivering orders over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from commerce.order.v1 import events_pb2, order_pb2, order_pb2_grpc
from mesh.db.database import Database
from mesh.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from mesh.lifecycle import Service
from order_svc.app import Settings, build
from order_svc.domain import Cause, Order
from stack.servers import Servers
from tests.order.process import OrderProcess, process_of
from tests.services import NOWHERE, Client, Keys, new_key, port_of, refused, running, settings_for

Stub = order_pb2_grpc.OrderServiceStub


@pytest.fixture(scope="module")
async def service(servers: Servers, keys: Keys) -> AsyncIterator[Service]:
    service = build(settings_for(Settings, "order", servers, keys, customer_target=NOWHERE, product_target=NOWHERE))
    async with running(service):
        yield service


@pytest.fixture(scope="module")
async def clerk(service: Service, keys: Keys) -> AsyncIterator[Client]:
    """Staff."""
    client = Client(f"127.0.0.1:{port_of(service)}", "order", keys)
    yield client.as_(keys.token("staff", uuid4()))
    await client.close()


@pytest.fixture(scope="module")
async def process(servers: Servers) -> AsyncIterator[OrderProcess]:
    """Another process of the order service, which places orders."""
    database = Database(servers.postgres.url_for("order_svc"), max_connections=2)
    await database.start()
    yield process_of(database)
    await database.stop()


@pytest.fixture
async def confirmed(process: OrderProcess) -> Order:
    """An order that is paid."""
    order = await process.place_one()
    await process.apply_payment(Cause.CAPTURED, order.id)
    return order


def shipping(order_id: UUID, *, etag: str = "", tracking_number: str = "JD 0146-0002") -> order_pb2.ShipOrderRequest:
    """A request to ship an order."""
    return order_pb2.ShipOrderRequest(order_id=str(order_id), carrier="DHL", tracking_number=tracking_number, etag=etag)


async def ship(clerk: Client, order_id: UUID) -> order_pb2.Order:
    """The order, shipped."""
    reply = await clerk(Stub(clerk.channel).ShipOrder, shipping(order_id))
    order: order_pb2.Order = reply.order
    return order


async def deliver(clerk: Client, order_id: UUID) -> order_pb2.Order:
    """The order, delivered."""
    reply = await clerk(Stub(clerk.channel).DeliverOrder, order_pb2.DeliverOrderRequest(order_id=str(order_id)))
    order: order_pb2.Order = reply.order
    return order


async def test_confirmed_order_is_shipped_and_delivered_with_an_event_each(
    clerk: Client, process: OrderProcess, confirmed: Order
) -> None:
    shipped = await ship(clerk, confirmed.id)
    assert (shipped.status, shipped.etag) == (order_pb2.ORDER_STATUS_SHIPPED, "3")
    assert (shipped.shipment.carrier, shipped.shipment.tracking_number) == ("DHL", "JD 0146-0002")
    assert shipped.shipment.ship_time == shipped.update_time
    assert not shipped.shipment.HasField("deliver_time")
    delivered = await deliver(clerk, confirmed.id)
    assert (delivered.status, delivered.etag) == (order_pb2.ORDER_STATUS_DELIVERED, "4")
    assert delivered.shipment.ship_time == shipped.shipment.ship_time
    assert delivered.shipment.deliver_time == delivered.update_time

    connection = await asyncpg.connect(process.database.url)
    rows = await connection.fetch(
        "SELECT type, payload FROM mesh.outbox WHERE aggregate_id = $1 AND sequence >= 3 ORDER BY sequence",
        confirmed.id,
    )
    await connection.close()
    assert [row["type"] for row in rows] == ["commerce.order.shipped", "commerce.order.delivered"]
    assert events_pb2.OrderShipped.FromString(rows[0]["payload"]).order == shipped
    assert events_pb2.OrderDelivered.FromString(rows[1]["payload"]).order == delivered


async def test_shipment_is_read_by_the_customer_and_in_lists_by_status(
    clerk: Client, keys: Keys, confirmed: Order
) -> None:
    shipped = await ship(clerk, confirmed.id)
    customer = clerk.as_(keys.token("customer", confirmed.customer_id))
    stub = Stub(clerk.channel)
    assert (await customer(stub.GetOrder, order_pb2.GetOrderRequest(order_id=shipped.id))).order == shipped

    async def listed(status: order_pb2.OrderStatus.ValueType) -> list[order_pb2.Order]:
        return list((await customer(stub.ListOrders, order_pb2.ListOrdersRequest(status=status))).orders)

    assert await listed(order_pb2.ORDER_STATUS_SHIPPED) == [shipped]
    delivered = await deliver(clerk, confirmed.id)
    assert await listed(order_pb2.ORDER_STATUS_SHIPPED) == []
    assert await listed(order_pb2.ORDER_STATUS_DELIVERED) == [delivered]


async def test_retry_with_the_same_key_gets_the_same_reply_and_changes_nothing(clerk: Client, confirmed: Order) -> None:
    stub, key = Stub(clerk.channel), new_key()
    first = await clerk(stub.ShipOrder, shipping(confirmed.id), key=key)
    assert await clerk(stub.ShipOrder, shipping(confirmed.id), key=key) == first
    delivery, key = order_pb2.DeliverOrderRequest(order_id=str(confirmed.id)), new_key()
    last = await clerk(stub.DeliverOrder, delivery, key=key)
    assert await clerk(stub.DeliverOrder, delivery, key=key) == last


async def test_orders_are_shipped_only_when_confirmed_and_delivered_only_when_shipped(
    clerk: Client, process: OrderProcess
) -> None:
    order = await process.place_one()

    async def status_that_refuses(call: object) -> str:
        error = await refused(call)  # type: ignore[arg-type]
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "ORDER_STATE"
        return error.metadata["status"]

    assert await status_that_refuses(ship(clerk, order.id)) == "ORDER_STATUS_PENDING"
    await process.apply_payment(Cause.CAPTURED, order.id)
    assert await status_that_refuses(deliver(clerk, order.id)) == "ORDER_STATUS_CONFIRMED"
    await ship(clerk, order.id)
    assert await status_that_refuses(ship(clerk, order.id)) == "ORDER_STATUS_SHIPPED"
    await deliver(clerk, order.id)
    assert await status_that_refuses(deliver(clerk, order.id)) == "ORDER_STATUS_DELIVERED"


@pytest.mark.parametrize("is_delivered", [False, True], ids=["shipped", "delivered"])
async def test_shipped_order_cannot_be_cancelled_and_a_refund_leaves_its_status(
    clerk: Client, process: OrderProcess, confirmed: Order, is_delivered: bool
) -> None:
    last = await ship(clerk, confirmed.id)
    if is_delivered:
        last = await deliver(clerk, confirmed.id)
    stub = Stub(clerk.channel)
    error = await refused(clerk(stub.CancelOrder, order_pb2.CancelOrderRequest(order_id=last.id)))
    assert (type(error), error.reason) == (FailedPrecondition, "ORDER_STATE")
    await process.apply_payment(Cause.REFUNDED, confirmed.id)
    assert (await clerk(stub.GetOrder, order_pb2.GetOrderRequest(order_id=last.id))).order == last


async def test_only_staff_ship_and_deliver(clerk: Client, keys: Keys, confirmed: Order) -> None:
    customer = clerk.as_(keys.token("customer", confirmed.customer_id))
    assert isinstance(await refused(ship(customer, confirmed.id)), PermissionDenied)
    assert isinstance(await refused(deliver(customer, confirmed.id)), PermissionDenied)


async def test_unknown_order_old_etag_and_bad_tracking_number_are_refused(clerk: Client, confirmed: Order) -> None:
    stub = Stub(clerk.channel)
    error = await refused(ship(clerk, uuid4()))
    assert (type(error), error.reason) == (NotFound, "ORDER_NOT_FOUND")
    error = await refused(clerk(stub.ShipOrder, shipping(confirmed.id, etag="1")))
    assert (type(error), error.reason) == (Aborted, "ETAG_MISMATCH")
    error = await refused(clerk(stub.ShipOrder, shipping(confirmed.id, tracking_number="JD#1")))
    assert isinstance(error, InvalidArgument)
    assert [each.field for each in error.violations] == ["tracking_number"]
    assert (await clerk(stub.ShipOrder, shipping(confirmed.id, etag="2"))).order.etag == "3"
    delivery = order_pb2.DeliverOrderRequest(order_id=str(confirmed.id), etag="2")
    assert (await refused(clerk(stub.DeliverOrder, delivery))).reason == "ETAG_MISMATCH"
