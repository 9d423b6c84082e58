"""The responses of a running mesh are those of its OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from tests.openapi import DOCUMENT, OPERATIONS, follow, validator
from tests.running import RunningMesh, reason_of
from tests.services import new_key


def check(name: str, answer: httpx.Response) -> None:
    """Fail unless the document has this response of this operation."""
    response = OPERATIONS[name][2]["responses"].get(str(answer.status_code))
    assert response is not None, f"{name} has no response {answer.status_code}: {answer.text}"
    documented = follow(response)
    validator(documented["content"]["application/json"]["schema"]).validate(answer.json())
    if answer.status_code != 200:
        assert reason_of(answer) in documented["x-error-reasons"]


async def test_the_document_that_is_served_is_that_of_the_contracts(mesh: RunningMesh) -> None:
    assert await mesh.ok("GET", "/openapi.json") == DOCUMENT


async def test_responses_of_a_customer_and_an_order_fit_the_document(mesh: RunningMesh) -> None:
    shopper = await mesh.shopper("tok_visa")
    product = await mesh.product(5)
    address = {"regionCode": "DE", "locality": "Berlin", "addressLines": ["Invalidenstraße 1"]}
    placed = await shopper.order({product: 2}, key=(key := new_key()))
    order = placed.json()["id"]
    await shopper.decided(order)
    customer, staff = shopper.token, mesh.staff_token
    calls: Sequence[tuple[str, str, str, dict[str, object] | None, str]] = [
        ("GetCustomer", "GET", "/v1/customers/me", None, customer),
        ("UpdateCustomer", "PATCH", "/v1/customers/me?updateMask=phone", {"phone": "+4930123456"}, customer),
        ("AddAddress", "POST", "/v1/customers/me/addresses", {"postalAddress": address}, customer),
        ("ListAddresses", "GET", "/v1/customers/me/addresses", None, customer),
        ("ListPaymentMethods", "GET", "/v1/customers/me/paymentMethods", None, customer),
        ("GetOrder", "GET", f"/v1/orders/{order}", None, customer),
        ("ListOrders", "GET", "/v1/orders?pageSize=1", None, customer),
        ("CreateOrder", "POST", "/v1/orders", {"draft": True}, customer),
        ("GetOrderPayment", "GET", f"/v1/orders/{order}/payment", None, customer),
        ("GetProduct", "GET", f"/v1/products/{product}", None, ""),
        ("BatchGetProducts", "GET", f"/v1/products:batchGet?productIds={product}", None, ""),
        ("ListProducts", "GET", "/v1/products?pageSize=2", None, ""),
        ("GetStock", "GET", f"/v1/products/{product}/stock", None, staff),
        ("ListStockMovements", "GET", f"/v1/products/{product}/stockMovements", None, staff),
        ("ListCustomers", "GET", "/v1/customers?pageSize=1", None, staff),
        ("GetEdgeHealth", "GET", "/healthz", None, ""),
        ("GetKeys", "GET", "/.well-known/jwks.json", None, ""),
    ]
    check("CreateOrder", placed)
    for name, verb, path, body, token in calls:
        answer = await mesh.call(verb, path, body, token=token)
        assert answer.status_code == 200, f"{name}: {answer.text}"
        check(name, answer)

    unknown = "019ac9b2-7c00-7000-8000-0000000000ff"
    errors: Sequence[tuple[int, str, str, str, dict[str, object] | None, str, str]] = [
        (400, "CreateOrder", "POST", "/v1/orders", {"items": [{"productId": product, "quantity": 0}]}, customer, ""),
        (400, "CreateOrder", "POST", "/v1/orders", shopper.order_body({product: 9}), customer, ""),
        (400, "ListOrders", "GET", "/v1/orders?nope=1", None, customer, ""),
        (401, "GetOrder", "GET", f"/v1/orders/{order}", None, "", ""),
        (401, "CreateSession", "POST", "/v1/sessions", {"email": "a@b.example", "password": "wrong horse"}, "", ""),
        (403, "GetStock", "GET", f"/v1/products/{product}/stock", None, customer, ""),
        (404, "GetOrder", "GET", f"/v1/orders/{unknown}", None, customer, ""),
        (409, "CreateOrder", "POST", "/v1/orders", shopper.order_body({product: 1}), customer, key),
        (413, "CreateOrder", "POST", "/v1/orders", {"paymentMethodId": "x" * 70_000}, customer, ""),
    ]
    for status, name, verb, path, body, token, used in errors:
        answer = await mesh.call(verb, path, body, token=token, key=used)
        assert answer.status_code == status, f"{name}: {answer.text}"
        check(name, answer)
