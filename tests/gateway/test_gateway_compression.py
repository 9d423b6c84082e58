"""Compression of JSON responses, for clients that accept it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from google.protobuf.message import Message

from commerce.order.v1 import order_pb2
from commerce.product.v1 import product_pb2
from tests.gateway.clients import grpc_call
from tests.gateway.contract import A_UUID, BY_NAME
from tests.gateway.envoy import Envoy
from tests.gateway.upstreams import Context, Upstream
from tests.services import TEST_TIMEOUT_S


@pytest.fixture
def products(upstreams: dict[str, Upstream]) -> product_pb2.ListProductsResponse:
    """A list large enough to be compressed."""
    found = product_pb2.ListProductsResponse(products=[product_pb2.Product(name=f"Tea {n}") for n in range(100)])

    async def answer(_request: Message, _context: Context) -> Message:
        return found

    upstreams["product"].answers["ListProducts"] = answer
    return found


async def raw(client: httpx.AsyncClient, path: str, accepted: str) -> tuple[httpx.Response, bytes]:
    """The response and its body as it was sent."""
    async with client.stream("GET", path, headers={"accept-encoding": accepted}) as answer:
        return answer, b"".join([part async for part in answer.aiter_raw()])


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("br", "br"),
        ("gzip, deflate, br", "br"),
        ("br;q=0, gzip", "gzip"),
        ("identity", None),
        ("deflate", None),
    ],
)
async def test_a_large_response_is_compressed_as_the_client_accepts(
    accepted: str, encoding: str | None, anyone: httpx.AsyncClient, products: product_pb2.ListProductsResponse
) -> None:
    answer, body = await raw(anyone, "/v1/products", accepted)
    assert answer.status_code == 200
    assert answer.headers.get("content-encoding") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    _, plain = await raw(anyone, "/v1/products", "identity")
    assert len(json.loads(plain)["products"]) == len(products.products)
    if encoding is None:
        assert body == plain
    else:
        assert len(body) < len(plain) / 5
    if encoding == "gzip":
        assert gzip.decompress(body) == plain


async def test_a_small_response_is_not_compressed(anyone: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    del upstreams  # they answer with empty messages
    answer, body = await raw(anyone, "/v1/products", "gzip, br")
    assert "content-encoding" not in answer.headers
    assert json.loads(body) == {"products": [], "nextPageToken": ""}


async def test_head_is_not_compressed(anyone: httpx.AsyncClient, products: product_pb2.ListProductsResponse) -> None:
    del products
    answer = await anyone.head("/v1/products", headers={"accept-encoding": "gzip, br"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert "content-encoding" not in answer.headers
    assert (await anyone.get("/healthz")).json() == {"status": "up"}


async def test_a_watch_is_not_compressed_and_each_message_arrives_at_once(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    go_on = asyncio.Event()

    async def states(_request: Message, _context: Context) -> AsyncIterator[Message]:
        yield order_pb2.WatchOrderResponse(order=order_pb2.Order(id="x" * 2000))
        await go_on.wait()

    upstreams["order"].answers["WatchOrder"] = states
    path = f"/v1/orders/{A_UUID}:watch"
    async with (
        asyncio.timeout(TEST_TIMEOUT_S),
        staff.stream("GET", path, headers={"accept-encoding": "gzip, br"}) as answer,
    ):
        assert "content-encoding" not in answer.headers
        line = await anext(answer.aiter_lines())
        assert json.loads(line)["order"]["id"] == "x" * 2000
        go_on.set()


async def test_a_grpc_response_is_not_compressed_by_the_edge(
    edge: Envoy, products: product_pb2.ListProductsResponse
) -> None:
    assert await grpc_call(edge.target, BY_NAME["ListProducts"]) == products
