"""Orders ↔ the messages of the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from google.type import postal_address_pb2

from commerce.order.v1 import events_pb2, order_pb2
from commerce.payment.v1 import payment_pb2
from mesh.events.cloudevents import Event, type_of
from mesh.ids import parse_id
from mesh.rpc import wire
from order_svc.domain import (
    CancelReason,
    Cause,
    HoldDecision,
    Order,
    OrderMoved,
    OrderPlaced,
    OrderRequest,
    PaymentResult,
    Status,
    TimelineEvent,
    Total,
    merged,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.db.history import Step
    from mesh.rpc.call import Caller

STATUSES = {
    Status.DRAFT: order_pb2.ORDER_STATUS_DRAFT,
    Status.PENDING: order_pb2.ORDER_STATUS_PENDING,
    Status.CONFIRMED: order_pb2.ORDER_STATUS_CONFIRMED,
    Status.SHIPPED: order_pb2.ORDER_STATUS_SHIPPED,
    Status.DELIVERED: order_pb2.ORDER_STATUS_DELIVERED,
    Status.CANCELLING: order_pb2.ORDER_STATUS_CANCELLING,
    Status.CANCELLED: order_pb2.ORDER_STATUS_CANCELLED,
}
"""The status that callers see. `Status.PLACING` is a draft to them."""
STATUS_OF = {number: status for status, number in STATUSES.items()}
REASONS = {
    CancelReason.PAYMENT_DECLINED: order_pb2.CANCEL_REASON_PAYMENT_DECLINED,
    CancelReason.PAYMENT_TIMEOUT: order_pb2.CANCEL_REASON_PAYMENT_TIMEOUT,
    CancelReason.CUSTOMER_REQUEST: order_pb2.CANCEL_REASON_CUSTOMER_REQUEST,
    CancelReason.STAFF_REQUEST: order_pb2.CANCEL_REASON_STAFF_REQUEST,
    CancelReason.DRAFT_EXPIRED: order_pb2.CANCEL_REASON_DRAFT_EXPIRED,
}
RESOLUTIONS = {
    HoldDecision.KEEP: order_pb2.HOLD_RESOLUTION_KEEP,
    HoldDecision.COMMIT: order_pb2.HOLD_RESOLUTION_COMMIT,
    HoldDecision.RELEASE: order_pb2.HOLD_RESOLUTION_RELEASE,
}


class _PaymentEvent(Protocol):
    """An event of the payment service."""

    payment: payment_pb2.Payment


def order(value: Order) -> order_pb2.Order:
    """An order as its readers see it."""
    message = order_pb2.Order(
        id=str(value.id),
        customer_id=str(value.customer_id),
        status=STATUSES.get(value.status, order_pb2.ORDER_STATUS_DRAFT),
        payment_method_id=str(value.payment_method_id) if value.payment_method_id else "",
        payment_id=str(value.payment_id) if value.payment_id else "",
        cancel_reason=REASONS[value.cancel_reason] if value.cancel_reason else order_pb2.CANCEL_REASON_UNSPECIFIED,
        cancel_note=value.cancel_note,
        etag=str(value.version),
    )
    if value.currency:
        wire.put_money(message.total_amount, value.total, value.currency)
    wire.put_time(message.order_date, value.order_date)
    if value.payment_deadline:
        wire.put_time(message.payment_deadline, value.payment_deadline)
    wire.put_time(message.update_time, value.update_time)
    if value.shipment:
        message.shipment.carrier = value.shipment.carrier
        message.shipment.tracking_number = value.shipment.tracking_number
        wire.put_time(message.shipment.ship_time, value.shipment.ship_time)
        if value.shipment.deliver_time:
            wire.put_time(message.shipment.deliver_time, value.shipment.deliver_time)
    if value.shipping_address:
        message.shipping_address.CopyFrom(postal_address_pb2.PostalAddress(**value.shipping_address._asdict()))
    for item in value.items:
        line = message.items.add(
            id=str(item.id),
            product_id=str(item.product_id),
            sku=item.sku,
            name=item.name,
            quantity=item.quantity,
        )
        wire.put_money(line.unit_price, item.unit_price, value.currency)
        wire.put_money(line.line_total, item.line_total, value.currency)
    return message


def order_request(request: order_pb2.CreateOrderRequest) -> OrderRequest:
    """What is ordered; lines of the same product become one. Raises InvalidArgument above `MAX_QUANTITY`."""
    return OrderRequest(
        merged((parse_id(line.product_id), line.quantity) for line in request.items),
        customer_id=wire.uuid_or_none(request.customer_id),
        payment_method_id=wire.uuid_or_none(request.payment_method_id),
        address_id=wire.uuid_or_none(request.address_id),
        expected_total=_expected_total(request),
    )


def draft_request(request: order_pb2.PlaceOrderRequest) -> OrderRequest:
    """What the placing of a draft adds to it."""
    return OrderRequest(
        {},
        payment_method_id=wire.uuid_or_none(request.payment_method_id),
        address_id=wire.uuid_or_none(request.address_id),
        expected_total=_expected_total(request),
    )


def _expected_total(request: order_pb2.CreateOrderRequest | order_pb2.PlaceOrderRequest) -> Total | None:
    if not request.HasField("expected_total"):
        return None
    return Total(wire.amount(request.expected_total), request.expected_total.currency_code)


def decision(order_id: UUID, value: HoldDecision) -> order_pb2.HoldDecision:
    """What becomes of a hold."""
    return order_pb2.HoldDecision(order_id=str(order_id), resolution=RESOLUTIONS[value])


def payment_result(cause: Cause) -> Callable[[_PaymentEvent], PaymentResult]:
    """Translates the events that tell of `cause`."""

    def result(event: _PaymentEvent) -> PaymentResult:
        partly = event.payment.status == payment_pb2.PAYMENT_STATUS_PARTIALLY_REFUNDED
        return PaymentResult(
            parse_id(event.payment.order_id), parse_id(event.payment.id), Cause.PARTLY_REFUNDED if partly else cause
        )

    return result


def event(fact: OrderPlaced | OrderMoved) -> Event:
    """The event of what has happened to an order."""
    value, message = fact.order, order(fact.order)
    # Streams and outboxes keep events after a customer is erased, and a note may hold anything.
    message.ClearField("shipping_address")
    message.ClearField("cancel_note")
    if isinstance(fact, OrderPlaced):
        payload = events_pb2.OrderPlaced(
            order=message, provider=fact.provider, payment_deadline=message.payment_deadline
        )
        return Event.of(value.id, value.version, payload)
    return Event.of(value.id, value.version, _MOVES[value.status](order=message))


def timeline_event(value: Order, step: Step) -> TimelineEvent:
    """A step of an order, with a sentence for its readers."""
    summary = _SUMMARIES[step.type]
    if step.type == _CANCELLED and value.cancel_reason:
        summary = f"{summary[:-1]}: {_CANCELLED_BECAUSE[value.cancel_reason]}."
    return TimelineEvent(step.time, "order", step.event_id, step.type, summary, step.trace_id, step.actor)


def timeline(events: Iterable[TimelineEvent], reader: Caller) -> order_pb2.GetOrderTimelineResponse:
    """The timeline of an order. Customers do not see the ids of staff."""
    reply = order_pb2.GetOrderTimelineResponse()
    for each in events:
        message = reply.events.add(
            service=each.service,
            type=each.type,
            summary=each.summary,
            event_id=str(each.event_id),
            trace_id=each.trace_id,
            actor="staff" if each.actor.startswith("staff:") and not reader.is_staff else each.actor,
        )
        wire.put_time(message.time, each.time)
    return reply


_CANCELLED = type_of(events_pb2.OrderCancelled)
_SUMMARIES = {
    type_of(events_pb2.OrderPlaced): "The order was placed, with its stock held.",
    type_of(events_pb2.OrderConfirmed): "The order was confirmed.",
    type_of(events_pb2.OrderShipped): "The order was handed over to the carrier.",
    type_of(events_pb2.OrderDelivered): "The order was delivered.",
    type_of(events_pb2.OrderCancelling): "The cancellation of the order began.",
    _CANCELLED: "The order was cancelled.",
}
_CANCELLED_BECAUSE = {
    CancelReason.PAYMENT_DECLINED: "its payment was declined",
    CancelReason.PAYMENT_TIMEOUT: "it was not paid in time",
    CancelReason.CUSTOMER_REQUEST: "the customer asked for it",
    CancelReason.STAFF_REQUEST: "staff asked for it",
    CancelReason.DRAFT_EXPIRED: "the draft had expired",
}

_MOVES: dict[Status, Callable[..., Message]] = {
    Status.CONFIRMED: events_pb2.OrderConfirmed,
    Status.SHIPPED: events_pb2.OrderShipped,
    Status.DELIVERED: events_pb2.OrderDelivered,
    Status.CANCELLING: events_pb2.OrderCancelling,
    Status.CANCELLED: events_pb2.OrderCancelled,
}
"""The events that tell of a new status."""
