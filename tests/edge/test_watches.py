"""Watching orders and stock as JSON through the edge: one of them to its end, and a thousand at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

import ops.running_mesh
from tests.gateway.http2 import Connection, connected
from tests.running import BUSY, FINAL, Json, RunningMesh, Shopper
from tests.services import TEST_TIMEOUT_S, new_key

WATCHES = 1_000
MIB = 1024 * 1024
MOST_BYTES = 40 * MIB
"""What a thousand watches may cost a process."""
PER_CONNECTION = 100
"""The streams that the edge allows on one connection."""
PER_CALLER = 32
"""The watches that a service allows one person."""


class Watches:
    """Watches of members of staff, on as many connections as they need."""

    def __init__(self, mesh: RunningMesh, stack: AsyncExitStack) -> None:
        self._mesh = ops.running_mesh.RunningMesh.find(mesh.state, {})
        self._target = urlsplit(mesh.edge).netloc
        self._stack = stack
        self._numbers = count()
        self._connections: list[Connection] = []
        self._tokens: list[str] = []
        self._opening = asyncio.Lock()

    async def open(self, order_id: str) -> tuple[Connection, int]:
        """Watch an order. Returns the connection and the stream, after the first state has arrived."""
        number = next(self._numbers)
        async with self._opening:
            while len(self._connections) * PER_CONNECTION <= number:
                self._connections.append(
                    await self._stack.enter_async_context(connected(self._target, is_reading=True))
                )
            while len(self._tokens) * PER_CALLER <= number:
                self._tokens.append(self._mesh.token("staff", uuid4()))
        connection = self._connections[number // PER_CONNECTION]
        stream = await connection.get(f"/v1/orders/{order_id}:watch", token=self._tokens[number // PER_CALLER])
        assert json.loads(await connection.line(stream))["order"]["id"] == order_id
        return connection, stream


def resident_bytes(pid: int) -> int:
    """The memory of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024


async def states(lines: AsyncIterator[str], name: str) -> AsyncIterator[Json]:
    """The messages of a watch."""
    async for line in lines:
        yield json.loads(line)[name]


async def until_status(orders: AsyncIterator[Json], wanted: str) -> Json:
    """The order once it has a status. The test fails if the response ends before."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        async for order in orders:
            if order["status"] == f"ORDER_STATUS_{wanted}":
                return order
    raise AssertionError(f"it ended before {wanted}")


async def test_watch_as_json_goes_from_placed_to_delivered_and_ends(mesh: RunningMesh) -> None:
    shopper, product = await mesh.shopper("tok_visa"), await mesh.product(3)
    placed = (await shopper.order({product: 1})).json()
    path, staff = f"/v1/orders/{placed['id']}", mesh.staff_token
    stock = mesh.http.stream("GET", f"/v1/products/{product}/stock:watch", headers=_bearer(staff))
    watch = mesh.http.stream("GET", f"{path}:watch", headers=_bearer(shopper.token))
    async with watch as response, stock as of_stock:
        orders = states(response.aiter_lines(), "order")
        await until_status(orders, "CONFIRMED")
        async with asyncio.timeout(TEST_TIMEOUT_S):
            async for each in states(of_stock.aiter_lines(), "stock"):
                if (each["onHand"], each["reserved"]) == (2, 0):
                    break
        await mesh.ok("POST", f"{path}:ship", {"carrier": "Post", "trackingNumber": "1"}, token=staff, key=new_key())
        await until_status(orders, "SHIPPED")
        await mesh.ok("POST", f"{path}:deliver", {}, token=staff, key=new_key())
        delivered = await until_status(orders, "DELIVERED")
        assert [order async for order in orders] == []
    assert delivered == await mesh.ok("GET", path, token=shopper.token)
    stranger = await mesh.shopper()
    assert (await mesh.call("GET", f"{path}:watch", token=stranger.token)).status_code == 404
    assert (await mesh.call("GET", f"/v1/products/{product}/stock:watch", token=stranger.token)).status_code == 403


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def _placed(shopper: Shopper, product: str) -> str:
    """The id of an order, placed however often the edge or the service is busy."""
    key = new_key()
    while True:
        answer = await shopper.order({product: 1}, method="tok_visa", key=key)
        if answer.status_code not in BUSY:
            assert answer.status_code == 200, answer.text
            order_id: str = answer.json()["id"]
            return order_id
        await asyncio.sleep(0.2)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("watches", "orders"), [(100, 200), pytest.param(1_000, 10_000, marks=pytest.mark.slow)])
async def test_watchers_see_their_orders_decided_while_others_are_placed(
    mesh: RunningMesh, watches: int, orders: int
) -> None:
    shoppers = await asyncio.gather(*(mesh.shopper("tok_visa") for _ in range(8)))
    product, numbers = await mesh.product(orders), iter(range(orders))
    decided: list[str] = []

    async def watch(opened: Watches, order_id: str) -> None:
        connection, stream = await opened.open(order_id)
        line = await connection.line(stream, lambda line: json.loads(line)["order"]["status"] in FINAL)
        decided.append(json.loads(line)["order"]["id"])

    async def place(opened: Watches, shopper: Shopper, group: asyncio.TaskGroup) -> None:
        for number in numbers:
            order_id = await _placed(shopper, product)
            if number % (orders // watches) == 0:
                group.create_task(watch(opened, order_id))

    async with AsyncExitStack() as stack:
        opened = Watches(mesh, stack)
        async with asyncio.TaskGroup() as group:
            for shopper in shoppers:
                for _ in range(4):
                    group.create_task(place(opened, shopper, group))
        assert len(set(decided)) == watches


async def test_thousand_watches_cost_a_process_less_than_forty_mebibytes(mesh: RunningMesh) -> None:
    shopper, product = await mesh.shopper("tok_visa"), await mesh.product(100)
    ids = await asyncio.gather(*(_placed(shopper, product) for _ in range(100)))
    pid = ops.running_mesh.RunningMesh.find(mesh.state, {}).pids["order"]
    async with AsyncExitStack() as stack:
        opened = Watches(mesh, stack)
        await asyncio.gather(*map(opened.open, ids))
        before = resident_bytes(pid)
        for _ in range(WATCHES // len(ids)):
            await asyncio.gather(*map(opened.open, ids))
        grown = resident_bytes(pid) - before
    assert grown < MOST_BYTES, f"{grown / MIB:.1f} MiB more than {before / MIB:.1f} MiB"
