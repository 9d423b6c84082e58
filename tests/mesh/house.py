"""All four services in this process, wired to one another over mutual TLS, on the run's real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from google.type.money_pb2 import Money

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from commerce.order.v1 import order_pb2, order_pb2_grpc
from commerce.payment.v1 import payment_pb2, payment_pb2_grpc
from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc, product_pb2, product_pb2_grpc
from customer_svc import app as customer_app
from mesh.lifecycle import Service
from order_svc import app as order_app
from payment_svc import app as payment_app
from product_svc import app as product_app
from stack.ports import free_ports
from stack.servers import Servers
from tests.services import Client, Keys, eventually, new_key, running, settings_for

FINAL = {order_pb2.ORDER_STATUS_CONFIRMED, order_pb2.ORDER_STATUS_CANCELLED}
"""The statuses in which an order stays unless somebody acts."""


@dataclass
class Buyer:
    """A customer who has signed up, as a client of the order and payment services."""

    id: str
    orders: Client
    payments: Client
    methods: dict[str, str] = field(default_factory=dict)
    """Ids of payment methods by token."""


@dataclass
class House:
    """The running mesh, and the things that tests do with it."""

    servers: Servers
    keys: Keys
    services: Mapping[str, Service]
    addresses: Mapping[str, str]
    staff: Mapping[str, Client]
    """A client of each service for a member of staff."""

    @asynccontextmanager
    async def as_service(self, peer: str, *, to: str) -> AsyncIterator[Client]:
        """A client of the service `to` that is the service `peer`."""
        client = Client(self.addresses[to], to, self.keys, peer=peer)
        try:
            yield client
        finally:
            await client.close()

    async def buyer(self, *tokens: str, provider: str = "") -> Buyer:
        """Sign somebody up with these payment tokens, the first of them the default."""
        staff = self.staff["customer"]
        stub = customer_pb2_grpc.CustomerServiceStub(staff.channel)
        made = await staff.as_("")(
            stub.CreateCustomer,
            customer_pb2.CreateCustomerRequest(email=f"{uuid4()}@example.com", name="Ada", password="correct horse"),
        )
        token = self.keys.token("customer", UUID(made.customer.id))
        buyer = Buyer(made.customer.id, self.staff["order"].as_(token), self.staff["payment"].as_(token))
        for each in tokens:
            method = await staff.as_(token)(
                stub.AddPaymentMethod,
                customer_pb2.AddPaymentMethodRequest(customer_id="me", token=each, provider=provider),
            )
            buyer.methods[each] = method.payment_method.id
        return buyer

    def customer(self, buyer: Buyer) -> Client:
        """The buyer as a client of the customer service."""
        return self.staff["customer"].as_(self.keys.token("customer", UUID(buyer.id)))

    async def product(self, stock: int, *, units: int = 10, currency: str = "EUR") -> str:
        """A new product with this much stock; its id."""
        staff = self.staff["product"]
        made = await staff(
            product_pb2_grpc.ProductServiceStub(staff.channel).CreateProduct,
            product_pb2.CreateProductRequest(
                sku=f"SKU-{uuid4()}",
                name="A thing",
                price=Money(currency_code=currency, units=units),
                initial_stock=stock,
            ),
        )
        product_id: str = made.product.id
        return product_id

    async def stock(self, product_id: str) -> inventory_pb2.Stock:
        """The stock of a product now."""
        staff = self.staff["product"]
        stub = inventory_pb2_grpc.InventoryServiceStub(staff.channel)
        reply = await staff(stub.GetStock, inventory_pb2.GetStockRequest(product_id=product_id))
        stock: inventory_pb2.Stock = reply.stock
        return stock

    async def order(
        self, buyer: Buyer, wanted: Mapping[str, int], *, key: str | None = None, method: str = ""
    ) -> order_pb2.Order:
        """Place an order."""
        stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
        request = order_pb2.CreateOrderRequest(
            items=[order_pb2.OrderLine(product_id=each, quantity=quantity) for each, quantity in wanted.items()],
            payment_method_id=method,
        )
        reply = await buyer.orders(stub.CreateOrder, request, key=key or new_key())
        order: order_pb2.Order = reply.order
        return order

    async def read(self, buyer: Buyer, order_id: str) -> order_pb2.Order:
        """An order as it is now."""
        stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
        reply = await buyer.orders(stub.GetOrder, order_pb2.GetOrderRequest(order_id=order_id))
        order: order_pb2.Order = reply.order
        return order

    async def decided(self, buyer: Buyer, order_id: str) -> order_pb2.Order:
        """The order once it has come to rest."""

        async def at_rest() -> order_pb2.Order | None:
            order = await self.read(buyer, order_id)
            return order if order.status in FINAL else None

        return await eventually(at_rest)

    async def cancel(self, buyer: Buyer, order_id: str, *, key: str | None = None, etag: str = "") -> order_pb2.Order:
        """Ask to cancel an order."""
        stub = order_pb2_grpc.OrderServiceStub(buyer.orders.channel)
        request = order_pb2.CancelOrderRequest(order_id=order_id, reason="changed my mind", etag=etag)
        reply = await buyer.orders(stub.CancelOrder, request, key=key)
        order: order_pb2.Order = reply.order
        return order

    async def payment(self, buyer: Buyer, order_id: str) -> payment_pb2.Payment:
        """The payment of an order."""
        stub = payment_pb2_grpc.PaymentServiceStub(buyer.payments.channel)
        reply = await buyer.payments(stub.GetOrderPayment, payment_pb2.GetOrderPaymentRequest(order_id=order_id))
        payment: payment_pb2.Payment = reply.payment
        return payment

    async def unreserved(self, product_id: str) -> inventory_pb2.Stock:
        """The stock of a product once no order holds any of it."""

        async def free() -> inventory_pb2.Stock | None:
            stock = await self.stock(product_id)
            return stock if stock.reserved == 0 else None

        return await eventually(free)

    @property
    def nats_url(self) -> str:
        """For an audit."""
        return self.servers.nats.url

    def audit_url(self, database: str) -> str:
        """The URL of a database, for an audit."""
        return self.servers.postgres.audit_url_of(database)

    async def connect(self, database: str) -> asyncpg.Connection:
        """A superuser's connection to a database."""
        return await asyncpg.connect(self.servers.postgres.superuser_url_of(database))

    async def sql(self, role: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """What the database of a service holds."""
        connection = await asyncpg.connect(self.servers.postgres.url_for(role))
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()


@asynccontextmanager
async def order_service_restarted(mesh: House, **settings: Any) -> AsyncIterator[None]:
    """Stop the order service and start another one with these settings in its place."""
    await mesh.services["order"].stop()
    async with running(another(mesh, "order", **settings)):
        yield


def another(mesh: House, name: str, **settings: Any) -> Service:
    """Another process of a service, to be started once the first one has stopped, whose address it takes over."""
    common = {"listen": mesh.addresses[name], **settings}
    return _built(name, mesh.servers, mesh.keys, mesh.addresses, common)


@asynccontextmanager
async def another_order_worker(mesh: House, buyer: Buyer) -> AsyncIterator[Buyer]:
    """A second worker of the order service, and the buyer as a client of that one."""
    targets = {f"{name}_target": (address,) for name, address in mesh.addresses.items()}
    settings = settings_for(order_app.Settings, "order", mesh.servers, mesh.keys, **targets)
    async with running(order_app.build(settings)) as address:
        client = Client(address, "order", mesh.keys, token=mesh.keys.token("customer", UUID(buyer.id)))
        try:
            yield replace(buyer, orders=client)
        finally:
            await client.close()


_occupied: set[str] = set()
"""The databases on which a mesh runs now."""


def _built(
    name: str, servers: Servers, keys: Keys, addresses: Mapping[str, str], settings: Mapping[str, Any]
) -> Service:
    targets = {f"{other}_target": (address,) for other, address in addresses.items()}
    redis = {"redis_url": servers.redis.url, "signing_key": keys.signing.private}
    app = {"customer": customer_app, "order": order_app, "payment": payment_app, "product": product_app}[name]
    kind: Any = app.Settings
    service: Service = app.build(settings_for(kind, name, servers, keys, **targets, **redis, **settings))
    return service


@asynccontextmanager
async def house(servers: Servers, keys: Keys, **settings: Mapping[str, Any]) -> AsyncIterator[House]:
    """Start all four; `settings` by service override what the tests usually take.

    One at a time on the same servers: two would share each service's work, and do it by each other's settings.
    """
    place = servers.postgres.url_for("order_svc")
    if place in _occupied:
        raise RuntimeError("another mesh runs on these servers")
    names = ("customer", "order", "product", "payment")
    addresses = dict(zip(names, (f"127.0.0.1:{port}" for port in free_ports(4)), strict=True))
    built = {
        name: _built(name, servers, keys, addresses, {"listen": addresses[name], **settings.get(name, {})})
        for name in ("customer", "payment", "product", "order")
    }
    async with AsyncExitStack() as stack:
        _occupied.add(place)
        stack.callback(_occupied.remove, place)
        for service in built.values():
            await stack.enter_async_context(running(service))
        staff = {
            name: Client(address, name, keys, token=keys.token("staff", uuid4())) for name, address in addresses.items()
        }
        for client in staff.values():
            stack.push_async_callback(client.close)
        yield House(servers, keys, built, addresses, staff)


async def all_of(*work: Any) -> Sequence[Any]:
    """The results of things done at the same time; errors are results too."""
    return await asyncio.gather(*work, return_exceptions=True)
