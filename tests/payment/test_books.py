"""What no fault may do to the books: the database refuses it, and a storm of faults leaves them right."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal
from uuid import UUID

import asyncpg
import pytest

from mesh.ids import new_id
from tests.payment.process import GIVES_UP_S, House, method_of, order, sum_of
from tests.services import eventually


async def test_the_ledger_cannot_be_altered(house: House) -> None:
    process, placed = await house.process(), order()
    await process.placed(placed)
    await process.idle()
    for statement in (
        "UPDATE payment_entries SET amount = 1",
        "DELETE FROM payment_entries",
        "TRUNCATE payment_entries",
    ):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await house.connection.execute(statement)


async def test_database_refuses_amounts_that_are_not_the_sums_of_the_entries(house: House) -> None:
    process, captured, pending = await house.process(), order(), order(provider="none")
    await process.placed(captured, pending)
    await process.idle()
    ids = [(await house.row(captured))["id"], (await house.row(pending))["id"]]
    entry = "INSERT INTO payment_entries VALUES (gen_random_uuid(), $1, 'REFUND', {}, 're', '', now(), 'test', '')"
    partly = "UPDATE payments SET refunded_amount = 2, status = 'PARTIALLY_REFUNDED' WHERE id = $1"
    captured_at_once = (
        "INSERT INTO payments SELECT (jsonb_populate_record(p, jsonb_build_object("
        "'id', i, 'order_id', i, 'provider_key', 'payment-' || i::text))).* "
        "FROM payments p, gen_random_uuid() i WHERE p.id = $1"
    )
    for statement, payment_id in (
        (partly, ids[0]),
        (entry.format(2), ids[0]),
        (entry.format(2), new_id()),
        (f"WITH written AS ({partly}) {entry.format(3)}", ids[0]),
        ("UPDATE payments SET status = 'CAPTURED' WHERE id = $1", ids[1]),
        (captured_at_once, ids[0]),
    ):
        with pytest.raises(asyncpg.CheckViolationError, match="has other amounts than its entries"):
            await house.connection.execute(statement, payment_id)
    for statement in ("DELETE FROM payments WHERE id = $1", "UPDATE payments SET id = gen_random_uuid() WHERE id = $1"):
        with pytest.raises(asyncpg.RaiseError, match="payments is append-only"):
            await house.connection.execute(statement, ids[1])
    await house.connection.execute(f"WITH written AS ({partly}) {entry.format(2)}", ids[0])
    assert sum_of(await house.ledger(captured)) == Decimal("10.5")


async def test_the_database_refuses_a_payment_the_key_of_another(house: House) -> None:
    process, placed = await house.process(), [order(), order()]
    for each in placed:
        await process.placed(each)
    with pytest.raises(asyncpg.CheckViolationError, match="provider_key_of_one_payment"):
        await house.connection.execute("UPDATE payments SET provider_key = (SELECT min(provider_key) FROM payments)")


async def test_database_refuses_a_refund_above_the_capture(house: House) -> None:
    process, placed = await house.process(), order()
    await process.placed(placed)
    await process.idle()
    for change in ("refunded_amount = 13, status = 'REFUNDED'", "refunded_amount = 1", "status = 'PENDING'"):
        with pytest.raises(asyncpg.CheckViolationError):
            await house.connection.execute(f"UPDATE payments SET {change} WHERE order_id = $1", UUID(placed.order.id))


async def test_a_storm_of_orders_cancellings_and_deaths_ends_with_the_books_right(house: House) -> None:
    chance = random.Random(20)
    tokens = ["tok_visa", "tok_visa", "tok_slow", "tok_timeout", "tok_flaky", "tok_declined"]
    orders = [order(chance.choice(tokens)) for _ in range(90)]
    declined = str(method_of("tok_declined"))
    cancelled: set[str] = set()
    processes = [await house.process(at_a_time=16, timeout=GIVES_UP_S) for _ in range(2)]
    for start in range(0, len(orders), 10):
        batch = orders[start : start + 10]
        gone = [each for each in batch if chance.random() < 0.4]
        cancelled.update(each.order.id for each in gone)
        charging, calling_off = chance.sample(processes, 2)
        await asyncio.gather(charging.placed(*batch), calling_off.cancelling(*gone))
        if chance.random() < 0.5:
            await charging.kill()
            processes[processes.index(charging)] = await house.process(at_a_time=16, timeout=GIVES_UP_S)

    async def decided() -> bool:
        for process in processes:
            await process.sweep()
        due = await house.connection.fetchval(
            "SELECT count(*) FROM payments p LEFT JOIN refunds r ON r.payment_id = p.id AND r.status = 'PENDING' "
            "WHERE (p.status = 'PENDING' OR r.id IS NOT NULL) AND order_id = ANY($1)",
            [UUID(each.order.id) for each in orders],
        )
        return int(due) == 0

    await eventually(decided)
    for placed in orders:
        row, charges = await house.row(placed), await house.charged(placed)
        if placed.order.id in cancelled:
            assert row["status"] in {"VOIDED", "REFUNDED", "DECLINED"}
            assert (await house.told(placed))[-1] in {"voided", "refunded"}
        else:
            assert row["status"] == ("DECLINED" if placed.order.payment_method_id == declined else "CAPTURED")
        assert len(charges) <= 1
        kept = sum((charge["amount"] - charge["refunded_amount"] for charge in charges), Decimal(0))
        assert kept == sum_of(await house.ledger(placed))
        assert kept == (row["amount"] if row["status"] == "CAPTURED" else 0)
        assert {charge["key"] for charge in charges} <= {row["provider_key"]}
