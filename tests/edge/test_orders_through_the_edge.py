"""An order as an outside client sees it: JSON over HTTP, through Envoy, against the mesh that `mesh up` runs."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from tests.running import RunningMesh, reason_of
from tests.services import new_key


async def test_an_order_of_three_lines_goes_from_json_to_confirmed(mesh: RunningMesh) -> None:
    shopper = await mesh.shopper("tok_visa")
    products = [await mesh.product(10, units) for units in (10, 20, 30)]
    wanted, key = dict(zip(products, (1, 2, 3), strict=True)), new_key()
    answer = await shopper.order(wanted, key=key)
    assert answer.status_code == 200, answer.text
    order = answer.json()
    assert order["status"] == "ORDER_STATUS_PENDING"
    assert order["totalAmount"] == {"currencyCode": "EUR", "units": "140", "nanos": 0}
    assert (await shopper.decided(order["id"]))["status"] == "ORDER_STATUS_CONFIRMED"
    for product, on_hand in zip(products, (9, 8, 7), strict=True):
        await mesh.stock_is(product, on_hand=on_hand)
    payment = await mesh.ok("GET", f"/v1/orders/{order['id']}/payment", token=shopper.token)
    assert (payment["status"], payment["amount"]["units"]) == ("PAYMENT_STATUS_CAPTURED", "140")

    again = await shopper.order(wanted, key=key)
    assert again.json() == order
    assert again.headers["idempotency-replayed"] == "true"
    other = await shopper.order({products[0]: 1}, key=key)
    assert (other.status_code, reason_of(other)) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_a_declined_order_is_cancelled_and_too_many_is_refused(mesh: RunningMesh) -> None:
    shopper = await mesh.shopper("tok_declined", "tok_visa")
    product = await mesh.product(5)
    order = await shopper.decided((await shopper.order({product: 5})).json()["id"])
    assert (order["status"], order["cancelReason"]) == ("ORDER_STATUS_CANCELLED", "CANCEL_REASON_PAYMENT_DECLINED")
    await mesh.stock_is(product, on_hand=5)

    refused = await shopper.order({product: 6}, method="tok_visa")
    assert (refused.status_code, reason_of(refused)) == (400, "STOCK_INSUFFICIENT")
    assert refused.json()["details"][0]["metadata"] == {"productId": product, "requested": "6", "available": "5"}
    await mesh.stock_is(product, on_hand=5)
    listed = await mesh.ok("GET", "/v1/orders", token=shopper.token)
    assert [each["id"] for each in listed["orders"]] == [order["id"]]


async def test_two_hundred_buyers_of_fifty_get_exactly_fifty(mesh: RunningMesh) -> None:
    shoppers = await asyncio.gather(*(mesh.shopper("tok_visa", "tok_declined") for _ in range(8)))
    product = await mesh.product(50)
    answers = await asyncio.gather(*(shoppers[index % 8].order({product: 1}) for index in range(200)))
    placed = [(index, answer) for index, answer in enumerate(answers) if answer.status_code == 200]
    refusals = [answer for answer in answers if answer.status_code != 200]
    assert len(placed) == 50
    assert {(answer.status_code, reason_of(answer)) for answer in refusals} == {(400, "STOCK_INSUFFICIENT")}
    for index, answer in placed:
        assert (await shoppers[index % 8].decided(answer.json()["id"]))["status"] == "ORDER_STATUS_CONFIRMED"
    await mesh.stock_is(product, on_hand=0)


async def test_what_declined_buyers_free_is_sold_to_others_and_never_more(mesh: RunningMesh) -> None:
    shoppers = await asyncio.gather(*(mesh.shopper("tok_visa", "tok_declined") for _ in range(4)))
    product = await mesh.product(20)
    sold = 0
    while sold < 20:
        methods = ["tok_declined" if index % 3 == 0 else "tok_visa" for index in range(60)]
        answers = await asyncio.gather(
            *(shoppers[index % 4].order({product: 1}, method=method) for index, method in enumerate(methods))
        )
        assert {reason_of(answer) for answer in answers if answer.status_code != 200} <= {"STOCK_INSUFFICIENT"}
        orders = await asyncio.gather(
            *(
                shoppers[index % 4].decided(answer.json()["id"])
                for index, answer in enumerate(answers)
                if answer.status_code == 200
            )
        )
        assert orders
        sold += sum(order["status"] == "ORDER_STATUS_CONFIRMED" for order in orders)
        await mesh.stock_is(product, on_hand=20 - sold)
    assert sold == 20


async def test_an_order_can_be_placed_with_grpcurl_and_a_strangers_is_not_found(mesh: RunningMesh) -> None:
    shopper, stranger = await mesh.shopper("tok_visa"), await mesh.shopper()
    product = await mesh.product(3)
    host = mesh.edge.removeprefix("http://")
    listed = await grpcurl(host, "list")
    assert {"commerce.order.v1.OrderService", "commerce.product.v1.InventoryService"} <= set(listed.split())
    assert "rpc CreateOrder" in await grpcurl(host, "describe", "commerce.order.v1.OrderService")
    body = json.dumps(shopper.order_body({product: 2}))
    told = await grpcurl(
        *("-H", f"authorization: Bearer {shopper.token}", "-H", f"idempotency-key: {new_key()}", "-d", body),
        *(host, "commerce.order.v1.OrderService/CreateOrder"),
    )
    order = json.loads(told)["order"]
    assert (await shopper.decided(order["id"]))["status"] == "ORDER_STATUS_CONFIRMED"
    for path in (f"/v1/orders/{order['id']}", f"/v1/orders/{order['id']}/payment", f"/v1/customers/{shopper.id}"):
        answer = await mesh.call("GET", path, token=stranger.token)
        assert answer.status_code == 404, answer.text
    cancel = await mesh.call("POST", f"/v1/orders/{order['id']}:cancel", {}, token=stranger.token)
    assert (cancel.status_code, reason_of(cancel)) == (404, "ORDER_NOT_FOUND")


async def grpcurl(*arguments: str) -> str:
    """Run grpcurl without TLS and give what it printed."""
    binary = Path(sys.executable).with_name("grpcurl")
    process = await asyncio.create_subprocess_exec(
        *(str(binary), "-plaintext", *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()
