"""Payments: the money of an order is captured once, and never more than that is refunded.

    PENDING ── capture ──▶ CAPTURED ── refund ──▶ PARTIALLY_REFUNDED ── refund ──▶ REFUNDED
     │ ├────── decline ──▶ DECLINED
     │ └─────── void ────▶ VOIDED
     └─ action required ─▶ REQUIRES_ACTION ── capture, decline or void, as from PENDING

The customer of a payment that requires action has to authenticate it (3-D Secure). The provider is asked from time to
time whether that has happened; the payment deadline of the order voids a payment whose customer never does.

A payment of zero moves no money, so no provider hears of it: it is CAPTURED as soon as its order is placed, and VOIDED
when the order is cancelled.

A payment says what is due at the provider (`Payment.due`), so that any process that reads its row can continue where
another one died. `cancel_requested` never becomes false again: from then on a charge is voided if possible. If
not, what is left of it is refunded, as a refund of its own (`payment_svc.domain.refunds`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from payment_svc.domain.errors import AmountInvalid, EtagMismatch, PaymentStateRefused, ProviderContradiction
from payment_svc.domain.statuses import CHARGED, HOLDING, OPEN, UNCHARGED, PaymentStatus

FIRST_BACKOFF = timedelta(milliseconds=200)
"""The pause after the first attempt without an outcome; it doubles with each."""
LONGEST_BACKOFF = timedelta(seconds=30)
PROVIDER_UNKNOWN = "provider_unknown"
"""Why a payment through a provider that is not there is declined."""
PAYMENT_METHOD_NOT_FOUND = "payment_method_not_found"
"""Why a payment is declined whose payment method does not exist: the customer has deleted it since."""


class Due(StrEnum):
    """What is to be asked of the provider next."""

    CHARGE = "CHARGE"
    LOOKUP = "LOOKUP"
    """Whether the customer has acted."""
    VOID = "VOID"


@dataclass(frozen=True, slots=True)
class NewPayment:
    """What an order is to be charged."""

    order_id: UUID
    customer_id: UUID
    amount: Decimal
    currency: str
    provider: str
    payment_method_id: UUID | None
    token: str = field(default="", repr=False)
    """Only from an event of a version before ADR-0035."""

    def __post_init__(self) -> None:
        # Here and not in the database alone, whose complaint would show the row, and a token in it.
        if self.amount < 0 or not self.currency:
            raise AmountInvalid(self.order_id, self.amount, self.currency)


class OrderPlaced(NamedTuple):
    """An order was placed, and this is its payment."""

    payment: NewPayment


class OrderCancelling(NamedTuple):
    """An order is to be cancelled, and this would be its payment."""

    payment: NewPayment


@dataclass(frozen=True, slots=True)
class Payment:
    """The charge of one order.

    `next_attempt_time` is set exactly as long as something is due: a process that takes the payment up moves it ahead
    (a lease), one that learnt nothing sets it to when to ask again, and the sweep takes what is past it. It keeps
    processes from doing the same work, and nothing more: the keys guarantee that money moves once.
    `token` is set only if `NewPayment` has one, and kept as long as it is needed. Without it, the token is looked up by
    `payment_method_id` to charge the payment (ADR-0035); it is the same each time. `traceparent` is the trace of the
    last order event about it. `version` grows with every change that others can see.
    """

    id: UUID
    order_id: UUID
    customer_id: UUID
    amount: Decimal
    currency: str
    provider: str
    payment_method_id: UUID | None
    token: str
    provider_key: str
    status: PaymentStatus
    refunded_amount: Decimal
    provider_reference: str
    failure_reason: str
    cancel_requested: bool
    attempts: int
    next_attempt_time: datetime | None
    create_time: datetime
    process_time: datetime | None
    dispute_time: datetime | None
    traceparent: str
    version: int

    def __repr__(self) -> str:
        """Without the token: whatever logs a payment must not log it."""
        return f"<Payment {self.id} {self.status} v{self.version}>"

    @classmethod
    def begin(cls, payment_id: UUID, new: NewPayment, traceparent: str, now: datetime, until: datetime) -> Payment:
        """A payment to be charged, kept by the caller until `until`."""
        return cls(
            id=payment_id,
            order_id=new.order_id,
            customer_id=new.customer_id,
            amount=new.amount,
            currency=new.currency,
            provider=new.provider,
            payment_method_id=new.payment_method_id,
            token=new.token,
            provider_key=f"payment-{payment_id}",
            status=PaymentStatus.PENDING,
            refunded_amount=Decimal(0),
            provider_reference="",
            failure_reason="",
            cancel_requested=False,
            attempts=0,
            next_attempt_time=until,
            create_time=now,
            process_time=None,
            dispute_time=None,
            traceparent=traceparent,
            version=1,
        )

    @classmethod
    def free(cls, payment_id: UUID, new: NewPayment, traceparent: str, now: datetime) -> Payment:
        """The payment of an order whose total is zero: captured at once, without a provider."""
        nothing = replace(new, provider="", token="")
        return cls.begin(payment_id, nothing, traceparent, now, now).capture("", now, now)

    @classmethod
    def called_off(cls, payment_id: UUID, new: NewPayment, traceparent: str, now: datetime) -> Payment:
        """The payment of an order that was cancelled before it was heard of: it never reaches a provider."""
        return cls.begin(payment_id, new, traceparent, now, now).request_cancel(traceparent, now, now).void(now)

    @property
    def due(self) -> Due | None:
        """What is to be asked of the provider next; none when there is nothing to do."""
        return _due(self.status, cancel_requested=self.cancel_requested)

    @property
    def refundable(self) -> Decimal:
        """The amount that can still be refunded."""
        return self.amount - self.refunded_amount if self.status in HOLDING else Decimal(0)

    @property
    def trace_id(self) -> str:
        """The id of its trace, in hexadecimal; empty if there is none."""
        return self.traceparent[3:35]

    def require_etag(self, etag: str) -> None:
        """Raise EtagMismatch when the caller names another version than this one."""
        if etag and etag != str(self.version):
            raise EtagMismatch(self.id)

    def require_same(self, new: NewPayment) -> None:
        """Raise PaymentStateRefused unless this is the payment that `new` asks for, and it is not called off."""
        if (self.customer_id, self.amount, self.currency) != (new.customer_id, new.amount, new.currency):
            raise PaymentStateRefused(self, f"order {self.order_id} is charged {self.amount} {self.currency} already")
        if self.cancel_requested or self.status is PaymentStatus.VOIDED:
            raise PaymentStateRefused(self, f"order {self.order_id} is cancelled")

    def request_cancel(self, traceparent: str, now: datetime, until: datetime) -> Payment:
        """Call the payment off. To void it is due then; money that it holds is to be refunded.

        A payment of zero is void at once, as it would be had it been called off before it was captured.
        """
        if self.cancel_requested:
            return self
        if self.status is PaymentStatus.CAPTURED and not self.amount:
            return self._moved(now, until, status=PaymentStatus.VOIDED, cancel_requested=True, traceparent=traceparent)
        return self._moved(now, until, cancel_requested=True, traceparent=traceparent)

    def require_action(self, reference: str, now: datetime) -> Payment:
        """The provider waits for the customer: it is asked again after pauses that grow.

        Heard again, it changes nothing that others can see; nor does it if the payment has an outcome or is called off.
        """
        if self.cancel_requested or self.status not in OPEN:
            return self
        if self.status is PaymentStatus.REQUIRES_ACTION:
            return self.postpone(now)
        return self._moved(now, now + FIRST_BACKOFF, status=PaymentStatus.REQUIRES_ACTION, provider_reference=reference)

    def capture(self, reference: str, now: datetime, until: datetime) -> Payment:
        """The provider took the money. Heard again, it changes nothing. Raises ProviderContradiction."""
        if self.status in CHARGED and self.provider_reference == reference:
            return self
        self._require_open("charged")
        return self._moved(now, until, status=PaymentStatus.CAPTURED, provider_reference=reference)

    def decline(self, reason: str, now: datetime) -> Payment:
        """The provider refused to take the money: declined, or called off when it was to be so anyway.

        Heard again, it changes nothing. Raises ProviderContradiction.
        """
        if self.status in UNCHARGED:
            return self
        self._require_open("declined")
        status = PaymentStatus.VOIDED if self.cancel_requested else PaymentStatus.DECLINED
        return self._moved(now, now, status=status, failure_reason=reason)

    def void(self, now: datetime) -> Payment:
        """The provider has not taken the money and never will. Heard again, it changes nothing.

        Raises ProviderContradiction, also when nobody has called the payment off.
        """
        if self.status in UNCHARGED:
            return self
        self._require_open("voided")
        if not self.cancel_requested:
            raise ProviderContradiction(self, "voided")
        return self._moved(now, now, status=PaymentStatus.VOIDED)

    def begin_refund(self, now: datetime) -> Payment:
        """A refund of it has begun. Others see that, and an etag from before is out of date."""
        return self._moved(now, now)

    def refund(self, amount: Decimal, now: datetime) -> Payment:
        """The provider gave `amount` back. Raises ProviderContradiction when that is more than there was."""
        if not 0 < amount <= self.refundable:
            raise ProviderContradiction(self, f"refunded {amount}")
        refunded = self.refunded_amount + amount
        status = PaymentStatus.REFUNDED if refunded == self.amount else PaymentStatus.PARTIALLY_REFUNDED
        return self._moved(now, now, status=status, refunded_amount=refunded)

    def dispute(self, time: datetime, now: datetime) -> Payment:
        """The customer has disputed it at the bank at `time`. Nothing else moves: the bank decides."""
        return self._moved(now, now, dispute_time=self.dispute_time or time)

    def add_to_ledger(self, now: datetime) -> Payment:
        """It has got entries that do not change its amounts. Others see that there is something new."""
        return self._moved(now, now)

    def postpone(self, now: datetime) -> Payment:
        """Nothing was learnt from the provider: ask again after a pause that grows with the attempts."""
        return replace(self, attempts=self.attempts + 1, next_attempt_time=now + pause_after(self.attempts))

    def _require_open(self, said: str) -> None:
        if self.status not in OPEN:
            raise ProviderContradiction(self, said)

    def _moved(
        self,
        now: datetime,
        until: datetime,
        *,
        status: PaymentStatus | None = None,
        cancel_requested: bool = False,
        **changes: Any,
    ) -> Payment:
        status = status or self.status
        cancel_requested = cancel_requested or self.cancel_requested
        return replace(
            self,
            status=status,
            cancel_requested=cancel_requested,
            token=self.token if status is PaymentStatus.PENDING else "",
            attempts=0,
            next_attempt_time=until if _due(status, cancel_requested=cancel_requested) else None,
            process_time=None if status in OPEN else self.process_time or now,
            version=self.version + 1,
            **changes,
        )


def _due(status: PaymentStatus, *, cancel_requested: bool) -> Due | None:
    if status not in OPEN:
        return None
    if cancel_requested:
        return Due.VOID
    return Due.CHARGE if status is PaymentStatus.PENDING else Due.LOOKUP


def pause_after(attempts: int) -> timedelta:
    """The pause after one more attempt without an outcome; there were `attempts` before."""
    doubled: int = 2 ** min(attempts, 16)
    return min(FIRST_BACKOFF * doubled, LONGEST_BACKOFF)


class PaymentActionRequired(NamedTuple):
    """The customer has to act before money can be taken."""

    payment: Payment


class PaymentCaptured(NamedTuple):
    """Money was taken, or there was none to take."""

    payment: Payment


class PaymentDeclined(NamedTuple):
    """The provider refused to take the money."""

    payment: Payment


class PaymentVoided(NamedTuple):
    """Under this payment no money was taken, nor will be."""

    payment: Payment
