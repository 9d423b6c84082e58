"""An example for each message. Fields that no table names get a value of their type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from commerce.order.v1.events_pb2 import OrderPlaced
from commerce.validation.v1 import validation_pb2
from gateway.openapi.rules import message_of, owner_of, rules_of
from gateway.openapi.schemas import Way, refused_without
from mesh.events.cloudevents import type_of
from mesh.rpc.validation import violations_of

_TIME = "2026-11-28T09:30:00Z"
_ID = "019ac9b2-7c00-7000-8000-00000000{:04x}"
_IDS = {
    name: _ID.format(number)
    for number, name in enumerate(("customer", "product", "order", "item", "payment", "payment_method", "address"), 1)
}
EXAMPLE_ID = _ID.format(255)
"""The UUID of something that no table names."""
_MESSAGE_IDS = {
    "Customer": "customer",
    "Product": "product",
    "Order": "order",
    "OrderItem": "item",
    "Payment": "payment",
    "PaymentMethod": "payment_method",
    "Address": "address",
}

_LEFT_OUT = object()
_VALUES: Mapping[str, Any] = {
    "access_token": "eyJhbGciOiJFUzI1NiJ9…",
    "actor": "staff:" + _ID.format(16),
    "available": 8,
    "brand": "visa",
    "cancel_note": "",
    "carrier": "DHL",
    "delta": 10,
    "description": "Loose leaves, 100 g.",
    "draft": False,
    "email": "ada@example.com",
    "etag": "3",
    "expire_month": 8,
    "expire_year": 2030,
    "failure_reason": "",
    "last4": "4242",
    "low_stock_threshold": 5,
    "name": "Earl Grey",
    "next_page_token": "",
    "note": "Delivery of 28 November",
    "on_hand": 10,
    "on_hand_after": 10,
    "order_by": "price desc",
    "page_size": 50,
    "page_token": _LEFT_OUT,
    "password": "correct horse",
    "phone": "+4930123456",
    "provider": "sandbox",
    "provider_reference": "sandbox-17",
    "quantity": 2,
    "query": "earl grey",
    "reason": "Ordered twice",
    "refresh_token": "5vJ1w0s0kq…",
    "reserved": 2,
    "service": "order",
    "sku": "TEA-1",
    "stock_quantity": 8,
    "summary": "The order was placed.",
    "token": "tok_visa",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "tracking_number": "JD014600006281230704",
    "type": type_of(OrderPlaced),
    "CreateCustomerRequest.name": "Ada Lovelace",
    "CreateOrderRequest.customer_id": _LEFT_OUT,
    "Customer.name": "Ada Lovelace",
    "Order.cancel_reason": "CANCEL_REASON_UNSPECIFIED",
    "HttpBody.content_type": "application/json",
    "HttpBody.data": b"{}",
    "Order.shipment": _LEFT_OUT,
    "Order.payment_id": "",
    "Order.status": "ORDER_STATUS_PENDING",
    "Payment.status": "PAYMENT_STATUS_CAPTURED",
    "PostalAddress.address_lines": ["Invalidenstraße 1"],
    "PostalAddress.locality": "Berlin",
    "PostalAddress.postal_code": "10115",
    "PostalAddress.recipients": ["Ada Lovelace"],
    "PostalAddress.region_code": "DE",
}
"""Values by the name of a field, or of a message and its field."""

_NOT_SENT = {"address_id", "etag", "expected_total", "payment_method_id"}
"""Optional fields that an example of a request leaves out, since their values depend on the state of the mesh."""

_AMOUNTS = {"price": (9, 500_000_000), "unit_price": (9, 500_000_000), "refunded_amount": (0, 0)}
"""Units and nanos of amounts in EUR by the name of the field; that of two pieces for all others."""
_AMOUNT = (19, 0)


def response_sample(message: Descriptor) -> dict[str, Any]:
    """The JSON of a message as the edge prints it, with zeros."""
    made: dict[str, Any] = MessageToDict(sample(message, Way.OUT), always_print_fields_with_no_presence=True)
    return made


def request_sample(message: Descriptor, in_path: Iterable[str]) -> Message:
    """A request that is valid. `in_path` are the fields, such as `customer.id`, that the HTTP path sets.

    Raises ValueError if a required field has rules that no known value follows: it needs an entry in this module.
    """
    made = sample(message, Way.IN)
    for path in in_path:
        *outer, name = path.split(".")
        holder: Any = made
        for each in outer:
            holder = getattr(holder, each)
        field = holder.DESCRIPTOR.fields_by_name[name]
        may_be_me = rules_of(field).string.Extensions[validation_pb2.uuid_or_me]
        setattr(holder, name, "me" if may_be_me else _text(field))
    valid = violations_of(message)
    for violation in valid(made):
        name = re.split(r"[.\[]", violation.field)[0]
        if name not in message.fields_by_name or name in refused_without(message):
            raise ValueError(
                f"the OpenAPI document needs an example for {message.full_name}.{violation.field} in"
                f" gateway/openapi/samples.py: it {violation.description}"
            )
        made.ClearField(name)
    return made


def sample(message: Descriptor, way: Way) -> Message:
    """An example of a message."""
    made = GetMessageClass(message)()
    for field in message.fields:
        if (value := _value(field, way)) is not _LEFT_OUT:
            _set(made, field, value)
    return made


def _set(made: Any, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        getattr(made, field.name).extend(value if isinstance(value, list) else [value])
    elif field.message_type is not None:
        getattr(made, field.name).CopyFrom(value)
    elif isinstance(value, str) and field.enum_type is not None:
        setattr(made, field.name, field.enum_type.values_by_name[value].number)
    else:
        setattr(made, field.name, value)


def _value(field: FieldDescriptor, way: Way) -> Any:
    """An example of one value of the field, or `_LEFT_OUT`."""
    full = f"{owner_of(field).name}.{field.name}"
    if full in _VALUES:
        return _VALUES[full]
    if field.GetOptions().deprecated or not _is_wanted(field, way):
        return _LEFT_OUT
    if field.message_type is not None:
        return _message(field, way)
    if field.enum_type is not None:
        allowed = getattr(rules_of(field).enum, "in") or [value.number for value in field.enum_type.values]
        return next(number for number in allowed if number)
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text(field)
    return _VALUES.get(field.name, field.type == FieldDescriptor.TYPE_BOOL or 1)


def _is_wanted(field: FieldDescriptor, way: Way) -> bool:
    if owner_of(field).full_name.startswith("google."):
        # Of types of other projects, only what the table names.
        return False
    group = field.containing_oneof
    if group is not None and group.fields[0] is not field and len(group.fields) > 1:
        return False
    behavior = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return way is Way.OUT or (field_behavior_pb2.OUTPUT_ONLY not in behavior and field.name not in _NOT_SENT)


def _message(field: FieldDescriptor, way: Way) -> Message:
    message = message_of(field)
    made: Any = GetMessageClass(message)()
    match message.full_name:
        case "google.protobuf.Timestamp":
            made.FromJsonString(_TIME)
        case "google.protobuf.FieldMask":
            made.paths.extend(getattr(rules_of(field).field_mask, "in"))
        case "google.type.Money":
            made.currency_code = "EUR"
            made.units, made.nanos = _AMOUNTS.get(field.name, _AMOUNT)
        case _:
            made = sample(message, way)
    return made  # type: ignore[no-any-return]


def _text(field: FieldDescriptor) -> Any:
    if field.name in _VALUES:
        return _VALUES[field.name]
    if field.name == "id":
        return _IDS.get(_MESSAGE_IDS.get(owner_of(field).name, ""), EXAMPLE_ID)
    if match := re.fullmatch(r"(\w+)_ids?", field.name):
        return _IDS.get(match[1], EXAMPLE_ID)
    return "text"
