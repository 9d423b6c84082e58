"""The payment service without its wires: its processes over one database, and providers that fail in their ways."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import NAMESPACE_OID, UUID, uuid5

import asyncpg
import orjson
from google.type.money_pb2 import Money

from commerce.order.v1 import events_pb2 as order_events
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import events_pb2, payment_pb2
from mesh.batch.group_commit import GroupCommit
from mesh.db.database import Database
from mesh.db.idempotency import IdempotencyKey
from mesh.db.paging import Pages
from mesh.db.unit_of_work import UnitsOfWork
from mesh.errors import Unavailable as CustomersAway
from mesh.events.bus import Bus
from mesh.events.cloudevents import Received
from mesh.events.relay import Relay
from mesh.ids import new_id
from mesh.observe.trace import Trace
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change
from payment_svc import wire
from payment_svc.charger import Charger, ProviderAnswer
from payment_svc.domain import NewRefund, Payment, Refund, WalkName
from payment_svc.providers import (
    Absent,
    Bounded,
    Charge,
    ChargeRef,
    Outcome,
    Provider,
    ProviderUnavailable,
    RefundOutcome,
    RefundRequest,
    Refused,
)
from payment_svc.providers.sandbox import Sandbox
from payment_svc.providers.sandbox.signatures import sign
from payment_svc.refunder import RefundAnswer, Refunder
from payment_svc.store import APPEND_HISTORY, PaymentStore, ReconciliationStore, RefundStore, WebhookStore
from payment_svc.usecases import Orders, Outcomes, Payments, Reconciliation, RefundOutcomes, Refunds, Webhooks
from tests.services import eventually

Record = Callable[[ProviderAnswer], Awaitable[Payment]]
WEBHOOK_SECRET = "secret of the tests"
LEASE = timedelta(milliseconds=300)
SLOW = 0.5
TIMEOUT = 10.0
"""Seconds that no call takes, so that an answer is not lost because the machine is busy."""
GIVES_UP_S = 0.8
"""Seconds after which a provider that never answers is given up."""
TOKENS = (
    "tok_visa",
    "tok_declined",
    "tok_insufficient_funds",
    "tok_slow",
    "tok_timeout",
    "tok_flaky",
    "tok_refund_fails",
    "tok_dispute",
    "tok_3ds",
    "tok_late_capture",
)
AMOUNT = Money(currency_code="EUR", units=12, nanos=500_000_000)
PAYLOADS: dict[str, Any] = {
    "action_required": events_pb2.PaymentActionRequired,
    "captured": events_pb2.PaymentCaptured,
    "declined": events_pb2.PaymentDeclined,
    "voided": events_pb2.PaymentVoided,
    "refunded": events_pb2.PaymentRefunded,
    "disputed": events_pb2.PaymentDisputed,
    "difference_found": events_pb2.PaymentDifferenceFound,
}


def _nothing(_: None) -> payment_pb2.ReceiveWebhookResponse:
    return payment_pb2.ReceiveWebhookResponse()


def method_of(token: str) -> UUID:
    """The payment method that stands for a token."""
    return uuid5(NAMESPACE_OID, token)


class Wallets:
    """The customer service, with a payment method for each token."""

    def __init__(self) -> None:
        self.tokens = {method_of(token): token for token in TOKENS}
        self.asked: list[UUID] = []
        """The orders whose tokens were asked for."""
        self.is_away = False

    async def token_of(self, payment: Payment) -> str | None:
        self.asked.append(payment.order_id)
        if self.is_away:
            raise CustomersAway("the customer service cannot be reached")
        return self.tokens.get(payment.payment_method_id) if payment.payment_method_id else None


class Recorder:
    """Records what a provider has answered, unless a test puts something in its place."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.instead: Record | None = None

    async def __call__(self, answer: ProviderAnswer) -> Payment:
        return await (self.instead or self._record)(answer)


