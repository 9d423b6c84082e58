"""What becomes of an order's payment, with a real database and the sandbox's own record to check against."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID

import pytest

from commerce.payment.v1 import payment_pb2
from payment_svc.providers import Charge, Voided
from payment_svc.providers.sandbox import Sandbox
from tests.payment.process import (
    AMOUNT,
    GIVES_UP_S,
    TIMEOUT,
    Broken,
    Busy,
    Deaf,
    Dumb,
    House,
    Late,
    LateRefusal,
    order,
    sum_of,
    tell,
)
from tests.services import eventually


async def test_an_approved_order_is_captured_with_its_ledger_and_event(house: House) -> None:
    process, placed = await house.process(), order()
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert row["status"] == "CAPTURED"
    assert row["process_time"] is not None
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5"))]
    [charge] = await house.charged(placed)
    assert (charge["key"], charge["reference"]) == (row["provider_key"], row["provider_reference"])
    [(name, sequence, event)] = await house.events(placed)
    assert (name, sequence, event.payment.etag) == ("captured", row["version"], str(row["version"]))
    assert event.payment.order_id == placed.order.id
    assert event.payment.status == payment_pb2.PAYMENT_STATUS_CAPTURED
    assert event.payment.amount == AMOUNT


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [
        ("tok_visa", "CAPTURED", ""),
        ("tok_slow", "CAPTURED", ""),
        ("tok_timeout", "CAPTURED", ""),
        ("tok_flaky", "CAPTURED", ""),
        ("tok_declined", "DECLINED", "card_declined"),
        ("tok_insufficient_funds", "DECLINED", "insufficient_funds"),
    ],
)
async def test_a_token_is_charged_once_or_never_and_not_kept(
    house: House, token: str, status: str, reason: str
) -> None:
    process = await house.process(timeout=GIVES_UP_S if token == "tok_timeout" else TIMEOUT)
    placed = order(token)
    await process.placed(placed)
    row = await house.becomes(placed, status, sweeper=process)
    await process.idle()
    assert (row["failure_reason"], row["token"]) == (reason, "")
    assert len(await house.charged(placed)) == (status == "CAPTURED")
    assert await house.ledger(placed) == ([("CAPTURE", Decimal("12.5"))] if status == "CAPTURED" else [])
    assert await house.told(placed) == [status.lower()]


async def test_an_unknown_provider_declines(house: House) -> None:
    process, placed = await house.process(), order(provider="nobody")
    await process.placed(placed)
    row = await house.row(placed)
    assert (row["status"], row["failure_reason"]) == ("DECLINED", "provider_unknown")
    assert await house.told(placed) == ["declined"]


async def test_the_same_order_placed_twice_is_charged_once(house: House) -> None:
    process, placed = await house.process(), order()
    await process.placed(placed, placed)
    await asyncio.gather(process.placed(placed), process.placed(placed))
    await process.idle()
    assert await house.status(placed) == "CAPTURED"
    assert await house.asked(placed) == 1
    assert await house.told(placed) == ["captured"]


async def test_a_process_killed_before_the_provider_heard_leaves_the_charge_to_another(house: House) -> None:
    first, second, placed = await house.process(Deaf), await house.process(), order()
    await first.placed(placed)
    await first.kill()
    assert (await house.status(placed), await house.asked(placed)) == ("PENDING", 0)
    await house.becomes(placed, "CAPTURED", sweeper=second)
    assert len(await house.charged(placed)) == 1
    assert await house.asked(placed) == 1


async def test_a_process_killed_before_the_provider_answered_leaves_one_charge(house: House) -> None:
    first, second, placed = await house.process(Late, timeout=30), await house.process(), order("tok_slow")
    await first.placed(placed)
    await house.reached(placed)
    await first.kill()
    assert await house.status(placed) == "PENDING"
    await house.becomes(placed, "CAPTURED", sweeper=second)
    assert len(await house.charged(placed)) == 1
    # It was looked up, not asked for again.
    assert await house.asked(placed) == 1
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5"))]


async def test_a_process_killed_in_a_refund_leaves_one_refund(house: House) -> None:
    first, second, placed = await house.process(Dumb), await house.process(), order()
    await first.placed(placed)
    await first.idle()
    await first.cancelling(placed)

    async def refunded() -> bool:
        return bool(await house.refunds(placed))

    await eventually(refunded)
    await first.kill()
    assert await house.status(placed) == "CAPTURED"
    await house.becomes(placed, "REFUNDED", sweeper=second)
    assert await house.refunds(placed) == [Decimal("12.5")]
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5")), ("REFUND", Decimal("12.5"))]


async def test_an_unknown_outcome_is_looked_up_and_not_charged_again(house: House) -> None:
    process, placed = await house.process(Broken), order()
    await process.placed(placed)
    await process.idle()
    assert await house.status(placed) == "CAPTURED"
    assert await house.asked(placed) == 1


async def test_an_unknown_outcome_that_was_no_charge_is_charged_under_the_same_key(house: House) -> None:
    first, second, placed = await house.process(Deaf, timeout=0.05), await house.process(), order()
    await first.placed(placed)
    await first.idle()
    row = await house.row(placed)
    assert (row["status"], row["attempts"]) == ("PENDING", 1)
    await house.becomes(placed, "CAPTURED", sweeper=second)
    assert [charge["key"] for charge in await house.charged(placed)] == [row["provider_key"]]


async def test_an_order_cancelled_before_it_was_heard_of_is_never_charged(house: House) -> None:
    process, placed = await house.process(), order()
    await process.cancelling(placed)
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert (row["status"], row["amount"]) == ("VOIDED", Decimal("12.5"))
    assert str(row["customer_id"]) == placed.order.customer_id
    assert await house.asked(placed) == 0
    [(name, _, event)] = await house.events(placed)
    assert (name, event.payment.order_id) == ("voided", placed.order.id)


async def test_an_order_placed_and_cancelled_in_one_batch_is_not_charged(house: House) -> None:
    process, placed = await house.process(), order()
    await process.heard([placed], [placed])
    await process.idle()
    assert await house.status(placed) == "VOIDED"
    assert await house.asked(placed) == 0
    assert await house.told(placed) == ["voided"]


async def test_slow_charge_cancelled_in_flight_is_refunded(house: House) -> None:
    process, placed = await house.process(Late, timeout=30), order("tok_slow")
    await process.placed(placed)
    await house.reached(placed)
    await process.cancelling(placed)
    assert await house.status(placed) == "PENDING"
    tell(process)
    await process.idle()
    assert await house.status(placed) == "REFUNDED"
    assert sum_of(await house.ledger(placed)) == 0
    assert await house.refunds(placed) == [Decimal("12.5")]
    events = await house.events(placed)
    assert [name for name, _, _ in events] == ["captured", "refunded"]
    assert events[1][2].amount == AMOUNT
    assert events[0][1] < events[1][1]


async def test_charge_cancelled_by_another_process_in_flight_is_refunded_once(house: House) -> None:
    charging, other, placed = await house.process(Late, timeout=30), await house.process(), order("tok_slow")
    await charging.placed(placed)
    await house.reached(placed)
    await other.cancelling(placed)
    await other.idle()
    assert await house.status(placed) == "REFUNDED"
    tell(charging)
    await charging.idle()
    assert await house.status(placed) == "REFUNDED"
    assert await house.refunds(placed) == [Decimal("12.5")]
    assert await house.told(placed) == ["captured", "refunded"]


async def test_cancelled_capture_is_refunded_once_and_answered_every_time(house: House) -> None:
    process, placed = await house.process(), order()
    await process.placed(placed)
    await process.idle()
    await process.cancelling(placed, placed)
    await process.idle()
    assert await house.status(placed) == "REFUNDED"
    assert await house.refunds(placed) == [Decimal("12.5")]
    assert await house.told(placed) == ["captured", "refunded"]
    await process.cancelling(placed)
    await process.idle()
    assert await house.refunds(placed) == [Decimal("12.5")]
    again = (await house.events(placed))[-1]
    assert again[0] == "refunded"
    assert (again[2].amount.units, again[2].amount.nanos) == (0, 0)


async def test_a_payment_cancelled_while_the_provider_is_unavailable_is_voided_and_fenced(house: House) -> None:
    process, placed = await house.process(Busy), order()
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert (row["status"], row["attempts"]) == ("PENDING", 1)
    await process.cancelling(placed)
    await process.idle()
    assert await house.status(placed) == "VOIDED"
    assert await house.ledger(placed) == [("VOID", Decimal("12.5"))]
    assert await house.told(placed) == ["voided"]
    late = Charge(row["provider_key"], "tok_visa", Decimal("12.5"), "EUR", UUID(placed.order.id))
    assert await Sandbox(house.sandbox_database).charge(late) == Voided()
    assert await house.charged(placed) == []


async def test_a_declined_payment_answers_the_cancelling_that_crossed_it(house: House) -> None:
    process, placed = await house.process(), order("tok_declined")
    await process.placed(placed)
    await process.idle()
    await process.cancelling(placed)
    await process.idle()
    events = await house.events(placed)
    assert [name for name, _, _ in events] == ["declined", "voided"]
    assert events[0][1] < events[1][1]
    assert events[1][2].payment.status == payment_pb2.PAYMENT_STATUS_DECLINED


async def test_a_payment_declined_after_it_was_cancelled_is_voided(house: House) -> None:
    process, placed = await house.process(LateRefusal, timeout=30), order("tok_slow")
    await process.placed(placed)
    await house.reached(placed)
    await process.cancelling(placed)
    tell(process)
    await process.idle()
    assert await house.status(placed) == "VOIDED"
    assert await house.told(placed) == ["voided"]


async def test_two_processes_that_hear_of_the_same_orders_in_opposite_roles_never_deadlock(house: House) -> None:
    first, second = await house.process(), await house.process()
    for _ in range(10):
        ones, others = ([order() for _ in range(20)] for _ in range(2))
        # Of an order that one hears is placed, the other hears that it is to be cancelled.
        await asyncio.gather(first.heard(ones, others), second.heard(others, ones))
        await asyncio.gather(first.idle(), second.idle())
        for each in (*ones, *others):
            assert await house.status(each) in {"VOIDED", "REFUNDED"}, "whichever was heard of first"
