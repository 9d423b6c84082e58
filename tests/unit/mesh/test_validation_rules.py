"""The validation rules of the contracts, run like in the services, on messages made from JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from commerce.customer.v1 import customer_pb2, session_pb2
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.errors import Violation
from mesh.rpc import validation

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
LINE = {"productId": ID, "quantity": 1}
PRICE = {"currencyCode": "EUR", "units": "12", "nanos": 500_000_000}
HOME = {"regionCode": "DE", "postalCode": "10115", "locality": "Berlin", "addressLines": ["Invalidenstraße 1"]}
SIGN_UP = {"email": "ada@example.com", "name": "Ada", "password": "correct horse"}
PRODUCT = {"sku": "TEA-1", "name": "Tea", "price": PRICE}
HOLD = {
    "orderId": ID,
    "holdKey": "MDEyMzQ1Njc4OWFiY2RlZg==",
    "customerId": ID,
    "lines": [LINE],
    "expireTime": "2030-01-01T00:00:00Z",
}
CHARGE = {
    "orderId": ID,
    "customerId": ID,
    "amount": PRICE,
    "provider": "sandbox",
    "paymentMethodId": ID,
}

GOOD: list[tuple[type[Message], dict[str, Any]]] = [
    (customer_pb2.CreateCustomerRequest, SIGN_UP),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "phone": "+4930123456"}),
    (customer_pb2.GetCustomerRequest, {"customerId": ID}),
    (customer_pb2.GetCustomerRequest, {"customerId": "me"}),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"id": "me", "name": "Ada"}}),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"id": ID, "name": "Ada"}, "updateMask": "name,phone"}),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "tok_visa"}),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "pm_1MqLiJLkdIwHu7ixUEgbFdYF"}),
    (customer_pb2.AddAddressRequest, {"customerId": "me", "postalAddress": HOME}),
    (customer_pb2.ResolvePaymentMethodsRequest, {"queries": [{"customerId": ID}] * 1000}),
    (customer_pb2.SelectPaymentMethodsRequest, {"queries": [{"customerId": ID}] * 1000}),
    (session_pb2.CreateSessionRequest, {"email": "ada@example.com", "password": "x"}),
    (product_pb2.CreateProductRequest, PRODUCT),
    (product_pb2.CreateProductRequest, {**PRODUCT, "sku": "4006381333931", "initialStock": 0}),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {"currencyCode": "EUR"}}),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {"currencyCode": "JPY", "units": 10**15 - 1}}),
    (product_pb2.ListProductsRequest, {"orderBy": "createTime desc", "pageSize": 500}),
    (product_pb2.ListProductsRequest, {}),
    (product_pb2.UpdateProductRequest, {"product": {"id": ID, "description": ""}, "updateMask": "description"}),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "delta": -3, "reason": "STOCK_MOVEMENT_REASON_ADJUSTMENT"}),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "set": 0, "reason": "STOCK_MOVEMENT_REASON_RECEIPT"}),
    (inventory_pb2.ReserveStockRequest, {"reservations": [HOLD]}),
    (order_pb2.CreateOrderRequest, {"items": [LINE]}),
    (order_pb2.CreateOrderRequest, {"items": [LINE, LINE]}),
    (order_pb2.CreateOrderRequest, {"draft": True}),
    (order_pb2.UpdateOrderItemRequest, {"orderId": ID, "item": {"id": ID, "quantity": 2}}),
    (order_pb2.CancelOrderRequest, {"orderId": ID, "reason": f"Ordered twice, see {ID} and 0301234567"}),
    (order_pb2.CancelOrderRequest, {"orderId": ID, "reason": "As 12345678-1234-1234-1234-123456789012 says"}),
    (order_pb2.ShipOrderRequest, {"orderId": ID, "carrier": "DHL", "trackingNumber": "00340434161094015902"}),
    (payment_pb2.ProcessPaymentRequest, CHARGE),
    (payment_pb2.ProcessPaymentRequest, {**CHARGE, "token": "tok_visa"}),
    (payment_pb2.RefundPaymentRequest, {"paymentId": ID, "reason": "Broken on arrival"}),
    (payment_pb2.ReceiveWebhookRequest, {"provider": "sandbox", "payload": {"data": "e30="}}),
]

BAD: list[tuple[type[Message], dict[str, Any], str]] = [
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "email": ""}, "email"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "email": "ada"}, "email"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "email": "4242424242424242@example.com"}, "email"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "name": ""}, "name"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "name": "4242 4242 4242 4242"}, "name"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "phone": "030 1234"}, "phone"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "phone": "+4242424242424242"}, "phone"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "password": "short"}, "password"),
    (customer_pb2.CreateCustomerRequest, {**SIGN_UP, "password": "x" * 129}, "password"),
    (customer_pb2.GetCustomerRequest, {"customerId": "you"}, "customer_id"),
    (customer_pb2.GetCustomerRequest, {}, "customer_id"),
    (customer_pb2.UpdateCustomerRequest, {}, "customer"),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"name": "Ada"}}, "customer.id"),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"id": "me"}, "updateMask": "createTime"}, "update_mask"),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"id": "me"}, "updateMask": "email"}, "customer.email"),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"id": "me"}, "updateMask": "name"}, "customer.name"),
    (customer_pb2.UpdateCustomerRequest, {"customer": {"id": "me", "email": "ada@"}}, "customer.email"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": ""}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "4242424242424242"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "4242 4242 4242 4242"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "4242-4242-4242-4242"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "378282246310005"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "4222222222222"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "6304000000000000000"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "tok_4242424242424242"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "tok visa"}, "token"),
    (customer_pb2.AddPaymentMethodRequest, {"customerId": "me", "token": "t" * 256}, "token"),
    (customer_pb2.AddAddressRequest, {"customerId": "me"}, "postal_address"),
    (customer_pb2.AddAddressRequest, {"customerId": "me", "postalAddress": {**HOME, "regionCode": ""}},
     "postal_address"),
    (customer_pb2.AddAddressRequest, {"customerId": "me", "postalAddress": {**HOME, "addressLines": []}},
     "postal_address"),
    (customer_pb2.AddAddressRequest,
     {"customerId": "me", "postalAddress": {**HOME, "recipients": ["5555555555554444"]}}, "postal_address"),
    (customer_pb2.AddAddressRequest, {"customerId": "me", "postalAddress": {**HOME, "locality": "B" * 101}},
     "postal_address.locality"),
    (customer_pb2.ListCustomersRequest, {"pageSize": 501}, "page_size"),
    (customer_pb2.ListCustomersRequest, {"pageSize": -1}, "page_size"),
    (customer_pb2.ListCustomersRequest, {"pageToken": "x" * 1025}, "page_token"),
    (customer_pb2.ResolvePaymentMethodsRequest, {}, "queries"),
    (customer_pb2.SelectPaymentMethodsRequest, {}, "queries"),
    (customer_pb2.ResolvePaymentMethodsRequest, {"queries": [{"customerId": ID}] * 1001}, "queries"),
    (customer_pb2.ResolvePaymentMethodsRequest, {"queries": [{"customerId": "me"}]}, "queries[0].customer_id"),
    (session_pb2.CreateSessionRequest, {"email": "ada@example.com"}, "password"),
    (session_pb2.RefreshSessionRequest, {}, "refresh_token"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "sku": ""}, "sku"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "sku": "a b"}, "sku"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "name": "x" * 201}, "name"),
    (product_pb2.CreateProductRequest, {"sku": "TEA", "name": "Tea"}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "currencyCode": "eur"}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "currencyCode": ""}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "units": -1}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "nanos": -1}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "nanos": 1_000_000_000}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "nanos": 10_000}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {**PRICE, "units": 10**15}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "price": {}}, "price"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "initialStock": -1}, "initial_stock"),
    (product_pb2.CreateProductRequest, {**PRODUCT, "initialStock": 1_000_000_001}, "initial_stock"),
    (product_pb2.UpdateProductRequest, {"product": {"id": ID}, "updateMask": "price"}, "product.price"),
    (product_pb2.UpdateProductRequest, {"product": {"id": ID}, "updateMask": "name"}, "product.name"),
    (product_pb2.UpdateProductRequest, {"product": {"id": ID, "sku": "x"}, "updateMask": "sku"}, "update_mask"),
    (product_pb2.BatchGetProductsRequest, {"productIds": [ID, ID]}, "product_ids"),
    (product_pb2.BatchGetProductsRequest, {"productIds": ["x"]}, "product_ids[0]"),
    (product_pb2.ListProductsRequest, {"orderBy": "sku"}, "order_by"),
    (product_pb2.ListProductsRequest, {"orderBy": "price; drop table"}, "order_by"),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "reason": "STOCK_MOVEMENT_REASON_RECEIPT"}, "change"),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "delta": 0, "reason": "STOCK_MOVEMENT_REASON_RECEIPT"},
     "delta"),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "set": -1, "reason": "STOCK_MOVEMENT_REASON_RECEIPT"}, "set"),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "set": 1}, "reason"),
    (inventory_pb2.UpdateStockRequest, {"productId": ID, "set": 1, "reason": "STOCK_MOVEMENT_REASON_SALE"}, "reason"),
    (inventory_pb2.UpdateStockRequest,
     {"productId": ID, "set": 1, "reason": "STOCK_MOVEMENT_REASON_RECEIPT", "note": "paid with 4242-4242-4242-4242."},
     "note"),
    (inventory_pb2.ReserveStockRequest, {"reservations": []}, "reservations"),
    (inventory_pb2.ReserveStockRequest, {"reservations": [{**HOLD, "holdKey": "c2hvcnQ="}]},
     "reservations[0].hold_key"),
    (inventory_pb2.ReserveStockRequest, {"reservations": [{**HOLD, "lines": [LINE, LINE]}]}, "reservations[0].lines"),
    (inventory_pb2.ReserveStockRequest, {"reservations": [{**HOLD, "expireTime": None}]},
     "reservations[0].expire_time"),
    (inventory_pb2.CommitStockRequest, {"orderIds": [ID, ID]}, "order_ids"),
    (inventory_pb2.ReleaseStockRequest, {}, "order_ids"),
    (order_pb2.CreateOrderRequest, {}, "items"),
    (order_pb2.CreateOrderRequest, {"items": [LINE] * 101}, "items"),
    (order_pb2.CreateOrderRequest, {"items": [{"productId": ID, "quantity": 0}]}, "items[0].quantity"),
    (order_pb2.CreateOrderRequest, {"items": [LINE, {"productId": ID, "quantity": 10_001}]}, "items[1].quantity"),
    (order_pb2.CreateOrderRequest, {"items": [{"productId": "tea", "quantity": 1}]}, "items[0].product_id"),
    (order_pb2.CreateOrderRequest, {"items": [LINE], "paymentMethodId": "tok_visa"}, "payment_method_id"),
    (order_pb2.CreateOrderRequest, {"items": [LINE], "customerId": "me"}, "customer_id"),
    (order_pb2.UpdateOrderItemRequest, {"orderId": ID, "item": {"id": ID}}, "item.quantity"),
    (order_pb2.UpdateOrderItemRequest, {"orderId": ID, "item": {"id": ID, "quantity": 1}, "updateMask": "sku"},
     "update_mask"),
    (order_pb2.ListOrdersRequest, {"status": 99}, "status"),
    (order_pb2.CancelOrderRequest, {"orderId": ID, "reason": "card 4242 4242 4242 4242"}, "reason"),
    (order_pb2.CancelOrderRequest, {"orderId": ID, "reason": "x" * 501}, "reason"),
    (order_pb2.ShipOrderRequest, {"orderId": ID, "carrier": "DHL"}, "tracking_number"),
    (order_pb2.ResolveHoldsRequest, {"orderIds": ["x"]}, "order_ids[0]"),
    (payment_pb2.ProcessPaymentRequest, {**CHARGE, "token": "4242424242424242"}, "token"),
    (payment_pb2.ProcessPaymentRequest, {**CHARGE, "amount": {"currencyCode": "EUR"}}, "amount"),
    (payment_pb2.ProcessPaymentRequest, {**CHARGE, "provider": "Sandbox!"}, "provider"),
    (payment_pb2.RefundPaymentRequest, {"paymentId": ID}, "reason"),
    (payment_pb2.RefundPaymentRequest, {"paymentId": ID, "reason": "x", "amount": {**PRICE, "units": -5}}, "amount"),
    (payment_pb2.ReceiveWebhookRequest, {"provider": "sandbox"}, "payload"),
    (payment_pb2.ReceiveWebhookRequest, {"provider": "sandbox", "payload": {"data": ""}}, "payload"),
]  # fmt: skip


CARDS = [
    "4242424242424242", "visa4242424242424242", "4242424242424242visa", "VISA-4242424242424242", "4242424242424242-",
    "a-4242424242424242", "face4242424242424242", "n\u00b04242424242424242",
    "4242 4242 4242 4242", "4242  4242  4242  4242",
    "4242-4242-4242-4242-", "visa-4242-4242-4242-4242", "4242.4242.4242.4242", "4242/4242/4242/4242",
    "4242_4242_4242_4242", "4242\n4242\n4242\n4242", "4242\u00a04242\u00a04242\u00a04242", "4242 - 4242 - 4242 - 4242",
    "4242\u20134242\u20134242\u20134242", "visa4242 4242 4242 4242 12/29 123",
    "\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12",
    "378282246310005", "3782 822463 10005", "3782.822463.10005", "5555 5555 5555 4444", "2223-0031-2200-3222",
    "30569309025904", "3056 930902 5904", "6304000000000000000", "6011.0009.9013.9424",
]  # fmt: skip
OTHERWISE_GROUPED = ["4222222222222", "42 42 42 42 42 42 42 42", "4-2-4-2-4-2-4-2-4-2-4-2-4-2-4-2", "424242 4242424242"]
"""Refused in texts that people write about themselves. In texts about goods they may be numbers and sizes."""
TEXTS = [
    ID, ID.upper(), f"order {ID}, and {ID}",
    "12345678-1234-1234-1234-123456789012", "01234567-8901-7234-8567-890123456789",
    "w0123456789012345f0123456789012a", "d41d8cd98f00b204e9800998ecf8427e", "0301234567", "call +49 30 1234567",
    "at 192.168.100.100", "01.02.2024 to 31.12.2024", "on 2024-01-31 at 12:30:59", "1,299.00 instead of 1.499,00",
    "models 2021/2022/2023/2024", "sizes 36, 37, 38, 39, 40, 41, 42, 43",
]  # fmt: skip
ABOUT_GOODS = ["EAN 4006381333931", "sizes 36 37 38 39 40 41 42 43", "6-pack, 12 x 330 ml, 2024 2025 2026 2027"]


def with_text(text: str) -> list[tuple[Message, str]]:
    """Requests with this text in fields that people write, with the name of the field."""
    return [
        (customer_pb2.CreateCustomerRequest(**{**SIGN_UP, "name": text}), "name"),
        (ParseDict({"customerId": "me", "postalAddress": {**HOME, "addressLines": [text]}},
                   customer_pb2.AddAddressRequest()), "postal_address"),
        (order_pb2.CancelOrderRequest(order_id=ID, reason=text), "reason"),
        (payment_pb2.RefundPaymentRequest(payment_id=ID, reason=text), "reason"),
    ]  # fmt: skip


def about_goods(text: str) -> list[tuple[Message, str]]:
    """Requests with this text in fields about goods, with the name of the field."""
    return [
        (ParseDict({**PRODUCT, "name": text}, product_pb2.CreateProductRequest()), "name"),
        (ParseDict({**PRODUCT, "description": text}, product_pb2.CreateProductRequest()), "description"),
        (ParseDict({"product": {"id": ID, "name": text}}, product_pb2.UpdateProductRequest()), "product.name"),
    ]


def test_card_number_is_refused_in_every_notation() -> None:
    asked = [each for text in CARDS for each in (*with_text(text), *about_goods(text))]
    asked += [each for text in OTHERWISE_GROUPED for each in with_text(text)]
    asked += [
        (customer_pb2.CreateCustomerRequest(**{**SIGN_UP, "email": "a-4242424242424242@b.co"}), "email"),
        (customer_pb2.CreateCustomerRequest(**{**SIGN_UP, "phone": "+378282246310005"}), "phone"),
        (customer_pb2.CreateCustomerRequest(**{**SIGN_UP, "phone": "+30569309025904"}), "phone"),
    ]
    asked += [
        (customer_pb2.AddPaymentMethodRequest(customer_id="me", token=f"4242{mark}4242{mark}4242{mark}4242"), "token")
        for mark in (".", "_", ":", "--", "._")
    ]
    missed = [str(request) for request, field in asked if refusals(request) != {field}]
    assert missed == []


def test_other_numbers_are_not_taken_for_card_numbers() -> None:
    asked = [each for text in TEXTS for each in (*with_text(text), *about_goods(text))]
    asked += [each for text in ABOUT_GOODS for each in about_goods(text)]
    asked += [
        (customer_pb2.CreateCustomerRequest(**{**SIGN_UP, "email": f"{ID}@example.com"}), "email"),
        *(
            (customer_pb2.CreateCustomerRequest(**{**SIGN_UP, "phone": phone}), "phone")
            for phone in ("+8613800138000", "+5511987654321", "+390612345678", "+6281234567890")
        ),
    ]
    assert [str(request) for request, _ in asked if refusals(request)] == []


@given(st.uuids())
def test_no_uuid_is_taken_for_a_card_number(made: UUID) -> None:
    for text in (str(made), str(made).upper(), f"order {made}.", f"w{made.hex}", f"{made}/{made}"):
        assert [refusals(request) for request, _ in (*with_text(text), *about_goods(text))] == [set()] * 7


def violations_of(request: Message) -> list[Violation]:
    """The violations of a request."""
    return list(validation.violations_of(cast("Descriptor", request.DESCRIPTOR))(request))


def refusals(request: Message) -> set[str]:
    """The fields with violations."""
    return {violation.field for violation in violations_of(request)}


def cases(table: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(message, *rest, id=f"{message.DESCRIPTOR.name}-{str(rest)[:60]}") for message, *rest in table]


@pytest.mark.parametrize(("message", "body"), cases(GOOD))
def test_valid_request_passes(message: type[Message], body: dict[str, Any]) -> None:
    assert violations_of(ParseDict(body, message())) == []


@pytest.mark.parametrize(("message", "body", "field"), cases(BAD))
def test_invalid_request_is_refused_with_its_field(message: type[Message], body: dict[str, Any], field: str) -> None:
    violations = violations_of(ParseDict(body, message()))
    assert {violation.field for violation in violations} == {field}
    assert all(violation.description for violation in violations)
