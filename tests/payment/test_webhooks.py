"""Webhooks: hints that are stored once, in any order, and the provider is asked before anything changes."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from commerce.order.v1 import events_pb2 as order_events
from mesh.ids import new_id
from payment_svc.providers import Unknown
from payment_svc.providers.protocol import Absent, ChargeRef, Inconclusive, Record
from payment_svc.providers.sandbox import Sandbox
from tests.payment.process import Deaf, House, Process, order
from tests.services import eventually


class Silent(Sandbox):
    """Its record cannot be had now."""

    is_silent = True

    async def record(self, charge: ChargeRef) -> Record | Absent | Inconclusive:
        return Unknown("silent") if self.is_silent else await super().record(charge)


async def captured(house: House, process: Process, token: str = "tok_visa") -> tuple[order_events.OrderPlaced, UUID]:
    placed = order(token)
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert row["status"] == "CAPTURED"
    return placed, row["id"]


async def stored(house: House, event_id: str) -> list[asyncpg.Record]:
    return await house.connection.fetch("SELECT * FROM webhooks WHERE event_id = $1", event_id)


async def applied(house: House, process: Process, event_id: str) -> str:
    """The status of the webhook once it is not pending any more."""

    async def processed() -> str:
        await process.webhooks.apply("sandbox")
        [row] = await stored(house, event_id)
        return "" if row["status"] == "PENDING" else row["status"]

    return await eventually(processed)


async def test_webhook_is_stored_once_without_its_body_and_applied_by_looking_up_the_provider(house: House) -> None:
    first, second = await house.process(Deaf), await house.process()
    placed = order()
    await first.placed(placed)
    await first.kill()
    payment = await house.payment(placed)
    event_id, told = str(new_id()), {"charge_key": payment.provider_key, "name": "Ada Lovelace", "amount": "999"}
    await asyncio.gather(*(second.webhook(event_id, told) for _ in range(10)))
    [row] = await stored(house, event_id)
    assert (row["status"], row["payment_id"]) == ("PENDING", payment.id)
    assert "Ada" not in repr(row)
    # What the webhook says of amounts counts for nothing: the provider is asked, and charges what is due.
    assert await applied(house, second, event_id) == "APPLIED"
    assert (await house.status(placed), await house.ledger(placed)) == ("CAPTURED", [("CAPTURE", Decimal("12.5"))])


async def test_webhooks_of_any_kind_in_any_order_and_number_change_nothing_that_is_known(house: House) -> None:
    process = await house.process()
    placed, payment_id = await captured(house, process)
    refund = await process.refund(await house.payment(placed), 5)
    await process.idle()
    before = (dict(await house.row(placed)), await house.ledger(placed), await house.told(placed))
    key = {"charge_key": f"payment-{payment_id}"}
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (f"{payment_id}-1", "charge.captured", key),
        (f"{payment_id}-2", "refund.succeeded", {"refund_key": refund.provider_key}),
        (f"{payment_id}-3", "charge.captured", key),
        (f"{payment_id}-4", "charge.failed", key),
    ]
    sent = kinds * 10
    random.Random(4).shuffle(sent)
    for event_id, kind, told in sent:
        await process.webhook(event_id, told, kind=kind)
    for event_id, _, _ in kinds:
        assert await applied(house, process, event_id) == "APPLIED"
    assert (dict(await house.row(placed)), await house.ledger(placed), await house.told(placed)) == before


async def test_late_webhook_of_a_capture_does_not_revive_a_cancelled_order(house: House) -> None:
    first, second = await house.process(Deaf), await house.process()
    placed, event_id = order(), str(new_id())
    await first.placed(placed)
    await first.kill()
    await second.cancelling(placed)
    await second.idle()
    row = dict(await house.row(placed))
    assert row["status"] == "VOIDED"
    await second.webhook(event_id, {"charge_key": row["provider_key"]}, kind="charge.captured")
    assert await applied(house, second, event_id) == "APPLIED"
    assert dict(await house.row(placed)) == row
    assert (await house.charged(placed), await house.told(placed)) == ([], ["voided"])


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"charge_key": f"payment-{new_id()}"},
        {"refund_key": f"refund-{new_id()}"},
        {"charge_key": "of another shop"},
        {"charge_key": "payment-1"},
        {"reference": "ch_of_nobody"},
        {"charge_key": 5},
    ],
)
async def test_webhook_about_nothing_of_ours_is_stored_and_ignored(house: House, told: dict[str, Any]) -> None:
    process, event_id = await house.process(), str(new_id())
    await process.webhook(event_id, told, kind="customer.birthday")
    assert await applied(house, process, event_id) == "IGNORED"


async def test_webhook_that_names_a_charge_by_reference_is_applied_to_its_payment(house: House) -> None:
    process, event_id = await house.process(), str(new_id())
    placed, _ = await captured(house, process, "tok_dispute")
    await process.webhook(event_id, {"reference": (await house.row(placed))["provider_reference"]})
    assert await applied(house, process, event_id) == "APPLIED"
    assert (await house.row(placed))["dispute_time"] is not None


async def test_webhook_waits_until_the_provider_answers(house: House) -> None:
    process, event_id = await house.process(Silent), str(new_id())
    _, payment_id = await captured(house, process)
    await process.webhook(event_id, {"charge_key": f"payment-{payment_id}"})

    async def postponed() -> bool:
        await process.webhooks.apply("sandbox")
        [row] = await stored(house, event_id)
        assert row["status"] == "PENDING"
        return bool(row["attempts"] > 1)

    await eventually(postponed)
    assert isinstance(process.sandbox, Silent)
    process.sandbox.is_silent = False
    assert await applied(house, process, event_id) == "APPLIED"


async def test_webhooks_are_deleted_after_90_days(house: House) -> None:
    process, ages = await house.process(), {timedelta(days=89): 1, timedelta(days=91): 0}
    for age, kept in ages.items():
        event_id = str(new_id())
        await process.webhook(event_id, {})
        change = "UPDATE webhooks SET create_time = now() - $1::interval WHERE event_id = $2"
        await house.connection.execute(change, age, event_id)
        await process.webhooks.purge()
        assert len(await stored(house, event_id)) == kept
