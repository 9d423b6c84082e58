"""Who asks the provider, how often and when, and what is made of answers that are late, lost or wrong."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from commerce.order.v1 import events_pb2 as order_events
from mesh.errors import Unavailable as DatabaseLost
from payment_svc.charger import ProviderAnswer
from payment_svc.domain import AmountInvalid, Due, Payment, ProviderContradiction
from payment_svc.providers import Approved, Unknown, Voided
from tests.payment.process import Broken, Deaf, House, Late, Stopped, order, tell, with_token
from tests.services import eventually


async def test_slow_payments_keep_no_other_waiting(house: House) -> None:
    process, slow, quick = await house.process(Late, timeout=30), [order("tok_slow") for _ in range(50)], order()
    await process.placed(*slow, quick)

    async def captured() -> bool:
        return await house.status(quick) == "CAPTURED"

    await eventually(captured)
    assert {await house.status(each) for each in slow} == {"PENDING"}
    tell(process)
    await process.idle()
    assert {await house.status(each) for each in slow} == {"CAPTURED"}


async def test_what_the_charger_has_no_room_for_is_charged_later(house: House) -> None:
    process, orders = await house.process(most=3, at_a_time=2), [order() for _ in range(20)]
    await process.placed(*orders)
    assert process.charger.room("sandbox") == 0
    for placed in orders:
        await house.becomes(placed, "CAPTURED", sweeper=process)
        assert await house.asked(placed) == 1


async def test_provider_that_stops_delays_no_payment_of_another_and_finishes_its_own_when_it_continues(
    house: House,
) -> None:
    stopped = Stopped(house.sandbox_database)
    process = await house.process(others={"stopped": stopped}, at_a_time=2, most=5, timeout=30)
    waiting, others = [order(provider="stopped") for _ in range(12)], [order() for _ in range(12)]
    await process.placed(*waiting)

    async def given_up() -> bool:
        await process.sweep()
        return not process.called["stopped"].is_available

    await eventually(given_up)
    await process.placed(*others)
    for each in others:
        await house.becomes(each, "CAPTURED", sweeper=process)
    assert {await house.status(each) for each in waiting} == {"PENDING"}
    asked = stopped.asked
    await process.sweep()
    await process.idle()
    assert stopped.asked == asked, "it gives no sign of life, so it is not called"
    stopped.goes_on.set()
    for each in waiting:
        await house.becomes(each, "CAPTURED", sweeper=process)
        assert len(await house.charged(each)) == 1


async def test_two_processes_that_sweep_at_once_charge_each_payment_once(house: House) -> None:
    dead, first, second = await house.process(Deaf), await house.process(), await house.process()
    orders = [order() for _ in range(40)]
    await dead.placed(*orders)
    await dead.kill()
    for placed in orders:

        async def captured(placed: order_events.OrderPlaced = placed) -> bool:
            await asyncio.gather(first.payments.sweep(most=7), second.payments.sweep(most=7))
            return await house.status(placed) == "CAPTURED"

        await eventually(captured)
        assert len(await house.charged(placed)) == 1
        assert await house.told(placed) == ["captured"]


async def test_statements_do_not_grow_with_the_batch(house: House) -> None:
    counts = []
    for size in (1, 64):
        process, orders = await house.process(), [order() for _ in range(size)]
        began, began_sandbox = process.database.statements, house.sandbox_database.statements
        await process.placed(*orders)
        await process.idle()
        charged, charged_sandbox = process.database.statements, house.sandbox_database.statements
        await process.cancelling(*orders)
        await process.idle()
        assert {await house.status(each) for each in orders} == {"REFUNDED"}
        counts.append(
            {
                "charge": charged - began,
                "charge, sandbox": charged_sandbox - began_sandbox,
                "refund": process.database.statements - charged,
                "refund, sandbox": house.sandbox_database.statements - charged_sandbox,
                "commits": process.database.commits,
            }
        )
    # Charging: insert; payment, ledger and outbox in one. Cancelling: insert, lock, pending refunds, write.
    # Recording a refund: two locks and a write.
    assert counts[0] == {"charge": 2, "charge, sandbox": 1, "refund": 7, "refund, sandbox": 3, "commits": 4}
    assert counts[1] == counts[0]


async def test_an_outcome_that_could_not_be_written_down_is_found_again(house: House) -> None:
    process, placed = await house.process(), order()

    async def lost(_: ProviderAnswer) -> Payment:
        raise DatabaseLost("the database does not answer")

    process.record.instead = lost
    await process.placed(placed)
    await process.idle()
    assert await house.status(placed) == "PENDING"
    process.record.instead = None
    await house.becomes(placed, "CAPTURED", sweeper=process)
    assert await house.asked(placed) == 1


async def test_no_token_is_logged(house: House) -> None:
    process = await house.process(Broken, providers=("sandbox", "gone"))
    placed = order("tok_visa")
    with capture_logs() as lines:
        await process.placed(placed, order("tok_flaky", provider="gone"))
        await process.idle()
        bad = order("tok_visa")
        bad.order.total_amount.Clear()
        with pytest.raises(AmountInvalid) as refusal:
            await process.placed(bad)
    assert lines
    assert "tok_" not in repr(lines)
    assert "tok_" not in repr(refusal.value)


async def test_a_process_that_stops_waits_for_its_calls_and_takes_no_new_ones(house: House) -> None:
    process, placed, late = await house.process(Late, timeout=30), order("tok_slow"), order()
    await process.placed(placed)
    await house.reached(placed)
    stopping = asyncio.create_task(process.charger.stop())

    async def stops() -> bool:
        return process.charger.room("sandbox") == 0

    await eventually(stops)
    await process.placed(late)
    tell(process)
    await stopping
    assert await house.status(placed) == "CAPTURED"
    assert (await house.status(late), await house.asked(late)) == ("PENDING", 0)
    await house.becomes(late, "CAPTURED", sweeper=await house.process())


async def test_an_answer_that_contradicts_the_books_changes_nothing(house: House) -> None:
    process, placed = await house.process(), order()
    await process.cancelling(placed)
    payment = await house.payment(placed)
    with pytest.raises(ProviderContradiction):
        await process.record(ProviderAnswer(payment, Due.CHARGE, Approved("ch_of_nobody")))
    assert await house.status(placed) == "VOIDED"
    assert await house.ledger(placed) == []


async def test_an_answer_that_contradicts_only_what_this_process_knows_is_written_down(house: House) -> None:
    here, there, placed = await house.process(Late, timeout=30), await house.process(), order("tok_slow")
    await here.placed(placed)
    await house.reached(placed)
    known = await house.payment(placed)
    await house.call_off(placed)
    # Nobody has called off the payment that is known here, so no provider can say that it is voided.
    voided = await there.record(ProviderAnswer(known, Due.CHARGE, Voided()))
    assert (voided.status, voided.version) == ("VOIDED", known.version + 2)
    assert await house.status(placed) == "VOIDED"
    tell(here)
    await here.charger.abandon()


async def test_a_row_that_holds_a_token_is_locked_and_never_refused_by_the_database(house: House) -> None:
    here, placed = await house.process(Late, timeout=30), with_token("tok_slow")
    await here.placed(placed)
    await house.reached(placed)
    known = await house.payment(placed)
    await house.call_off(placed)
    before = here.database.statements
    payment = await here.record(ProviderAnswer(known, Due.CHARGE, Unknown("no answer")))
    assert (payment.version, payment.due) == (known.version + 1, Due.VOID)
    assert here.database.statements == before + 1, "it was looked up, and is as it was found"
    tell(here)
    await here.charger.abandon()
