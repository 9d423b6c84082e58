"""`mesh events` on a running mesh, as an operator uses it."""

from __future__ import annotations

import json

from tests.running import Json, RunningMesh, mesh_command


async def test_an_operator_follows_the_events_of_an_order(mesh: RunningMesh) -> None:
    shopper = await mesh.shopper("tok_visa")
    product = await mesh.product(3)
    order = (await shopper.order({product: 1})).json()["id"]
    await shopper.decided(order)
    await mesh.stock_is(product, on_hand=2)

    async def events(*arguments: str) -> list[Json]:
        found: list[Json] = json.loads(await mesh_command("events", *arguments, "--json", state=mesh.state))
        return found

    placed, *others = await events("list", "--order", order)
    assert [each["type"] for each in (placed, *others)] == [
        "commerce.order.placed",
        "commerce.payment.captured",
        "commerce.order.confirmed",
    ]
    assert placed["payload"]["order"]["id"] == order
    # Decided, so it was charged.
    shown = await mesh_command("events", "show", placed["id"], state=mesh.state)
    assert "ce-type: commerce.order.placed" in shown
    assert f'"id": "{order}"' in shown
    assert "applied by payment-order at " in shown
    assert "in the outbox of order since " in shown
    for report in await events("backfill", "--dry-run"):
        assert (report["lost"], report["published"]) == (0, 0)
