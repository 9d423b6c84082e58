"""The events that the order service consumes: payload → use case, translation."""

from commerce.payment.v1 import events_pb2
from mesh.events.consumers import Handler, Handlers, handlers
from order_svc.domain import Cause
from order_svc.usecases import Payments
from order_svc.wire import payment_result


def payment_events(payments: Payments) -> Handlers:
    """What became of the payment of an order."""
    return handlers(
        Handler(events_pb2.PaymentCaptured, payments.apply, payment_result(Cause.CAPTURED)),
        Handler(events_pb2.PaymentDeclined, payments.apply, payment_result(Cause.DECLINED)),
        Handler(events_pb2.PaymentVoided, payments.apply, payment_result(Cause.VOIDED)),
        Handler(events_pb2.PaymentRefunded, payments.apply, payment_result(Cause.REFUNDED)),
    )
