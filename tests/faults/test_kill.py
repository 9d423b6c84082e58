"""kill -9 in the middle of 200 orders: whatever dies, every accepted order comes to rest and the audit is clean."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.running import Json, RunningMesh, Shopper, reason_of, running_mesh
from tests.services import new_key

ORDERS = 200
AT_A_TIME = 40


TWO_OF_EACH = ["--workers", "order=2,payment=2,product=2,customer=2"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("workers", "victims"),
    [
        pytest.param([], ["order", "payment", "nats"], id="one worker of each"),
        pytest.param([], ["product", "customer", "postgres", "redis", "edge"], id="the rest", marks=pytest.mark.slow),
        pytest.param(
            TWO_OF_EACH,
            ["order", "payment", "nats", "product", "customer", "postgres"],
            id="two workers of each",
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_orders_survive_whatever_is_killed(tmp_path: Path, workers: list[str], victims: list[str]) -> None:
    async with running_mesh(tmp_path / "state", *workers, environment={"MESH_EDGE_RATE_PER_CLIENT": "0"}) as mesh:
        processes = await mesh.processes()
        shoppers = await asyncio.gather(*(mesh.shopper("tok_visa", "tok_declined", "tok_flaky") for _ in range(4)))
        for victim in victims:
            await survives(mesh, shoppers, victim if victim in processes else f"{victim}-1")


async def survives(mesh: RunningMesh, shoppers: list[Shopper], victim: str) -> None:
    """Place 200 orders, kill `victim` when a quarter of them is accepted, and audit the mesh at the end."""
    products = [await mesh.product(150) for _ in range(4)]
    turn = asyncio.Semaphore(AT_A_TIME)
    accepted: list[tuple[Shopper, Json, str]] = []
    quarter = asyncio.Event()

    async def buy(index: int) -> None:
        shopper = shoppers[index % len(shoppers)]
        token = ("tok_visa", "tok_visa", "tok_declined", "tok_flaky")[index // 4 % 4]
        wanted = {products[index % 4]: 1, products[(index + 1) % 4]: 2}
        async with turn:
            key = new_key()
            body = shopper.order_body(wanted, token)
            answer = await mesh.insist("POST", "/v1/orders", body, token=shopper.token, key=key)
        assert answer.status_code == 200 or reason_of(answer) == "STOCK_INSUFFICIENT", answer.text
        if answer.status_code == 200:
            accepted.append((shopper, answer.json(), token))
        if len(accepted) == ORDERS // 4:
            quarter.set()

    async def kill() -> None:
        await quarter.wait()
        await mesh.kill(victim)

    await asyncio.gather(kill(), *(buy(index) for index in range(ORDERS)))
    assert len(accepted) > ORDERS // 2
    ids = [order["id"] for _, order, _ in accepted]
    assert len(set(ids)) == len(ids)

    for shopper, placed, token in accepted:
        order = await shopper.decided(placed["id"])
        expected = "ORDER_STATUS_CANCELLED" if token == "tok_declined" else "ORDER_STATUS_CONFIRMED"
        assert order["status"] == expected, order
    assert await mesh.audit() == []
