"""Access tokens are refused by every service before they expire, once their session has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, session_pb2, session_pb2_grpc
from commerce.order.v1 import order_pb2, order_pb2_grpc
from commerce.payment.v1 import payment_pb2, payment_pb2_grpc
from commerce.product.v1 import product_pb2, product_pb2_grpc
from customer_svc.session_store import SessionStore
from mesh.errors import MeshError, NotFound
from tests.mesh.house import House
from tests.services import eventually, refused

PASSWORD = "correct horse"


class Person:
    """A customer with sessions."""

    def __init__(self, mesh: House, customer_id: str, email: str) -> None:
        self.id = customer_id
        self._mesh = mesh
        self._email = email
        self._anyone = mesh.staff["customer"].as_("")
        self._sessions = session_pb2_grpc.SessionServiceStub(self._anyone.channel)

    @classmethod
    async def signed_up(cls, mesh: House) -> Person:
        anyone, email = mesh.staff["customer"].as_(""), f"{uuid4()}@example.com"
        stub = customer_pb2_grpc.CustomerServiceStub(anyone.channel)
        request = customer_pb2.CreateCustomerRequest(email=email, name="Ada", password=PASSWORD)
        return cls(mesh, (await anyone(stub.CreateCustomer, request)).customer.id, email)

    async def sign_in(self) -> session_pb2.Session:
        request = session_pb2.CreateSessionRequest(email=self._email, password=PASSWORD)
        session: session_pb2.Session = (await self._anyone(self._sessions.CreateSession, request)).session
        return session

    async def refresh(self, session: session_pb2.Session) -> session_pb2.Session:
        request = session_pb2.RefreshSessionRequest(refresh_token=session.refresh_token)
        refreshed: session_pb2.Session = (await self._anyone(self._sessions.RefreshSession, request)).session
        return refreshed

    async def sign_out(self, session: session_pb2.Session) -> None:
        request = session_pb2.DeleteSessionRequest(refresh_token=session.refresh_token)
        await self._anyone(self._sessions.DeleteSession, request)

    def calls(self, token: str) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """A call of each service with an access token."""
        order, payment, product, customer = (
            self._mesh.staff[name].as_(token) for name in ("order", "payment", "product", "customer")
        )
        orders = order_pb2_grpc.OrderServiceStub(order.channel)
        payments = payment_pb2_grpc.PaymentServiceStub(payment.channel)
        products = product_pb2_grpc.ProductServiceStub(product.channel)
        customers = customer_pb2_grpc.CustomerServiceStub(customer.channel)
        return {
            "customer": lambda: customer(customers.GetCustomer, customer_pb2.GetCustomerRequest(customer_id="me")),
            "order": lambda: order(orders.ListOrders, order_pb2.ListOrdersRequest()),
            "payment": lambda: payment(payments.GetPayment, payment_pb2.GetPaymentRequest(payment_id=str(uuid4()))),
            # A method for anyone: who sends a token nevertheless must send a good one.
            "product": lambda: product(products.ListProducts, product_pb2.ListProductsRequest(page_size=1)),
        }

    async def refusals(self, token: str) -> dict[str, str]:
        """The reason for which each service refuses an access token; empty if it accepts it."""
        told = {}
        for name, call in self.calls(token).items():
            try:
                await call()
                told[name] = ""
            except NotFound:
                told[name] = ""
            except MeshError as error:
                told[name] = error.reason
        return told

    async def is_refused(self, token: str) -> bool:
        """Wait until every service refuses an access token."""

        async def everywhere() -> bool:
            return set((await self.refusals(token)).values()) == {"TOKEN_INVALID"}

        return await eventually(everywhere)


ACCEPTED = dict.fromkeys(("customer", "order", "payment", "product"), "")


async def test_every_service_refuses_the_tokens_of_an_ended_session_and_of_no_other(mesh: House) -> None:
    ada = await Person.signed_up(mesh)
    phone, laptop, stolen = [await ada.sign_in() for _ in range(3)]
    newer = await ada.refresh(phone)
    for session in (phone, newer, laptop, stolen):
        assert await ada.refusals(session.access_token) == ACCEPTED

    await ada.sign_out(newer)
    # Also the token from before the refresh: it belongs to the same session.
    assert await ada.is_refused(phone.access_token)
    assert await ada.is_refused(newer.access_token)

    thief = await ada.refresh(stolen)
    thiefs_next = await ada.refresh(thief)
    assert (await refused(ada.refresh(stolen))).reason == "SESSION_REVOKED"
    for session in (stolen, thief, thiefs_next):
        assert await ada.is_refused(session.access_token)

    assert await ada.refusals(laptop.access_token) == ACCEPTED
    assert await ada.refusals((await ada.sign_in()).access_token) == ACCEPTED


@pytest.fixture
async def session_store(mesh: House) -> AsyncIterator[SessionStore]:
    hour = timedelta(hours=1)
    store = SessionStore(
        mesh.servers.redis.url,
        lifetime=hour,
        token_lifetime=timedelta(minutes=15),
        failures=10,
        failures_per_email=100,
        window=hour,
        rate=0,
    )
    await store.start()
    yield store
    await store.stop()


async def test_all_sessions_of_a_customer_end_with_their_tokens_and_those_of_no_other(
    mesh: House, session_store: SessionStore
) -> None:
    ada, eve = await Person.signed_up(mesh), await Person.signed_up(mesh)
    sessions, other = [await ada.sign_in() for _ in range(2)], await eve.sign_in()
    unbound = mesh.keys.token("customer", UUID(ada.id))
    for _ in range(2):
        await session_store.end_all(UUID(ada.id))
    for token in (unbound, *(each.access_token for each in sessions)):
        assert await ada.is_refused(token)
    for session in sessions:
        assert (await refused(ada.refresh(session))).reason == "SESSION_REVOKED"
    async with Redis.from_url(mesh.servers.redis.url, decode_responses=True) as redis:
        families = [f"session:{each.refresh_token.partition('.')[0]}" for each in sessions]
        assert await redis.exists(*families, f"sessions:{ada.id}") == 0
        assert await redis.exists(f"sessions:{eve.id}") == 1
    assert await eve.refusals(other.access_token) == ACCEPTED
    await session_store.stop()


async def test_a_session_of_a_customer_who_is_gone_is_neither_opened_nor_refreshed(mesh: House) -> None:
    ada = await Person.signed_up(mesh)
    session = await ada.sign_in()
    await mesh.sql("customer_svc", "DELETE FROM customers WHERE id = $1", UUID(ada.id))
    assert (await refused(ada.refresh(session))).reason == "SESSION_REVOKED"
    assert await ada.is_refused(session.access_token), "its session has ended"
