"""Webhooks: what providers send us about charges, refunds and disputes.

    PENDING ── the provider was looked up ──▶ APPLIED
    IGNORED    it names nothing of ours

A webhook is a hint. It says where to look, and nothing that it contains becomes a fact: the provider is asked. So it
does not matter how often webhooks come, and in which order. Their bodies, which may have personal data, are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from payment_svc.domain.payments import pause_after

WEBHOOKS_KEPT = timedelta(days=90)
"""How long a webhook is kept."""


class WebhookStatus(StrEnum):
    """Where a webhook stands."""

    PENDING = "PENDING"
    APPLIED = "APPLIED"
    IGNORED = "IGNORED"


@dataclass(frozen=True, slots=True)
class Webhook:
    """One event that a provider has sent. `next_attempt_time` is set exactly while it is PENDING."""

    id: UUID
    provider: str
    event_id: str
    """The provider's id of the event. Copies of one event have the same."""
    type: str
    """The type of the event, in the provider's words."""
    payment_id: UUID | None
    """The payment to look up."""
    refund_id: UUID | None
    """The refund to look up."""
    reference: str
    """The provider's reference of the charge to look up; empty if the webhook names none."""
    status: WebhookStatus
    attempts: int
    next_attempt_time: datetime | None
    create_time: datetime
    process_time: datetime | None

    @classmethod
    def received(
        cls,
        webhook_id: UUID,
        provider: str,
        event_id: str,
        event_type: str,
        *,
        charge_key: str,
        refund_key: str,
        reference: str,
        now: datetime,
    ) -> Webhook:
        """A webhook that has just come. One that names nothing of ours is kept, and nothing is done about it."""
        payment_id, refund_id = _id_in(charge_key, "payment-"), _id_in(refund_key, "refund-")
        is_hint = payment_id is not None or refund_id is not None or reference != ""
        return cls(
            id=webhook_id,
            provider=provider,
            event_id=event_id,
            type=event_type,
            payment_id=payment_id,
            refund_id=refund_id,
            reference=reference,
            status=WebhookStatus.PENDING if is_hint else WebhookStatus.IGNORED,
            attempts=0,
            next_attempt_time=now if is_hint else None,
            create_time=now,
            process_time=None if is_hint else now,
        )

    def apply(self, now: datetime) -> Webhook:
        """The provider was looked up, and the answer is recorded."""
        return self._processed(WebhookStatus.APPLIED, now)

    def ignore(self, now: datetime) -> Webhook:
        """There is no such payment or refund."""
        return self._processed(WebhookStatus.IGNORED, now)

    def postpone(self, now: datetime) -> Webhook:
        """The provider could not be looked up: do it again after a pause that grows with the attempts."""
        return replace(self, attempts=self.attempts + 1, next_attempt_time=now + pause_after(self.attempts))

    def _processed(self, status: WebhookStatus, now: datetime) -> Webhook:
        return replace(self, status=status, next_attempt_time=None, process_time=now)


def _id_in(key: str, prefix: str) -> UUID | None:
    """The id in a key that we have given the provider; none in a key of others, who may have the same account."""
    try:
        return UUID(key.removeprefix(prefix)) if key.startswith(prefix) else None
    except ValueError:
        return None
