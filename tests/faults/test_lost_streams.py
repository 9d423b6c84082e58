"""JetStream's files are lost: the audit names the gap, and a backfill brings every order to its state."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import nats
import orjson
import pytest

import ops.running_mesh
from ops.audit import Audit
from tests.running import Json, RunningMesh, Shopper, mesh_command, running_mesh
from tests.services import eventually

PENDING, CONFIRMED, CANCELLED = "ORDER_STATUS_PENDING", "ORDER_STATUS_CONFIRMED", "ORDER_STATUS_CANCELLED"


async def pause(mesh: RunningMesh, stream: str, consumer: str) -> None:
    """Let the server deliver nothing to a consumer. The pause is lost with the store."""
    client = await nats.connect(ops.running_mesh.RunningMesh.find(mesh.state, {}).nats_url)
    try:
        until = (datetime.now(UTC) + timedelta(days=1)).isoformat().replace("+00:00", "Z")
        request = orjson.dumps({"pause_until": until})
        answer = await client.request(f"$JS.API.CONSUMER.PAUSE.{stream}.{consumer}", request, timeout=10)
        assert orjson.loads(answer.data)["paused"]
    finally:
        await client.close()


async def violations(mesh: RunningMesh) -> list[str]:
    """What the audit says of the events of now."""
    audited = ops.running_mesh.RunningMesh.find(mesh.state, {})
    report = await Audit(audited, margin=timedelta(0), names=["streams", "applied"]).run()
    return report.violations


async def status(shopper: Shopper, order: str) -> str:
    found: str = (await shopper.mesh.ok("GET", f"/v1/orders/{order}", token=shopper.token))["status"]
    return found


async def has_status(shopper: Shopper, order: str, expected: str) -> bool:
    return await status(shopper, order) == expected


async def payment(shopper: Shopper, order: str) -> Json:
    return await shopper.mesh.ok("GET", f"/v1/orders/{order}/payment", token=shopper.token)


async def place(shopper: Shopper, product: str) -> str:
    order: str = (await shopper.order({product: 1})).json()["id"]
    return order


async def all_published(mesh: RunningMesh) -> bool:
    return not await mesh.sql("order_svc", "SELECT FROM mesh.unpublished LIMIT 1") and not await mesh.sql(
        "payment_svc", "SELECT FROM mesh.unpublished LIMIT 1"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lost", ["deleted", "older copy"])
async def test_events_of_lost_files_are_named_and_backfilled(tmp_path: Path, lost: str) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    store = state / "nats" / "store"
    async with running_mesh(state) as mesh:
        shopper = await mesh.shopper("tok_visa")
        product = await mesh.product(10)
        before = await place(shopper, product)
        assert (await shopper.decided(before))["status"] == CONFIRMED
        assert await mesh.audit() == []
    shutil.copytree(store, copy)

    async with running_mesh(state) as mesh:
        shopper = replace(shopper, mesh=mesh)
        known = await place(shopper, product)
        assert (await shopper.decided(known))["status"] == CONFIRMED
        await pause(mesh, "PAYMENTS", "order-payment")
        captured = await place(shopper, product)

        async def is_captured() -> bool:
            query = "SELECT FROM payments WHERE order_id = $1 AND status = 'CAPTURED'"
            return bool(await mesh.sql("payment_svc", query, captured))

        await eventually(is_captured)
        await pause(mesh, "ORDERS", "payment-order")
        waiting, late = await place(shopper, product), await place(shopper, product)
        await eventually(lambda: all_published(mesh))
    shutil.rmtree(store)
    if lost == "older copy":
        shutil.copytree(copy, store)

    async with running_mesh(state) as mesh:
        shopper = replace(shopper, mesh=mesh)
        named = "\n".join(await violations(mesh))
        for order in (known, captured, waiting, late):
            assert f"commerce.order.placed of {order}" in named, named
        # These two come to their deadline without their events.
        for order in (captured, late):
            await mesh.sql("order_svc", "UPDATE orders SET payment_deadline = now() WHERE id = $1", order)
        await eventually(partial(has_status, shopper, captured, CANCELLED))
        await eventually(partial(has_status, shopper, late, CANCELLED))
        assert await status(shopper, waiting) == PENDING
        reports = json.loads(await mesh_command("events", "backfill", "--json", state=state))
        assert sum(each["lost"] for each in reports) == sum(each["published"] for each in reports) > 0
        assert (await shopper.decided(waiting))["status"] == CONFIRMED
        assert await mesh.audit() == []
        for order, expected, paid in (
            (before, CONFIRMED, "CAPTURED"),
            (known, CONFIRMED, "CAPTURED"),
            (captured, CANCELLED, "REFUNDED"),
            (late, CANCELLED, "VOIDED"),
        ):
            assert await status(shopper, order) == expected
            assert (await payment(shopper, order))["status"] == f"PAYMENT_STATUS_{paid}"
        await mesh.stock_is(product, on_hand=7)
