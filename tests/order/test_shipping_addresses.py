"""The addresses that orders are shipped to, over gRPC, beside the real customer service."""

from __future__ import annotations

from uuid import UUID, uuid4

from google.type.money_pb2 import Money
from google.type.postal_address_pb2 import PostalAddress

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from commerce.order.v1 import order_pb2
from mesh.errors import NotFound
from tests.mesh.house import Buyer, House
from tests.order.drafts import Stub, kind, place
from tests.services import new_key, refused


async def address_of(mesh: House, buyer: Buyer, street: str) -> tuple[str, PostalAddress]:
    """A new address of a customer, and its id."""
    address = PostalAddress(
        region_code="DE",
        postal_code="10115",
        locality="Berlin",
        address_lines=[street, "Hinterhaus"],
        recipients=["Ada Lovelace"],
    )
    staff = mesh.staff["customer"]
    client = staff.as_(mesh.keys.token("customer", UUID(buyer.id)))
    request = customer_pb2.AddAddressRequest(customer_id="me", postal_address=address)
    made = await client(customer_pb2_grpc.CustomerServiceStub(staff.channel).AddAddress, request)
    return made.address.id, address


async def order(
    buyer: Buyer, product: str, address_id: str = "", *, draft: bool = False, key: str | None = None
) -> order_pb2.Order:
    """A new order or draft."""
    request = order_pb2.CreateOrderRequest(
        items=[order_pb2.OrderLine(product_id=product, quantity=1)], address_id=address_id, draft=draft
    )
    made: order_pb2.Order = (
        await buyer.orders(Stub(buyer.orders.channel).CreateOrder, request, key=key or new_key())
    ).order
    return made


async def test_order_keeps_the_address_that_it_names_or_the_only_one_of_its_customer(mesh: House, buyer: Buyer) -> None:
    product, key = await mesh.product(20), new_key()
    for _ in range(2):
        await address_of(mesh, await mesh.buyer(), "Torstraße 3")
    assert not (await order(buyer, product)).HasField("shipping_address")
    home_id, home = await address_of(mesh, buyer, "Invalidenstraße 1")
    placed = await order(buyer, product, key=key)
    assert placed.shipping_address == home
    office_id, office = await address_of(mesh, buyer, "Chausseestraße 2")
    assert not (await order(buyer, product)).HasField("shipping_address")
    others = [await order(buyer, product, each) for each in (home_id, office_id)]
    assert [each.shipping_address for each in others] == [home, office]
    await mesh.sql("customer_svc", "DELETE FROM addresses WHERE id = ANY($1)", [UUID(home_id), UUID(office_id)])
    confirmed = await mesh.decided(buyer, placed.id)
    assert (confirmed.status, confirmed.shipping_address) == (order_pb2.ORDER_STATUS_CONFIRMED, home)
    assert await order(buyer, product, key=key) == placed
    listed = await buyer.orders(Stub(buyer.orders.channel).ListOrders, order_pb2.ListOrdersRequest())
    assert {each.id: each.shipping_address for each in listed.orders}[placed.id] == home
    events = await mesh.sql("order_svc", "SELECT payload FROM mesh.outbox WHERE aggregate_id = $1", UUID(placed.id))
    assert len(events) >= 2
    assert not [event for event in events if "Invalidenstraße".encode() in event["payload"]]


async def test_address_that_the_customer_does_not_have_is_refused_and_nothing_is_held(
    mesh: House, buyer: Buyer
) -> None:
    product, stranger = await mesh.product(5), await mesh.buyer("tok_visa")
    strange_id, _ = await address_of(mesh, stranger, "Torstraße 3")
    for address_id in (str(uuid4()), strange_id):
        for draft in (True, False):
            error = await refused(order(buyer, product, address_id, draft=draft))
            assert kind(error) == (NotFound, "ADDRESS_NOT_FOUND")
    assert await mesh.sql("product_svc", "SELECT FROM hold_lines WHERE product_id = $1", UUID(product)) == []


async def test_draft_is_shipped_to_the_address_that_its_placing_names_or_its_own_or_the_only_one(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(20)
    home_id, home = await address_of(mesh, buyer, "Invalidenstraße 1")
    plain, own, other = [await order(buyer, product, each, draft=True) for each in ("", home_id, home_id)]
    assert (plain.HasField("shipping_address"), own.shipping_address) == (False, home)
    assert (await place(buyer, plain.id)).shipping_address == home
    office_id, office = await address_of(mesh, buyer, "Chausseestraße 2")
    await mesh.sql("customer_svc", "DELETE FROM addresses WHERE id = $1", UUID(home_id))
    assert (await place(buyer, own.id)).shipping_address == home
    error = await refused(place(buyer, other.id, address=home_id))
    assert kind(error) == (NotFound, "ADDRESS_NOT_FOUND")
    assert (await place(buyer, other.id, address=office_id)).shipping_address == office
    assert (await mesh.decided(buyer, other.id)).shipping_address == office


async def test_order_that_costs_nothing_has_an_address_without_a_payment_method(mesh: House) -> None:
    poor, free = await mesh.buyer(), await mesh.product(5, units=0)
    _, home = await address_of(mesh, poor, "Invalidenstraße 1")
    placed = await order(poor, free)
    assert (placed.total_amount, placed.shipping_address) == (Money(currency_code="EUR"), home)
