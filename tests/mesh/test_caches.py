"""Calls do not grow what the processes that serve them keep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from commerce.customer.v1 import customer_pb2
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from customer_svc import rpc as customer_rpc
from mesh.errors import NotFound
from order_svc import rpc as order_rpc
from payment_svc import rpc as payment_rpc
from product_svc import rpc as product_rpc
from stack.servers import Servers
from tests.census import Census
from tests.mesh.house import Buyer, House, house
from tests.services import Client, Keys, new_key

SERVICERS: Mapping[str, type] = {
    "commerce.customer.v1.CustomerService": customer_rpc.CustomerService,
    "commerce.customer.v1.SessionService": customer_rpc.SessionService,
    "commerce.order.v1.OrderService": order_rpc.OrderService,
    "commerce.product.v1.ProductService": product_rpc.ProductService,
    "commerce.product.v1.InventoryService": product_rpc.InventoryService,
    "commerce.payment.v1.PaymentService": payment_rpc.PaymentService,
}
CALLS = 2_000
"""Calls of each method."""
WARM_UP = 200
"""Calls after which what is kept once is there."""
AT_ONCE = 50


def read_methods() -> list[str]:
    """The full names of the methods that are served, have one reply and change nothing."""
    services = [descriptor_pool.Default().FindServiceByName(name) for name in SERVICERS]
    return sorted(
        method.full_name
        for service in services
        for method in service.methods
        if method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
        and not method.server_streaming
        and hasattr(SERVICERS[service.full_name], method.name)
    )


@dataclass(frozen=True, slots=True)
class Shop:
    """What there is to read."""

    mesh: House
    buyer: Buyer
    products: list[str]
    orders: list[str]
    payments: list[str]

    @classmethod
    async def opened(cls, mesh: House) -> Shop:
        buyer = await mesh.buyer("tok_visa", "tok_slow", "tok_declined")
        products = [await mesh.product(100) for _ in range(4)]
        orders = [(await mesh.order(buyer, {each: 1}, key=new_key())).id for each in products]
        for order_id in orders:
            await mesh.decided(buyer, order_id)
        payments = [(await mesh.payment(buyer, order_id)).id for order_id in orders]
        return cls(mesh, buyer, products, orders, payments)

    async def caller_of(self, method: str, client: Client) -> Callable[[Mapping[str, Any]], Awaitable[Any]]:
        """Call a method with these fields."""
        described = descriptor_pool.Default().FindMethodByName(method)
        service, _, name = method.rpartition(".")
        request = message_factory.GetMessageClass(described.input_type)
        reply = message_factory.GetMessageClass(described.output_type)
        stub = client.channel.unary_unary(
            f"/{service}/{name}", request_serializer=request.SerializeToString, response_deserializer=reply.FromString
        )

        async def called(fields: Mapping[str, Any]) -> Message | None:
            try:
                answered: Message = await client(stub, request(**fields))
            except NotFound:
                return None
            return answered

        return called


def some(known: list[str], number: int) -> str:
    """An id: one that is known, or a new one that is not."""
    return known[number % len(known)] if number % 2 else str(uuid4())


STATUSES = order_pb2.OrderStatus.values()
PAYMENT_STATUSES = payment_pb2.PaymentStatus.values()
ORDERS = ["", *(" ".join(each).strip() for each in product(("name", "price", "createTime"), ("", "desc")))]

SERVICES = {
    "SelectPaymentMethods": "order",
    "ResolvePaymentMethods": "payment",
    "BatchGetOrderPayments": "customer",
    "GetHoldTimeline": "order",
    "GetPaymentTimeline": "order",
}
"""The service that makes each call that only a service may make."""


def queries(shop: Shop, number: int) -> Mapping[str, Any]:
    """The fields of a request for payment methods."""
    return {
        "queries": [customer_pb2.PaymentMethodQuery(customer_id=some([shop.buyer.id], number))] * (1 + number % 100)
    }


FIELDS: Mapping[str, Callable[[Shop, int], Mapping[str, Any]]] = {
    "GetCustomer": lambda shop, number: {"customer_id": some([shop.buyer.id], number)},
    "ListCustomers": lambda _, number: {
        "email": f"guess-{number}@example.com" if number % 3 else "",
        "page_size": number % 7,
    },
    "ListAddresses": lambda shop, number: {"customer_id": some([shop.buyer.id], number), "page_size": number % 7},
    "ListPaymentMethods": lambda shop, number: {"customer_id": shop.buyer.id, "page_size": number % 7},
    "SelectPaymentMethods": queries,
    "ResolvePaymentMethods": queries,
    "ExportCustomer": lambda shop, number: {"customer_id": some([shop.buyer.id], number)},
    "BatchGetOrderPayments": lambda shop, number: {"order_ids": [some(shop.orders, number)] * (1 + number % 100)},
    "ListCustomerOrders": lambda shop, number: {
        "customer_id": some([shop.buyer.id], number),
        "page_size": number % 7,
    },
    "GetOrderTimeline": lambda shop, number: {"order_id": some(shop.orders, number)},
    "GetHoldTimeline": lambda shop, number: {"order_id": some(shop.orders, number)},
    "GetPaymentTimeline": lambda shop, number: {"order_id": some(shop.orders, number)},
    "GetOrder": lambda shop, number: {"order_id": some(shop.orders, number)},
    "ListOrders": lambda shop, number: {
        "status": STATUSES[number % len(STATUSES)],
        "customer_id": some([shop.buyer.id], number) if number % 3 else "",
        "page_size": number % 7,
    },
    "GetProduct": lambda shop, number: {"product_id": some(shop.products, number)},
    "BatchGetProducts": lambda shop, number: {
        "product_ids": [some(shop.products, number), *(str(uuid4()) for _ in range(number % 100))]
    },
    "ListProducts": lambda _, number: {
        "query": f"word{number}" if number % 3 else "thing",
        "order_by": ORDERS[number % len(ORDERS)],
        "currency_code": ("", "EUR", "USD")[number % 3],
        "max_price": f"{number}.5",
        "page_size": number % 7,
    },
    "ListPriceChanges": lambda shop, number: {"product_id": some(shop.products, number), "page_size": number % 7},
    "GetStock": lambda shop, number: {"product_id": some(shop.products, number)},
    "ListStockMovements": lambda shop, number: {
        "product_id": shop.products[number % len(shop.products)],
        "page_size": number % 7,
    },
    "GetPayment": lambda shop, number: {"payment_id": some(shop.payments, number)},
    "GetOrderPayment": lambda shop, number: {"order_id": some(shop.orders, number)},
    "ListPayments": lambda shop, number: {
        "status": PAYMENT_STATUSES[number % len(PAYMENT_STATUSES)],
        "order_id": some(shop.orders, number) if number % 3 else "",
        "page_size": number % 7,
    },
    "ListRefunds": lambda shop, number: {"payment_id": some(shop.payments, number), "page_size": number % 7},
    "ListPaymentEntries": lambda shop, number: {"payment_id": some(shop.payments, number), "page_size": number % 7},
}
"""By method, the fields of the request with this number: they differ in all ways that callers can choose."""


@pytest.fixture
async def shop(servers: Servers, keys: Keys) -> AsyncIterator[Shop]:
    # Each connection prepares its statements. With few of them, the calls before the count open all.
    few = {name: {"database_connections": 4} for name in ("customer", "order", "product", "payment")}
    async with house(servers, keys, **few) as mesh:
        yield await Shop.opened(mesh)


@pytest.mark.timeout(300)
async def test_reads_do_not_grow_any_cache(shop: Shop) -> None:
    async def call(method: str, numbers: range) -> None:
        area = method.split(".")[1]
        peer = SERVICES.get(method.rpartition(".")[2])
        async with shop.mesh.as_service(peer or "order", to=area) as service:
            client = service if peer else shop.mesh.staff[area]
            caller = await shop.caller_of(method, client)
            waiting = iter(numbers)

            async def one_after_another() -> None:
                for number in waiting:
                    fields = FIELDS[method.rpartition(".")[2]](shop, number)
                    if token := getattr(await caller(fields), "next_page_token", ""):
                        await caller({**fields, "page_token": token})

            await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))

    methods = read_methods()
    assert {method.rpartition(".")[2] for method in methods} == FIELDS.keys(), "describe the requests of each read"
    for method in methods:
        await call(method, range(WARM_UP))
    before = Census.taken()
    for method in methods:
        await call(method, range(WARM_UP, WARM_UP + CALLS))
    grown = Census.taken().grown_since(before, by=CALLS // 4)
    assert grown == {}
