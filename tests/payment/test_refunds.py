"""Refunds: never more than was captured, each under one key, whatever dies, is refused or comes at once."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import asyncpg
import pytest
from structlog.testing import capture_logs

from commerce.order.v1 import events_pb2 as order_events
from mesh.ids import new_id
from payment_svc.domain import Payment, RefundExceedsPayment
from tests.payment.process import DeafToRefunds, Dumb, House, Process, RefusesFirst, Stingy, order, sum_of
from tests.services import eventually, new_key


async def captured(house: House, process: Process, token: str = "tok_visa") -> tuple[order_events.OrderPlaced, Payment]:
    placed = order(token)
    await process.placed(placed)
    await process.idle()
    return placed, await house.payment(placed)


async def test_refund_is_committed_under_its_key_before_the_provider_hears_of_it(house: House) -> None:
    first, second = await house.process(DeafToRefunds), await house.process()
    placed, payment = await captured(house, first)
    refund = await first.refund(payment, 5)
    await first.kill()
    [row] = await house.refund_rows(placed)
    assert (row["id"], row["status"], row["provider_key"]) == (refund.id, "PENDING", f"refund-{refund.id}")
    assert await house.refunds(placed) == []
    after = await house.becomes(placed, "PARTIALLY_REFUNDED", sweeper=second)
    assert after["refunded_amount"] == 5
    assert [row["provider_key"] for row in await house.refund_rows(placed)] == [f"refund-{refund.id}"]
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5")), ("REFUND", Decimal(5))]


async def test_unknown_outcome_is_looked_up_under_the_same_key_and_refunded_once(house: House) -> None:
    first, second = await house.process(Dumb), await house.process()
    placed, payment = await captured(house, first)
    refund = await first.refund(payment, 5)

    async def at_the_provider() -> bool:
        return bool(await house.refunds(placed))

    await eventually(at_the_provider)
    await first.kill()
    await house.becomes(placed, "PARTIALLY_REFUNDED", sweeper=second)
    assert await house.refunds(placed) == [Decimal(5)]
    assert [(row["id"], row["status"]) for row in await house.refund_rows(placed)] == [(refund.id, "SUCCEEDED")]
    [_, (name, _, event)] = await house.events(placed)
    assert (name, event.refund_id, event.amount.units) == ("refunded", str(refund.id), 5)


async def test_refused_refund_fails_with_its_reason_and_frees_its_amount(house: House) -> None:
    process = await house.process()
    placed, payment = await captured(house, process, "tok_refund_fails")
    with capture_logs() as lines:
        refunds = [await process.refund(payment)]
        await process.idle()
        refunds.append(await process.refund(payment))
        await process.idle()
    assert [line["log_level"] for line in lines if line["event"] == "not refunded"] == ["error", "error"]
    rows = await house.refund_rows(placed)
    assert [(row["id"], row["status"], row["failure_reason"]) for row in rows] == [
        (refund.id, "FAILED", "refund_refused") for refund in refunds
    ]
    assert (await house.row(placed))["refunded_amount"] == 0
    assert await house.told(placed) == ["captured"]


async def test_key_of_a_refund_stands_for_one_refund(house: House) -> None:
    process, key = await house.process(), new_key()
    placed, payment = await captured(house, process)
    caller = str(new_id())
    refunds = await asyncio.gather(*(process.refund(payment, 5, key=key, by=caller) for _ in range(10)))
    await process.idle()
    assert len({refund.id for refund in refunds}) == 1
    assert await house.refunds(placed) == [Decimal(5)]


async def test_cancelled_order_is_refunded_what_is_left(house: House) -> None:
    process = await house.process()
    placed, payment = await captured(house, process)
    await process.refund(payment, 5)
    await process.idle()
    await process.cancelling(placed)
    await process.idle()
    assert await house.status(placed) == "REFUNDED"
    rows = await house.refund_rows(placed)
    assert [(row["amount"], row["status"], row["actor"].split(":")[0]) for row in rows] == [
        (5, "SUCCEEDED", "staff"),
        (Decimal("7.5"), "SUCCEEDED", "service"),
    ]
    assert sum_of(await house.ledger(placed)) == 0
    assert await house.told(placed) == ["captured", "refunded", "refunded"]


async def test_cancelled_order_gets_what_a_refused_refund_of_staff_has_freed(house: House) -> None:
    process = await house.process(RefusesFirst)
    placed, payment = await captured(house, process)
    await process.refund(payment, 5)
    await process.cancelling(placed)
    await house.becomes(placed, "PARTIALLY_REFUNDED", sweeper=await house.process(DeafToRefunds))
    assert [(row["amount"], row["status"]) for row in await house.refund_rows(placed)] == [
        (5, "PENDING"),
        (Decimal("7.5"), "SUCCEEDED"),
    ]
    assert isinstance(process.sandbox, RefusesFirst)
    process.sandbox.told.set()
    await house.becomes(placed, "REFUNDED", sweeper=process)
    rows = await house.refund_rows(placed)
    assert [(row["amount"], row["status"]) for row in rows] == [
        (5, "FAILED"),
        (Decimal("7.5"), "SUCCEEDED"),
        (5, "SUCCEEDED"),
    ]
    assert sum_of(await house.ledger(placed)) == 0


async def test_refund_of_a_cancelled_order_that_is_refused_is_left_to_staff(house: House) -> None:
    stingy, process = await house.process(Stingy), await house.process()
    placed, payment = await captured(house, stingy)
    await stingy.cancelling(placed)
    await stingy.idle()
    await process.cancelling(placed)
    await process.sweep()
    await process.idle()
    assert [row["status"] for row in await house.refund_rows(placed)] == ["FAILED"]
    assert await house.status(placed) == "CAPTURED"
    await process.refund(payment)
    await process.idle()
    assert await house.status(placed) == "REFUNDED"
    assert (await house.told(placed))[-1] == "refunded"


async def test_database_refuses_refunds_that_together_exceed_the_payment(house: House) -> None:
    process = await house.process(DeafToRefunds)
    placed, payment = await captured(house, process)
    await process.refund(payment, 12)
    add = (
        "INSERT INTO refunds SELECT i, p.id, {}, p.currency, p.provider, 'refund-' || i, 'PENDING', '', '', '', "
        "'test', 0, now(), now(), NULL, '', '' FROM payments p, gen_random_uuid() i WHERE p.id = $1"
    )
    with pytest.raises(asyncpg.CheckViolationError, match="exceed"):
        await house.connection.execute(add.format(1), payment.id)
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await house.connection.execute("UPDATE refunds SET amount = 1 WHERE payment_id = $1", payment.id)
    with pytest.raises(asyncpg.CheckViolationError, match="provider_key_of_one_refund"):
        await house.connection.execute("UPDATE refunds SET provider_key = 'a' WHERE payment_id = $1", payment.id)
    await house.connection.execute(add.format("0.5"), payment.id)
    with pytest.raises(RefundExceedsPayment):
        await process.refund(payment)
    assert await house.status(placed) == "CAPTURED"
