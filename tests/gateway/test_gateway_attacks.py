"""Attacks on the edge: its memory stays bounded, and it serves other clients."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from google.protobuf.message import Message

from commerce.product.v1 import product_pb2
from gateway.config import EdgeConfig, Limits
from stack import pki
from tests.gateway.clients import failure
from tests.gateway.contract import A_UUID
from tests.gateway.envoy import Envoy, running
from tests.gateway.http2 import connected
from tests.gateway.upstreams import Context, Upstream
from tests.services import TEST_TIMEOUT_S

pytestmark = pytest.mark.usefixtures("upstreams")

MIB = 1024 * 1024
NO_RATE = Limits(requests_per_second=0, requests_per_second_of_address=0)


@asynccontextmanager
async def limited(config: EdgeConfig, folder: Path, limits: Limits) -> AsyncIterator[Envoy]:
    async with asyncio.timeout(TEST_TIMEOUT_S), running(replace(config, limits=limits), folder) as edge:
        yield edge


@asynccontextmanager
async def behind_a_proxy(config: EdgeConfig, folder: Path, limits: Limits) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an edge that trusts one proxy in front of it."""
    trusting = replace(config, trusted_proxies=1)
    async with (
        limited(trusting, folder, limits) as edge,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client,
    ):
        yield client


def bearer(signing_key: pki.SigningKey, subject: str) -> dict[str, str]:
    return {"authorization": f"Bearer {pki.access_token(signing_key.private, role='customer', subject=subject)}"}


def from_address(address: str) -> dict[str, str]:
    """The header with which a trusted proxy names the address of a client."""
    return {"x-forwarded-for": address}


async def statuses(client: httpx.AsyncClient, count: int, path: str, headers: dict[str, str]) -> Counter[int]:
    """The statuses of `count` concurrent requests."""
    answers = await asyncio.gather(*(client.get(path, headers=headers) for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


async def test_bodies_of_requests_without_a_token_are_refused_before_they_are_kept(
    edge: Envoy, anyone: httpx.AsyncClient
) -> None:
    before = await edge.memory()
    async with asyncio.timeout(TEST_TIMEOUT_S), connected(edge.target) as stranger:
        for _ in range(400):
            await stranger.send(await stranger.begin("/v1/orders"), MIB - 1)
        await stranger.ended(400)
        assert Counter(stranger.statuses.values()) == {401: 400}
        assert await edge.memory() < before + 16 * MIB
        assert (await anyone.get("/v1/products")).status_code == 200


async def test_a_public_method_takes_no_large_body(edge: Envoy, anyone: httpx.AsyncClient) -> None:
    before = await edge.memory()
    async with asyncio.timeout(TEST_TIMEOUT_S), connected(edge.target) as stranger:
        for _ in range(100):
            await stranger.send(await stranger.begin("/v1/sessions"), MIB - 1)
        await stranger.ended(100)
        assert Counter(stranger.statuses.values()) == {413: 100}
        # As many unfinished requests below the limit as a connection may have.
        for _ in range(100):
            await stranger.send(await stranger.begin("/v1/sessions"), 64_000)
        assert await edge.memory() < before + 32 * MIB
        assert (await anyone.get("/v1/products")).status_code == 200


async def test_a_connection_has_at_most_a_hundred_requests_under_way(edge: Envoy) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S), connected(edge.target) as connection:
        assert connection.streams_allowed == 100


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/v1/orders", 60_000, 200),
        ("/v1/orders", 70_000, 413),
        ("/v1/products", 1_000_000, 200),
        ("/v1/products", 1_100_000, 413),
        ("/v1/paymentWebhooks/sandbox", 250_000, 200),
        ("/v1/paymentWebhooks/sandbox", 270_000, 413),
    ],
)
async def test_a_body_is_as_large_as_its_method_needs(
    staff: httpx.AsyncClient, path: str, size: int, status: int
) -> None:
    answer = await staff.post(path, content=b"{" + b" " * (size - 2) + b"}")
    assert answer.status_code == status
    if status != 200:
        assert failure(answer).reason == "REQUEST_TOO_LARGE"


async def test_a_body_that_does_not_end_is_given_up(config: EdgeConfig, short_folder: Path, token: str) -> None:
    impatient = replace(NO_RATE, request_seconds=0.5)
    async with limited(config, short_folder, impatient) as edge, connected(edge.target) as slow:
        for path in ("/v1/sessions", "/v1/orders"):
            await slow.send(await slow.begin(path, token=token), 1)
        method = "/commerce.order.v1.OrderService/CreateOrder"
        await slow.send(await slow.begin(method, token=token, content_type="application/grpc"), 1)
        await slow.ended(3)
        assert sorted(slow.statuses.values()) == [200, 504, 504]
        await edge.until("http.edge.downstream_rq_active", 0)


