"""`mesh bench` against a running mesh: that it measures and checks, never how fast it is."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import UUID

import pytest

from ops.bench.shop import Shop
from ops.running_mesh import RunningMesh as Mesh
from tests.running import RunningMesh, mesh_command
from tests.services import eventually


async def bench(mesh: RunningMesh, *arguments: str) -> dict[str, Any]:
    """Run it to its end; it fails when an invariant is violated."""
    told: dict[str, Any] = json.loads(
        await mesh_command("bench", *arguments, "--no-calibrate", "--json", state=mesh.state)
    )
    assert told["violations"] == []
    assert told["failures"] == {}
    return told


async def test_a_load_of_orders_is_confirmed_and_the_invariants_hold(mesh: RunningMesh) -> None:
    told = await bench(mesh, "orders", "--concurrency", "8", "--duration", "2")
    orders = told["orders"]
    assert orders["confirmed"] == orders["placed"] == told["driver"]["requests"] > 0
    assert set(orders["cost"]["cpu_ms"]) >= {"order", "product", "payment", "postgres", "nats", "edge"}
    assert all(size > 0 for size in told["memory"].values())
    statements = {
        f"{database}: {name}": executed["rows_per_call"]
        for database, named in told["database"]["by_name"].items()
        for statement, executed in named.items()
        for name in statement.split(" + ")
    }
    for name in (
        "orders: add orders", "orders: add outbox", "orders: record events", "orders: write orders",
        "product: add holds", "product: reserve stocks", "product: record events", "product: add stock_movements",
        "payment: add first payments", "payment: add charges", "payment: write payments", "payment: record events",
        "orders: read unpublished", "payment: read unpublished", "product: read unpublished",
    ):  # fmt: skip
        assert statements[name] >= 1
    latencies = told["requests"]["place"]["latency"]["percentiles"]
    assert 0 < latencies["p50"] <= latencies["p99"] <= latencies["p99.9"]
    assert told["rate_limits"] == {"customer": 200, "address": 5000}


async def test_a_load_is_measured_against_the_speed_of_the_machine(mesh: RunningMesh) -> None:
    checkpoints = "SELECT num_requested FROM pg_stat_checkpointer"
    before = await mesh.sql("order_svc", checkpoints)
    told = json.loads(
        await mesh_command("bench", "orders", "--concurrency", "2", "--duration", "1", "--json", state=mesh.state)
    )
    assert told["violations"] == []
    assert told["transactions"] > 0
    # After a checkpoint the load would write whole pages.
    assert await mesh.sql("order_svc", checkpoints) == before
    ratio = told["orders"]["confirmed_per_second"] / told["transactions"]
    assert told["confirmed_of_transactions"] == pytest.approx(ratio, rel=1e-2)


async def test_exactly_the_stock_of_a_hot_product_is_sold(mesh: RunningMesh) -> None:
    told = await bench(mesh, "hot", "--concurrency", "16", "--duration", "5", "--stock", "40")
    assert told["orders"]["confirmed"] == 40
    assert told["sold_out_refusals"] == 16


async def test_each_load_buys_the_same_products(mesh: RunningMesh) -> None:
    audited = Mesh.find(mesh.state, {})
    await Shop.open(audited, customers=1, products=40, tell=print)
    # Of the 40 or more that there are now.
    first, second = [list((await Shop.open(audited, customers=1, products=20, tell=print)).stock) for _ in range(2)]
    assert len(first) == 20
    assert first == second


async def test_an_open_loop_keeps_its_rate(mesh: RunningMesh) -> None:
    told = await bench(mesh, "orders", "--concurrency", "8", "--rate", "10", "--duration", "2")
    # Those of the warm-up, too.
    assert told["driver"]["requests"] == told["orders"]["confirmed"] == 40


async def test_stock_that_vanishes_during_a_load_fails_it_by_name(mesh: RunningMesh) -> None:
    command = mesh_command(
        "bench", "orders", "--concurrency", "4", "--duration", "3", "--no-calibrate", state=mesh.state
    )
    running = asyncio.create_task(command)
    products = await sold_from(mesh)
    await mesh.sql("product_svc", "UPDATE stocks SET on_hand = on_hand - 1 WHERE product_id = $1", products[0])
    try:
        with pytest.raises(AssertionError, match=f"product {products[0]} has .* on hand, but its ledger says"):
            await running
    finally:
        await mesh.sql("product_svc", "UPDATE stocks SET on_hand = on_hand + 1 WHERE product_id = $1", products[0])


async def sold_from(mesh: RunningMesh) -> list[UUID]:
    """Products of the bench, once some of them are being sold."""
    query = "SELECT h.product_id FROM hold_lines h JOIN holds USING (order_id) WHERE state = 'HELD' LIMIT 1"

    async def found() -> list[UUID]:
        return [row["product_id"] for row in await mesh.sql("product_svc", query)]

    return await eventually(found)
