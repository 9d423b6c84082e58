"""Payments ↔ the messages of the contract. The token goes in, and never out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

from commerce.order.v1 import events_pb2 as order_events
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import events_pb2, payment_pb2
from mesh.events.cloudevents import Event, type_of
from mesh.ids import parse_id
from mesh.rpc import wire
from payment_svc.domain import (
    DifferenceFound,
    Entry,
    EntryType,
    NewPayment,
    NewRefund,
    OrderCancelling,
    OrderPlaced,
    Payment,
    PaymentActionRequired,
    PaymentCaptured,
    PaymentDeclined,
    PaymentDisputed,
    PaymentRefunded,
    PaymentStatus,
    PaymentVoided,
    Refund,
    RefundStatus,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.db.history import Step
    from payment_svc.providers import NextAction

Fact = (
    PaymentActionRequired
    | PaymentCaptured
    | PaymentDeclined
    | PaymentVoided
    | PaymentRefunded
    | PaymentDisputed
    | DifferenceFound
)
"""What can happen to a payment."""

STATUSES = {
    PaymentStatus.PENDING: payment_pb2.PAYMENT_STATUS_PENDING,
    PaymentStatus.REQUIRES_ACTION: payment_pb2.PAYMENT_STATUS_REQUIRES_ACTION,
    PaymentStatus.CAPTURED: payment_pb2.PAYMENT_STATUS_CAPTURED,
    PaymentStatus.DECLINED: payment_pb2.PAYMENT_STATUS_DECLINED,
    PaymentStatus.VOIDED: payment_pb2.PAYMENT_STATUS_VOIDED,
    PaymentStatus.PARTIALLY_REFUNDED: payment_pb2.PAYMENT_STATUS_PARTIALLY_REFUNDED,
    PaymentStatus.REFUNDED: payment_pb2.PAYMENT_STATUS_REFUNDED,
}

_STATUSES_OF = {message: status for status, message in STATUSES.items()}
REFUND_STATUSES = {
    RefundStatus.PENDING: payment_pb2.REFUND_STATUS_PENDING,
    RefundStatus.SUCCEEDED: payment_pb2.REFUND_STATUS_SUCCEEDED,
    RefundStatus.FAILED: payment_pb2.REFUND_STATUS_FAILED,
}
ENTRY_TYPES = {
    EntryType.CAPTURE: payment_pb2.PAYMENT_ENTRY_TYPE_CAPTURE,
    EntryType.REFUND: payment_pb2.PAYMENT_ENTRY_TYPE_REFUND,
    EntryType.VOID: payment_pb2.PAYMENT_ENTRY_TYPE_VOID,
    EntryType.FEE: payment_pb2.PAYMENT_ENTRY_TYPE_FEE,
    EntryType.DISPUTE: payment_pb2.PAYMENT_ENTRY_TYPE_DISPUTE,
    EntryType.DIFFERENCE: payment_pb2.PAYMENT_ENTRY_TYPE_DIFFERENCE,
}


def requested(request: payment_pb2.ProcessPaymentRequest) -> NewPayment:
    """What another service asks to charge."""
    return NewPayment(
        parse_id(request.order_id),
        parse_id(request.customer_id),
        wire.amount(request.amount),
        request.amount.currency_code,
        request.provider,
        parse_id(request.payment_method_id),
    )


def order_placed(event: order_events.OrderPlaced) -> OrderPlaced:
    """An order and its payment. Only an event of a version before ADR-0035 has a token."""
    return OrderPlaced(_of_order(event.order, event.provider, event.provider_token))


def order_cancelling(event: order_events.OrderCancelling) -> OrderCancelling:
    """An order and what would be its payment; the event does not say how it is paid."""
    return OrderCancelling(_of_order(event.order))


def _of_order(order: order_pb2.Order, provider: str = "", token: str = "") -> NewPayment:
    total = order.total_amount
    return NewPayment(
        parse_id(order.id),
        parse_id(order.customer_id),
        wire.amount(total),
        total.currency_code,
        provider,
        wire.uuid_or_none(order.payment_method_id),
        token,
    )


def payment(value: Payment, action: NextAction | None = None) -> payment_pb2.Payment:
    """A payment as its readers see it; `action` is for its owner only."""
    message = payment_pb2.Payment(
        id=str(value.id),
        order_id=str(value.order_id),
        customer_id=str(value.customer_id),
        status=STATUSES[value.status],
        provider=value.provider,
        provider_reference=value.provider_reference,
        failure_reason=value.failure_reason,
        etag=str(value.version),
    )
    wire.put_money(message.amount, value.amount, value.currency)
    wire.put_money(message.refunded_amount, value.refunded_amount, value.currency)
    wire.put_time(message.create_time, value.create_time)
    if value.process_time:
        wire.put_time(message.process_time, value.process_time)
    if value.dispute_time:
        wire.put_time(message.dispute_time, value.dispute_time)
    if action:
        message.next_action.client_secret = action.client_secret
    return message


def new_refund(request: payment_pb2.RefundPaymentRequest) -> NewRefund:
    """What staff asks to refund."""
    amount = wire.amount(request.amount) if request.HasField("amount") else None
    return NewRefund(parse_id(request.payment_id), amount, request.amount.currency_code, request.reason, request.etag)


def refund_id(reply: bytes) -> UUID:
    """The id of the refund in a stored reply of `RefundPayment`."""
    return parse_id(payment_pb2.RefundPaymentResponse.FromString(reply).refund.id)


def refund(value: Refund, *, with_reason: bool) -> payment_pb2.Refund:
    """A refund. Its reason is for staff only."""
    message = payment_pb2.Refund(
        id=str(value.id),
        payment_id=str(value.payment_id),
        status=REFUND_STATUSES[value.status],
        failure_reason=value.failure_reason,
        reason=value.reason if with_reason else "",
    )
    wire.put_money(message.amount, value.amount, value.currency)
    wire.put_time(message.create_time, value.create_time)
    if value.process_time:
        wire.put_time(message.process_time, value.process_time)
    return message


def status(message: payment_pb2.PaymentStatus.ValueType) -> PaymentStatus | None:
    """The status that a list is filtered by, if any."""
    return _STATUSES_OF.get(message)


def entry(value: Entry, currency: str) -> payment_pb2.PaymentEntry:
    """An entry of the ledger."""
    message = payment_pb2.PaymentEntry(
        id=str(value.id),
        payment_id=str(value.payment_id),
        type=ENTRY_TYPES[value.type],
        provider_reference=value.provider_reference,
        note=value.note,
        actor=value.actor,
        trace_id=value.trace_id,
    )
    wire.put_money(message.amount, value.amount, currency)
    wire.put_time(message.create_time, value.create_time)
    return message


def event(fact: Fact) -> Event:
    """The event of what has happened to a payment."""
    value, message = fact.payment, payment(fact.payment)
    payload: Message
    match fact:
        case PaymentRefunded(_, amount, refund_id):
            payload = events_pb2.PaymentRefunded(
                payment=message, amount=wire.money(amount, value.currency), refund_id=str(refund_id or "")
            )
        case PaymentDisputed(_, amount, reference):
            payload = events_pb2.PaymentDisputed(
                payment=message, amount=wire.money(amount, value.currency), provider_reference=reference
            )
        case DifferenceFound(_, finding):
            payload = events_pb2.PaymentDifferenceFound(
                payment=message,
                type=ENTRY_TYPES[finding.type],
                provider_reference=finding.reference,
                booked_amount=wire.money(finding.booked, value.currency),
                recorded_amount=wire.money(finding.recorded, value.currency),
            )
        case _:
            payload = _EVENTS[type(fact)](payment=message)
    return Event.of(value.id, value.version, payload)


def timeline_event(step: Step) -> order_pb2.TimelineEvent:
    """An event of a payment in the timeline of its order."""
    return order_pb2.TimelineEvent(
        time=wire.timestamp(step.time),
        service="payment",
        type=step.type,
        summary=_SUMMARIES[step.type],
        event_id=str(step.event_id),
        trace_id=step.trace_id,
        actor=step.actor,
    )


_SUMMARIES = {
    type_of(events_pb2.PaymentActionRequired): "The payment waits for an action of the customer.",
    type_of(events_pb2.PaymentCaptured): "The payment was captured.",
    type_of(events_pb2.PaymentDeclined): "The payment was declined.",
    type_of(events_pb2.PaymentVoided): "The payment was voided.",
    type_of(events_pb2.PaymentRefunded): "The payment was refunded.",
    type_of(events_pb2.PaymentDisputed): "The payment was disputed.",
}

_EVENTS: dict[type, Callable[..., Message]] = {
    PaymentActionRequired: events_pb2.PaymentActionRequired,
    PaymentCaptured: events_pb2.PaymentCaptured,
    PaymentDeclined: events_pb2.PaymentDeclined,
    PaymentVoided: events_pb2.PaymentVoided,
}
