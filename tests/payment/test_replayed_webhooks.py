"""Webhooks are shown and replayed by operators, and a replay asks the provider again."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from mesh.ids import new_id
from ops.events import WebhookFilter, find_webhooks, replay_webhooks
from tests.payment.process import House
from tests.payment.test_webhooks import applied, captured


@dataclass(frozen=True)
class MeshOf:
    """The database of the payment service, as a mesh."""

    house: House
    nats_url: str = ""

    async def connect(self, _: str) -> asyncpg.Connection:
        return await asyncpg.connect(self.house.url)


async def test_replayed_webhook_is_applied_again_with_what_the_provider_says_now(house: House) -> None:
    process, event_id = await house.process(), str(new_id())
    placed, payment_id = await captured(house, process)
    await process.webhook(event_id, {"charge_key": f"payment-{payment_id}"})
    assert await applied(house, process, event_id) == "APPLIED"
    mesh = MeshOf(house)
    (shown,) = await find_webhooks(mesh, WebhookFilter(payment=payment_id, status="APPLIED"), most=10)
    assert (shown.provider, shown.event_id, shown.payment_id) == ("sandbox", event_id, payment_id)
    assert await find_webhooks(mesh, WebhookFilter(payment=payment_id, status="IGNORED"), most=10) == []
    await house.connection.execute(
        "INSERT INTO sandbox.disputes (charge_key, reference, amount, open_time) VALUES ($1, $1, 1, now())",
        f"payment-{payment_id}",
    )
    assert await replay_webhooks(mesh, [shown.id]) == [shown.id]
    assert await replay_webhooks(mesh, [shown.id]) == [], "it waits already"
    assert await applied(house, process, event_id) == "APPLIED"
    assert (await house.row(placed))["dispute_time"] is not None