@dataclass
class Process:
    """One process of the payment service, without its wires. `kill` it, and start another over the same database."""

    database: Database
    sandbox: Sandbox
    called: Mapping[str, Bounded]
    """The providers that it calls, by name."""
    units: UnitsOfWork
    payments: Payments
    orders: Orders
    refunds: Refunds
    webhooks: Webhooks
    reconciliation: Reconciliation
    charger: Charger
    refunder: Refunder
    record: Recorder

    async def kill(self) -> None:
        await self.charger.abandon()
        await self.refunder.abandon()

    async def placed(self, *orders: order_events.OrderPlaced) -> None:
        await self.heard(orders, [])

    async def cancelling(self, *orders: order_events.OrderPlaced) -> None:
        await self.heard([], orders)

    async def heard(
        self, placed: Sequence[order_events.OrderPlaced], cancelling: Sequence[order_events.OrderPlaced]
    ) -> None:
        """Both in one batch, as the consumer brings them."""
        events = [received(wire.order_placed(each)) for each in placed]
        events += [
            received(wire.order_cancelling(order_events.OrderCancelling(order=each.order))) for each in cancelling
        ]
        await self.units.run_optimistically(lambda work: self.orders.apply(work, events))

    async def refund(self, payment: Payment, amount: int | None = None, *, key: str = "", by: str = "") -> Refund:
        """A refund by staff, once it is committed. The provider may not have answered yet."""
        caller = Caller(Kind.STAFF, by or str(new_id()))
        request = payment_pb2.RefundPaymentRequest(payment_id=str(payment.id), reason="broken")
        call = Call(
            "RefundPayment",
            deadline=asyncio.get_running_loop().time(),
            caller=caller,
            key=IdempotencyKey.of(key, caller, "RefundPayment", request) if key else None,
        )
        change: Change[tuple[Payment, Refund]] = Change(
            call,
            lambda made: payment_pb2.RefundPaymentResponse(
                payment=wire.payment(made[0]), refund=wire.refund(made[1], with_reason=True)
            ),
        )
        wanted = NewRefund(payment.id, None if amount is None else Decimal(amount), payment.currency, "broken")
        return (await self.refunds.refund_payment(change, wanted, wire.refund_id)).value[1]

    async def webhook(
        self, event_id: str, told: dict[str, Any], *, kind: str = "charge.changed", secret: str = WEBHOOK_SECRET
    ) -> None:
        """The sandbox sends a webhook."""
        body = orjson.dumps({"type": kind, "data": told})
        headers = sign(secret, event_id, body, now=self.units.now())
        change: Change[None] = Change(Call("ReceiveWebhook", metadata=headers), _nothing)
        await self.webhooks.receive_webhook(change, "sandbox", body)

    async def sweep(self) -> None:
        """Look for overdue payments and refunds."""
        await self.payments.sweep()
        await self.refunds.sweep()

    async def idle(self) -> None:
        """Until neither the charger nor the refunder has anything in hand."""
        await self.charger.idle()
        await self.refunder.idle()


