"""The sandbox provider: no money moves, and everything else is as with a real one.

It keeps a durable record of its own, in transactions of its own, and does not know the service's tables. One row a
key: the first to write it, a charge or a void, decides for good what the key stands for. What the token asks for
(slowness, silence) happens after that, on the way back to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from mesh.batch.group_commit import GroupCommit
from mesh.db.database import BulkInsert, Database, Row, Statement, Transaction, unnested
from mesh.ids import new_id
from payment_svc.providers import (
    Absent,
    Approved,
    Charge,
    Declined,
    ProviderUnavailable,
    Refunded,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
)

metadata = sa.MetaData(schema="sandbox")
_TIME = pg.TIMESTAMP(timezone=True)
_AMOUNT = sa.Numeric(28, 9)
_now = sa.func.clock_timestamp()

charges = sa.Table(
    "charges",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("reference", sa.String, nullable=False, unique=True),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("token", sa.String, comment="null for a key that was voided before a charge came"),
    sa.Column("amount", _AMOUNT),
    sa.Column("currency", sa.String(3)),
    sa.Column("order_id", sa.Uuid, comment="what the caller said it was for"),
    sa.Column("refunded_amount", _AMOUNT, nullable=False, server_default="0"),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    sa.CheckConstraint("status IN ('APPROVED', 'DECLINED', 'VOIDED')", name="status_known"),
    sa.CheckConstraint("status = 'VOIDED' OR amount > 0", name="amount_positive"),
    sa.CheckConstraint("0 <= refunded_amount", name="refunded_not_negative"),
    sa.CheckConstraint(
        "refunded_amount <= CASE status WHEN 'APPROVED' THEN amount ELSE 0 END", name="refunded_within_amount"
    ),
    comment="What stands under each key. Two approved charges of one order would be a double charge.",
)

refunds = sa.Table(
    "refunds",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("charge_key", sa.String, sa.ForeignKey(charges.c.key), nullable=False),
    sa.Column("reference", sa.String, nullable=False, unique=True),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.CheckConstraint("amount > 0", name="amount_positive"),
    sa.CheckConstraint("status IN ('SUCCEEDED', 'REFUSED')", name="status_known"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("token", sa.String, nullable=False),
    sa.Column("amount", _AMOUNT, nullable=False),
    sa.Column("order_id", sa.Uuid, nullable=False),
    sa.Column("create_time", _TIME, nullable=False, server_default=_now),
    comment="Every request for a charge that has reached the provider, whatever came of it.",
)

_keys = sa.bindparam("keys", type_=sa.ARRAY(sa.String))
_DECIDE = BulkInsert(
    charges.c.key, charges.c.status, charges.c.reference, charges.c.reason, charges.c.token, charges.c.amount,
    charges.c.currency, charges.c.order_id,
    returning=[charges.c.key], skip_existing=True,
)  # fmt: skip
_LOG_ATTEMPTS = BulkInsert(attempts.c.key, attempts.c.token, attempts.c.amount, attempts.c.order_id)
_TRIED = Statement(sa.select(attempts.c.key).where(attempts.c.key == sa.any_(_keys)).distinct())
_CHARGES = Statement(sa.select(charges).where(charges.c.key == sa.any_(_keys)))
_LOCK_CHARGES = Statement(
    sa.select(charges).where(charges.c.key == sa.any_(_keys)).order_by(charges.c.key).with_for_update()
)
_REFUNDS = Statement(sa.select(refunds).where(refunds.c.key == sa.any_(_keys)), name="read sandbox refunds")
_ADD_REFUNDS = BulkInsert(
    refunds.c.key,
    refunds.c.charge_key,
    refunds.c.reference,
    refunds.c.amount,
    refunds.c.status,
    refunds.c.reason,
    name="add sandbox refunds",
)
_refunded = unnested({"keys": ("key", sa.String), "totals": ("total", _AMOUNT)})
_WRITE_REFUNDED = Statement(
    sa.update(charges).where(charges.c.key == _refunded.c.key).values(refunded_amount=_refunded.c.total)
)

REFUSALS = {"tok_declined": "card_declined", "tok_insufficient_funds": "insufficient_funds"}
"""The tokens that are declined, and why."""
SLOW, SILENT, FLAKY = "tok_slow", "tok_timeout", "tok_flaky"
"""The tokens that are charged in a way of their own."""
REFUND_FAILS = "tok_refund_fails"
"""The token that is charged, and whose refunds are all refused."""
APPROVED = frozenset({"tok_visa", SLOW, SILENT, FLAKY, REFUND_FAILS})
"""The tokens that are charged; any other is declined as unknown."""


_Standing = Approved | Declined | Voided
"""What a key can stand for."""


class _Status(StrEnum):
    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    VOIDED = "VOIDED"


@dataclass(frozen=True, slots=True)
class _Request:
    """What a key shall stand for unless it stands for something already."""

    key: str
    charge: Charge | None
    """None for a void."""

    @property
    def row(self) -> tuple[Any, ...]:
        """The row that it would have, in the order of `_DECIDE`."""
        charge = self.charge
        reference = f"ch_{new_id().hex}"
        if charge is None:
            return self.key, _Status.VOIDED, reference, "", None, None, None, None
        approved = charge.token in APPROVED
        return (
            self.key,
            _Status.APPROVED if approved else _Status.DECLINED,
            reference,
            "" if approved else REFUSALS.get(charge.token, "token_unknown"),
            charge.token,
            charge.amount,
            charge.currency,
            charge.order_id,
        )


class Sandbox:
    """The provider `sandbox`. `slow_seconds` is how long it takes to answer for `tok_slow`."""

    def __init__(self, database: Database, *, slow_seconds: float = 2.0) -> None:
        self._database = database
        self._slow_seconds = slow_seconds
        self._decisions = GroupCommit[_Request, _Standing | ProviderUnavailable]("sandbox charges", self._decide)
        self._refunds = GroupCommit[RefundRequest, Refunded | Refused]("sandbox refunds", self._refund_batch)
        self._refund_lookups = GroupCommit[str, Refunded | Refused | Absent](
            "sandbox look-ups of refunds", self._look_up_refunds
        )
        self._lookups = GroupCommit[str, _Standing | Absent]("sandbox look-ups", self._look_up)

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | ProviderUnavailable | Unknown:
        """As the protocol says; the token tells how it goes."""
        standing = await self._decisions.submit(_Request(charge.key, charge))
        if charge.token == SLOW:
            await asyncio.sleep(self._slow_seconds)
        elif charge.token == SILENT:
            # The charge stands, and the answer never comes.
            await asyncio.Event().wait()
        return standing

    async def lookup(self, key: str) -> Approved | Declined | Voided | Absent | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._lookups.submit(key)

    async def void(self, key: str) -> Approved | Voided | ProviderUnavailable | Unknown:
        """As the protocol says. A declined charge counts as voided: no money will be taken under its key."""
        standing = await self._decisions.submit(_Request(key, None))
        return Voided() if isinstance(standing, Declined) else standing

    async def refund(self, refund: RefundRequest) -> Refunded | Refused | ProviderUnavailable | Unknown:
        """As the protocol says. A refusal stands under the key like a refund, unless there is no charge."""
        return await self._refunds.submit(refund)

    async def lookup_refund(self, key: str) -> Refunded | Refused | Absent | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._refund_lookups.submit(key)

    async def _decide(self, batch: Sequence[_Request]) -> list[_Standing | ProviderUnavailable]:
        """What stands under each key from now on: the request, or what was there before."""
        asked = [request.charge for request in batch if request.charge is not None]
        async with self._database.transaction() as transaction:
            unready = await self._unready(transaction, asked)
            transaction.add(_LOG_ATTEMPTS, ((c.key, c.token, c.amount, c.order_id) for c in asked))
            # Of two requests with one key, the first one counts.
            rows = {request.key: request.row for request in reversed(batch) if request.key not in unready}
            transaction.add(_DECIDE, (rows[key] for key in sorted(rows)))
        standing = {row["key"]: _standing(*rows[row["key"]][1:4]) for row in transaction.returned}
        if known := rows.keys() - standing.keys():
            # What stands under a key stands for good.
            async with self._database.reading() as reading:
                standing |= await _charges(reading, list(known))
        return [standing.get(request.key) or ProviderUnavailable("try again") for request in batch]

    async def _unready(self, transaction: Transaction, asked: Sequence[Charge]) -> set[str]:
        """The keys with `tok_flaky` for which no charge was asked before."""
        flaky = {charge.key for charge in asked if charge.token == FLAKY}
        if not flaky:
            return flaky
        return flaky - {row["key"] for row in await transaction.fetch(_TRIED, keys=sorted(flaky))}

    async def _look_up(self, batch: Sequence[str]) -> list[_Standing | Absent]:
        async with self._database.reading() as reading:
            standing = await _charges(reading, list(batch))
        return [standing.get(key) or Absent() for key in batch]

    async def _look_up_refunds(self, batch: Sequence[str]) -> list[Refunded | Refused | Absent]:
        async with self._database.reading() as reading:
            standing = {row["key"]: _refund(row) for row in await reading.fetch(_REFUNDS, keys=list(batch))}
        return [standing.get(key) or Absent() for key in batch]

    async def _refund_batch(self, batch: Sequence[RefundRequest]) -> list[Refunded | Refused]:
        async with self._database.transaction() as transaction:
            locked = await transaction.fetch(_LOCK_CHARGES, keys=sorted({refund.charge_key for refund in batch}))
            left: dict[str, Decimal] = {
                row["key"]: row["amount"] - row["refunded_amount"]
                for row in locked
                if row["status"] == _Status.APPROVED
            }
            refusing = {row["key"] for row in locked if row["token"] == REFUND_FAILS}
            totals: dict[str, Decimal] = {}
            before = {row["key"]: row["refunded_amount"] for row in locked}
            known: dict[str, Refunded | Refused] = {
                row["key"]: _refund(row)
                for row in await transaction.fetch(_REFUNDS, keys=[refund.key for refund in batch])
            }
            added: list[tuple[Any, ...]] = []
            for refund in batch:
                key, amount = refund.charge_key, refund.amount
                if refund.key in known:
                    continue
                reference = f"re_{new_id().hex}"
                if key not in left:
                    known[refund.key] = Refused("no_charge")
                    continue
                if key in refusing or amount > left[key]:
                    why = "refund_refused" if key in refusing else "exceeds_charge"
                    known[refund.key] = Refused(why)
                    added.append((refund.key, key, reference, amount, "REFUSED", why))
                    continue
                known[refund.key] = Refunded(reference, amount)
                added.append((refund.key, key, reference, amount, "SUCCEEDED", ""))
                left[key] -= amount
                totals[key] = totals.get(key, before[key]) + amount
            transaction.add(_ADD_REFUNDS, added)
            if totals:
                transaction.write(_WRITE_REFUNDED, keys=list(totals), totals=list(totals.values()))
        return [known[refund.key] for refund in batch]


def _refund(row: Row) -> Refunded | Refused:
    return Refused(row["reason"]) if row["status"] == "REFUSED" else Refunded(row["reference"], row["amount"])


async def _charges(reading: Transaction, keys: list[str]) -> dict[str, _Standing]:
    rows: list[Row] = await reading.fetch(_CHARGES, keys=keys)
    return {row["key"]: _standing(row["status"], row["reference"], row["reason"]) for row in rows}


def _standing(status: str, reference: str, reason: str) -> _Standing:
    match _Status(status):
        case _Status.APPROVED:
            return Approved(reference)
        case _Status.DECLINED:
            return Declined(reason)
        case _Status.VOIDED:
            return Voided()
