"""The webhooks that providers have sent, without their bodies."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import sqlalchemy as sa

from mesh.db.columns import TIME
from mesh.db.database import Statement, unnested
from mesh.db.rows import Rows
from mesh.db.unit_of_work import UnitOfWork
from payment_svc.domain import Webhook
from payment_svc.store.payments import metadata

webhooks = sa.Table(
    "webhooks",
    metadata,
    # The columns are the fields of `Webhook`, in their order.
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("provider", sa.String, nullable=False),
    sa.Column("event_id", sa.String, nullable=False, comment="the provider's"),
    sa.Column("type", sa.String, nullable=False, comment="in the provider's words"),
    sa.Column("payment_id", sa.Uuid, comment="as the webhook says; it may not exist"),
    sa.Column("refund_id", sa.Uuid, comment="as the webhook says; it may not exist"),
    sa.Column("reference", sa.String, nullable=False, comment="the provider's, of the charge; empty if it names none"),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, comment="to look it up, without an answer"),
    sa.Column("next_attempt_time", TIME, comment="when the sweep may take it; null when nothing is due"),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("process_time", TIME),
    sa.CheckConstraint("status IN ('PENDING', 'APPLIED', 'IGNORED')", name="status_known"),
    sa.CheckConstraint("(status = 'PENDING') = (process_time IS NULL)", name="processed_unless_pending"),
    sa.CheckConstraint("(status = 'PENDING') = (next_attempt_time IS NOT NULL)", name="attempted_while_pending"),
    # Copies of one event are one row.
    sa.UniqueConstraint("provider", "event_id", name="event_once"),
    comment="What providers have sent, kept 90 days, without personal data.",
)
_due = webhooks.c.next_attempt_time.is_not(None)
sa.Index("webhooks_due", webhooks.c.provider, webhooks.c.next_attempt_time, postgresql_where=_due)
sa.Index("webhooks_create_time", webhooks.c.create_time)

WEBHOOKS = Rows(Webhook, webhooks)
ADD_WEBHOOKS = WEBHOOKS.insertion(returning=[webhooks.c.id], skip_existing=True)
_CHANGING = ("status", "attempts", "next_attempt_time", "process_time")
_changed = unnested({f"new_{name}": (name, webhooks.c[name].type) for name in ("id", *_CHANGING)})
WRITE_WEBHOOKS = Statement(
    sa.update(webhooks)
    # One that another process has applied meanwhile stays as it is.
    .where(webhooks.c.id == _changed.c.id, _due)
    .values({name: _changed.c[name] for name in _CHANGING})
)
_most = sa.bindparam("most", type_=sa.Integer)
_overdue = (
    sa.select(webhooks.c.id)
    .where(
        _due,
        webhooks.c.provider == sa.bindparam("provider", type_=sa.String),
        webhooks.c.next_attempt_time <= sa.func.now(),
    )
    .order_by(webhooks.c.next_attempt_time)
    .limit(_most)
    .with_for_update(skip_locked=True)
    .cte("overdue")
)
LEASE_DUE_WEBHOOKS = Statement(
    sa.update(webhooks)
    .where(webhooks.c.id == _overdue.c.id)
    .values(next_attempt_time=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(*webhooks.c),
    name="lease due webhooks",
)
_old = (
    sa.select(webhooks.c.id)
    .where(webhooks.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval))
    .order_by(webhooks.c.create_time)
    .limit(_most)
    .with_for_update(skip_locked=True)
    .cte("old")
)
PURGE_WEBHOOKS = Statement(sa.delete(webhooks).where(webhooks.c.id == _old.c.id))


class WebhookStore:
    """The webhooks of providers."""

    async def add(self, work: UnitOfWork, webhook: Webhook) -> bool:
        """Write a webhook. Returns whether it is new: the provider may have sent the event before."""
        return bool(await work.transaction.insert(ADD_WEBHOOKS, [WEBHOOKS.values(webhook)]))

    def save(self, work: UnitOfWork, changed: Iterable[Webhook]) -> None:
        """Write what became of webhooks."""
        if new := sorted(changed, key=lambda webhook: webhook.id):
            work.transaction.write(
                WRITE_WEBHOOKS,
                **{f"new_{name}": [getattr(each, name) for each in new] for name in ("id", *_CHANGING)},
            )

    async def lease_due(self, work: UnitOfWork, provider: str, lease: timedelta, *, most: int) -> list[Webhook]:
        """Take up to `most` webhooks of a provider that are due, the longest overdue first, and keep them a while."""
        rows = await work.transaction.fetch(LEASE_DUE_WEBHOOKS, provider=provider, lease=lease, most=most)
        return [WEBHOOKS.read(row) for row in rows]

    async def purge(self, work: UnitOfWork, age: timedelta, *, most: int) -> int:
        """Delete up to `most` webhooks that are older than `age`. Returns how many."""
        return await work.transaction.execute(PURGE_WEBHOOKS, age=age, most=most)
