"""The customer service's methods that read from the other services."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from tests.mesh.house import House
from tests.services import Client, refused


async def listed(
    client: Client, customer_id: str = "me", *, size: int = 0, token: str = ""
) -> customer_pb2.ListCustomerOrdersResponse:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    request = customer_pb2.ListCustomerOrdersRequest(customer_id=customer_id, page_size=size, page_token=token)
    reply: customer_pb2.ListCustomerOrdersResponse = await client(stub.ListCustomerOrders, request)
    return reply


async def test_orders_of_a_customer_are_listed_in_pages_for_them_and_for_staff(mesh: House) -> None:
    buyer, stranger = await mesh.buyer("tok_visa"), await mesh.buyer("tok_visa")
    product = await mesh.product(10)
    placed = [await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id) for _ in range(3)]
    await mesh.order(stranger, {product: 1})
    staff = mesh.staff["customer"]
    next_page = ""

    for client, named in ((mesh.customer(buyer), "me"), (staff, buyer.id)):
        first = await listed(client, named, size=2)
        next_page = first.next_page_token
        second = await listed(client, named, size=2, token=next_page)
        assert [*first.orders, *second.orders] == placed[::-1]
        assert (len(first.orders), second.next_page_token) == (2, "")

    for client, named in ((mesh.customer(stranger), buyer.id), (staff, str(uuid4())), (staff, "me")):
        assert (await refused(listed(client, named))).reason == "CUSTOMER_NOT_FOUND"
    foreign = await refused(listed(mesh.customer(stranger), token=next_page))
    assert (foreign.reason, [each.field for each in foreign.violations]) == ("PAGE_TOKEN_INVALID", ["page_token"])


async def test_without_the_order_service_no_orders_of_a_customer_are_listed(mesh: House) -> None:
    buyer = await mesh.buyer()
    await mesh.services["order"].stop()
    assert _named(await refused(listed(mesh.customer(buyer)))) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")


def _named(error: Any) -> tuple[str, str]:
    return error.code.name, error.reason
