"""Streams that stay open: neither reflection nor watches occupy the capacity of other calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from commerce.order.v1 import order_pb2
from gateway.config import EdgeConfig, Limits
from tests.gateway.clients import failure
from tests.gateway.contract import A_UUID
from tests.gateway.envoy import Envoy, running
from tests.gateway.http2 import Connection, connected
from tests.gateway.upstreams import Context, Upstream
from tests.services import TEST_TIMEOUT_S

pytestmark = pytest.mark.usefixtures("upstreams")

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
NO_RATE = Limits(requests_per_second=0, requests_per_second_of_address=0)


async def open_reflection(connection: Connection, count: int) -> None:
    for _ in range(count):
        await connection.begin(REFLECTION, content_type="application/grpc")


async def sign_in(client: httpx.AsyncClient) -> int:
    return (
        await client.post("/v1/sessions", json={"email": "ada@example.com", "password": "correct horse"})
    ).status_code


async def test_nine_thousand_idle_streams_of_reflection_do_not_affect_signing_in(
    edge: Envoy, anyone: httpx.AsyncClient
) -> None:
    async with asyncio.timeout(TEST_TIMEOUT_S), AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(connected(edge.target)) for _ in range(90)]
        for stranger in strangers:
            await open_reflection(stranger, 100)
        for stranger in strangers:
            # 32 may be open, over all connections.
            await stranger.ended(68)
        assert await sign_in(anyone) == 200


async def test_an_idle_stream_of_reflection_ends_at_the_edge(config: EdgeConfig, short_folder: Path) -> None:
    brief = replace(config, limits=replace(NO_RATE, reflection_seconds=0.3))
    async with (
        asyncio.timeout(TEST_TIMEOUT_S),
        running(brief, short_folder) as edge,
        connected(edge.target) as stranger,
    ):
        await open_reflection(stranger, 1)
        await edge.until("cluster.reflection.upstream_rq_total", 1)
        await stranger.ended(1)
        await edge.until("cluster.reflection.upstream_rq_active", 0)


async def test_streams_of_reflection_leave_other_requests_their_rate(config: EdgeConfig, short_folder: Path) -> None:
    limited = replace(config, limits=Limits(requests_per_second=1))
    async with (
        asyncio.timeout(TEST_TIMEOUT_S),
        running(limited, short_folder) as edge,
        connected(edge.target) as stranger,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client,
    ):
        await open_reflection(stranger, 100)
        await stranger.ended(70)
        assert await sign_in(client) == 200


async def test_reflection_is_not_served_when_it_is_off(config: EdgeConfig, short_folder: Path) -> None:
    closed = replace(config, reflection=False)
    async with running(closed, short_folder) as edge, grpc.aio.insecure_channel(edge.target) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]  # or an aio one
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_watches_leave_other_calls_of_their_service_its_capacity(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream]
) -> None:
    async def silent(_request: Message, _context: Context) -> AsyncIterator[Message]:
        yield order_pb2.WatchOrderResponse()
        await asyncio.Event().wait()

    upstreams["order"].answers["WatchOrder"] = silent
    narrow = replace(config, limits=replace(NO_RATE, upstream_requests=1, upstream_streams=2))
    headers = {"authorization": f"Bearer {token}"}
    async with (
        asyncio.timeout(TEST_TIMEOUT_S),
        running(narrow, short_folder) as edge,
        httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=TEST_TIMEOUT_S) as client,
        AsyncExitStack() as stack,
    ):
        watch = f"/v1/orders/{A_UUID}:watch"
        for _ in range(2):
            watching = await stack.enter_async_context(client.stream("GET", watch))
            assert watching.status_code == 200
        refused = await client.get(watch)
        assert (refused.status_code, failure(refused).reason) == (429, "OVERLOADED")
        assert (await client.get(f"/v1/orders/{A_UUID}")).status_code == 200
