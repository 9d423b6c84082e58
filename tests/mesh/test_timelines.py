"""The timeline of an order: who did what and when, in all services."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from commerce.order.v1 import order_pb2, order_pb2_grpc
from mesh.errors import Unavailable
from tests.mesh.house import House
from tests.services import Client, eventually, refused

PLACED = ["hold.reserved", "commerce.order.placed", "commerce.payment.captured", "commerce.order.confirmed"]
Event = order_pb2.TimelineEvent


async def timeline(client: Client, order_id: str) -> list[Event]:
    """The timeline of an order."""
    stub = order_pb2_grpc.OrderServiceStub(client.channel)
    reply = await client(stub.GetOrderTimeline, order_pb2.GetOrderTimelineRequest(order_id=order_id))
    return list(reply.events)


async def until(client: Client, order_id: str, last: str) -> list[Event]:
    """The timeline of an order that ends with this type of event."""

    async def there() -> list[Event] | None:
        events = await timeline(client, order_id)
        return events if events and events[-1].type == last else None

    return await eventually(there)


def types(events: list[Event]) -> list[str]:
    """The types of events."""
    return [event.type for event in events]


async def published(mesh: House, order_id: str) -> dict[str, tuple[str, str]]:
    """Type and trace id of the events of an order in the outboxes, by id."""
    query = "SELECT event_id, type, substr(traceparent, 4, 32) AS trace_id FROM mesh.outbox WHERE aggregate_id = $1"
    (payment,) = await mesh.sql("payment_svc", "SELECT id FROM payments WHERE order_id = $1", UUID(order_id))
    rows = [
        *await mesh.sql("order_svc", query, UUID(order_id)),
        *await mesh.sql("payment_svc", query, payment["id"]),
    ]
    return {str(row["event_id"]): (row["type"], row["trace_id"]) for row in rows}


async def test_timeline_tells_who_did_what_and_outlives_the_outboxes(mesh: House) -> None:
    buyer, product, staff = await mesh.buyer("tok_visa"), await mesh.product(5), mesh.staff["order"]
    order = await mesh.order(buyer, {product: 1})
    stub = order_pb2_grpc.OrderServiceStub(staff.channel)
    sold = await until(buyer.orders, order.id, "hold.committed")
    assert types(sold) == [*PLACED, "hold.committed"]
    assert [event.service for event in sold] == ["product", "order", "payment", "order", "product"]
    who = ["service:order", f"customer:{buyer.id}", *["service:payment"] * 2, "service:order"]
    assert [event.actor for event in sold] == who
    assert len({event.trace_id for event in sold}) == 1, "one request has caused all of it"
    await staff(stub.ShipOrder, order_pb2.ShipOrderRequest(order_id=order.id, carrier="DHL", tracking_number="JD 1"))
    await staff(stub.DeliverOrder, order_pb2.DeliverOrderRequest(order_id=order.id))
    events = await timeline(buyer.orders, order.id)
    assert types(events) == [*types(sold), "commerce.order.shipped", "commerce.order.delivered"]
    assert [event.actor for event in events[-2:]] == ["staff", "staff"]
    assert all(event.actor.startswith("staff:") for event in (await timeline(staff, order.id))[-2:])
    assert len({event.trace_id for event in events}) == 3
    assert [event.time.ToDatetime() for event in events] == sorted(event.time.ToDatetime() for event in events)
    assert all(event.summary for event in events)
    assert await published(mesh, order.id) == {
        event.event_id: (event.type, event.trace_id) for event in events if event.service != "product"
    }
    for database in ("orders", "payment", "product"):
        connection = await mesh.connect(database)
        await connection.execute("DELETE FROM mesh.outbox")
        await connection.close()
    assert await timeline(buyer.orders, order.id) == events


async def test_timelines_of_cancelled_orders_tell_why_and_what_became_of_money_and_stock(mesh: House) -> None:
    buyer, poor = await mesh.buyer("tok_visa"), await mesh.buyer("tok_declined")
    product = await mesh.product(5)
    confirmed = await mesh.order(buyer, {product: 1})
    await until(buyer.orders, confirmed.id, "hold.committed")
    await mesh.cancel(buyer, confirmed.id)
    await mesh.cancel(buyer, confirmed.id)
    events = await until(buyer.orders, confirmed.id, "hold.returned")
    steps = ["commerce.order.cancelling", "commerce.payment.refunded", "commerce.order.cancelled", "hold.returned"]
    assert types(events) == [*PLACED, "hold.committed", *steps]
    assert events[-2].summary == "The order was cancelled: the customer asked for it."
    assert (events[5].actor, len({event.trace_id for event in events[5:]})) == (f"customer:{buyer.id}", 1)
    declined = await until(poor.orders, (await mesh.order(poor, {product: 1})).id, "hold.released")
    assert types(declined)[2:4] == ["commerce.payment.declined", "commerce.order.cancelled"]
    assert declined[3].summary == "The order was cancelled: its payment was declined."
    stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    draft = (await buyer.orders(stub.CreateOrder, order_pb2.CreateOrderRequest(draft=True))).order
    assert await timeline(buyer.orders, draft.id) == []
    for order_id in (confirmed.id, str(uuid4())):
        assert (await refused(timeline(poor.orders, order_id))).reason == "ORDER_NOT_FOUND"


@pytest.mark.parametrize("down", ["product", "payment"])
async def test_timeline_is_unavailable_and_never_partial_while_a_service_is_down(mesh: House, down: str) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    order = await mesh.order(buyer, {product: 1})
    await until(buyer.orders, order.id, "hold.committed")
    await mesh.services[down].stop()
    error = await refused(timeline(buyer.orders, order.id))
    assert isinstance(error, Unavailable)
    assert error.reason == "DEPENDENCY_UNAVAILABLE"
    assert error.retry_after
