"""The events that the product service consumes: payload → use case, translation."""

from commerce.order.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers, handlers
from product_svc.domain import HoldDecision
from product_svc.usecases import Holds


def order_events(holds: Holds) -> Handlers:
    """The events that decide the hold of an order."""
    return handlers(
        Handler(events_pb2.OrderConfirmed, holds.apply_decisions, translate=lambda _: HoldDecision.COMMIT),
        Handler(events_pb2.OrderCancelled, holds.apply_decisions, translate=lambda _: HoldDecision.RELEASE),
    )
