"""Erasing customers: what is gone, what stays, what refuses it, and how it goes on after a crash."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from hashlib import blake2b
from uuid import UUID

import pytest
from google.type import postal_address_pb2
from redis.asyncio import Redis

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, session_pb2, session_pb2_grpc
from commerce.order.v1 import order_pb2, order_pb2_grpc
from customer_svc.domain import Customer, CustomerHasOpenOrders
from customer_svc.session_store import SessionStore
from customer_svc.store import ErasureStore
from customer_svc.usecases import Erasure
from mesh.cache.versioned import VersionedCache
from mesh.db.database import Database
from mesh.db.unit_of_work import UnitsOfWork
from mesh.errors import Code, NotFound, Unauthenticated
from mesh.events.bus import Bus
from mesh.events.relay import Relay
from mesh.rpc.call import CLIENT_ADDRESS, Call, Caller, Kind
from mesh.rpc.replies import Change
from stack.servers import Servers
from tests.mesh.house import Buyer, House, all_of, another, house
from tests.services import Client, Keys, eventually, new_key, refused, running

STREET = "12 St James's Square"


@pytest.fixture
async def mesh(servers: Servers, keys: Keys) -> AsyncIterator[House]:
    settings = {"customer": {"erasure_retry_seconds": 0.2}, "order": {"erasure_sweep_seconds": 0.2}}
    async with house(servers, keys, **settings) as started:
        yield started


async def erase(client: Client, customer_id: str = "me", *, key: str | None = None, etag: str = "") -> None:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    request = customer_pb2.DeleteCustomerRequest(customer_id=customer_id, etag=etag)
    await client(stub.DeleteCustomer, request, key=key)


async def read(client: Client, customer_id: str) -> customer_pb2.Customer:
    stub = customer_pb2_grpc.CustomerServiceStub(client.channel)
    reply = await client(stub.GetCustomer, customer_pb2.GetCustomerRequest(customer_id=customer_id))
    customer: customer_pb2.Customer = reply.customer
    return customer


async def addressed(mesh: House) -> Buyer:
    """A customer with an address and a payment method."""
    buyer = await mesh.buyer("tok_visa")
    client = mesh.customer(buyer)
    address = postal_address_pb2.PostalAddress(region_code="GB", address_lines=[STREET])
    await client(
        customer_pb2_grpc.CustomerServiceStub(client.channel).AddAddress,
        customer_pb2.AddAddressRequest(customer_id="me", postal_address=address),
        key=new_key(),
    )
    return buyer


async def fulfil(mesh: House, order_id: str, *, deliver: bool) -> None:
    """Ship an order, and perhaps deliver it, with keys: the replies are stored."""
    staff = mesh.staff["order"]
    stub = order_pb2_grpc.OrderServiceStub(staff.channel)
    ship = order_pb2.ShipOrderRequest(order_id=order_id, carrier="Post", tracking_number="1")
    await staff(stub.ShipOrder, ship, key=new_key())
    if deliver:
        await staff(stub.DeliverOrder, order_pb2.DeliverOrderRequest(order_id=order_id), key=new_key())


async def delivered(mesh: House, buyer: Buyer) -> str:
    """The id of a new order of theirs that was delivered."""
    order = await mesh.decided(buyer, (await mesh.order(buyer, {await mesh.product(9): 1})).id)
    await fulfil(mesh, order.id, deliver=True)
    return order.id


async def replies_about(mesh: House, customer_id: str) -> int:
    """Stored replies that name the customer, in both services."""
    query = 'SELECT count(*) FROM mesh.idempotency WHERE pg_catalog."position"(reply, $1) > 0'
    return sum([(await mesh.sql(role, query, customer_id.encode()))[0][0] for role in ("customer_svc", "order_svc")])


async def sign_in(mesh: House, email: str) -> session_pb2.Session:
    client = mesh.staff["customer"].as_("")
    request = session_pb2.CreateSessionRequest(email=email, password="correct horse")
    reply = await client(session_pb2_grpc.SessionServiceStub(client.channel).CreateSession, request)
    session: session_pb2.Session = reply.session
    return session


async def test_an_erased_customer_leaves_orders_without_a_person(mesh: House) -> None:
    buyer, staff = await addressed(mesh), mesh.staff["customer"]
    email = (await read(staff, buyer.id)).email
    session = await sign_in(mesh, email)
    signed_in = staff.as_(session.access_token)
    order_id = await delivered(mesh, buyer)
    product = await mesh.product(9)
    cancelled = await mesh.order(buyer, {product: 1})
    await mesh.cancel(buyer, cancelled.id, key=new_key())
    await mesh.unreserved(product)
    stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    draft = await buyer.orders(stub.CreateOrder, order_pb2.CreateOrderRequest(draft=True), key=new_key())
    before = await mesh.decided(buyer, cancelled.id)
    assert (before.shipping_address.address_lines, before.cancel_note) == ([STREET], "changed my mind")
    assert await replies_about(mesh, buyer.id) >= 6

    key = new_key()
    await erase(staff, buyer.id, key=key)
    await erase(staff, buyer.id, key=key)

    async def none_stored() -> bool:
        return await replies_about(mesh, buyer.id) == 0

    await eventually(none_stored)
    for call in (read(staff, buyer.id), erase(staff, buyer.id, key=new_key())):
        assert (await refused(call)).reason == "CUSTOMER_NOT_FOUND"
    assert (await refused(sign_in(mesh, email))).reason == "CREDENTIALS_INVALID"
    refresh = session_pb2.RefreshSessionRequest(refresh_token=session.refresh_token)
    sessions = session_pb2_grpc.SessionServiceStub(staff.channel)
    assert (await refused(staff.as_("")(sessions.RefreshSession, refresh))).reason == "SESSION_REVOKED"

    async def token_refused() -> bool:
        return (await refused(read(signed_in, "me"))).reason == "TOKEN_INVALID"

    await eventually(token_refused)
    orders = mesh.staff["order"]
    reply = await orders(stub.ListOrders, order_pb2.ListOrdersRequest(customer_id=buyer.id))
    assert {order.id for order in reply.orders} == {order_id, cancelled.id}
    assert not any(order.HasField("shipping_address") or order.cancel_note for order in reply.orders)
    gone = orders(stub.GetOrder, order_pb2.GetOrderRequest(order_id=draft.order.id))
    assert (await refused(gone)).reason == "ORDER_NOT_FOUND"
    event = "SELECT count(*) FROM mesh.outbox WHERE type = 'commerce.customer.erased' AND aggregate_id = $1"
    assert (await mesh.sql("customer_svc", event, UUID(buyer.id)))[0][0] == 1

    again = customer_pb2.CreateCustomerRequest(email=email, name="Ada", password="correct horse")
    made = await staff.as_("")(customer_pb2_grpc.CustomerServiceStub(staff.channel).CreateCustomer, again)
    assert made.customer.id != buyer.id


async def test_a_customer_can_repeat_the_erasure_and_do_nothing_else_with_the_same_token(mesh: House) -> None:
    buyer, staff, key = await mesh.buyer(), mesh.staff["customer"], new_key()
    email = (await read(staff, buyer.id)).email
    ended, session = [await sign_in(mesh, email) for _ in range(2)]
    sign_out = session_pb2.DeleteSessionRequest(refresh_token=ended.refresh_token)
    sessions = session_pb2_grpc.SessionServiceStub(staff.channel)
    await staff.as_("")(sessions.DeleteSession, sign_out)

    async def is_refused(token: str) -> bool:
        try:
            await read(staff.as_(token), "me")
        except Unauthenticated:
            return True
        return False

    await eventually(lambda: is_refused(ended.access_token))
    assert isinstance(await refused(erase(staff.as_(ended.access_token))), Unauthenticated)
    assert (await read(staff.as_(session.access_token), "me")).id == buyer.id
    await erase(staff.as_(session.access_token), key=key)
    await eventually(lambda: is_refused(session.access_token))
    for _ in range(2):
        await erase(staff.as_(session.access_token), key=key)
    assert (await refused(erase(staff.as_(session.access_token), key=new_key()))).reason == "CUSTOMER_NOT_FOUND"


async def test_after_an_erasure_redis_knows_nothing_of_the_sign_ins_of_the_customer(mesh: House) -> None:
    buyer, staff = await mesh.buyer(), mesh.staff["customer"]
    email = (await read(staff, buyer.id)).email
    request = session_pb2.CreateSessionRequest(email=email, password="correct horse")
    sessions = session_pb2_grpc.SessionServiceStub(staff.channel)
    await staff.as_("")(sessions.CreateSession, request, metadata=((CLIENT_ADDRESS, "192.0.2.1"),))
    async with Redis.from_url(mesh.servers.redis.url, decode_responses=True) as redis:
        pattern = f"*{blake2b(email.lower().encode(), digest_size=16).hexdigest()}*"
        assert len([key async for key in redis.scan_iter(pattern)]) == 1, "the control"
        await erase(staff, buyer.id)
        assert [key async for key in redis.scan_iter(pattern)] == []


async def _pending(mesh: House) -> tuple[Buyer, str]:
    buyer = await mesh.buyer("tok_slow")
    await mesh.services["payment"].stop()
    return buyer, (await mesh.order(buyer, {await mesh.product(1): 1})).id


async def _confirmed(mesh: House) -> tuple[Buyer, str]:
    buyer = await mesh.buyer("tok_visa")
    return buyer, (await mesh.decided(buyer, (await mesh.order(buyer, {await mesh.product(1): 1})).id)).id


async def _shipped(mesh: House) -> tuple[Buyer, str]:
    buyer, order_id = await _confirmed(mesh)
    await fulfil(mesh, order_id, deliver=False)
    return buyer, order_id


async def _cancelling(mesh: House) -> tuple[Buyer, str]:
    buyer, order_id = await _pending(mesh)
    await mesh.cancel(buyer, order_id)
    return buyer, order_id


@pytest.mark.parametrize("placed", [_pending, _confirmed, _shipped, _cancelling])
async def test_an_open_order_refuses_the_erasure_and_nothing_has_changed(
    mesh: House, placed: Callable[[House], Awaitable[tuple[Buyer, str]]]
) -> None:
    buyer, order_id = await placed(mesh)
    client = mesh.customer(buyer)
    stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
    draft = await buyer.orders(stub.CreateOrder, order_pb2.CreateOrderRequest(draft=True))
    customer, order = await read(client, "me"), await mesh.read(buyer, order_id)
    error = await refused(erase(client, key=new_key()))
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "CUSTOMER_HAS_OPEN_ORDERS")
    assert (await refused(erase(client, etag="another"))).reason == "ETAG_MISMATCH"
    assert (await read(client, "me"), await mesh.read(buyer, order_id)) == (customer, order)
    assert await mesh.read(buyer, draft.order.id) == draft.order
    assert (await mesh.sql("customer_svc", "SELECT FROM customers WHERE erase_time IS NOT NULL")) == []
    assert (await mesh.sql("order_svc", "SELECT FROM erasures WHERE customer_id = $1", UUID(buyer.id))) == []
    another = await refused(erase(mesh.customer(await mesh.buyer()), buyer.id))
    assert another.reason == "CUSTOMER_NOT_FOUND"


async def test_an_interrupted_erasure_is_finished_and_no_order_is_placed_meanwhile(mesh: House) -> None:
    buyer, staff = await addressed(mesh), mesh.staff["customer"]
    order_id, product, customer = await delivered(mesh, buyer), await mesh.product(1), UUID(buyer.id)
    await mesh.services["order"].stop()
    # Without the order service, an erasure does not even begin.
    error = await refused(erase(staff, buyer.id))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
    (row,) = await mesh.sql("customer_svc", "SELECT email FROM customers WHERE id = $1", customer)
    email = row["email"]
    # As after a crash that followed the first step. The sweep gets no further.
    mark = "UPDATE customers SET erase_time = now() - interval '1 minute' WHERE id = $1 RETURNING id"
    assert await mesh.sql("customer_svc", mark, customer)

    async def is_gone() -> bool:
        # The sweep deletes the customer from the cache before it asks the order service.
        try:
            await read(staff, buyer.id)
        except NotFound as error:
            return error.reason == "CUSTOMER_NOT_FOUND"
        return False

    await eventually(is_gone)
    assert (await refused(sign_in(mesh, email))).reason == "CREDENTIALS_INVALID"
    queries = [customer_pb2.PaymentMethodQuery(customer_id=buyer.id)]
    async with mesh.as_service("order", to="customer") as orders, mesh.as_service("payment", to="customer") as payments:
        stub = customer_pb2_grpc.CustomerServiceStub(orders.channel)
        select = customer_pb2.SelectPaymentMethodsRequest(queries=queries)
        assert (await orders(stub.SelectPaymentMethods, select)).results[0].error.code == Code.NOT_FOUND
        # An order that was placed before is paid.
        stub = customer_pb2_grpc.CustomerServiceStub(payments.channel)
        resolve = customer_pb2.ResolvePaymentMethodsRequest(queries=queries)
        assert (await payments(stub.ResolvePaymentMethods, resolve)).results[0].payment_method.token == "tok_visa"

    async with running(another(mesh, "order", erasure_sweep_seconds=0.2)):
        assert (await refused(mesh.order(buyer, {product: 1}))).reason in {"CUSTOMER_NOT_FOUND", "TOKEN_INVALID"}

        async def is_erased() -> bool:
            return not await mesh.sql("customer_svc", "SELECT FROM customers WHERE id = $1", customer)

        await eventually(is_erased)
        assert await mesh.sql("order_svc", "SELECT FROM shipping_addresses WHERE order_id = $1", UUID(order_id)) == []
        for table in ("addresses", "payment_methods"):
            assert await mesh.sql("customer_svc", f"SELECT FROM {table} WHERE customer_id = $1", customer) == []
        assert (await mesh.sql("order_svc", "SELECT status FROM orders WHERE id = $1", UUID(order_id)))[0][0] == (
            "DELIVERED"
        )


async def test_a_repeated_call_finishes_an_interrupted_erasure(servers: Servers, keys: Keys) -> None:
    async with house(servers, keys, customer={"erasure_retry_seconds": 3600.0}) as mesh:
        buyer, staff = await addressed(mesh), mesh.staff["customer"]
        order_id, customer = await delivered(mesh, buyer), UUID(buyer.id)
        mark = "UPDATE customers SET erase_time = now() WHERE id = $1 RETURNING id"
        assert await mesh.sql("customer_svc", mark, customer)
        await erase(staff, buyer.id, key=new_key())
        for table, column in (("customers", "id"), ("addresses", "customer_id"), ("payment_methods", "customer_id")):
            assert await mesh.sql("customer_svc", f"SELECT FROM {table} WHERE {column} = $1", customer) == []
        assert await mesh.sql("order_svc", "SELECT FROM shipping_addresses WHERE order_id = $1", UUID(order_id)) == []


async def test_of_an_erasure_and_an_order_at_once_the_customer_or_no_address_is_left(mesh: House) -> None:
    buyers = [await addressed(mesh) for _ in range(20)]
    product = await mesh.product(100)
    pairs = [
        await all_of(mesh.order(buyer, {product: 1}, key=new_key()), erase(mesh.customer(buyer), key=new_key()))
        for buyer in buyers
    ]
    erased = [UUID(buyer.id) for buyer, (_, result) in zip(buyers, pairs, strict=True) if result is None]
    for buyer, (order, result) in zip(buyers, pairs, strict=True):
        if result is None:
            reasons = {"CUSTOMER_NOT_FOUND", "TOKEN_INVALID"}
            assert isinstance(order, order_pb2.Order) or getattr(order, "reason", "") in reasons
        else:
            # The order came first, and goes on as if nothing had been asked.
            assert getattr(result, "reason", "") == "CUSTOMER_HAS_OPEN_ORDERS"
            assert (await mesh.decided(buyer, order.id)).status == order_pb2.ORDER_STATUS_CONFIRMED

    async def is_over() -> bool:
        # No placing is under way any more.
        now = "UPDATE erasures SET next_time = now(), last_time = now() WHERE customer_id = any($1)"
        await mesh.sql("order_svc", now, erased)
        return not await mesh.sql("order_svc", "SELECT FROM erasures WHERE customer_id = any($1)", erased)

    await eventually(is_over, within=60)
    query = "SELECT FROM shipping_addresses JOIN orders ON id = order_id WHERE customer_id = any($1)"
    assert await mesh.sql("order_svc", query, erased) == []

    async def are_cancelled() -> bool:
        query = "SELECT FROM orders WHERE customer_id = any($1) AND status <> 'CANCELLED'"
        return not await mesh.sql("order_svc", query, erased)

    await eventually(are_cancelled, within=60)
    assert await mesh.sql("customer_svc", "SELECT FROM customers WHERE erase_time IS NOT NULL") == []


async def test_an_order_whose_placing_raced_the_erasure_keeps_no_address(mesh: House) -> None:
    buyer = await addressed(mesh)
    order_id = await delivered(mesh, buyer)
    await erase(mesh.staff["customer"], buyer.id)
    customer = UUID(buyer.id)

    async def waits_for_the_last_time() -> bool:
        found = await mesh.sql(
            "order_svc", "SELECT next_time = last_time FROM erasures WHERE customer_id = $1", customer
        )
        return bool(found[0][0])

    await eventually(waits_for_the_last_time)
    # What a placing that had selected the address before the erasure commits now.
    late = "INSERT INTO shipping_addresses VALUES ($1, '{}')"
    await mesh.sql("order_svc", late, UUID(order_id))
    now = "UPDATE erasures SET next_time = now(), last_time = now() WHERE customer_id = $1"
    await mesh.sql("order_svc", now, customer)

    async def is_finished() -> bool:
        return not await mesh.sql("order_svc", "SELECT FROM erasures WHERE customer_id = $1", customer)

    await eventually(is_finished)
    assert await mesh.sql("order_svc", "SELECT FROM shipping_addresses WHERE order_id = $1", UUID(order_id)) == []


class OpenOrders:
    """An order service that has found an open order, after which another call did something."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._meanwhile = meanwhile

    async def erase_customer(self, customer_id: UUID, *, only_check: bool = False, calls: Sequence[Call] = ()) -> None:
        """Refuse an erasure that the check has not refused."""
        assert calls
        if not only_check:
            await self._meanwhile()
            raise CustomerHasOpenOrders(customer_id)


