"""Webhooks: stored when they come, and applied by looking up at the provider what they are about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from mesh.ids import new_id
from payment_svc.domain import WEBHOOKS_KEPT, ProviderNotFound, Webhook
from payment_svc.providers import Bounded, WebhookSignatureInvalid

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from payment_svc.store import PaymentStore, RefundStore, WebhookStore
    from payment_svc.usecases.reconciliation import Reconciliation

log = structlog.get_logger(__name__)


class Webhooks:
    """The webhooks of providers."""

    def __init__(
        self,
        units: UnitsOfWork,
        webhooks: WebhookStore,
        payments: PaymentStore,
        refunds: RefundStore,
        reconciliation: Reconciliation,
        *,
        providers: Mapping[str, Bounded],
        lease: timedelta,
    ) -> None:
        self._units = units
        self._webhooks = webhooks
        self._payments = payments
        self._refunds = refunds
        self._reconciliation = reconciliation
        self._providers = providers
        self._lease = lease
        self.refused: Counter[str] = Counter()
        """The number of webhooks without a valid signature, by provider."""

    async def receive_webhook(self, change: Change[None], provider: str, body: bytes) -> Reply[None]:
        """Store a webhook, unless the provider has sent its event before. The sweep applies it.

        `body` is what the provider has signed. Raises ProviderNotFound or WebhookSignatureInvalid.
        """
        if provider not in self._providers:
            raise ProviderNotFound(provider)
        try:
            told = self._providers[provider].parse_webhook(change.call.metadata, body, now=self._units.now())
        except WebhookSignatureInvalid:
            self.refused[provider] += 1
            log.warning("webhook without a valid signature", provider=provider, refused=self.refused[provider])
            raise
        async with self._units.once(change) as work:
            webhook = Webhook.received(
                new_id(),
                provider,
                told.event_id,
                told.type,
                charge_key=told.charge_key,
                refund_key=told.refund_key,
                reference=told.reference,
                now=self._units.now(),
            )
            if not await self._webhooks.add(work, webhook):
                log.debug("webhook received before", provider=provider, event_id=told.event_id)
            return work.reply(None)

    async def apply(self, provider: str, *, most: int = 20) -> bool:
        """Apply webhooks of a provider that are due: look up their payments. Returns whether there may be more."""
        async with self._units.begin() as work:
            due = await self._webhooks.lease_due(work, provider, self._lease, most=most)
        if not due:
            return False
        payments = await self._payments_of(due)
        complete = await self._reconciliation.look_up(set(payments.values()))
        now = self._units.now()
        async with self._units.begin() as work:
            self._webhooks.save(work, (_applied(each, payments.get(each.id), complete, now) for each in due))
        return len(due) == most

    async def purge(self, *, most: int = 10_000) -> bool:
        """Delete webhooks that have been kept long enough. Returns whether there may be more."""
        async with self._units.begin() as work:
            return await self._webhooks.purge(work, WEBHOOKS_KEPT, most=most) == most

    async def _payments_of(self, webhooks: Sequence[Webhook]) -> dict[UUID, UUID]:
        """The payment of each webhook, by the id of the webhook. Those that are about nothing of ours are left out."""
        async with self._units.database.reading() as reading:
            payments = await self._payments.read_all(reading, {each.payment_id for each in webhooks if each.payment_id})
            refunds = await self._refunds.read_all(reading, {each.refund_id for each in webhooks if each.refund_id})
            captured = await self._payments.captured(reading, {each.reference for each in webhooks if each.reference})
        known = {payment.id for payment in payments}
        of_refunds = {refund.id: refund.payment_id for refund in refunds}
        found: dict[UUID, UUID] = {}
        for each in webhooks:
            if each.payment_id in known:
                found[each.id] = each.payment_id
            elif each.refund_id in of_refunds:
                found[each.id] = of_refunds[each.refund_id]
            elif each.reference in captured:
                found[each.id] = captured[each.reference]
        return found


def _applied(webhook: Webhook, payment_id: UUID | None, complete: Collection[UUID], now: datetime) -> Webhook:
    if payment_id is None:
        return webhook.ignore(now)
    return webhook.apply(now) if payment_id in complete else webhook.postpone(now)
