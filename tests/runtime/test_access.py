"""Access to every method of every contract, from the descriptors, on the real services."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor

import customer_svc.app
import order_svc.app
import payment_svc.app
import product_svc.app
from commerce.access.v1 import access_pb2
from mesh.lifecycle import Service
from mesh.rpc import status
from mesh.rpc.access import peers_of, rule_of
from mesh.rpc.reflection import load_contracts, public_services
from stack.servers import Servers
from tests.services import NOWHERE, TEST_TIMEOUT_S, Client, Keys, running, settings_for

load_contracts()
FILES = (
    "customer/v1/customer.proto",
    "customer/v1/session.proto",
    "order/v1/order.proto",
    "payment/v1/payment.proto",
    "product/v1/inventory.proto",
    "product/v1/product.proto",
)
METHODS: list[MethodDescriptor] = [
    method
    for file in FILES
    for service in descriptor_pool.Default().FindFileByName(f"commerce/{file}").services_by_name.values()
    for method in service.methods
]
BY_RULE = {
    rule: [method for method in METHODS if rule_of(method) == rule]
    for rule in (
        access_pb2.ACCESS_PUBLIC,
        access_pb2.ACCESS_CUSTOMER,
        access_pb2.ACCESS_STAFF,
        access_pb2.ACCESS_SERVICE,
    )
}
Callers = Mapping[tuple[str, str], Client]
"""The clients by area and peer."""


def services(servers: Servers, keys: Keys) -> dict[str, Service]:
    """All four services, each without the others."""
    nowhere = {f"{name}_target": NOWHERE for name in ("customer", "order", "product", "payment")}
    redis = {"redis_url": servers.redis.url, "signing_key": keys.signing.private}
    return {
        "customer": customer_svc.app.build(
            settings_for(customer_svc.app.Settings, "customer", servers, keys, **nowhere, **redis)
        ),
        "order": order_svc.app.build(settings_for(order_svc.app.Settings, "order", servers, keys, **nowhere)),
        "payment": payment_svc.app.build(settings_for(payment_svc.app.Settings, "payment", servers, keys, **nowhere)),
        "product": product_svc.app.build(settings_for(product_svc.app.Settings, "product", servers, keys, **nowhere)),
    }


@pytest.fixture(scope="module")
async def clients(servers: Servers, keys: Keys) -> AsyncIterator[Callers]:
    async with AsyncExitStack() as stack:
        made = {}
        for area, service in services(servers, keys).items():
            address = await stack.enter_async_context(running(service))
            for peer in ("gateway", "operator", "order", "payment"):
                client = made[area, peer] = Client(address, area, keys, peer=peer)
                stack.push_async_callback(client.close)
        yield made


async def answer(clients: Callers, method: MethodDescriptor, peer: str, token: str = "") -> tuple[str, str]:
    """The code and the reason of the reply to an empty request."""
    channel = clients[method.full_name.split(".")[1], peer].channel
    path = f"/{method.containing_service.full_name}/{method.name}"
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    reply = message_factory.GetMessageClass(method.output_type)
    request = message_factory.GetMessageClass(method.input_type)()
    call: Any = make(path, lambda message: message.SerializeToString(), reply.FromString)
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        if method.server_streaming:
            async for _ in call(request, metadata=metadata, timeout=TEST_TIMEOUT_S):
                break
        else:
            await call(request, metadata=metadata, timeout=TEST_TIMEOUT_S)
    except grpc.aio.AioRpcError as failure:
        error = status.from_rpc_error(failure, "tested")
        return error.code.name, error.reason
    return "OK", ""


def name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}.{method.name}"


BAD_TOKEN = ("UNAUTHENTICATED", "TOKEN_INVALID")
NO_TOKEN, NO_ROLE = ("UNAUTHENTICATED", "TOKEN_MISSING"), ("PERMISSION_DENIED", "ROLE_REQUIRED")
REFUSED = {"TOKEN_MISSING", "ROLE_REQUIRED", "TOKEN_INVALID"}


def test_all_four_contracts_are_here() -> None:
    served = {method.containing_service.full_name for method in METHODS}
    assert served >= set(public_services())
    assert all(BY_RULE.values())
    assert len(METHODS) == sum(map(len, BY_RULE.values())) > 30


@pytest.mark.parametrize("method", METHODS, ids=name)
async def test_invalid_token_is_refused(clients: Callers, method: MethodDescriptor) -> None:
    assert await answer(clients, method, "gateway", "junk") == BAD_TOKEN


@pytest.mark.parametrize("method", BY_RULE[access_pb2.ACCESS_PUBLIC], ids=name)
async def test_public_method_accepts_every_caller(clients: Callers, keys: Keys, method: MethodDescriptor) -> None:
    for token in ("", keys.token("customer", uuid4()), keys.token("staff", uuid4())):
        assert (await answer(clients, method, "gateway", token))[1] not in REFUSED


@pytest.mark.parametrize("method", BY_RULE[access_pb2.ACCESS_CUSTOMER], ids=name)
async def test_customer_method_requires_a_token(clients: Callers, keys: Keys, method: MethodDescriptor) -> None:
    assert await answer(clients, method, "gateway") == NO_TOKEN
    assert await answer(clients, method, "order") == NO_TOKEN, "a service is not a customer"
    for role in ("customer", "staff"):
        assert (await answer(clients, method, "gateway", keys.token(role, uuid4())))[1] not in REFUSED


@pytest.mark.parametrize("method", BY_RULE[access_pb2.ACCESS_STAFF], ids=name)
async def test_staff_method_requires_the_role_staff(clients: Callers, keys: Keys, method: MethodDescriptor) -> None:
    assert await answer(clients, method, "gateway") == NO_TOKEN
    assert await answer(clients, method, "gateway", keys.token("customer", uuid4())) == NO_ROLE
    assert await answer(clients, method, "gateway", keys.token("admin", uuid4())) == BAD_TOKEN
    assert (await answer(clients, method, "gateway", keys.token("staff", uuid4())))[1] not in REFUSED


@pytest.mark.parametrize("method", BY_RULE[access_pb2.ACCESS_SERVICE], ids=name)
async def test_service_method_refuses_people_and_the_gateway(
    clients: Callers, keys: Keys, method: MethodDescriptor
) -> None:
    for peer in ("gateway", "operator"):
        for token in ("", keys.token("customer", uuid4()), keys.token("staff", uuid4())):
            assert await answer(clients, method, peer, token) == NO_ROLE
    for peer in ("order", "payment"):
        told = await answer(clients, method, peer)
        assert (told == NO_ROLE) == bool(peers_of(method) and peer not in peers_of(method))
        assert told[1] not in REFUSED - {NO_ROLE[1]}


def test_method_that_returns_a_payment_method_secret_is_for_the_payment_service() -> None:
    for method in METHODS:
        if "commerce.customer.v1.PaymentMethodSecret" in held_by(method.output_type):
            assert (rule_of(method), peers_of(method)) == (
                access_pb2.ACCESS_SERVICE,
                frozenset({"payment"}),
            ), name(method)


def held_by(message: Descriptor) -> set[str]:
    """The full names of a message type and of all types inside it."""
    names, left = set[str](), [message]
    while left:
        kind = left.pop()
        if kind.full_name not in names:
            names.add(kind.full_name)
            left += [field.message_type for field in kind.fields if field.message_type is not None]
    return names