async def test_an_erasure_that_is_called_off_leaves_one_that_began_later(
    mesh: House,
) -> None:
    buyer = await mesh.buyer()
    customer = UUID(buyer.id)
    begin_again = "UPDATE customers SET erase_time = now() WHERE id = $1"

    async def begun_again() -> None:
        # The open order is closed by now, and the other call was interrupted after this.
        await mesh.sql("customer_svc", begin_again, customer)

    database = Database(mesh.servers.postgres.url_for("customer_svc"), max_connections=2)
    await database.start()
    units = UnitsOfWork(database, Relay("customer", database, Bus("nats://127.0.0.1:1", name="test")))
    day = timedelta(days=1)
    sessions = SessionStore(
        mesh.servers.redis.url,
        lifetime=day,
        token_lifetime=day,
        failures=1,
        failures_per_email=1,
        window=day,
        rate=0,
    )
    cache = VersionedCache("customers", Customer, mesh.servers.redis.url)
    erasure = Erasure(units, ErasureStore(cache), sessions, OpenOrders(begun_again))
    call = Call("DeleteCustomer", caller=Caller(Kind.CUSTOMER, buyer.id))
    change: Change[None] = Change(call, lambda _: customer_pb2.DeleteCustomerResponse())
    with pytest.raises(CustomerHasOpenOrders):
        await erasure.delete_customer(change, None, etag="")
    await cache.stop()
    await database.stop()

    async def is_erased() -> bool:
        return not await mesh.sql("customer_svc", "SELECT FROM customers WHERE id = $1", customer)

    await eventually(is_erased)
