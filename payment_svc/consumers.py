"""The events that the payment service applies: subject → use case."""

from commerce.order.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers
from payment_svc.usecases import ORDER_CANCELLING, ORDER_PLACED, Payments


def order_events(payments: Payments) -> Handlers:
    """What an order wants of its payment."""
    return {
        ORDER_PLACED: Handler(events_pb2.OrderPlaced, payments.on_orders),
        ORDER_CANCELLING: Handler(events_pb2.OrderCancelling, payments.on_orders),
    }
