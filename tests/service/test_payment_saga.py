"""What becomes of an order's payment, with a real database and the sandbox's own record to check against."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from google.type.money_pb2 import Money
from structlog.testing import capture_logs

from commerce.order.v1 import events_pb2 as order_events
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import events_pb2, payment_pb2
from mesh.bus import Bus
from mesh.database import Database
from mesh.errors import Unavailable as DatabaseLost
from mesh.events import Received
from mesh.group_commit import GroupCommit
from mesh.ids import new_id
from mesh.outbox import Relay
from mesh.trace import Trace
from mesh.unit_of_work import UnitsOfWork
from payment_svc.charger import Charger, Settlement
from payment_svc.domain import AmountNotPositive, Due, Payment, ProviderContradiction
from payment_svc.providers import Approved, Charge, Declined, Refund, Refunded, Refused, Unavailable, Unknown, Voided
from payment_svc.providers.sandbox import Sandbox
from payment_svc.store import get_order_payment
from payment_svc.usecases import ORDER_CANCELLING, ORDER_PLACED, Payments, Settlements
from stack.servers import Servers
from tests.services import eventually

LEASE = timedelta(milliseconds=300)
SLOW = 0.5
TIMEOUT = 0.8
AMOUNT = Money(currency_code="EUR", units=12, nanos=500_000_000)
PAYLOADS: dict[str, Any] = {
    "captured": events_pb2.PaymentCaptured,
    "declined": events_pb2.PaymentDeclined,
    "voided": events_pb2.PaymentVoided,
    "refunded": events_pb2.PaymentRefunded,
}


@dataclass
class Process:
    """One process of the payment service, without its wires. `kill` it, and start another over the same database."""

    database: Database
    sandbox: Sandbox
    payments: Payments
    charger: Charger

    async def kill(self) -> None:
        await self.charger.abandon()

    async def placed(self, *orders: order_events.OrderPlaced) -> None:
        await self.heard(orders, [])

    async def cancelling(self, *orders: order_events.OrderPlaced) -> None:
        await self.heard([], orders)

    async def heard(
        self, placed: Sequence[order_events.OrderPlaced], cancelling: Sequence[order_events.OrderPlaced]
    ) -> None:
        """Both in one batch, as the consumer brings them."""
        news = [received(ORDER_PLACED, each) for each in placed]
        news += [received(ORDER_CANCELLING, order_events.OrderCancelling(order=each.order)) for each in cancelling]
        await self.payments._units.carry_out(lambda work: self.payments.on_orders(work, news))

    async def idle(self) -> None:
        """Until the charger has nothing in hand."""
        await asyncio.gather(*self.charger._tasks)


@dataclass
class House:
    """Processes over one database, and what is to be read there."""

    url: str
    connection: asyncpg.Connection
    stack: AsyncExitStack
    sandbox_database: Database

    async def process(self, kind: type[Sandbox] = Sandbox, **limits: Any) -> Process:
        database = Database(self.url, max_connections=4)
        await database.start()
        units = UnitsOfWork(database, Relay("payment", database, Bus("nats://127.0.0.1:1", name="none")))
        sandbox = kind(self.sandbox_database, slow_seconds=SLOW)
        settlements = GroupCommit[Settlement, Payment]("settlements", Settlements(units, lease=LEASE).settle)
        charger = Charger({"sandbox": sandbox}, settlements.submit, **{"timeout": TIMEOUT, **limits})
        payments = Payments(units, charger, providers={"sandbox"}, lease=LEASE)
        self.stack.push_async_callback(database.stop)
        self.stack.push_async_callback(charger.abandon)
        return Process(database, sandbox, payments, charger)

    async def row(self, order: order_events.OrderPlaced) -> asyncpg.Record:
        row = await self.connection.fetchrow("SELECT * FROM payments WHERE order_id = $1", UUID(order.order.id))
        assert row is not None
        return row

    async def payment(self, order: order_events.OrderPlaced) -> Payment:
        """The payment as a process would know it."""
        async with self.sandbox_database.reading() as reading:
            found = await get_order_payment(reading, UUID(order.order.id))
        assert found is not None
        return found

    async def call_off(self, order: order_events.OrderPlaced) -> None:
        """Call the payment off, as another process would."""
        change = "UPDATE payments SET cancel_requested = true, version = version + 1 WHERE order_id = $1"
        await self.connection.execute(change, UUID(order.order.id))

    async def status(self, order: order_events.OrderPlaced) -> str:
        return str((await self.row(order))["status"])

    async def becomes(self, order: order_events.OrderPlaced, status: str, *, sweeper: Process) -> asyncpg.Record:
        """The payment once it has `status`, while `sweeper` looks for overdue payments."""

        async def reached() -> asyncpg.Record | None:
            await sweeper.payments.sweep()
            row = await self.row(order)
            return row if row["status"] == status else None

        return await eventually(reached)

    async def charged(self, order: order_events.OrderPlaced) -> list[asyncpg.Record]:
        """What the sandbox's own record says was charged for the order."""
        return await self.connection.fetch(
            "SELECT * FROM sandbox.charges WHERE order_id = $1 AND status = 'APPROVED'", UUID(order.order.id)
        )

    async def asked(self, order: order_events.OrderPlaced) -> int:
        """How many requests for a charge reached the sandbox."""
        order_id = UUID(order.order.id)
        return int(
            await self.connection.fetchval("SELECT count(*) FROM sandbox.attempts WHERE order_id = $1", order_id)
        )

    async def reached(self, order: order_events.OrderPlaced) -> None:
        """Until the sandbox has the request for the charge."""

        async def asked() -> bool:
            return await self.asked(order) > 0

        await eventually(asked)

    async def ledger(self, order: order_events.OrderPlaced) -> list[tuple[str, Decimal]]:
        rows = await self.connection.fetch(
            "SELECT e.* FROM payment_entries e JOIN payments p ON p.id = e.payment_id "
            "WHERE order_id = $1 ORDER BY e.id",
            UUID(order.order.id),
        )
        return [(row["type"], row["amount"]) for row in rows]

    async def events(self, order: order_events.OrderPlaced) -> list[tuple[str, int, Any]]:
        rows = await self.connection.fetch(
            "SELECT o.* FROM mesh.outbox o JOIN payments p ON p.id = o.aggregate_id WHERE order_id = $1 ORDER BY seq",
            UUID(order.order.id),
        )
        found = []
        for row in rows:
            name = row["type"].removeprefix("commerce.payment.")
            found.append((name, row["sequence"], PAYLOADS[name].FromString(row["payload"])))
        return found

    async def refunds(self, order: order_events.OrderPlaced) -> list[Decimal]:
        """What the sandbox's own record says was given back for the order."""
        rows = await self.connection.fetch(
            "SELECT r.amount FROM sandbox.refunds r JOIN sandbox.charges c ON c.key = r.charge_key WHERE order_id = $1",
            UUID(order.order.id),
        )
        return [row["amount"] for row in rows]

    async def told(self, order: order_events.OrderPlaced) -> list[str]:
        return [name for name, _, _ in await self.events(order)]


