"""The events that the order service applies: type → payload, translation, use case."""

from commerce.payment.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers
from order_svc.domain import Cause
from order_svc.usecases import Payments
from order_svc.wire import payment_result


def payment_events(payments: Payments) -> Handlers:
    """What became of the payment of an order."""
    apply = payments.apply
    return {
        "commerce.payment.captured": Handler(events_pb2.PaymentCaptured, apply, payment_result(Cause.CAPTURED)),
        "commerce.payment.declined": Handler(events_pb2.PaymentDeclined, apply, payment_result(Cause.DECLINED)),
        "commerce.payment.voided": Handler(events_pb2.PaymentVoided, apply, payment_result(Cause.VOIDED)),
        "commerce.payment.refunded": Handler(events_pb2.PaymentRefunded, apply, payment_result(Cause.REFUNDED)),
    }