async def test_the_largest_bodies_are_given_up_as_memory_fills_and_others_are_served(
    config: EdgeConfig, short_folder: Path, token: str
) -> None:
    small = replace(NO_RATE, heap_bytes=192 * MIB)
    async with (
        limited(config, short_folder, small) as edge,
        connected(edge.target) as a,
        connected(edge.target) as b,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as other,
    ):
        for _ in range(200):
            for attacker in (a, b):
                # Methods of staff accept the largest bodies.
                await attacker.send(await attacker.begin("/v1/products", token=token), MIB - 1)
            assert await edge.memory() < small.heap_bytes
            assert (await other.get("/v1/products")).status_code == 200
        assert await edge.statistic("envoy.overload_actions.reset_high_memory_stream.count") > 0


async def test_responses_that_a_client_does_not_read_are_given_up_as_memory_fills(
    config: EdgeConfig, short_folder: Path, upstreams: dict[str, Upstream]
) -> None:
    page = product_pb2.ListProductsResponse(products=[product_pb2.Product(description="x" * 5000)] * 400)

    async def large(_request: Message, _context: Context) -> Message:
        return page

    upstreams["product"].answers["ListProducts"] = large
    small = replace(NO_RATE, heap_bytes=128 * MIB)
    async with (
        limited(config, short_folder, small) as edge,
        connected(edge.target) as stranger,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as other,
    ):
        for _ in range(100):
            await stranger.get("/v1/products?pageSize=500")
        while not stranger.over:
            assert await edge.memory() < small.heap_bytes
            assert (await other.get("/v1/orders")).status_code == 401
        assert await edge.statistic("envoy.overload_actions.reset_high_memory_stream.count") > 0


async def test_limit_per_address_counts_requests_of_all_customers_and_refused_ones(
    config: EdgeConfig, short_folder: Path, signing_key: pki.SigningKey
) -> None:
    limits = Limits(requests_per_second=0, requests_per_second_of_address=1)
    kinds = {
        "served": ("/v1/products", {}),
        "without a token": ("/v1/orders", {}),
        "not found": ("/v1/nothing", {}),
        "malformed": ("/v1/products?colour=blue", {}),
        **{f"customer {n}": (f"/v1/orders/{A_UUID}", bearer(signing_key, f"customer {n}")) for n in range(3)},
    }
    async with behind_a_proxy(config, short_folder, limits) as client:
        here = from_address("203.0.113.1")
        for _ in range(10):
            answers = [await client.get(path, headers={**headers, **here}) for path, headers in kinds.values()]
            refused = [answer for answer in answers if answer.status_code == 429]
            # The bucket gets one token per second, so most requests are refused.
            assert len(refused) >= 4
            assert {failure(answer).reason for answer in refused} == {"RATE_LIMITED"}
        assert await statuses(client, 1, "/v1/products", from_address("203.0.113.2")) == {200: 1}
        assert await statuses(client, 50, "/healthz", here) == {200: 50}


async def test_an_ipv6_client_is_known_by_the_first_64_bits_of_its_address(
    config: EdgeConfig, short_folder: Path
) -> None:
    limits = Limits(requests_per_second=0, requests_per_second_of_address=1)
    async with behind_a_proxy(config, short_folder, limits) as client:
        answers = await asyncio.gather(
            *(client.get("/v1/products", headers=from_address(f"2001:db8:0:1::{n}")) for n in range(20))
        )
        assert 1 <= sum(answer.status_code == 200 for answer in answers) < 10
        assert await statuses(client, 1, "/v1/products", from_address("2001:db8:0:2::1")) == {200: 1}


async def test_bad_tokens_count_as_none_and_refusals_count_as_well(
    config: EdgeConfig, short_folder: Path, signing_key: pki.SigningKey
) -> None:
    limits = Limits(requests_per_second=1, requests_per_second_of_address=0)
    refusals: list[tuple[str, dict[str, str], int]] = [
        ("/v1/orders", {}, 401),
        ("/v1/orders", {"authorization": "Bearer junk"}, 401),
        ("/v1/nothing", {}, 404),
        ("/v1/products?colour=blue", {}, 400),
    ]
    async with behind_a_proxy(config, short_folder, limits) as client:
        for number, (path, headers, status) in enumerate(refusals):
            here = from_address(f"203.0.113.{number}")
            counted = await statuses(client, 20, path, {**headers, **here})
            assert counted.keys() == {status, 429}
            assert counted[429] > 10
            # A customer at the same address has a separate limit.
            customer = bearer(signing_key, f"customer {number}")
            assert await statuses(client, 1, "/v1/orders", {**customer, **here}) == {200: 1}