@pytest.fixture
async def house(servers: Servers) -> AsyncIterator[House]:
    url = servers.postgres.url_for("payment_svc")
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        sandbox_database = Database(url, max_connections=4)
        await sandbox_database.start()
        stack.push_async_callback(sandbox_database.stop)
        yield House(url, connection, stack, sandbox_database)


def order(token: str = "tok_visa", provider: str = "sandbox") -> order_events.OrderPlaced:
    return order_events.OrderPlaced(
        order=order_pb2.Order(id=str(new_id()), customer_id=str(new_id()), total_amount=AMOUNT),
        provider=provider,
        provider_token=token,
    )


def received(event_type: str, payload: Any) -> Received[Any]:
    return Received(new_id(), event_type, UUID(payload.order.id), 1, Trace.new().traceparent, payload)


def tell(process: Process) -> None:
    """Let a late provider answer."""
    assert isinstance(process.sandbox, Late)
    process.sandbox.told.set()


def sum_of(ledger: Sequence[tuple[str, Decimal]]) -> Decimal:
    signs = {"CAPTURE": 1, "REFUND": -1, "VOID": 0}
    return sum((signs[kind] * amount for kind, amount in ledger), Decimal(0))


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
    process, placed = await house.process(), order(token)
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


class Deaf(Sandbox):
    """Requests for charges do not reach it, and nobody says so."""

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | Unavailable | Unknown:
        await asyncio.Event().wait()
        raise AssertionError(charge)


