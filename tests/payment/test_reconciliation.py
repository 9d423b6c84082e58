"""Reconciliation: the record of the provider is compared with the books, and nothing is corrected in silence."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from structlog.testing import capture_logs

from commerce.order.v1 import events_pb2 as order_events
from commerce.payment.v1 import payment_pb2
from payment_svc.domain import WalkName
from payment_svc.providers.protocol import Absent, ChargeRef, Inconclusive, Movement, MovementType, Record
from payment_svc.providers.sandbox import Sandbox
from tests.payment.process import House, Process, order


class WithFees(Sandbox):
    """It keeps a fee of each charge."""

    async def record(self, charge: ChargeRef) -> Record | Absent | Inconclusive:
        record = await super().record(charge)
        assert isinstance(record, Record)
        capture = record.movements[0]
        fee = Movement(MovementType.FEE, f"fee_{capture.reference}", Decimal("0.37"), capture.time)
        return Record(record.standing, [*record.movements, fee])


async def captured(house: House, process: Process, token: str = "tok_visa") -> tuple[order_events.OrderPlaced, UUID]:
    placed = order(token)
    await process.placed(placed)
    await process.idle()
    row = await house.row(placed)
    assert row["status"] == "CAPTURED"
    return placed, row["id"]


async def findings(house: House, payment_id: UUID) -> list[asyncpg.Record]:
    return await house.connection.fetch("SELECT * FROM findings WHERE payment_id = $1", payment_id)


async def refunded_elsewhere(house: House, payment_id: UUID, amount: int) -> None:
    """A refund in the record of the sandbox that nobody here has asked for."""
    await house.connection.execute(
        "WITH charge AS (UPDATE sandbox.charges SET refunded_amount = refunded_amount + $2 WHERE key = $1) "
        "INSERT INTO sandbox.refunds (key, charge_key, reference, amount, status, reason) "
        "VALUES ('elsewhere-' || $1, $1, 're-' || $1, $2, 'SUCCEEDED', '')",
        f"payment-{payment_id}",
        Decimal(amount),
    )


async def test_dispute_has_a_time_an_entry_and_an_event_once_and_nothing_else_moves(house: House) -> None:
    process = await house.process()
    placed, payment_id = await captured(house, process, "tok_dispute")
    before = await house.row(placed)
    for _ in range(3):
        assert await process.reconciliation.compare([payment_id]) == {payment_id}
    after = await house.row(placed)
    assert after["dispute_time"] > before["create_time"]
    moved = {name for name in before.keys() if before[name] != after[name]}  # noqa: SIM118  # a row has no other names
    assert moved == {"dispute_time", "version"}
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5")), ("DISPUTE", Decimal("12.5"))]
    (_, (name, _, event)) = await house.events(placed)
    assert (name, event.amount.units, event.amount.nanos) == ("disputed", 12, 500_000_000)
    assert event.payment.HasField("dispute_time")
    assert await findings(house, payment_id) == []


async def test_fee_of_the_provider_becomes_an_entry_once(house: House) -> None:
    process = await house.process(WithFees)
    placed, payment_id = await captured(house, process)
    for _ in range(2):
        await process.reconciliation.compare([payment_id])
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5")), ("FEE", Decimal("0.37"))]
    assert await house.told(placed) == ["captured"]


async def test_difference_becomes_an_entry_an_event_and_a_finding_until_both_agree(house: House) -> None:
    process = await house.process()
    placed, payment_id = await captured(house, process)
    await refunded_elsewhere(house, payment_id, 5)
    with capture_logs() as lines:
        for _ in range(3):
            assert await process.reconciliation.compare([payment_id]) == {payment_id}
    assert [line["event"] for line in lines] == ["books and provider differ"]
    # Nothing is corrected.
    row = await house.row(placed)
    assert (row["status"], row["refunded_amount"]) == ("CAPTURED", 0)
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5")), ("DIFFERENCE", Decimal(5))]
    entry = await house.connection.fetchrow(
        "SELECT * FROM payment_entries WHERE payment_id = $1 AND type = 'DIFFERENCE'", payment_id
    )
    assert entry is not None
    assert entry["note"] == "REFUND: 0 EUR in the books, 5 EUR at the provider"
    (_, (name, _, event)) = await house.events(placed)
    assert (name, event.type) == ("difference_found", payment_pb2.PAYMENT_ENTRY_TYPE_REFUND)
    assert (event.booked_amount.units, event.recorded_amount.units) == (0, 5)
    [finding] = await findings(house, payment_id)
    assert (finding["type"], finding["booked"], finding["recorded"]) == ("REFUND", 0, 5)
    assert finding["resolve_time"] is None

    await house.connection.execute("DELETE FROM sandbox.refunds WHERE charge_key = $1", f"payment-{payment_id}")
    await process.reconciliation.compare([payment_id])
    [finding] = await findings(house, payment_id)
    assert finding["resolve_time"] is not None
    await refunded_elsewhere(house, payment_id, 5)
    await process.reconciliation.compare([payment_id])
    [finding] = await findings(house, payment_id)
    assert finding["resolve_time"] is None
    assert len(await house.ledger(placed)) == 2
    assert (await house.told(placed))[2:] == ["difference_found"]


async def test_money_that_the_provider_has_or_lacks_against_the_books_is_found(house: House) -> None:
    process = await house.process()
    lacking, lacking_id = await captured(house, process)
    declined = order("tok_declined")
    await process.placed(declined)
    await process.idle()
    declined_id = (await house.row(declined))["id"]
    await house.connection.execute("DELETE FROM sandbox.charges WHERE key = $1", f"payment-{lacking_id}")
    approve = "UPDATE sandbox.charges SET status = 'APPROVED' WHERE key = $1"
    await house.connection.execute(approve, f"payment-{declined_id}")
    await process.reconciliation.compare([lacking_id, declined_id])
    found = {
        payment_id: [(row["booked"], row["recorded"]) for row in await findings(house, payment_id)]
        for payment_id in (lacking_id, declined_id)
    }
    amount = Decimal("12.5")
    assert found == {lacking_id: [(amount, 0)], declined_id: [(0, amount)]}
    assert [await house.status(each) for each in (lacking, declined)] == ["CAPTURED", "DECLINED"]


async def test_refund_without_an_outcome_is_no_difference(house: House) -> None:
    process = await house.process()
    placed, payment_id = await captured(house, process)
    # Refunded at the provider, and this process has not heard of it.
    await process.refunder.abandon()
    refund = await process.refund(await house.payment(placed), 5)
    await house.connection.execute(
        "INSERT INTO sandbox.refunds (key, charge_key, reference, amount, status, reason) "
        "VALUES ($1, $2, $1, 5, 'SUCCEEDED', '')",
        refund.provider_key,
        f"payment-{payment_id}",
    )
    await process.reconciliation.compare([payment_id])
    assert await findings(house, payment_id) == []
    # Where a webhook says that there is something new, the refund is looked up first.
    other = await house.process()
    assert await other.reconciliation.look_up([payment_id]) == {payment_id}
    assert (await house.row(placed))["refunded_amount"] == 5
    assert await findings(house, payment_id) == []


async def test_payment_that_changes_during_its_comparison_is_left_to_the_next_one(house: House) -> None:
    process = await house.process()
    placed, payment_id = await captured(house, process)
    await refunded_elsewhere(house, payment_id, 5)
    record = process.sandbox.record

    async def changing(charge: ChargeRef) -> Any:
        await house.connection.execute("UPDATE payments SET version = version + 1 WHERE id = $1", payment_id)
        return await record(charge)

    process.sandbox.record = changing  # type: ignore[method-assign]
    assert await process.reconciliation.compare([payment_id]) == set()
    assert await findings(house, payment_id) == []
    assert await house.ledger(placed) == [("CAPTURE", Decimal("12.5"))]


async def test_walks_compare_what_is_not_final_or_has_changed_in_the_last_day_in_portions(house: House) -> None:
    process = await house.process()
    made = {kind: await captured(house, process) for kind in ("kept", "refunded", "refunded long ago")}
    for kind in ("refunded", "refunded long ago"):
        await process.refund(await house.payment(made[kind][0]))
    await process.idle()
    _, long_ago = made["refunded long ago"]
    for table, column in (("payments", "id"), ("refunds", "payment_id")):
        change = f"UPDATE {table} SET process_time = now() - interval '2 days' WHERE {column} = $1"
        await house.connection.execute(change, long_ago)
    asked: list[str] = []
    record = process.sandbox.record

    async def noted(charge: ChargeRef) -> Any:
        asked.append(charge.key)
        return await record(charge)

    process.sandbox.record = noted  # type: ignore[method-assign]
    count = int(await house.connection.fetchval("SELECT count(*) FROM payments"))
    for name in WalkName:
        await house.connection.execute("UPDATE reconciliation_walks SET position = NULL WHERE name = $1", name)
        asked.clear()
        for _ in range(count // 5 + 1):
            before = len(asked)
            await process.reconciliation.sweep(name, most=5)
            assert len(asked) - before <= 5
        keys = {kind: f"payment-{payment_id}" for kind, (_, payment_id) in made.items()}
        assert {kind for kind, key in keys.items() if key in asked} == {"kept", "refunded"}
        assert len(asked) == len(set(asked))


async def test_next_round_of_a_walk_begins_when_it_is_due(house: House) -> None:
    process = await house.process()
    walk = "SELECT position IS NULL AS is_over, begin_time FROM reconciliation_walks WHERE name = 'ALL'"
    await house.connection.execute("UPDATE reconciliation_walks SET position = NULL, begin_time = '1970-01-01Z'")
    await process.reconciliation.sweep(WalkName.ALL, most=100_000)
    first = await house.connection.fetchrow(walk)
    assert first is not None
    assert first["is_over"]
    process.reconciliation._rounds = dict.fromkeys(WalkName, timedelta(hours=1))
    await process.reconciliation.sweep(WalkName.ALL, most=100_000)
    assert await house.connection.fetchrow(walk) == first
