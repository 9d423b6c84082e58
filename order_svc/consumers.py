"""The events that the order service applies: subject → use case."""

from commerce.payment.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers
from order_svc.usecases import Saga


def payment_events(saga: Saga) -> Handlers:
    """What became of an order's money."""
    return {
        "commerce.payment.captured": Handler(events_pb2.PaymentCaptured, saga.on_payment),
        "commerce.payment.declined": Handler(events_pb2.PaymentDeclined, saga.on_payment),
        "commerce.payment.voided": Handler(events_pb2.PaymentVoided, saga.on_payment),
        "commerce.payment.refunded": Handler(events_pb2.PaymentRefunded, saga.on_payment),
    }
