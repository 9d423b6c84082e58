"""A product service with the behaviour that a test defines, behind the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from pydantic import SecretStr

from commerce.product.v1 import product_pb2
from mesh.rpc.call import Call
from mesh.rpc.server import Check, Server
from mesh.settings import ServiceSettings
from tests.services import Client, Keys

GET = product_pb2.GetProductRequest(product_id=str(uuid4()))
Behaviour = Callable[[Any, Call], Awaitable[Any]]


class Products:
    """A product service with the behaviour that the test defines."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    async def GetProduct(self, request: Any, call: Call) -> Any:  # named as in the contract
        return await self._behaviour(request, call)

    async def CreateProduct(self, request: Any, call: Call) -> Any:
        return await self._behaviour(request, call)


def settings(keys: Keys, name: str = "product", **more: Any) -> ServiceSettings:
    peer = keys.peers[name]
    return ServiceSettings.model_validate(
        {
            "database_url": SecretStr("postgresql://"),
            "redis_url": SecretStr("redis://"),
            "tls_ca": peer.ca,
            "tls_cert": peer.cert,
            "tls_key": peer.key,
            "jwks": keys.signing.jwks,
            "page_secret": SecretStr("a secret of the tests"),
            "drain_seconds": 5,
            **more,
        }
    )


@asynccontextmanager
async def serving(
    keys: Keys,
    behaviour: Behaviour,
    *,
    name: str = "product",
    checks: tuple[Check, ...] = (),
    limits: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> AsyncIterator[Server]:
    """A server of products that behaves as told, with these `limits` and `more` settings."""
    servicers = {"commerce.product.v1.ProductService": Products(behaviour)}
    server = Server(settings(keys, name, **more), servicers, checks=checks, **limits)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(server: Server, keys: Keys, **more: Any) -> AsyncIterator[Client]:
    client = Client(f"127.0.0.1:{server.port}", "product", keys, **more)
    try:
        yield client
    finally:
        await client.close()


async def found(request: Any, _: Call) -> product_pb2.GetProductResponse:
    return product_pb2.GetProductResponse(product=product_pb2.Product(id=request.product_id))