@dataclass
class House:
    """Processes over one database, and what is to be read there."""

    url: str
    connection: asyncpg.Connection
    stack: AsyncExitStack
    sandbox_database: Database
    wallets: Wallets = field(default_factory=Wallets)

    async def process(
        self,
        kind: type[Sandbox] = Sandbox,
        *,
        providers: Collection[str] = (),
        others: Mapping[str, Provider] | None = None,
        at_a_time: int = 256,
        timeout: float = TIMEOUT,
        most: int = 4096,
        action_seconds: float = 3600,
    ) -> Process:
        database = Database(self.url, max_connections=4)
        await database.start()
        relay = Relay("payment", database, Bus("nats://127.0.0.1:1", name="none"))
        units, store = UnitsOfWork(database, relay, event_of=wire.event, history=APPEND_HISTORY), PaymentStore()
        sandbox = kind(
            self.sandbox_database,
            slow_seconds=SLOW,
            action_seconds=action_seconds,
            dispute_seconds=0,
            webhook_secret=WEBHOOK_SECRET,
        )
        called = {
            name: Bounded(name, each, at_a_time=at_a_time, timeout=timeout)
            for name, each in {"sandbox": sandbox, **(others or {})}.items()
        }
        pages, refund_store = Pages(b"secret of the tests"), RefundStore()
        answers = RefundOutcomes(units, store, refund_store)
        refund_outcomes = GroupCommit[RefundAnswer, Refund]("refund outcomes", answers.record)
        refunder = Refunder(called, refund_outcomes.submit, most=most, timeout=timeout)
        providers = providers or called.keys()
        refunds = Refunds(units, store, refund_store, refunder, pages, providers=providers, lease=LEASE)
        recorder = Outcomes(units, store, refund_store, refunder, lease=LEASE)
        outcomes = GroupCommit[ProviderAnswer, Payment]("outcomes", recorder.record)
        record = Recorder(outcomes.submit)
        charger = Charger(called, self.wallets.token_of, record, most=most, timeout=timeout)
        payments = Payments(units, store, charger, pages, providers=providers, lease=LEASE)
        orders = Orders(units, store, refund_store, charger, refunder, providers=providers, lease=LEASE)
        reconciliation = Reconciliation(
            units,
            store,
            refund_store,
            ReconciliationStore(),
            charger,
            refunder,
            providers=called,
            rounds=dict.fromkeys(WalkName, timedelta(0)),
            timeout=timeout,
        )
        webhooks = Webhooks(units, WebhookStore(), store, refund_store, reconciliation, providers=called, lease=LEASE)
        self.stack.push_async_callback(database.stop)
        self.stack.push_async_callback(charger.abandon)
        self.stack.push_async_callback(refunder.abandon)
        for each in called.values():
            self.stack.push_async_callback(each.breaker.stop)
        return Process(
            database,
            sandbox,
            called,
            units,
            payments,
            orders,
            refunds,
            webhooks,
            reconciliation,
            charger,
            refunder,
            record,
        )

    async def row(self, order: order_events.OrderPlaced) -> asyncpg.Record:
        row = await self.connection.fetchrow("SELECT * FROM payments WHERE order_id = $1", UUID(order.order.id))
        assert row is not None
        return row

    async def payment(self, order: order_events.OrderPlaced) -> Payment:
        """The payment as a process would know it."""
        async with self.sandbox_database.reading() as reading:
            return await PaymentStore().read_of_order(reading, UUID(order.order.id))

    async def call_off(self, order: order_events.OrderPlaced) -> None:
        """Call the payment off, as another process would."""
        change = "UPDATE payments SET cancel_requested = true, version = version + 1 WHERE order_id = $1"
        await self.connection.execute(change, UUID(order.order.id))

    async def status(self, order: order_events.OrderPlaced) -> str:
        return str((await self.row(order))["status"])

    async def becomes(self, order: order_events.OrderPlaced, status: str, *, sweeper: Process) -> asyncpg.Record:
        """The payment once it has `status`, while `sweeper` looks for overdue payments."""

        async def reached() -> asyncpg.Record | None:
            await sweeper.sweep()
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
        """What the sandbox's own record says was refunded for the order."""
        rows = await self.connection.fetch(
            "SELECT r.amount FROM sandbox.refunds r JOIN sandbox.charges c ON c.key = r.charge_key "
            "WHERE order_id = $1 AND r.status = 'SUCCEEDED'",
            UUID(order.order.id),
        )
        return [row["amount"] for row in rows]

    async def refund_rows(self, order: order_events.OrderPlaced) -> list[asyncpg.Record]:
        """The refunds of the order's payment, oldest first."""
        return await self.connection.fetch(
            "SELECT r.* FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE order_id = $1 ORDER BY r.id",
            UUID(order.order.id),
        )

    async def told(self, order: order_events.OrderPlaced) -> list[str]:
        return [name for name, _, _ in await self.events(order)]


