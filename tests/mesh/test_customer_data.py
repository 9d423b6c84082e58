"""The customer service's methods that read from the other services."""

from __future__ import annotations

from operator import attrgetter
from typing import Any
from uuid import uuid4

import pytest
from google.type import postal_address_pb2

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, session_pb2, session_pb2_grpc
from commerce.order.v1 import order_pb2, order_pb2_grpc
from customer_svc.usecases import exports
from tests.mesh.house import House
from tests.services import Client, refused


async def listed(
    client: Client, customer_id: str = "me", *, size: int = 0, token: str = ""
) -> customer_pb2.ListCustomerOrdersResponse:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    request = customer_pb2.ListCustomerOrdersRequest(customer_id=customer_id, page_size=size, page_token=token)
    reply: customer_pb2.ListCustomerOrdersResponse = await client(stub.ListCustomerOrders, request)
    return reply


async def exported(client: Client, customer_id: str = "me") -> customer_pb2.ExportCustomerResponse:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    request = customer_pb2.ExportCustomerRequest(customer_id=customer_id)
    reply: customer_pb2.ExportCustomerResponse = await client(stub.ExportCustomer, request)
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


async def test_an_export_holds_all_that_the_services_know_of_a_customer(
    mesh: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PORTION", 2)
    buyer = await mesh.buyer("tok_visa", "tok_declined", "tok_flaky")
    client, staff = mesh.customer(buyer), mesh.staff["customer"]
    customers = customer_pb2_grpc.CustomerServiceStub(client.channel)
    stranger = await mesh.buyer("tok_visa")
    product = await mesh.product(10)
    await mesh.decided(stranger, (await mesh.order(stranger, {product: 1})).id)
    methods = [buyer.methods[each] for each in ("tok_visa", "tok_declined", "tok_visa")]
    orders = [await mesh.decided(buyer, (await mesh.order(buyer, {product: 1}, method=each)).id) for each in methods]
    orders_client = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    drafted = await buyer.orders(orders_client.CreateOrder, order_pb2.CreateOrderRequest(draft=True))
    payments = [await mesh.payment(buyer, each.id) for each in orders]
    postal = postal_address_pb2.PostalAddress(region_code="GB", address_lines=["12 St James's Square"])
    added = await client(customers.AddAddress, customer_pb2.AddAddressRequest(customer_id="me", postal_address=postal))
    person = await client(customers.GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me"))
    sign_in = session_pb2.CreateSessionRequest(email=person.customer.email, password="correct horse")
    await staff.as_("")(session_pb2_grpc.SessionServiceStub(client.channel).CreateSession, sign_in)

    for caller, named in ((client, "me"), (staff, buyer.id)):
        export = await exported(caller, named)
        assert export.customer == person.customer
        assert [each.id for each in export.payment_methods] == list(buyer.methods.values())[::-1]
        assert list(export.addresses) == [added.address]
        assert list(export.orders) == [drafted.order, *orders[::-1]]
        assert sorted(export.payments, key=attrgetter("id")) == sorted(payments, key=attrgetter("id"))
        (session,) = export.sessions
        assert session.create_time.seconds < session.expire_time.seconds
        assert export.export_time.seconds >= person.customer.create_time.seconds
    assert (await refused(exported(mesh.customer(stranger), buyer.id))).reason == "CUSTOMER_NOT_FOUND"


@pytest.mark.parametrize("missing", ["order", "payment"])
async def test_without_a_service_there_is_no_export(mesh: House, missing: str) -> None:
    buyer = await mesh.buyer("tok_visa")
    await mesh.decided(buyer, (await mesh.order(buyer, {await mesh.product(1): 1})).id)
    assert len((await exported(mesh.customer(buyer))).payments) == 1
    await mesh.services[missing].stop()
    assert _named(await refused(exported(mesh.customer(buyer)))) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")


def _named(error: Any) -> tuple[str, str]:
    return error.code.name, error.reason
