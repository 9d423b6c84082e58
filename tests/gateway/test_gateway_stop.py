"""How the edge of a local mesh ends: calls under way are answered first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from google.protobuf.message import Message

from commerce.order.v1 import order_pb2
from stack import pki
from stack.edge import Edge
from stack.ports import free_ports
from stack.servers import Servers
from stack.services import Services
from stack.supervisor import Program, Supervisor
from tests.gateway.upstreams import Context, Upstream, never
from tests.services import TEST_TIMEOUT_S


@pytest.fixture
def program(
    tmp_path: Path,
    short_folder: Path,
    upstreams: dict[str, Upstream],
    credentials: Mapping[str, pki.Credentials],
    signing_key: pki.SigningKey,
) -> Program:
    """An edge as `mesh up` runs it, in front of the four services."""
    services = Services(
        ports={name: [upstream.address.port] for name, upstream in upstreams.items()},
        servers=Servers.under(tmp_path, short_folder, Supervisor(logs=tmp_path)),
        credentials=credentials,
        signing_key=signing_key,
        page_secret="",
        webhook_secret="",
        edge_url="",
        environment={},
    )
    [port] = free_ports(1)
    edge = Edge(
        tmp_path / "edge",
        short_folder,
        host="127.0.0.1",
        port=port,
        services=services,
        credentials=credentials["gateway"],
        jwks=signing_key.jwks,
    )
    return edge.prepare()


@asynccontextmanager
async def order_under_way(program: Program, token: str, begun: asyncio.Event) -> AsyncIterator[asyncio.Task[int]]:
    """A call to the running edge, after it has reached its service; the task gives its status."""
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(
        base_url=f"http://{program.address}", headers=headers, timeout=TEST_TIMEOUT_S
    ) as client:

        async def call() -> int:
            return (await client.post("/v1/orders", json={})).status_code

        calling = asyncio.create_task(call())
        await begun.wait()
        yield calling


async def takes_connections(address: str) -> bool:
    host, port = address.split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


async def test_a_call_under_way_is_answered_and_no_other_is_taken(
    program: Program, tmp_path: Path, token: str, upstreams: dict[str, Upstream]
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_request: Message, _context: Context) -> Message:
        begun.set()
        await go_on.wait()
        return order_pb2.CreateOrderResponse()

    upstreams["order"].answers["CreateOrder"] = slow
    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path) as supervisor:
        await supervisor.start([program])
        async with order_under_way(program, token, begun) as calling:
            stopping = asyncio.create_task(supervisor.stop())
            while await takes_connections(program.address):  # noqa: ASYNC110 - it calls nobody back
                await asyncio.sleep(0.01)
            go_on.set()
            assert await calling == 200
            await stopping


async def test_a_call_that_does_not_end_does_not_keep_it_from_stopping(
    program: Program, tmp_path: Path, token: str, upstreams: dict[str, Upstream]
) -> None:
    begun = asyncio.Event()

    async def hang(request: Message, context: Context) -> Message:
        begun.set()
        return await never(request, context)

    upstreams["order"].answers["CreateOrder"] = hang
    async with asyncio.timeout(TEST_TIMEOUT_S), Supervisor(logs=tmp_path) as supervisor:
        await supervisor.start([replace(program, drain_within=0.2)])
        async with order_under_way(program, token, begun) as calling:
            await supervisor.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                await calling
