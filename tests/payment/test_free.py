"""Payments of orders whose total is zero: captured without a provider, and voided when the order is cancelled."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import asyncpg
import pytest
from google.type.money_pb2 import Money

from commerce.order.v1 import events_pb2 as order_events
from commerce.payment.v1 import payment_pb2
from tests.payment.process import House, order

FREE = Money(currency_code="EUR")


def free(provider: str = "") -> order_events.OrderPlaced:
    """An order that costs nothing, as the order service tells of it; an earlier version may name a provider."""
    placed = order(provider=provider)
    placed.provider_token = "tok_visa" if provider else ""
    placed.order.total_amount.CopyFrom(FREE)
    return placed


@pytest.mark.parametrize("provider", ["", "sandbox"])
async def test_free_order_is_captured_at_once_and_no_provider_hears_of_it(house: House, provider: str) -> None:
    process, placed, paid = await house.process(), free(provider), order()
    await process.placed(placed, paid)
    row = await house.row(placed)
    assert (row["status"], row["amount"], row["provider"], row["token"]) == ("CAPTURED", Decimal(0), "", "")
    assert (row["provider_reference"], row["next_attempt_time"]) == ("", None)
    assert row["process_time"] == row["create_time"]
    [(name, sequence, event)] = await house.events(placed)
    assert (name, sequence) == ("captured", row["version"])
    assert event.payment.status == payment_pb2.PAYMENT_STATUS_CAPTURED
    assert (event.payment.amount, event.payment.provider) == (FREE, "")
    await process.idle()
    assert await house.asked(placed) == 0
    assert await house.ledger(placed) == []
    assert await house.status(paid) == "CAPTURED"
    assert len(await house.charged(paid)) == 1


async def test_event_of_a_free_order_that_comes_again_changes_nothing(house: House) -> None:
    process, placed = await house.process(), free()
    await process.placed(placed)
    before = await house.row(placed)
    await process.placed(placed)
    assert await house.row(placed) == before
    assert await house.told(placed) == ["captured"]


async def test_cancelled_free_order_is_voided_at_once_and_again_whenever_it_is_asked_for(house: House) -> None:
    process, placed = await house.process(), free()
    await process.placed(placed)
    await process.cancelling(placed)
    row = await house.row(placed)
    assert (row["status"], row["refunded_amount"], row["next_attempt_time"]) == ("VOIDED", Decimal(0), None)
    assert await house.told(placed) == ["captured", "voided"]
    await process.cancelling(placed)
    assert await house.row(placed) == row
    await process.idle()
    assert await house.told(placed) == ["captured", "voided", "voided"]
    assert [event.payment.etag for _, _, event in await house.events(placed)] == ["2", "3", "3"]
    assert (await house.asked(placed), await house.ledger(placed)) == (0, [])


async def test_free_order_cancelled_before_or_with_its_placing_is_voided(house: House) -> None:
    process, before, together = await house.process(), free(), free()
    await process.cancelling(before)
    await process.placed(before)
    await process.heard([together], [together])
    await process.idle()
    for placed in (before, together):
        assert await house.status(placed) == "VOIDED"
        assert (await house.told(placed))[-1] == "voided"
        assert (await house.asked(placed), await house.ledger(placed)) == (0, [])


async def test_database_refuses_a_payment_of_zero_that_a_provider_could_hear_of(house: House) -> None:
    process, placed, paid = await house.process(), free(), order()
    await process.placed(placed, paid)
    await process.idle()
    for change in ("provider = 'sandbox'", "status = 'DECLINED'", "amount = -1"):
        with pytest.raises(asyncpg.CheckViolationError):
            await house.connection.execute(f"UPDATE payments SET {change} WHERE order_id = $1", UUID(placed.order.id))
    with pytest.raises(asyncpg.CheckViolationError):
        await house.connection.execute("UPDATE payments SET amount = 0 WHERE order_id = $1", UUID(paid.order.id))
