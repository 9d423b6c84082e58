"""The events that the payment service consumes: payload → use case, translation."""

from commerce.order.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers, handlers
from payment_svc import wire
from payment_svc.usecases import Orders


def order_events(orders: Orders) -> Handlers:
    """What orders require of their payments."""
    return handlers(
        Handler(events_pb2.OrderPlaced, orders.apply, wire.order_placed),
        Handler(events_pb2.OrderCancelling, orders.apply, wire.order_cancelling),
    )
