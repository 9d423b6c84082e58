"""The responses of a running mesh are those of its OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from tests.openapi import DOCUMENT, OPERATIONS, Json, follow, validator
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


async def test_responses_of_every_area_fit_the_document(mesh: RunningMesh) -> None:
    shopper = await mesh.shopper("tok_visa")
    product, staff, customer = await mesh.product(5), mesh.staff_token, shopper.token
    address = {"regionCode": "DE", "locality": "Berlin", "addressLines": ["Invalidenstraße 1"]}

    async def ask(name: str, path: str, body: Json | None = None, *, token: str = customer) -> Json:
        """Call the method at this path; its response, which must be good and fit the document."""
        answer = await mesh.call(OPERATIONS[name][0], path, body, token=token)
        assert answer.status_code == 200, f"{name}: {answer.text}"
        check(name, answer)
        response: Json = answer.json()
        return response

    placed = (await ask("CreateOrder", "/v1/orders", shopper.order_body({product: 2})))["id"]
    await shopper.decided(placed)
    payment = (await ask("GetOrderPayment", f"/v1/orders/{placed}/payment"))["id"]
    await ask("ShipOrder", f"/v1/orders/{placed}:ship", {"carrier": "DHL", "trackingNumber": "JD0146"}, token=staff)
    await ask("DeliverOrder", f"/v1/orders/{placed}:deliver", {}, token=staff)
    await ask("GetOrderTimeline", f"/v1/orders/{placed}/timeline")

    draft = (await ask("CreateOrder", "/v1/orders", {"draft": True}))["id"]
    line = {"productId": product, "quantity": 1}
    item = (await ask("AddOrderItem", f"/v1/orders/{draft}/items", line))["items"][0]["id"]
    await ask("UpdateOrderItem", f"/v1/orders/{draft}/items/{item}", {"quantity": 2})
    await ask("RemoveOrderItem", f"/v1/orders/{draft}/items/{item}")
    await ask("CancelOrder", f"/v1/orders/{draft}:cancel", {"reason": "A change of mind"})
    await ask("GetOrder", f"/v1/orders/{draft}")
    await ask("ListOrders", "/v1/orders?pageSize=1")

    await ask("GetCustomer", "/v1/customers/me")
    await ask("UpdateCustomer", "/v1/customers/me?updateMask=phone", {"phone": "+4930123456"})
    kept = (await ask("AddAddress", "/v1/customers/me/addresses", {"postalAddress": address}))["id"]
    await ask("ListAddresses", "/v1/customers/me/addresses")
    await ask("DeleteAddress", f"/v1/customers/me/addresses/{kept}")
    card = shopper.methods["tok_visa"]
    await ask("SetDefaultPaymentMethod", f"/v1/customers/me/paymentMethods/{card}:makeDefault", {})
    await ask("ListPaymentMethods", "/v1/customers/me/paymentMethods")
    await ask("ListCustomerOrders", "/v1/customers/me/orders")
    await ask("ExportCustomer", "/v1/customers/me:export")
    await ask("ListCustomers", "/v1/customers?pageSize=1", token=staff)

    await ask("UpdateProduct", f"/v1/products/{product}?updateMask=description", {"description": "Loose"}, token=staff)
    await ask("ListPriceChanges", f"/v1/products/{product}/priceChanges", token=staff)
    change = {"delta": 5, "reason": "STOCK_MOVEMENT_REASON_RECEIPT"}
    await ask("UpdateStock", f"/v1/products/{product}/stock:update", change, token=staff)
    await ask("GetStock", f"/v1/products/{product}/stock", token=staff)
    await ask("ListStockMovements", f"/v1/products/{product}/stockMovements", token=staff)
    await ask("ArchiveProduct", f"/v1/products/{product}:archive", {}, token=staff)
    await ask("GetProduct", f"/v1/products/{product}", token="")
    await ask("UnarchiveProduct", f"/v1/products/{product}:unarchive", {}, token=staff)
    await ask("BatchGetProducts", f"/v1/products:batchGet?productIds={product}", token="")
    await ask("ListProducts", "/v1/products?pageSize=2&orderBy=price%20desc", token="")

    await ask("GetPayment", f"/v1/payments/{payment}")
    await ask("ListPayments", f"/v1/payments?orderId={placed}", token=staff)
    await ask("ListPaymentEntries", f"/v1/payments/{payment}/entries", token=staff)
    await ask("GetEdgeHealth", "/healthz", token="")
    await ask("GetKeys", "/.well-known/jwks.json", token="")

    # A final order has one state, so its watch is one line.
    watched = await mesh.call("GET", f"/v1/orders/{placed}:watch", token=customer)
    assert watched.json()["order"]["status"] == "ORDER_STATUS_DELIVERED"
    check("WatchOrder", watched)


async def test_errors_have_the_status_and_a_reason_that_the_document_lists(mesh: RunningMesh) -> None:
    shopper = await mesh.shopper("tok_visa")
    product, customer = await mesh.product(5), shopper.token
    placed = await shopper.order({product: 1}, key=(key := new_key()))
    order = placed.json()["id"]
    many = {"items": [{"productId": product, "quantity": 10_001}]}
    wrong = {"email": "nobody@example.com", "password": "wrong horse"}
    calls: Sequence[tuple[int, str, str, Json | None, str, str]] = [
        (400, "CreateOrder", "/v1/orders", many, customer, ""),
        (400, "CreateOrder", "/v1/orders", shopper.order_body({product: 9}), customer, ""),
        (400, "ListOrders", "/v1/orders?nope=1", None, customer, ""),
        (401, "GetOrder", f"/v1/orders/{order}", None, "", ""),
        (401, "CreateSession", "/v1/sessions", wrong, "", ""),
        (403, "GetStock", f"/v1/products/{product}/stock", None, customer, ""),
        (404, "GetOrder", "/v1/orders/019ac9b2-7c00-7000-8000-0000000000ff", None, customer, ""),
        (409, "CreateOrder", "/v1/orders", shopper.order_body({product: 2}), customer, key),
        (413, "CreateOrder", "/v1/orders", {"paymentMethodId": "x" * 70_000}, customer, ""),
    ]
    for status, name, path, body, token, used in calls:
        answer = await mesh.call(OPERATIONS[name][0], path, body, token=token, key=used)
        assert answer.status_code == status, f"{name}: {answer.text}"
        check(name, answer)
