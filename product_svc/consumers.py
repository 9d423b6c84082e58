"""The events that the product service applies: subject → use case."""

from commerce.order.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers
from product_svc.usecases import ORDER_CANCELLED, ORDER_CONFIRMED, Holds


def order_events(holds: Holds) -> Handlers:
    """What becomes of an order's hold."""
    return {
        ORDER_CONFIRMED: Handler(events_pb2.OrderConfirmed, holds.on_settled),
        ORDER_CANCELLED: Handler(events_pb2.OrderCancelled, holds.on_settled),
    }
