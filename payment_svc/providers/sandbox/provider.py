"""The sandbox provider: no money moves, and everything else is as with a real one.

It keeps a durable record of its own, in transactions of its own, and does not know the service's tables. One row a
key: the first to write it, a charge or a void, decides for good what the key stands for, except for the open charges of
two tokens (`OPEN`). What the token asks for (slowness, silence) happens after that, on the way back to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

from pydantic import BaseModel, ValidationError

from mesh.batch.group_commit import GroupCommit
from mesh.db.database import Database, Row, Transaction
from mesh.ids import new_id
from mesh.rpc.validation.money import MINOR_UNITS
from payment_svc.providers.minor_units import MinorUnits
from payment_svc.providers.protocol import (
    Absent,
    ActionRequired,
    Approved,
    Charge,
    ChargeRef,
    Declined,
    Inconclusive,
    Movement,
    MovementType,
    NextAction,
    Outcome,
    ProviderUnavailable,
    Record,
    Refunded,
    RefundOutcome,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
    Webhook,
    WebhookSignatureInvalid,
)
from payment_svc.providers.sandbox.sender import Sender
from payment_svc.providers.sandbox.settings import SandboxSettings
from payment_svc.providers.sandbox.signatures import ID, is_signed
from payment_svc.providers.sandbox.tables import (
    ADD_DISPUTES,
    ADD_REFUNDS,
    ADD_WEBHOOKS,
    CHARGES,
    DECIDE,
    DISPUTES_OF_CHARGES,
    LOCK_AGES,
    LOCK_CHARGES,
    LOG_ATTEMPTS,
    OPEN,
    REFUNDS,
    REFUNDS_OF_CHARGES,
    TRIED,
    WRITE_REFUNDED,
    WRITE_STATUSES,
    Status,
)

NAME = "sandbox"
REFUSALS = {"tok_declined": "card_declined", "tok_insufficient_funds": "insufficient_funds"}
"""The tokens that are declined, and why."""
SLOW, SILENT, FLAKY = "tok_slow", "tok_timeout", "tok_flaky"
"""The tokens that are charged in a way of their own."""
REFUND_FAILS = "tok_refund_fails"
"""The token that is charged, and whose refunds are all refused."""
DISPUTE = "tok_dispute"
"""The token that is charged, and disputed some seconds later."""
APPROVED = frozenset({"tok_visa", SLOW, SILENT, FLAKY, REFUND_FAILS, DISPUTE})
"""The tokens that are charged; any other is declined as unknown."""
OPENED = {"tok_3ds": Status.ACTION_REQUIRED, "tok_late_capture": Status.PROCESSING}
"""The tokens whose charges are open at first: the customer must act; or the capture comes when it is to be voided."""


_Standing = Approved | Declined | Voided | ActionRequired | Unknown
"""What a key can stand for; Unknown while the charge is being processed."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What a key shall stand for unless it stands for something already."""

    key: str
    charge: Charge | None
    """None for a void."""
    units: int | None = None
    """The amount of the charge in minor units."""

    @property
    def row(self) -> tuple[Any, ...]:
        """The row that it would have, in the order of `DECIDE`."""
        charge = self.charge
        reference = f"ch_{new_id().hex}"
        if charge is None:
            return self.key, Status.VOIDED, reference, "", None, None, None, None, None
        status = Status.APPROVED if charge.token in APPROVED else OPENED.get(charge.token, Status.DECLINED)
        return (
            self.key,
            status,
            reference,
            REFUSALS.get(charge.token, "token_unknown") if status is Status.DECLINED else "",
            charge.token,
            charge.amount,
            self.units,
            charge.currency,
            charge.order_id,
        )


class _Hints(BaseModel):
    """What a webhook is about."""

    charge_key: str = ""
    refund_key: str = ""
    reference: str = ""


class _Told(BaseModel):
    """The body of a webhook."""

    type: str = ""
    data: _Hints = _Hints()


