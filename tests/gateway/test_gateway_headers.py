"""The limit of headers: what the edge lets through, services accept, and beyond it the error has a name."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import httpx
import pytest

from commerce.product.v1 import product_pb2
from gateway.config import Limits
from mesh.rpc.sizes import MAX_HEADER_BYTES, MAX_METADATA_BYTES
from tests.gateway.clients import Failure, failure, failure_of, web_failure
from tests.gateway.contract import BY_NAME, path
from tests.gateway.envoy import Envoy
from tests.gateway.upstreams import Upstream
from tests.services import TEST_TIMEOUT_S

TOO_LARGE = Failure(
    "INVALID_ARGUMENT", "REQUEST_TOO_LARGE", None, "the headers of the request are too large, or too many"
)
BELOW = MAX_HEADER_BYTES - 1024
"""The headers of every request and those that Envoy adds are smaller than the difference."""
ABOVE = MAX_HEADER_BYTES + 1


@pytest.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"])
async def client(
    request: pytest.FixtureRequest, edge: Envoy, upstreams: dict[str, Upstream]
) -> AsyncIterator[httpx.AsyncClient]:
    """A JSON client over either version of HTTP."""
    del upstreams  # as new, for each client
    async with httpx.AsyncClient(
        base_url=edge.url, http1=not request.param, http2=request.param, timeout=TEST_TIMEOUT_S
    ) as found:
        yield found


async def test_a_query_just_below_the_limit_reaches_its_service(
    client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    for size in (12_000, BELOW):
        answer = await client.get("/v1/products", params={"query": "x" * size})
        assert answer.status_code == 200, answer.text
        call = upstreams["product"].received[-1]
        assert len(call.request.query) == size  # type: ignore[attr-defined]


async def test_headers_just_below_the_limit_reach_their_service(
    client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    half = BELOW // 2
    answer = await client.get(f"/v1/products?query={'x' * half}", headers={"x-long": "y" * half})
    assert answer.status_code == 200, answer.text
    [call] = upstreams["product"].received
    size = sum(len(name) + len(value) for name, value in call.metadata.items())
    assert half < size < MAX_METADATA_BYTES


@pytest.mark.parametrize("size", [ABOVE, MAX_HEADER_BYTES * 3 // 2])
async def test_headers_above_the_limit_are_refused_with_a_named_error(
    size: int, client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    half = size // 2
    for query, headers in (("x" * size, {}), ("", {"x-long": "y" * size}), ("x" * half, {"x-long": "y" * half})):
        answer = await client.get(f"/v1/products?query={query}", headers=headers)
        assert answer.status_code == 431
        assert failure(answer) == TOO_LARGE
    assert upstreams["product"].received == []


async def test_more_headers_than_allowed_are_refused_with_a_named_error(
    client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    most = Limits().header_count
    answer = await client.get("/v1/products", headers={f"x-{number}": "y" for number in range(most - 20)})
    assert answer.status_code == 200
    answer = await client.get("/v1/products", headers={f"x-{number}": "y" for number in range(most + 1)})
    assert answer.status_code == 431
    assert failure(answer) == TOO_LARGE
    assert len(upstreams["product"].received) == 1


async def test_headers_beyond_what_envoy_reads_are_refused_over_http_1(anyone: httpx.AsyncClient) -> None:
    for headers in ({"x-long": "y" * 3 * MAX_HEADER_BYTES}, {f"x-{number}": "y" for number in range(500)}):
        answer = await anyone.get("/v1/products", headers=headers)
        assert (answer.status_code, failure(answer)) == (431, TOO_LARGE)


async def test_clients_of_grpc_get_the_same_error(edge: Envoy, anyone: httpx.AsyncClient) -> None:
    method = path(BY_NAME["ListProducts"])
    async with grpc.aio.insecure_channel(edge.target) as channel:
        call = channel.unary_unary(
            method,
            request_serializer=product_pb2.ListProductsRequest.SerializeToString,
            response_deserializer=product_pb2.ListProductsResponse.FromString,
        )
        request = product_pb2.ListProductsRequest()
        await call(request, metadata=(("x-long", "y" * BELOW),))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, metadata=(("x-long", "y" * ABOVE),))
    assert failure_of(refused.value) == TOO_LARGE
    web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "x-long": "y" * ABOVE}
    assert web_failure(await anyone.post(method, content=b"\0\0\0\0\0", headers=web)) == TOO_LARGE
