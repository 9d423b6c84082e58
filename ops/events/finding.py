"""Events in the streams: found by type, aggregate, order and time, and all that is known of one."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from mesh.events.bus import DEAD_LETTERS
from mesh.events.cloudevents import stream_of_area
from ops.events.streams import StoredEvent, Streams
from stack.servers import DATABASES
from stack.services import NAMES

_MARGIN = timedelta(minutes=10)
"""By how much an event may be stored, by the clock of the stream, before the time in its id."""
_OF_ORDER = "SELECT id FROM payments WHERE order_id = $1"
_WRITTEN = """
SELECT type, aggregate_id, sequence, create_time, traceparent, payload,
    seq <= through AND NOT gaps @> seq AS is_published
FROM mesh.outbox, mesh.outbox_position WHERE event_id = $1 AND create_time BETWEEN $2 AND $3
"""
_APPLIED = "SELECT consumer, receive_time FROM mesh.inbox WHERE event_id = $1 ORDER BY 1"
_UNFINISHED = "SELECT consumer, unfinished FROM mesh.attempts WHERE event = $1 ORDER BY 1"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events; the default is all."""

    types: Sequence[str] = ()
    """Their types, such as those in docs/events.md. Types of newer versions are found too."""
    aggregate: UUID | None = None
    """The order, payment, product or customer that they are about."""
    order: UUID | None = None
    """Events of this order and of its payment."""
    since: datetime | None = None
    """Stored in the stream at this time or later."""
    until: datetime | None = None
    """Stored before this time."""


async def find(streams: Streams, wanted: Filter, *, most: int) -> list[StoredEvent]:
    """The last events, at most `most`, that match a filter, oldest first."""
    aggregates: list[str] = [str(wanted.aggregate)] if wanted.aggregate else []
    if wanted.order:
        connection = await streams.mesh.connect(DATABASES["payment_svc"])
        try:
            payments = await connection.fetch(_OF_ORDER, wanted.order)
        finally:
            await connection.close()
        aggregates += [str(wanted.order), *(str(row["id"]) for row in payments)]
    areas = sorted({event_type.split(".")[1] for event_type in wanted.types} or NAMES)
    found: list[StoredEvent] = []
    for area in areas:
        types = [each for each in wanted.types if each.split(".")[1] == area] or [f"commerce.{area}.*"]
        subjects = [f"{event_type}.{aggregate}" for event_type in types for aggregate in aggregates or ["*"]]
        found += await _last(streams, stream_of_area(area), subjects, wanted, most)
    return sorted(found, key=lambda event: (event.stored, event.number))[-most:]


async def _last(streams: Streams, stream: str, subjects: Sequence[str], wanted: Filter, most: int) -> list[StoredEvent]:
    """The last events of one stream. Without a time, the end of the stream is read first, since it may be long."""
    state = await streams.state(stream)
    beginning, span = state.first_seq or 1, 4 * most
    while True:
        first = max(beginning, (state.last_seq or 0) - span + 1)
        if wanted.since or wanted.until:
            first = beginning
        kept: deque[StoredEvent] = deque(maxlen=most)
        async for event in _matching(streams, stream, subjects, wanted, first):
            kept.append(event)
        if len(kept) == most or first == beginning:
            return list(kept)
        span *= 16


async def _matching(
    streams: Streams, stream: str, subjects: Sequence[str], wanted: Filter, first: int
) -> AsyncIterator[StoredEvent]:
    begin = None if wanted.since else first
    async for event in streams.read(stream, subjects, first=begin, since=wanted.since):
        if wanted.until and event.stored >= wanted.until:
            return
        yield event


@dataclass(slots=True)
class Details:
    """All that is known of one event."""

    event_id: str
    copies: list[StoredEvent] = field(default_factory=list)
    """The messages of the streams; more than one after a redrive or a backfill."""
    dead_letters: list[StoredEvent] = field(default_factory=list)
    written: dict[str, Any] | None = None
    """Its row in the outbox: `service`, `type`, `aggregate_id`, `sequence`, `create_time`, `traceparent`, `payload`,
    `is_published`. None if the outbox has it no more."""
    applied: dict[str, datetime] = field(default_factory=dict)
    """When each consumer has applied it."""
    unfinished: dict[str, int] = field(default_factory=dict)
    """The attempts of each consumer that had no end."""


async def show(streams: Streams, event_id: UUID) -> Details:
    """All that is known of an event, in the outboxes, streams, inboxes and dead letters."""
    details = Details(str(event_id))
    happened = _time_of(event_id)
    for service in NAMES:
        connection = await streams.mesh.connect(DATABASES[f"{service}_svc"])
        try:
            begin, end = (happened - _MARGIN, happened + timedelta(days=1)) if happened else (_EVER, _NEVER)
            if row := await connection.fetchrow(_WRITTEN, event_id, begin, end):
                details.written = {"service": service, **row}
            details.applied |= {
                row["consumer"]: row["receive_time"] for row in await connection.fetch(_APPLIED, event_id)
            }
            rows = await connection.fetch(_UNFINISHED, details.event_id)
            details.unfinished |= {row["consumer"]: row["unfinished"] for row in rows}
        finally:
            await connection.close()
    subject = f"{details.written['type']}.{details.written['aggregate_id']}" if details.written else None
    places = [stream_of_area(subject.split(".")[1])] if subject else [stream_of_area(area) for area in NAMES]
    for stream in places:
        subjects, since = ([subject] if subject else []), (happened - _MARGIN if happened else None)
        async for event in streams.read(stream, subjects, since=since):
            if event.id == details.event_id:
                details.copies.append(event)
    known = subject or (details.copies[0].subject if details.copies else None)
    async for event in streams.read(DEAD_LETTERS, [f"mesh.dead.*.{known}"] if known else []):
        if event.id == details.event_id:
            details.dead_letters.append(event)
    return details


_EVER, _NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def _time_of(event_id: UUID) -> datetime | None:
    """The time in a UUIDv7; None for another UUID."""
    if event_id.version != 7:
        return None
    return datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)


def as_json(event: StoredEvent, payload: dict[str, Any]) -> dict[str, Any]:
    """An event for programs."""
    headers = {name: value for name, value in event.headers.items() if name != "Nats-Msg-Id"}
    return {
        "id": event.id,
        "type": event.type,
        "stream": event.stream,
        "number": event.number,
        "stored": event.stored.isoformat(),
        "subject": event.subject,
        "headers": headers,
        "payload": payload,
    }