def order(token: str = "tok_visa", provider: str = "sandbox") -> order_events.OrderPlaced:
    return order_events.OrderPlaced(
        order=order_pb2.Order(
            id=str(new_id()),
            customer_id=str(new_id()),
            total_amount=AMOUNT,
            payment_method_id=str(method_of(token)),
        ),
        provider=provider,
    )


def with_token(token: str) -> order_events.OrderPlaced:
    """An order placed before ADR-0035, when its event carried the token."""
    placed = order(token)
    placed.provider_token = token
    return placed


def received(payload: Any) -> Received[Any]:
    return Received(new_id(), "", payload.payment.order_id, 1, Trace.new().traceparent, payload)


def tell(process: Process) -> None:
    """Let a late provider answer."""
    assert isinstance(process.sandbox, Late)
    process.sandbox.told.set()


def sum_of(ledger: Sequence[tuple[str, Decimal]]) -> Decimal:
    signs = {"CAPTURE": 1, "REFUND": -1, "VOID": 0}
    return sum((signs[kind] * amount for kind, amount in ledger), Decimal(0))


class Deaf(Sandbox):
    """Requests for charges do not reach it, and nobody says so."""

    async def charge(self, charge: Charge) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError(charge)


class Stopped(Sandbox):
    """Its process can be stopped and continued: meanwhile nothing reaches it, and nothing comes back."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.goes_on = asyncio.Event()
        self.asked = 0

    async def probe(self) -> None:
        await self.goes_on.wait()

    async def charge(self, charge: Charge) -> Outcome:
        self.asked += 1
        await self.goes_on.wait()
        return await super().charge(charge)

    async def lookup(self, charge: ChargeRef) -> Outcome | Absent:
        self.asked += 1
        await self.goes_on.wait()
        return await super().lookup(charge)


class Busy(Sandbox):
    """It is never ready to charge."""

    async def charge(self, charge: Charge) -> Outcome:
        return ProviderUnavailable(f"{charge.key} must wait")


class DeafToRefunds(Sandbox):
    """Requests for refunds do not reach it, and nobody says so."""

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        await asyncio.Event().wait()
        raise AssertionError(refund)


class RefusesFirst(Sandbox):
    """It refuses the first refund that it is asked for, when the test lets it answer."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.told = asyncio.Event()
        self._asked = 0

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        self._asked += 1
        if self._asked > 1:
            return await super().refund(refund)
        await self.told.wait()
        return Refused("not today")


class Dumb(Sandbox):
    """It gives money back, and its answer is lost."""

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        await super().refund(refund)
        await asyncio.Event().wait()
        raise AssertionError(refund)


class Broken(Sandbox):
    """It charges, and fails on the way back."""

    async def charge(self, charge: Charge) -> Outcome:
        await super().charge(charge)
        raise ConnectionResetError("in the middle of the answer")


class Stingy(Sandbox):
    """It gives nothing back."""

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        return Refused(f"no {refund.amount} for you")


class Late(Sandbox):
    """It answers for charges with `tok_slow` when the test lets it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **{**more, "slow_seconds": 0})
        self.told = asyncio.Event()

    async def charge(self, charge: Charge) -> Outcome:
        outcome = await super().charge(charge)
        if charge.token == "tok_slow":
            await self.told.wait()
        return outcome


class LateAction(Sandbox):
    """It says that the customer must act when the test lets it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.told = asyncio.Event()

    async def charge(self, charge: Charge) -> Outcome:
        outcome = await super().charge(charge)
        await self.told.wait()
        return outcome


class LateRefusal(Late):
    """It declines `tok_slow`."""

    async def charge(self, charge: Charge) -> Outcome:
        outcome = await super().charge(replace(charge, token="tok_declined"))
        await self.told.wait()
        return outcome
