"""The webhooks that payment providers have sent: shown and replayed.

A webhook is a hint: the payment service asks the provider about the charge or refund that it names. So a replay changes
only what the provider's record says, and may be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from ops.events.streams import Mesh
from stack.servers import DATABASES

_FIND = """
SELECT * FROM (
    SELECT id, provider, event_id, type, status, attempts, payment_id, refund_id, reference, create_time, process_time
    FROM webhooks
    WHERE ($1::text IS NULL OR provider = $1) AND ($2::text IS NULL OR status = $2)
        AND ($3::uuid IS NULL OR payment_id = $3) AND ($4::timestamptz IS NULL OR create_time >= $4)
        AND ($5::uuid[] IS NULL OR id = ANY($5))
    ORDER BY create_time DESC LIMIT $6
) AS last ORDER BY create_time
"""
_REPLAY = """
UPDATE webhooks SET status = 'PENDING', attempts = 0, next_attempt_time = now(), process_time = NULL
WHERE id = ANY($1) AND status <> 'PENDING' RETURNING id
"""


@dataclass(frozen=True, slots=True)
class ReceivedWebhook:
    """A webhook as the payment service has stored it."""

    id: UUID
    provider: str
    event_id: str
    """The provider's id of it."""
    type: str
    """In the provider's words."""
    status: str
    """PENDING, APPLIED or IGNORED."""
    attempts: int
    """The number of look-ups at the provider without an answer."""
    payment_id: UUID | None
    refund_id: UUID | None
    reference: str
    """The provider's reference of the charge; empty if the webhook names none."""
    create_time: datetime
    process_time: datetime | None


@dataclass(frozen=True, slots=True)
class WebhookFilter:
    """Which webhooks; the default is all."""

    ids: Sequence[UUID] | None = None
    provider: str | None = None
    status: str | None = None
    payment: UUID | None = None
    since: datetime | None = None


async def find_webhooks(mesh: Mesh, wanted: WebhookFilter, *, most: int) -> list[ReceivedWebhook]:
    """The last webhooks, at most `most`, that match a filter, oldest first."""
    connection = await mesh.connect(DATABASES["payment_svc"])
    try:
        rows = await connection.fetch(
            _FIND, wanted.provider, wanted.status, wanted.payment, wanted.since, wanted.ids, most
        )
    finally:
        await connection.close()
    return [ReceivedWebhook(**row) for row in rows]


async def replay_webhooks(mesh: Mesh, ids: Sequence[UUID]) -> list[UUID]:
    """Let the payment service apply webhooks again. Returns the ids of those that were not waiting already."""
    connection = await mesh.connect(DATABASES["payment_svc"])
    try:
        return [row["id"] for row in await connection.fetch(_REPLAY, ids)]
    finally:
        await connection.close()