class Sandbox:
    """The provider `sandbox`, with its record in `database`, which it starts and stops.

    `slow_seconds` is how long it takes to answer for `tok_slow`, `action_seconds` how long a customer with `tok_3ds`
    takes to act, and `dispute_seconds` how long after its charge a payment with `tok_dispute` is disputed. Its webhooks
    are signed with `webhook_secret` and sent to `webhook_url`. It takes the `currencies`, or all of ISO 4217 if there
    are none.
    """

    def __init__(
        self,
        database: Database,
        *,
        slow_seconds: float = 2.0,
        action_seconds: float = 5.0,
        dispute_seconds: float = 3.0,
        webhook_secret: str = "",
        webhook_url: str = "",
        currencies: Collection[str] = (),
    ) -> None:
        self.minor_units = MinorUnits(
            {code: decimals for code, decimals in MINOR_UNITS.items() if not currencies or code in currencies}
        )
        self._database = database
        self._slow_seconds = slow_seconds
        self._action_time = timedelta(seconds=action_seconds)
        self._dispute_after = timedelta(seconds=dispute_seconds)
        self._webhook_secret = webhook_secret
        self._sender = Sender(database, url=webhook_url, secret=webhook_secret)
        self._decisions = GroupCommit[_Request, _Standing | ProviderUnavailable]("sandbox charges", self._decide)
        self._refunds = GroupCommit[RefundRequest, Refunded | Refused]("sandbox refunds", self._refund_batch)
        self._refund_lookups = GroupCommit[str, Refunded | Refused | Absent](
            "sandbox look-ups of refunds", self._look_up_refunds
        )
        self._lookups = GroupCommit[str, _Standing | Absent]("sandbox look-ups", self._look_up)
        self._records = GroupCommit[str, Record | Absent | Unknown]("sandbox records", self._read_records)

    @classmethod
    def of(cls, settings: SandboxSettings) -> Sandbox:
        """The sandbox that the settings describe."""
        url = settings.database_url.get_secret_value()
        database = Database(url, max_connections=settings.sandbox_connections)
        return cls(
            database,
            slow_seconds=settings.sandbox_slow_seconds,
            action_seconds=settings.sandbox_action_seconds,
            dispute_seconds=settings.sandbox_dispute_seconds,
            webhook_secret=settings.sandbox_webhook_secret.get_secret_value(),
            webhook_url=settings.sandbox_webhook_url,
            currencies=settings.sandbox_currencies,
        )

    async def start(self) -> None:
        """Connect to its record, and begin to send webhooks."""
        await self._database.start()
        await self._sender.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._sender.stop()
        await self._database.stop()

    async def probe(self) -> None:
        """As the protocol says. Raises Unavailable."""
        await self._database.check()

    async def charge(self, charge: Charge) -> Outcome:
        """As the protocol says; the token tells how it goes."""
        units = self.minor_units.of(charge.amount, charge.currency)
        standing = await self._decisions.submit(_Request(charge.key, charge, units))
        if charge.token == SLOW:
            await asyncio.sleep(self._slow_seconds)
        elif charge.token == SILENT:
            # The charge stands, and the answer never comes.
            await asyncio.Event().wait()
        return standing

    async def lookup(self, charge: ChargeRef) -> Outcome | Absent:
        """As the protocol says."""
        return await self._lookups.submit(charge.key)

    async def void(self, charge: ChargeRef) -> Approved | Voided | Inconclusive:
        """As the protocol says. A declined charge counts as voided: no money will be taken under its key."""
        standing = await self._decisions.submit(_Request(charge.key, None))
        assert not isinstance(standing, ActionRequired), "an open charge is voided"
        return Voided() if isinstance(standing, Declined) else standing

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        """As the protocol says. A refusal stands under the key like a refund, unless there is no charge."""
        # A fault is this refund's, and not that of the others in its batch.
        self.minor_units.of(refund.amount, refund.currency)
        return await self._refunds.submit(refund)

    async def lookup_refund(self, refund: RefundRequest) -> RefundOutcome | Absent:
        """As the protocol says."""
        return await self._refund_lookups.submit(refund.key)

    async def record(self, charge: ChargeRef) -> Record | Absent | Inconclusive:
        """As the protocol says."""
        return await self._records.submit(charge.key)

    def parse_webhook(self, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Webhook:
        """As the protocol says: `{"type": …, "data": {"charge_key": …, "refund_key": …, "reference": …}}`.

        All of `data` is optional. A body of another form is of no known type.
        """
        if not is_signed(self._webhook_secret, headers, body, now=now):
            raise WebhookSignatureInvalid(NAME)
        try:
            told = _Told.model_validate_json(body)
        except ValidationError:
            told = _Told()
        data = told.data
        return Webhook(headers[ID], told.type, data.charge_key, data.refund_key, data.reference)

    async def _decide(self, batch: Sequence[_Request]) -> list[_Standing | ProviderUnavailable]:
        """What stands under each key from now on: the request, or what was there before."""
        asked = [request.charge for request in batch if request.charge is not None]
        async with self._database.transaction() as transaction:
            unready = await self._unready(transaction, asked)
            transaction.add(LOG_ATTEMPTS, ((c.key, c.token, c.amount, c.order_id) for c in asked))
            # Of two requests with one key, the first one counts.
            rows = {request.key: request.row for request in reversed(batch) if request.key not in unready}
            self._dispute(transaction, [charge for charge in asked if charge.token == DISPUTE])
            transaction.add(DECIDE, (rows[key] for key in sorted(rows)))
        standing = {row["key"]: _standing(*rows[row["key"]][:4]) for row in transaction.returned}
        voided = {request.key for request in batch if request.charge is None}
        # What stands under a key stands for good, unless it is open.
        open_keys = {key for key in voided if isinstance(standing.get(key), ActionRequired | Unknown)}
        if known := rows.keys() - standing.keys() | open_keys:
            standing |= {key: _standing_of(row) for key, row in (await self._read(known, voided)).items()}
        return [standing.get(request.key) or ProviderUnavailable("try again") for request in batch]

    def _dispute(self, transaction: Transaction, charges: Sequence[Charge]) -> None:
        """Dispute these charges after a while, each once. The record shows the disputes of approved ones only."""
        open_time = self._database.clock.now() + self._dispute_after
        once = {charge.key: charge for charge in charges}
        transaction.add(ADD_DISPUTES, ((key, f"dp_{key}", once[key].amount, open_time) for key in sorted(once)))
        told = ((f"evt_dispute_{key}", "dispute.created", key, open_time) for key in sorted(once))
        transaction.add(ADD_WEBHOOKS, told)

    async def _unready(self, transaction: Transaction, asked: Sequence[Charge]) -> set[str]:
        """The keys with `tok_flaky` for which no charge was asked before."""
        flaky = {charge.key for charge in asked if charge.token == FLAKY}
        if not flaky:
            return flaky
        return flaky - {row["key"] for row in await transaction.fetch(TRIED, keys=sorted(flaky))}

    async def _read(self, keys: Collection[str], voided: Collection[str] = ()) -> dict[str, Row]:
        """The charges under these keys, by key, after those have changed whose time has come or that are `voided`."""
        async with self._database.reading() as reading:
            rows = {row["key"]: row for row in await reading.fetch(CHARGES, keys=list(keys))}
        if open_keys := sorted(key for key, row in rows.items() if row["status"] in OPEN):
            async with self._database.transaction() as transaction:
                locked = await transaction.fetch(LOCK_AGES, keys=open_keys)
                changed = {row["key"]: self._next_status(row, is_voided=row["key"] in voided) for row in locked}
                transaction.write(WRITE_STATUSES, keys=list(changed), statuses=list(changed.values()))
            async with self._database.reading() as reading:
                rows |= {row["key"]: row for row in await reading.fetch(CHARGES, keys=open_keys)}
        return rows

    def _next_status(self, charge: Row, *, is_voided: bool) -> str:
        """What becomes of a charge, of a certain age, that is open."""
        status = str(charge["status"])
        if status == Status.PROCESSING and is_voided:
            return Status.APPROVED
        if status == Status.ACTION_REQUIRED and charge["age"] >= self._action_time:
            return Status.APPROVED
        return Status.VOIDED if status == Status.ACTION_REQUIRED and is_voided else status

    async def _look_up(self, batch: Sequence[str]) -> list[_Standing | Absent]:
        rows = await self._read(set(batch))
        return [_standing_of(rows[key]) if key in rows else Absent() for key in batch]

    async def _look_up_refunds(self, batch: Sequence[str]) -> list[Refunded | Refused | Absent]:
        async with self._database.reading() as reading:
            standing = {row["key"]: _refund(row) for row in await reading.fetch(REFUNDS, keys=list(batch))}
        return [standing.get(key) or Absent() for key in batch]

    async def _read_records(self, batch: Sequence[str]) -> list[Record | Absent | Unknown]:
        keys = sorted(set(batch))
        found = await self._read(keys)
        async with self._database.reading() as reading:
            refunds = _by_charge(await reading.fetch(REFUNDS_OF_CHARGES, keys=keys))
            disputes = _by_charge(await reading.fetch(DISPUTES_OF_CHARGES, keys=keys))
        return [
            _record(found[key], refunds.get(key, ()), disputes.get(key, ())) if key in found else Absent()
            for key in batch
        ]

    async def _refund_batch(self, batch: Sequence[RefundRequest]) -> list[Refunded | Refused]:
        async with self._database.transaction() as transaction:
            locked = await transaction.fetch(LOCK_CHARGES, keys=sorted({refund.charge_key for refund in batch}))
            left: dict[str, Decimal] = {
                row["key"]: row["amount"] - row["refunded_amount"] for row in locked if row["status"] == Status.APPROVED
            }
            refusing = {row["key"] for row in locked if row["token"] == REFUND_FAILS}
            totals: dict[str, Decimal] = {}
            before = {row["key"]: row["refunded_amount"] for row in locked}
            known: dict[str, Refunded | Refused] = {
                row["key"]: _refund(row)
                for row in await transaction.fetch(REFUNDS, keys=[refund.key for refund in batch])
            }
            added: list[tuple[Any, ...]] = []
            for refund in batch:
                key, amount = refund.charge_key, refund.amount
                units = self.minor_units.of(amount, refund.currency)
                if refund.key in known:
                    continue
                reference = f"re_{new_id().hex}"
                if key not in left:
                    known[refund.key] = Refused("no_charge")
                    continue
                if key in refusing or amount > left[key]:
                    why = "refund_refused" if key in refusing else "exceeds_charge"
                    known[refund.key] = Refused(why)
                    added.append((refund.key, key, reference, amount, units, "REFUSED", why))
                    continue
                known[refund.key] = Refunded(reference, amount)
                added.append((refund.key, key, reference, amount, units, "SUCCEEDED", ""))
                left[key] -= amount
                totals[key] = totals.get(key, before[key]) + amount
            transaction.add(ADD_REFUNDS, added)
            if totals:
                transaction.write(WRITE_REFUNDED, keys=list(totals), totals=list(totals.values()))
        return [known[refund.key] for refund in batch]


def _refund(row: Row) -> Refunded | Refused:
    return Refused(row["reason"]) if row["status"] == "REFUSED" else Refunded(row["reference"], row["amount"])


def _standing_of(charge: Row) -> _Standing:
    return _standing(charge["key"], charge["status"], charge["reference"], charge["reason"])


def _standing(key: str, status: str, reference: str, reason: str) -> _Standing:
    match Status(status):
        case Status.APPROVED:
            return Approved(reference)
        case Status.DECLINED:
            return Declined(reason)
        case Status.VOIDED:
            return Voided()
        case Status.ACTION_REQUIRED:
            # It opens nothing, so that it need not be random.
            return ActionRequired(reference, NextAction(f"{reference}_secret_{sha256(key.encode()).hexdigest()[:24]}"))
        case Status.PROCESSING:
            return Unknown("the charge is being processed")


def _by_charge(rows: Iterable[Row]) -> dict[str, list[Row]]:
    by_charge: dict[str, list[Row]] = {}
    for row in rows:
        by_charge.setdefault(row["charge_key"], []).append(row)
    return by_charge


def _record(charge: Row, refunds: Sequence[Row], disputes: Sequence[Row]) -> Record | Unknown:
    standing = _standing_of(charge)
    if isinstance(standing, Unknown):
        return standing
    movements = [
        Movement(MovementType.REFUND, row["reference"], row["amount"], row["create_time"], row["key"])
        for row in refunds
    ]
    if isinstance(standing, Approved):
        capture = Movement(MovementType.CAPTURE, charge["reference"], charge["amount"], charge["create_time"])
        movements.insert(0, capture)
        movements += [
            Movement(MovementType.DISPUTE, row["reference"], row["amount"], row["open_time"]) for row in disputes
        ]
    return Record(standing, movements)
