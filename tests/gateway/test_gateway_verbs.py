"""HTTP verbs: HEAD is answered like GET, OPTIONS names the verbs of a path, and other verbs are refused."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from commerce.order.v1 import order_pb2
from commerce.product.v1 import product_pb2
from tests.gateway.clients import Failure, failure
from tests.gateway.contract import A_UUID, BY_NAME, OPEN, verb_and_path
from tests.gateway.envoy import Envoy
from tests.gateway.upstreams import Context, Upstream

READS = [method for method in OPEN if verb_and_path(method)[0] == "GET"]
VERBS_OF_PATHS: dict[str, set[str]] = defaultdict(set)
for each in OPEN:
    VERBS_OF_PATHS[verb_and_path(each)[1]].add(verb_and_path(each)[0])
VERBS_OF_PATHS["/healthz"] = VERBS_OF_PATHS["/.well-known/jwks.json"] = {"GET"}


@pytest.fixture(params=[False, True], ids=["HTTP/1.1", "HTTP/2"])
async def client(
    request: pytest.FixtureRequest, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of staff, over either version of HTTP."""
    del upstreams  # as new, for each client
    headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity"}
    async with httpx.AsyncClient(
        base_url=edge.url, headers=headers, http1=not request.param, http2=request.param, timeout=30
    ) as found:
        yield found


def headers_of(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}


async def get_and_head(client: httpx.AsyncClient, path: str, **more: str) -> tuple[httpx.Response, httpx.Response]:
    """The responses to both, which must be alike."""
    get = await client.get(path, headers=more)
    head = await client.head(path, headers=more)
    assert head.status_code == get.status_code
    assert headers_of(head) == headers_of(get)
    assert head.content == b""
    # The connection is still of use.
    assert (await client.get("/healthz")).json() == {"status": "up"}
    return get, head


@pytest.mark.parametrize("method", [each for each in READS if not each.server_streaming], ids=lambda each: each.name)
async def test_head_is_answered_like_get_without_a_body(
    method: MethodDescriptor, client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    _, path = verb_and_path(method)
    get, head = await get_and_head(client, path)
    assert get.status_code == 200
    assert int(head.headers["content-length"]) == len(get.content) > 0
    service = upstreams[method.full_name.split(".")[1]]
    assert [call.method for call in service.received] == [method.full_name] * 2


async def test_head_of_a_large_list_has_the_length_of_its_body(
    client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    async def many(_request: Message, _context: Context) -> Message:
        return product_pb2.ListProductsResponse(products=[product_pb2.Product(description="x" * 4000)] * 500)

    upstreams["product"].answers["ListProducts"] = many
    get, head = await get_and_head(client, "/v1/products?pageSize=500")
    assert int(head.headers["content-length"]) == len(get.content) > 2_000_000


async def test_head_is_refused_like_get(client: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    async def missing(_request: Message, context: Context) -> Message:
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is none")

    upstreams["order"].answers["GetOrder"] = missing
    for path, status, more in [
        (f"/v1/orders/{A_UUID}", 404, {}),
        (f"/v1/orders/{A_UUID}", 401, {"authorization": "Bearer junk"}),
        ("/v1/products?pageSize=many", 400, {}),
        ("/v1/nothing", 404, {}),
        ("/v1/sessions", 405, {}),
    ]:
        get, _ = await get_and_head(client, path, **more)
        assert get.status_code == status


@pytest.mark.parametrize("path", ["/healthz", "/.well-known/jwks.json", "/openapi.json", "/docs"])
async def test_head_of_what_the_edge_answers_itself_is_like_get(path: str, client: httpx.AsyncClient) -> None:
    get, _ = await get_and_head(client, path)
    assert get.status_code == 200


async def test_head_of_a_watch_has_its_headers_and_ends(
    client: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    async def endless(_request: Message, _context: Context) -> AsyncIterator[Message]:
        yield order_pb2.WatchOrderResponse()
        await asyncio.Event().wait()

    upstreams["order"].answers["WatchOrder"] = endless
    path = f"/v1/orders/{A_UUID}:watch"
    async with client.stream("GET", path) as get:
        head = await client.head(path)
        assert (head.status_code, headers_of(head)) == (get.status_code, headers_of(get))
    assert head.status_code == 200
    assert head.content == b""
    assert (await client.get("/healthz")).json() == {"status": "up"}


@pytest.mark.parametrize("path", VERBS_OF_PATHS)
async def test_a_verb_that_a_path_does_not_have_is_refused_with_those_it_has(
    path: str, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    allowed = VERBS_OF_PATHS[path] | {"OPTIONS"} | ({"HEAD"} if "GET" in VERBS_OF_PATHS[path] else set())
    for verb in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - allowed:
        answer = await staff.request(verb, path)
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == allowed
        if verb != "HEAD":
            message = "this path does not have the verb of the request"
            assert failure(answer) == Failure("UNIMPLEMENTED", "METHOD_NOT_ALLOWED", None, message)
    options = await staff.options(path)
    assert (options.status_code, options.content) == (204, b"")
    assert set(options.headers["allow"].split(", ")) == allowed
    assert [call for upstream in upstreams.values() for call in upstream.received] == []


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v2/orders",
        "/v1/orders/",
        f"/v1/orders/{A_UUID}/",
        f"/v1/orders/{A_UUID}:explode",
        f"/v1/orders/{A_UUID}/items/{A_UUID}/more",
        "/v1/products:batch",
        "/healthz/more",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"])
async def test_an_unknown_path_is_not_found_for_any_verb(verb: str, path: str, staff: httpx.AsyncClient) -> None:
    answer = await staff.request(verb, path)
    assert answer.status_code == 404
    assert "allow" not in answer.headers
    if verb != "HEAD":
        assert failure(answer) == Failure("NOT_FOUND", "ROUTE_NOT_FOUND", None, "nothing is served at this path")


async def test_a_grpc_method_is_no_path_of_json_clients(staff: httpx.AsyncClient) -> None:
    method = BY_NAME["CreateOrder"]
    answer = await staff.get(f"/{method.containing_service.full_name}/{method.name}")
    assert (answer.status_code, failure(answer).reason) == (404, "ROUTE_NOT_FOUND")
