"""CORS: scripts of the named origins may call and read all responses, errors included; others may not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from google.protobuf.message import Message

from gateway.config import EdgeConfig, Limits
from tests.gateway.contract import A_UUID
from tests.gateway.envoy import Envoy, running
from tests.gateway.upstreams import Context, Upstream
from tests.services import TEST_TIMEOUT_S

NAMED = "https://admin.example:8443"
STRANGE = "https://shop.example.evil.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "idempotency-key"}

Request = Callable[[httpx.AsyncClient, dict[str, str]], Awaitable[httpx.Response]]

RESPONSES: dict[str, tuple[int, Request]] = {
    "served": (200, lambda client, origin: client.get("/v1/products", headers=origin)),
    "HEAD": (200, lambda client, origin: client.head("/v1/products", headers=origin)),
    "own answer": (200, lambda client, origin: client.get("/healthz", headers=origin)),
    "keys": (200, lambda client, origin: client.get("/.well-known/jwks.json", headers=origin)),
    "document": (200, lambda client, origin: client.get("/openapi.json", headers=origin)),
    "page": (200, lambda client, origin: client.get("/docs", headers=origin)),
    "options": (204, lambda client, origin: client.options("/v1/orders", headers=origin)),
    "bad query": (400, lambda client, origin: client.get("/v1/products?nope=1", headers=origin)),
    "bad path": (400, lambda client, origin: client.get("/v1/products/a%2Fb", headers=origin)),
    "bad JSON": (400, lambda client, origin: client.post("/v1/sessions", content=b"{", headers=origin)),
    "no token": (401, lambda client, origin: client.get("/v1/orders", headers=origin)),
    "no path": (404, lambda client, origin: client.get("/v1/nothing", headers=origin)),
    "wrong verb": (405, lambda client, origin: client.put("/v1/orders", headers=origin)),
    "large body": (413, lambda client, origin: client.post("/v1/sessions", content=b" " * 70_000, headers=origin)),
    "large headers": (431, lambda client, origin: client.get("/healthz", headers={**origin, "x-long": "y" * 40_000})),
}
"""A request for each kind of response, with its status."""


@pytest.fixture(params=RESPONSES)
def response(request: pytest.FixtureRequest) -> tuple[int, Request]:
    return RESPONSES[request.param]


def allowed(answer: httpx.Response) -> str | None:
    found: str | None = answer.headers.get("access-control-allow-origin")
    return found


async def test_every_response_can_be_read_by_the_scripts_of_a_named_origin(
    response: tuple[int, Request], anyone: httpx.AsyncClient
) -> None:
    status, send = response
    answer = await send(anyone, {"origin": NAMED})
    assert (answer.status_code, allowed(answer)) == (status, NAMED)
    assert "access-control-allow-credentials" not in answer.headers


async def test_no_response_can_be_read_by_the_scripts_of_another_origin(
    response: tuple[int, Request], anyone: httpx.AsyncClient
) -> None:
    status, send = response
    for origin in ({"origin": STRANGE}, {"origin": "null"}, {}):
        answer = await send(anyone, origin)
        assert (answer.status_code, allowed(answer)) == (status, None)


async def test_a_call_to_a_service_that_is_down_can_be_read_as_well(
    staff: httpx.AsyncClient, edge: Envoy, upstreams: dict[str, Upstream]
) -> None:
    await upstreams["payment"].stop()
    try:
        answer = await staff.get("/v1/payments", headers={"origin": NAMED})
        assert (answer.status_code, allowed(answer)) == (503, NAMED)
    finally:
        await upstreams["payment"].start()
        await edge.until("cluster.payment.membership_healthy", 1)


async def test_a_preflight_is_answered_for_named_origins_only(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.options("/v1/orders", headers={"origin": NAMED, **PREFLIGHT})
    assert (answer.status_code, allowed(answer)) == (200, NAMED)
    assert "idempotency-key" in answer.headers["access-control-allow-headers"]
    assert {"GET", "HEAD", "POST", "PATCH", "DELETE"} == set(answer.headers["access-control-allow-methods"].split(", "))
    answer = await anyone.options("/v1/orders", headers={"origin": STRANGE, **PREFLIGHT})
    assert (answer.status_code, allowed(answer)) == (204, None)
    assert "access-control-allow-methods" not in answer.headers


async def test_a_cached_response_depends_on_the_origin(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get("/.well-known/jwks.json", headers={"origin": NAMED})
    assert answer.headers["vary"] == "origin"


class TestOtherSettings:
    """Edges that allow any origin, or none, and one that limits rates."""

    @pytest.fixture(params=[("*",), ()], ids=["any", "none"])
    async def client(
        self, request: pytest.FixtureRequest, config: EdgeConfig, short_folder: Path, upstreams: dict[str, Upstream]
    ) -> AsyncIterator[tuple[Sequence[str], httpx.AsyncClient]]:
        del upstreams  # as new
        changed = replace(config, allowed_origins=request.param)
        async with (
            running(changed, short_folder) as edge,
            httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client,
        ):
            yield request.param, client

    async def test_any_origin_is_allowed_everywhere_or_none_anywhere(
        self, client: tuple[Sequence[str], httpx.AsyncClient]
    ) -> None:
        origins, caller = client
        for status, send in RESPONSES.values():
            answer = await send(caller, {"origin": STRANGE})
            assert answer.status_code == status
            assert (allowed(answer) in (STRANGE, "*")) == bool(origins)
        preflight = await caller.options("/v1/orders", headers={"origin": STRANGE, **PREFLIGHT})
        assert (preflight.status_code, allowed(preflight)) == ((200, STRANGE) if origins else (204, None))

    async def test_a_refusal_for_the_rate_can_be_read(
        self, config: EdgeConfig, short_folder: Path, upstreams: dict[str, Upstream]
    ) -> None:
        del upstreams  # as new
        for limits in (
            Limits(requests_per_second=1, requests_per_second_of_address=0),
            Limits(requests_per_second=0, requests_per_second_of_address=1),
        ):
            limited = replace(config, limits=limits)
            async with (
                running(limited, short_folder) as edge,
                httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client,
            ):
                answers = [await client.get("/v1/products", headers={"origin": NAMED}) for _ in range(20)]
                assert 429 in [answer.status_code for answer in answers]
                assert {allowed(answer) for answer in answers} == {NAMED}


async def test_an_error_of_a_service_can_be_read(staff: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    async def fail(_request: Message, _context: Context) -> Message:
        raise ValueError("a fault")

    upstreams["order"].answers["GetOrder"] = fail
    answer = await staff.get(f"/v1/orders/{A_UUID}", headers={"origin": NAMED})
    assert (answer.status_code, allowed(answer)) == (500, NAMED)
