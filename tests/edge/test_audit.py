"""An audit of a running mesh: it passes after orders, and finds what is then broken in each database."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta

from ops.audit import NAMES, Activity, Audit
from ops.running_mesh import RunningMesh as Mesh
from tests.running import Json, RunningMesh, Shopper, mesh_command
from tests.services import eventually


async def decided(mesh: RunningMesh) -> tuple[Mesh, str, str]:
    """The mesh at rest with one confirmed and one cancelled order; the confirmed one and its product."""
    shopper: Shopper = await mesh.shopper("tok_visa", "tok_declined")
    product = await mesh.product(10)
    placed = (await shopper.order({product: 2})).json()["id"]
    declined = (await shopper.order({product: 3}, method="tok_declined")).json()["id"]
    assert (await shopper.decided(placed))["status"] == "ORDER_STATUS_CONFIRMED"
    assert (await shopper.decided(declined))["status"] == "ORDER_STATUS_CANCELLED"
    audited = Mesh.find(mesh.state, {})
    async with Activity.of(audited) as activity:
        assert await activity.wait() == []
        assert await activity.under_way() == []
    return audited, placed, product


async def test_audit_of_a_mesh_at_rest_checks_every_order_and_finds_nothing(mesh: RunningMesh) -> None:
    since = datetime.now(UTC)
    audited, order, _ = await decided(mesh)
    report = await Audit(audited, since=since, margin=timedelta()).run()
    assert report.violations == []
    assert {name for name in NAMES if report[name].checked == 0} <= {"holds", "refunds", "deadlines"}
    await mesh.sql("product_svc", "UPDATE holds SET state = 'HELD' WHERE order_id = $1", order)
    try:
        broken = await Audit(audited, since=since, margin=timedelta()).run()
    finally:
        await mesh.sql("product_svc", "UPDATE holds SET state = 'COMMITTED' WHERE order_id = $1", order)
    assert [check.name for check in broken.checks if check.breaches] == ["reserved", "sales", "holds"]


async def test_activity_counts_orders_that_are_not_decided(mesh: RunningMesh) -> None:
    audited, order, _ = await decided(mesh)
    async with Activity.of(audited) as activity:
        await mesh.sql("order_svc", "UPDATE orders SET status = 'CANCELLING' WHERE id = $1", order)
        try:
            assert await activity.under_way() == ["1 orders are not decided"]
            assert await activity.wait(timeout_s=0.1) == ["1 orders are not decided"]
        finally:
            await mesh.sql("order_svc", "UPDATE orders SET status = 'CONFIRMED' WHERE id = $1", order)
        assert await eventually(lambda: _at_rest(activity))


async def _at_rest(activity: Activity) -> bool:
    return not await activity.under_way()


async def mesh_audit(mesh: RunningMesh, *arguments: str) -> tuple[int | None, str]:
    """The exit code and the output of `mesh audit`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ops.cli", "audit", *arguments, "--state", str(mesh.state)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_command_names_each_breach_and_exits_with_1(mesh: RunningMesh) -> None:
    product = await mesh.product(10)
    await mesh.sql("product_svc", "UPDATE stocks SET on_hand = 11 WHERE product_id = $1", product)
    try:
        (code, out), (_, text) = await asyncio.gather(
            mesh_audit(mesh, "--json", "--check", "on-hand"), mesh_audit(mesh, "--full", "--check", "on-hand")
        )
    finally:
        await mesh.sql("product_svc", "UPDATE stocks SET on_hand = 10 WHERE product_id = $1", product)
    breach = f"product {product} has 11 on hand, but its ledger says 10"
    [check] = json.loads(out)["checks"]
    assert (code, json.loads(out)["ok"], check["name"]) == (1, False, "on-hand")
    assert breach in check["violations"]
    assert f"on-hand: {breach}" in text
    assert "The mesh is broken: checked everything, until " in text
    code, out = await mesh_audit(mesh, "--check", "reserved", "--check", "refunds", "--json")
    assert (code, [check["name"] for check in json.loads(out)["checks"]]) == (0, ["reserved", "refunds"])


async def test_mesh_audits_itself_and_status_shows_the_last_result(mesh: RunningMesh) -> None:
    async def audited() -> Json | None:
        audit: Json | None = json.loads(await mesh_command("status", "--json", state=mesh.state))["audit"]
        return audit

    last = await eventually(audited)
    assert [check["name"] for check in last["checks"]] == list(NAMES)
    assert "The last audit, " in await mesh_command("status", state=mesh.state)
