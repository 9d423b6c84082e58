"""Streams of a real server as JSON, through the edge: messages, errors before and after the first one, and drain."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from commerce.order.v1 import order_pb2
from gateway.config import Address, EdgeConfig
from mesh.errors import MeshError, NotFound
from mesh.rpc.call import Call
from mesh.rpc.server import Server
from stack import pki
from tests.census import Census, tasks_are_at_most
from tests.gateway.clients import failure
from tests.gateway.conftest import SUBJECT
from tests.gateway.contract import A_UUID
from tests.gateway.envoy import Envoy, running
from tests.gateway.http2 import Connection, connected
from tests.runtime.served import settings
from tests.services import TEST_TIMEOUT_S, Keys, eventually

Watch = Callable[[], AsyncGenerator[int, None]]
WATCH = f"/v1/orders/{A_UUID}:watch"


class Orders:
    """Streams an order whose etags the test supplies."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def WatchOrder(self, _request: Any, _call: Call) -> AsyncIterator[order_pb2.WatchOrderResponse]:
        async for version in self._watch():
            yield order_pb2.WatchOrderResponse(order=order_pb2.Order(etag=str(version)))


@pytest.fixture
def keys(credentials: Mapping[str, pki.Credentials], signing_key: pki.SigningKey) -> Keys:
    return Keys(credentials, signing_key)


Watched = tuple[Server, httpx.AsyncClient, Envoy]


@pytest.fixture
def watched(config: EdgeConfig, keys: Keys, short_folder: Path) -> Callable[..., Any]:
    """Starts an order service whose stream the test supplies, an edge for it, and a client with a token."""

    @asynccontextmanager
    async def start(
        watch: Watch, *, lifetime_seconds: int = 900, http2: bool = False, **more: Any
    ) -> AsyncIterator[Watched]:
        server = Server(settings(keys, "order", **more), {"commerce.order.v1.OrderService": Orders(watch)}, checks=())
        await server.start()
        try:
            upstreams = {**config.upstreams, "order": [Address("127.0.0.1", server.port)]}
            async with running(replace(config, upstreams=upstreams), short_folder) as edge:
                token = pki.access_token(
                    keys.signing.private, role="customer", subject=SUBJECT, lifetime=timedelta(seconds=lifetime_seconds)
                )
                headers = {"authorization": f"Bearer {token}"}
                async with httpx.AsyncClient(
                    base_url=edge.url, headers=headers, timeout=TEST_TIMEOUT_S, http1=not http2, http2=http2
                ) as client:
                    yield server, client, edge
        finally:
            await server.stop()

    return start


def etag_in(line: str | bytes) -> int:
    """The etag of a message."""
    return int(json.loads(line)["order"]["etag"])


async def until_cut(lines: AsyncIterator[str]) -> list[int]:
    """The etags of the remaining messages of a response until it is aborted. The test fails if it ends normally."""
    seen: list[int] = []
    try:
        async for line in lines:
            seen += [etag_in(line)]
    except httpx.RemoteProtocolError:
        return seen
    raise AssertionError(f"the response ended normally after {seen}")


def raising(error: Exception, *, after: int) -> Watch:
    """A stream that fails with `error` after some messages."""

    async def watch() -> AsyncGenerator[int, None]:
        for number in range(after):
            yield number
        raise error

    return watch


async def endless() -> AsyncGenerator[int, None]:
    yield 0
    await asyncio.Event().wait()


async def test_watch_as_json_has_a_line_for_each_message_and_ends(watched: Callable[..., Any]) -> None:
    async def watch() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number

    async with watched(watch) as (_, client, _):
        response = await client.get(WATCH)
    assert response.status_code == 200
    assert [json.loads(line)["order"]["etag"] for line in response.text.splitlines()] == ["0", "1", "2"]


async def test_watch_error_before_the_first_message_is_a_status_as_json(watched: Callable[..., Any]) -> None:
    missing = NotFound("there is none", reason="ORDER_NOT_FOUND")
    async with watched(raising(missing, after=0)) as (_, client, _):
        response = await client.get(WATCH)
        assert (response.status_code, failure(response).reason) == (404, "ORDER_NOT_FOUND")
        without = await client.get(WATCH, headers={"authorization": ""})
        assert (without.status_code, failure(without).code) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("error", [NotFound("gone", reason="ORDER_NOT_FOUND"), RuntimeError("a fault")])