class Dumb(Sandbox):
    """It gives money back, and its answer is lost."""

    async def refund(self, refund: Refund) -> Refunded | Refused | Unavailable | Unknown:
        await super().refund(refund)
        await asyncio.Event().wait()
        raise AssertionError(refund)


class Broken(Sandbox):
    """It charges, and fails on the way back."""

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | Unavailable | Unknown:
        await super().charge(charge)
        raise ConnectionResetError("in the middle of the answer")


class Stingy(Sandbox):
    """It gives nothing back."""

    async def refund(self, refund: Refund) -> Refunded | Refused | Unavailable | Unknown:
        return Refused(f"no {refund.amount} for you")


class Late(Sandbox):
    """It answers for charges with `tok_slow` when it is told to."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{**more, "slow_seconds": 0})
        self.told = asyncio.Event()

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | Unavailable | Unknown:
        outcome = await super().charge(charge)
        if charge.token == "tok_slow":
            await self.told.wait()
        return outcome


class LateRefusal(Late):
    """It declines `tok_slow`."""

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | Unavailable | Unknown:
        outcome = await super().charge(replace(charge, token="tok_declined"))
        await self.told.wait()
        return outcome


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

    async def given_back() -> bool:
        return bool(await house.refunds(placed))

    await eventually(given_back)
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


async def test_a_slow_charge_that_is_cancelled_in_flight_is_given_back(house: House) -> None:
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


async def test_a_charge_cancelled_by_another_process_in_flight_is_given_back_once(house: House) -> None:
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


async def test_a_captured_payment_that_is_cancelled_is_given_back_once_and_answered_every_time(house: House) -> None:
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
    process, placed = await house.process(), order("tok_flaky")
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
    assert await process.sandbox.charge(late) == Voided()
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
    assert process.charger.room == 0
    for placed in orders:
        await house.becomes(placed, "CAPTURED", sweeper=process)
        assert await house.asked(placed) == 1


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


async def test_two_processes_that_hear_of_the_same_orders_in_opposite_roles_never_deadlock(house: House) -> None:
    first, second = await house.process(), await house.process()
    for _ in range(10):
        ones, others = ([order() for _ in range(20)] for _ in range(2))
        # Of an order that one hears is placed, the other hears that it is to be cancelled.
        await asyncio.gather(first.heard(ones, others), second.heard(others, ones))
        await asyncio.gather(first.idle(), second.idle())
        for each in (*ones, *others):
            assert await house.status(each) in {"VOIDED", "REFUNDED"}, "whichever was heard of first"


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
    # Charging: insert; payment, ledger and outbox in one. Cancelling: insert, lock, write; and settling again.
    assert counts[0] == {"charge": 2, "charge, sandbox": 1, "refund": 4, "refund, sandbox": 3, "commits": 4}
    assert counts[1] == counts[0]


async def test_an_outcome_that_could_not_be_written_down_is_found_again(house: House) -> None:
    process, placed = await house.process(), order()
    settle = process.charger._settle

    async def lost(_: Settlement) -> Payment:
        raise DatabaseLost("the database does not answer")

    process.charger._settle = lost
    await process.placed(placed)
    await process.idle()
    assert await house.status(placed) == "PENDING"
    process.charger._settle = settle
    await house.becomes(placed, "CAPTURED", sweeper=process)
    assert await house.asked(placed) == 1


async def test_no_token_is_logged(house: House) -> None:
    process, placed = await house.process(Broken), order("tok_visa")
    with capture_logs() as lines:
        process.payments._providers = {"sandbox", "gone"}
        await process.placed(placed, order("tok_flaky", provider="gone"))
        await process.idle()
        bad = order("tok_visa")
        bad.order.total_amount.Clear()
        with pytest.raises(AmountNotPositive) as refusal:
            await process.placed(bad)
    assert lines
    assert "tok_" not in repr(lines)
    assert "tok_" not in repr(refusal.value)


async def test_a_refused_refund_stays_due_and_is_an_error_in_the_log(house: House) -> None:
    stingy, generous, placed = await house.process(Stingy), await house.process(), order()
    await stingy.placed(placed)
    await stingy.idle()
    with capture_logs() as lines:
        await stingy.cancelling(placed)
        await stingy.idle()
    assert [line["log_level"] for line in lines if line["event"] == "payment not settled"] == ["error"]
    row = await house.row(placed)
    assert (row["status"], row["attempts"]) == ("CAPTURED", 1)
    assert await house.told(placed) == ["captured"]
    await house.becomes(placed, "REFUNDED", sweeper=generous)


async def test_a_process_that_stops_waits_for_its_calls_and_takes_no_new_ones(house: House) -> None:
    process, placed, late = await house.process(Late, timeout=30), order("tok_slow"), order()
    await process.placed(placed)
    await house.reached(placed)
    stopping = asyncio.create_task(process.charger.stop())

    async def stops() -> bool:
        return process.charger.room == 0

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
        await process.charger._settle(Settlement(payment, Due.CHARGE, Approved("ch_of_nobody")))
    assert await house.status(placed) == "VOIDED"
    assert await house.ledger(placed) == []


async def test_an_answer_that_contradicts_only_what_this_process_knows_is_written_down(house: House) -> None:
    here, there, placed = await house.process(Late, timeout=30), await house.process(), order("tok_slow")
    await here.placed(placed)
    await house.reached(placed)
    known = await house.payment(placed)
    await house.call_off(placed)
    # Nobody has called off the payment that is known here, so no provider can say that it is voided.
    voided = await there.charger._settle(Settlement(known, Due.CHARGE, Voided()))
    assert (voided.status, voided.version) == ("VOIDED", known.version + 2)
    assert await house.status(placed) == "VOIDED"
    tell(here)
    await here.charger.abandon()


async def test_a_row_that_holds_a_token_is_locked_and_never_refused_by_the_database(house: House) -> None:
    here, placed = await house.process(Late, timeout=30), order("tok_slow")
    await here.placed(placed)
    await house.reached(placed)
    known = await house.payment(placed)
    await house.call_off(placed)
    before = here.database.statements
    payment = await here.charger._settle(Settlement(known, Due.CHARGE, Unknown("no answer")))
    assert (payment.version, payment.due) == (known.version + 1, Due.VOID)
    assert here.database.statements == before + 1, "it was looked up, and is as it was found"
    tell(here)
    await here.charger.abandon()


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


async def test_the_database_refuses_a_payment_the_key_of_another(house: House) -> None:
    process, placed = await house.process(), [order(), order()]
    for each in placed:
        await process.placed(each)
    with pytest.raises(asyncpg.CheckViolationError, match="provider_key_of_one_payment"):
        await house.connection.execute("UPDATE payments SET provider_key = (SELECT min(provider_key) FROM payments)")


async def test_the_database_refuses_to_give_back_more_than_was_taken(house: House) -> None:
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
    cancelled: set[str] = set()
    processes = [await house.process(at_a_time=16), await house.process(at_a_time=16)]
    for start in range(0, len(orders), 10):
        batch = orders[start : start + 10]
        gone = [each for each in batch if chance.random() < 0.4]
        cancelled.update(each.order.id for each in gone)
        charging, calling_off = chance.sample(processes, 2)
        await asyncio.gather(charging.placed(*batch), calling_off.cancelling(*gone))
        if chance.random() < 0.5:
            await charging.kill()
            processes[processes.index(charging)] = await house.process(at_a_time=16)

    async def settled() -> bool:
        for process in processes:
            await process.payments.sweep()
        due = await house.connection.fetchval(
            "SELECT count(*) FROM payments WHERE next_attempt_time IS NOT NULL AND order_id = ANY($1)",
            [UUID(each.order.id) for each in orders],
        )
        return int(due) == 0

    await eventually(settled, within=30)
    for placed in orders:
        row, charges = await house.row(placed), await house.charged(placed)
        if placed.order.id in cancelled:
            assert row["status"] in {"VOIDED", "REFUNDED", "DECLINED"}
            assert (await house.told(placed))[-1] in {"voided", "refunded"}
        else:
            assert row["status"] == ("DECLINED" if placed.provider_token == "tok_declined" else "CAPTURED")
        assert len(charges) <= 1
        kept = sum((charge["amount"] - charge["refunded_amount"] for charge in charges), Decimal(0))
        assert kept == sum_of(await house.ledger(placed))
        assert kept == (row["amount"] if row["status"] == "CAPTURED" else 0)
        assert {charge["key"] for charge in charges} <= {row["provider_key"]}
