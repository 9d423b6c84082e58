"""The sandbox provider, asked directly: a key moves money once, and a void is as final as a charge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import asyncpg
import pytest

from mesh.db.database import Database
from payment_svc.providers import (
    Absent,
    Approved,
    Bounded,
    Charge,
    ChargeRef,
    Declined,
    MovementType,
    ProviderUnavailable,
    Record,
    Refunded,
    RefundRequest,
    Refused,
    Voided,
)
from payment_svc.providers.sandbox import Sandbox
from stack.servers import Servers
from tests.services import eventually

AMOUNT = Decimal("12.50")


@pytest.fixture
async def database(servers: Servers) -> AsyncIterator[Database]:
    database = Database(servers.postgres.url_for("payment_svc"), max_connections=4)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
def sandbox(database: Database) -> Sandbox:
    return Sandbox(database, slow_seconds=0.05)


def charge(token: str = "tok_visa") -> Charge:
    return Charge(f"key-{uuid4()}", token, AMOUNT, "EUR", uuid4())


def ref(asked: Charge) -> ChargeRef:
    return ChargeRef(asked.key, asked.amount, asked.currency, asked.order_id, datetime.now(UTC))


@pytest.mark.parametrize("token", ["tok_visa", "tok_slow", "tok_declined", "tok_insufficient_funds", "tok_of_nobody"])
async def test_a_key_gets_its_first_outcome_for_ever(sandbox: Sandbox, database: Database, token: str) -> None:
    asked = charge(token)
    assert await sandbox.lookup(ref(asked)) == Absent()
    first = await sandbox.charge(asked)
    assert isinstance(first, Approved if token in {"tok_visa", "tok_slow"} else Declined)
    again = await asyncio.gather(*(sandbox.charge(asked) for _ in range(5)))
    assert {*again, await sandbox.lookup(ref(asked))} == {first}
    # So it is for another process.
    assert await Sandbox(database, slow_seconds=0).charge(asked) == first


async def test_a_declined_token_says_why(sandbox: Sandbox) -> None:
    assert await sandbox.charge(charge("tok_declined")) == Declined("card_declined")
    assert await sandbox.charge(charge("tok_insufficient_funds")) == Declined("insufficient_funds")
    assert await sandbox.charge(charge("tok_of_nobody")) == Declined("token_unknown")


async def test_a_flaky_token_is_unavailable_the_first_time_and_nothing_is_charged(sandbox: Sandbox) -> None:
    asked = charge("tok_flaky")
    assert isinstance(await sandbox.charge(asked), ProviderUnavailable)
    assert await sandbox.lookup(ref(asked)) == Absent()
    assert isinstance(await sandbox.charge(asked), Approved)


async def test_a_silent_token_is_charged_and_never_answered(sandbox: Sandbox) -> None:
    asked = charge("tok_timeout")
    charging = asyncio.create_task(sandbox.charge(asked))

    async def charged() -> bool:
        return isinstance(await sandbox.lookup(ref(asked)), Approved)

    await eventually(charged)
    assert not charging.done()
    charging.cancel()


async def test_a_voided_key_is_never_charged(sandbox: Sandbox) -> None:
    asked = charge()
    assert await sandbox.void(ref(asked)) == Voided()
    assert await sandbox.charge(asked) == Voided()
    assert await sandbox.lookup(ref(asked)) == Voided()


async def test_a_charge_cannot_be_voided_and_a_declined_one_is_as_good_as_voided(sandbox: Sandbox) -> None:
    approved, declined = charge(), charge("tok_declined")
    standing = await sandbox.charge(approved)
    await sandbox.charge(declined)
    assert await sandbox.void(ref(approved)) == standing
    assert await sandbox.void(ref(declined)) == Voided()


async def test_of_a_charge_and_a_void_at_once_one_wins_and_both_hear_it(database: Database) -> None:
    one, other = Sandbox(database), Sandbox(database)
    charges = [charge() for _ in range(60)]
    pairs = await asyncio.gather(
        *(asyncio.gather(one.charge(each), other.void(ref(each))) for each in charges[:30]),
        *(asyncio.gather(one.void(ref(each)), other.charge(each)) for each in charges[30:]),
    )
    for charged, voided in pairs:
        assert charged == voided


async def test_a_refund_is_made_once_for_its_key(sandbox: Sandbox, database: Database) -> None:
    asked = charge()
    await sandbox.charge(asked)
    refund = RefundRequest(f"refund-{asked.key}", asked.key, "", AMOUNT, "EUR")
    results = await asyncio.gather(*(provider.refund(refund) for provider in (sandbox, sandbox, Sandbox(database))))
    assert len(set(results)) == 1
    assert isinstance(results[0], Refunded)
    assert await sandbox.refund(refund) == results[0]


async def test_refunds_never_exceed_the_charge(sandbox: Sandbox) -> None:
    asked = charge()
    await sandbox.charge(asked)
    parts = [RefundRequest(f"part-{number}-{asked.key}", asked.key, "", Decimal(5), "EUR") for number in range(3)]
    results = await asyncio.gather(*(sandbox.refund(part) for part in parts))
    assert sorted(type(result).__name__ for result in results) == ["Refunded", "Refunded", "Refused"]
    assert Refused("exceeds_charge") in results
    unknown = RefundRequest(f"refund-{uuid4()}", f"key-{uuid4()}", "", Decimal(1), "EUR")
    assert await sandbox.refund(unknown) == Refused("no_charge")
    voided = charge()
    await sandbox.void(ref(voided))
    late = RefundRequest(f"refund-{voided.key}", voided.key, "", Decimal(1), "EUR")
    assert await sandbox.refund(late) == Refused("no_charge")


async def test_refused_refund_stands_under_its_key(sandbox: Sandbox) -> None:
    failing, small = charge("tok_refund_fails"), charge()
    for asked in (failing, small):
        assert isinstance(await sandbox.charge(asked), Approved)
    refused = RefundRequest(f"refund-{uuid4()}", failing.key, "", Decimal(1), "EUR")
    assert await sandbox.lookup_refund(refused) == Absent()
    assert await sandbox.refund(refused) == await sandbox.lookup_refund(refused) == Refused("refund_refused")
    excess = RefundRequest(f"refund-{uuid4()}", small.key, "", AMOUNT + 1, "EUR")
    assert await sandbox.refund(excess) == Refused("exceeds_charge")
    # The key of a refused refund is never used for another.
    again = RefundRequest(excess.key, small.key, "", AMOUNT, "EUR")
    assert await sandbox.refund(again) == await sandbox.lookup_refund(excess) == Refused("exceeds_charge")
    made = RefundRequest(f"refund-{uuid4()}", small.key, "", AMOUNT, "EUR")
    assert await sandbox.refund(made) == await sandbox.lookup_refund(made)


@pytest.mark.parametrize(
    ("amount", "currency", "units"), [("100", "JPY", 100), ("1.23", "EUR", 123), ("1.234", "KWD", 1234)]
)
async def test_amounts_reach_the_sandbox_in_minor_units(
    sandbox: Sandbox, database: Database, amount: str, currency: str, units: int
) -> None:
    asked = replace(charge(), amount=Decimal(amount), currency=currency)
    assert isinstance(await sandbox.charge(asked), Approved)
    back = RefundRequest(f"refund-{asked.key}", asked.key, "", asked.amount, currency)
    assert isinstance(await sandbox.refund(back), Refunded)
    connection = await asyncpg.connect(database.url)
    sent = (
        "SELECT c.units, r.units FROM sandbox.charges c JOIN sandbox.refunds r ON r.charge_key = c.key WHERE c.key = $1"
    )
    row = await connection.fetchrow(sent, asked.key)
    await connection.close()
    assert row is not None
    assert tuple(row) == (units, units)


async def test_amount_that_the_sandbox_cannot_move_is_never_sent(database: Database) -> None:
    bounded = Bounded("sandbox", Sandbox(database, currencies=["EUR", "JPY"]))
    small, dollars = replace(charge(), amount=Decimal("0.005")), replace(charge(), currency="USD")
    assert await bounded.charge(small) == Declined("amount_not_supported")
    assert await bounded.charge(dollars) == Declined("currency_not_supported")
    assert await bounded.lookup(ref(small)) == await bounded.lookup(ref(dollars)) == Absent()
    asked = charge()
    await bounded.charge(asked)
    back = RefundRequest(f"refund-{asked.key}", asked.key, "", Decimal("0.005"), "EUR")
    assert await bounded.refund(back) == Refused("amount_not_supported")
    await bounded.breaker.stop()


async def test_record_of_a_charge_has_the_capture_and_its_refunds(sandbox: Sandbox) -> None:
    asked, declined = charge(), charge("tok_declined")
    assert await sandbox.record(ref(asked)) == Absent()
    standing = await sandbox.charge(asked)
    await sandbox.charge(declined)
    parts = [RefundRequest(f"part-{number}-{asked.key}", asked.key, "", Decimal(4), "EUR") for number in range(4)]
    made = [refund for part in parts if isinstance(refund := await sandbox.refund(part), Refunded)]
    record, nothing = await asyncio.gather(sandbox.record(ref(asked)), sandbox.record(ref(declined)))
    assert isinstance(record, Record)
    assert record.standing == standing
    assert {each.reference for each in record.movements if each.key} == {refund.reference for refund in made}
    assert {each.key for each in record.movements} == {"", *(part.key for part in parts[:3])}
    totals = [record.total(each) for each in MovementType]
    assert totals == [AMOUNT, Decimal(12), Decimal(0), Decimal(0)]
    assert nothing == Record(Declined("card_declined"), [])


async def test_every_request_for_a_charge_is_on_record(sandbox: Sandbox, database: Database) -> None:
    asked = charge("tok_flaky")
    for _ in range(3):
        await sandbox.charge(asked)
    connection = await asyncpg.connect(database.url)
    attempts = await connection.fetch("SELECT * FROM sandbox.attempts WHERE key = $1", asked.key)
    charges = await connection.fetch("SELECT * FROM sandbox.charges WHERE order_id = $1", asked.order_id)
    await connection.close()
    assert len(attempts) == 3
    assert [row["status"] for row in charges] == ["APPROVED"]
