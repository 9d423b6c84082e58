"""An audit of a running mesh: it passes after orders, and finds what is then broken in each database."""

from __future__ import annotations

from uuid import UUID

import pytest

from ops.audit import Activity, Audit, Scope
from ops.running_mesh import RunningMesh as Mesh
from tests.running import RunningMesh, Shopper
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


async def test_an_audit_of_a_mesh_at_rest_checks_every_order_and_finds_nothing(mesh: RunningMesh) -> None:
    audited, _, product = await decided(mesh)
    checks = {check.name: check for check in await Audit(audited).run()}
    assert checks.keys() == {"stock", "sales", "charges", "ledger", "holds"}
    assert min(checks[name].checked for name in ("stock", "sales", "charges", "ledger")) > 0
    assert [check.violations for check in checks.values()] == [[]] * 5
    narrow = await Audit(audited, Scope(customers=[], products=[UUID(product)])).run()
    assert [check.checked for check in narrow] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("role", "break_it", "repair_it", "violation"),
    [
        (
            "product_svc",
            "UPDATE stocks SET on_hand = on_hand - 1 WHERE $1::uuid IS NOT NULL AND product_id = $2",
            "UPDATE stocks SET on_hand = on_hand + 1 WHERE $1::uuid IS NOT NULL AND product_id = $2",
            "product {product} has 7 on hand, but its ledger says 8",
        ),
        (
            "order_svc",
            "UPDATE order_items SET quantity = quantity + 1 WHERE order_id = $1 AND product_id = $2",
            "UPDATE order_items SET quantity = quantity - 1 WHERE order_id = $1 AND product_id = $2",
            "1 orders have moved stock wrongly, such as {order} (CONFIRMED):",
        ),
        (
            "product_svc",
            "UPDATE holds SET state = 'HELD' WHERE order_id = $1 AND $2::uuid IS NOT NULL",
            "UPDATE holds SET state = 'COMMITTED' WHERE order_id = $1 AND $2::uuid IS NOT NULL",
            "1 decided orders still hold stock, such as {order}",
        ),
        (
            "payment_svc",
            "UPDATE sandbox.charges SET amount = amount - 1 WHERE order_id = $1 AND $2::uuid IS NOT NULL",
            "UPDATE sandbox.charges SET amount = amount + 1 WHERE order_id = $1 AND $2::uuid IS NOT NULL",
            "1 orders were charged another amount than their total, such as {order}",
        ),
        (
            "order_svc",
            "UPDATE orders SET status = 'CANCELLED' WHERE id = $1 AND $2::uuid IS NOT NULL",
            "UPDATE orders SET status = 'CONFIRMED' WHERE id = $1 AND $2::uuid IS NOT NULL",
            "1 orders are cancelled and were not refunded, such as {order}",
        ),
    ],
)
async def test_an_audit_names_what_is_broken(
    mesh: RunningMesh, role: str, break_it: str, repair_it: str, violation: str
) -> None:
    audited, order, product = await decided(mesh)
    await mesh.sql(role, break_it, order, product)
    try:
        violations = await Audit(audited).violations()
    finally:
        await mesh.sql(role, repair_it, order, product)
    assert any(violation.format(order=order, product=product) in each for each in violations), violations
    assert await Audit(audited).violations() == []


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