async def test_watch_error_after_the_first_message_aborts_the_json_response(
    watched: Callable[..., Any], error: MeshError | RuntimeError, http2: bool
) -> None:
    async with watched(raising(error, after=2), http2=http2) as (_, client, _), client.stream("GET", WATCH) as response:
        assert response.status_code == 200
        assert await until_cut(response.aiter_lines()) == [0, 1]


async def test_watch_of_a_json_client_that_is_gone_is_closed(watched: Callable[..., Any]) -> None:
    async with watched(endless) as (server, client, _):
        async with client.stream("GET", WATCH) as response:
            assert await anext(response.aiter_lines())
            assert server.streams.count == 1

        async def is_closed() -> bool:
            return bool(server.streams.count == 0)

        await eventually(is_closed)


async def test_watch_as_json_is_aborted_when_the_server_drains(watched: Callable[..., Any]) -> None:
    async with watched(endless, drain_seconds=3600) as (server, client, _), client.stream("GET", WATCH) as response:
        lines = response.aiter_lines()
        assert etag_in(await anext(lines)) == 0
        cut = asyncio.create_task(until_cut(lines))
        await asyncio.wait_for(server.stop(), TEST_TIMEOUT_S)
        assert await cut == []


async def test_watch_as_json_is_aborted_when_its_token_expires(watched: Callable[..., Any]) -> None:
    async with watched(endless, lifetime_seconds=4) as (_, client, _), client.stream("GET", WATCH) as response:
        assert await until_cut(response.aiter_lines()) == [0]


async def test_watch_above_the_bound_of_a_caller_is_a_status_as_json(watched: Callable[..., Any]) -> None:
    async with (
        watched(endless, max_streams_per_caller=1) as (_, client, _),
        client.stream("GET", WATCH) as first,
    ):
        assert first.status_code == 200
        refused = await client.get(WATCH)
        assert (refused.status_code, failure(refused).reason, failure(refused).retry_after) == (429, "RATE_LIMITED", 1)


async def test_watch_of_a_json_client_that_resets_its_http2_stream_is_closed(watched: Callable[..., Any]) -> None:
    closed = 0

    async def watch() -> AsyncGenerator[int, None]:
        nonlocal closed
        try:
            yield 0
            await asyncio.Event().wait()
        finally:
            closed += 1

    async with watched(watch) as (server, client, edge), connected(edge.target, is_reading=True) as connection:
        token = client.headers["authorization"].removeprefix("Bearer ")
        for times in (1, 2):
            stream = await connection.get(WATCH, token=token)
            assert etag_in(await connection.line(stream)) == 0
            assert server.streams.count == 1
            await connection.reset(stream)

            async def is_closed(times: int = times) -> bool:
                return bool(server.streams.count == 0 and closed == times)

            await eventually(is_closed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_connects_of_json_streams_leave_nothing_behind(watched: Callable[..., Any], count: int) -> None:
    """Every second stream fails after its first message; the client resets the others."""
    numbers = itertools.count()

    async def watch() -> AsyncGenerator[int, None]:
        number = next(numbers)
        yield number
        if number % 2:
            raise NotFound("there is none", reason="ORDER_NOT_FOUND")
        await asyncio.Event().wait()

    async with watched(watch, max_streams_per_caller=200) as (server, client, edge):
        token = client.headers["authorization"].removeprefix("Bearer ")

        async def connect(connection: Connection) -> None:
            stream = await connection.get(WATCH, token=token)
            if etag_in(await connection.line(stream)) % 2:
                await connection.until_over(stream)
            else:
                await connection.reset(stream)

        async def none_is_open() -> bool:
            return bool(server.streams.count == 0)

        async def connects(count: int) -> None:
            async with (
                connected(edge.target, is_reading=True) as one,
                connected(edge.target, is_reading=True) as other,
            ):
                for _ in range(count // 100):
                    await asyncio.gather(*(connect(each) for each in (one, other) for _ in range(50)))
                    await eventually(none_is_open)

        await connects(200)
        censuses, tasks = [Census.taken()], len(asyncio.all_tasks())
        for _ in range(2):
            await connects(count // 2)
            censuses.append(Census.taken())
        assert next(numbers) == 200 + count
        await tasks_are_at_most(tasks)
        first, second = (after.grown_since(before, by=count // 4) for before, after in itertools.pairwise(censuses))
        assert first.keys() & second.keys() == set()
        for cluster in ("order", "unreachable"):
            await edge.until(f"cluster.{cluster}.upstream_rq_active", 0)
        await edge.until("http.edge.downstream_rq_active", 0)
