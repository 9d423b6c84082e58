"""Refunds: money of a payment that goes back to the customer, each under a provider key of its own.

    PENDING ── refunded ──▶ SUCCEEDED
       └────── refused ───▶ FAILED

A refund counts against its payment from its beginning, so that many at once never exceed what was captured. When the
provider refuses it, its amount can be refunded again, by another refund under another key. An outcome that is not known
is looked up under the same key until it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from payment_svc.domain.errors import CurrencyMismatch, PaymentStateRefused, RefundContradiction, RefundExceedsPayment
from payment_svc.domain.payments import Payment, pause_after
from payment_svc.domain.statuses import CHARGED

ORDER_CANCELLED = "the order was cancelled"
"""The reason of the refund that a cancelled order gets."""


class RefundStatus(StrEnum):
    """Where a refund stands."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class NewRefund:
    """A refund that is asked for, by whom, and why. Without an amount, it is all that is left."""

    payment_id: UUID
    amount: Decimal | None
    currency: str
    reason: str
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Refund:
    """One refund. `next_attempt_time` is set exactly while it is PENDING, and means what it does for a payment.

    `charge_reference` is the provider's reference of the charge.
    """

    id: UUID
    payment_id: UUID
    amount: Decimal
    currency: str
    provider: str
    provider_key: str
    charge_reference: str
    status: RefundStatus
    provider_reference: str
    failure_reason: str
    reason: str = field(repr=False)
    actor: str
    attempts: int
    next_attempt_time: datetime | None
    create_time: datetime
    process_time: datetime | None
    traceparent: str

    @classmethod
    def begin(
        cls,
        refund_id: UUID,
        payment: Payment,
        amount: Decimal,
        *,
        reason: str,
        actor: str,
        traceparent: str,
        now: datetime,
        until: datetime,
    ) -> Refund:
        """A refund to be asked for, kept by the caller until `until`."""
        return cls(
            id=refund_id,
            payment_id=payment.id,
            amount=amount,
            currency=payment.currency,
            provider=payment.provider,
            provider_key=f"refund-{refund_id}",
            charge_reference=payment.provider_reference,
            status=RefundStatus.PENDING,
            provider_reference="",
            failure_reason="",
            reason=reason,
            actor=actor,
            attempts=0,
            next_attempt_time=until,
            create_time=now,
            process_time=None,
            traceparent=traceparent,
        )

    @property
    def has_failed(self) -> bool:
        """Whether the provider has refused it."""
        return self.status is RefundStatus.FAILED

    @property
    def trace_id(self) -> str:
        """The id of its trace, in hexadecimal; empty if there is none."""
        return self.traceparent[3:35]

    def succeed(self, reference: str, amount: Decimal, now: datetime) -> Refund:
        """The provider has refunded `amount`. Raises RefundContradiction if that is another one."""
        if amount != self.amount:
            raise RefundContradiction(self.id, self.amount, amount)
        return replace(
            self, status=RefundStatus.SUCCEEDED, provider_reference=reference, next_attempt_time=None, process_time=now
        )

    def fail(self, reason: str, now: datetime) -> Refund:
        """The provider refuses, in its words. The amount can be refunded again."""
        return replace(
            self, status=RefundStatus.FAILED, failure_reason=reason, next_attempt_time=None, process_time=now
        )

    def postpone(self, now: datetime) -> Refund:
        """Nothing was learnt from the provider: ask again after a pause that grows with the attempts."""
        return replace(self, attempts=self.attempts + 1, next_attempt_time=now + pause_after(self.attempts))


def left(payment: Payment, pending: Iterable[Refund]) -> Decimal:
    """The amount of a payment that no refund covers; `pending` are its refunds without an outcome."""
    return payment.refundable - sum((refund.amount for refund in pending), Decimal(0))


def amount_of(wanted: NewRefund, payment: Payment, pending: Iterable[Refund]) -> Decimal:
    """The amount to refund.

    Raises CurrencyMismatch, EtagMismatch, PaymentStateRefused if no money was captured, or RefundExceedsPayment.
    """
    if wanted.amount is not None and wanted.currency != payment.currency:
        raise CurrencyMismatch(payment, wanted.currency)
    payment.require_etag(wanted.etag)
    if payment.status not in CHARGED:
        raise PaymentStateRefused(payment, f"payment {payment.id} is {payment.status}: there is nothing to refund")
    remaining = left(payment, pending)
    amount = remaining if wanted.amount is None else wanted.amount
    if not 0 < amount <= remaining:
        raise RefundExceedsPayment(payment, wanted.amount, remaining)
    return amount


class PaymentRefunded(NamedTuple):
    """Money was refunded: `amount` of it this time, by the refund `refund_id`.

    For an order that is cancelled again, an amount of zero and no refund tell that its money was refunded before.
    """

    payment: Payment
    amount: Decimal
    refund_id: UUID | None = None
