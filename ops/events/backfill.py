"""Backfills: what a stream has lost is published again from the outbox.

An event of the outbox that the relay has published must be in the stream. The ids in the stream are copied into a
temporary table of the database, which finds the rows without a message; so the memory needed does not grow with the
number of events. The events are published in the order of the outbox, with their old ids. Consumers that have applied
one of them recognize it by their inbox.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from mesh.events.bus import Message
from mesh.events.cloudevents import stream_of_area
from mesh.events.relay import message_of
from mesh.ids import new_id, parse_id
from ops.events.streams import Streams
from stack.errors import StackError
from stack.servers import DATABASES

_MARGIN = timedelta(minutes=10)
"""By how much the clocks of a database and of NATS may differ."""
_COPY, _PORTION = 10_000, 512
_OLDEST = "SELECT create_time FROM mesh.outbox ORDER BY seq LIMIT 1"
# The position is read first: an event that was published by then is in the stream when that is read, or is lost.
_PUBLISHED = """
CREATE TEMPORARY TABLE published AS SELECT seq, create_time, event_id FROM mesh.outbox, mesh.outbox_position
WHERE seq <= through AND NOT gaps @> seq
"""
_STREAMED = "CREATE TEMPORARY TABLE streamed (event_id uuid)"
_LOST = """
CREATE TEMPORARY TABLE lost AS SELECT seq, create_time FROM published
WHERE NOT EXISTS (SELECT FROM streamed WHERE streamed.event_id = published.event_id)
"""
_COUNTS = "SELECT (SELECT count(*) FROM published), (SELECT count(*) FROM lost)"
_ROWS = """
SELECT event.* FROM (SELECT * FROM lost WHERE seq > $1 ORDER BY seq LIMIT $2) AS portion
JOIN mesh.outbox event USING (seq, create_time) ORDER BY event.seq
"""


class BackfillFailed(StackError):
    """The stream has not acknowledged an event. A second backfill publishes the rest."""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What was done for one stream, or would be done."""

    stream: str
    since: datetime | None
    """The time of the oldest row of the outbox. What the stream has lost from before cannot be published again."""
    compared: int
    """How many published events of the outbox were compared with the stream."""
    lost: int
    """How many of them the stream lacked."""
    published: int


async def backfill(
    streams: Streams,
    area: str,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Backfilled:
    """Publish the events of an area that its stream has lost.

    Services may run meanwhile. The events follow those that the stream has by now. Among them, they have the order of
    the outbox.

    Args:
        streams: The streams of the mesh.
        area: The area of the events, such as `order`.
        dry_run: Only count them.
        progress: Is called with the number of published events.

    Raises:
        BackfillFailed: The stream has not acknowledged an event.
        StreamMissing: The stream does not exist.
    """
    stream = stream_of_area(area)
    await streams.state(stream)
    connection = await streams.mesh.connect(DATABASES[f"{area}_svc"])
    try:
        since: datetime | None = await connection.fetchval(_OLDEST)
        if since is None:
            return Backfilled(stream, None, 0, 0, 0)
        await connection.execute(_PUBLISHED)
        await _copy_ids(streams, stream, since - _MARGIN, connection)
        await connection.execute(_LOST)
        ((compared, lost),) = await connection.fetch(_COUNTS)
        published = 0 if dry_run else await _publish(streams, stream, area, connection, progress)
        return Backfilled(stream, since, compared, lost, published)
    finally:
        await connection.close()


async def _copy_ids(streams: Streams, stream: str, since: datetime, connection: asyncpg.Connection) -> None:
    await connection.execute(_STREAMED)
    ids: list[tuple[UUID]] = []
    async for event in streams.read(stream, since=since, headers_only=True):
        with suppress(ValueError):  # a message that is no event
            ids.append((parse_id(event.id),))
        if len(ids) == _COPY:
            await connection.copy_records_to_table("streamed", records=ids)
            ids.clear()
    await connection.copy_records_to_table("streamed", records=ids)
    await connection.execute("ANALYZE streamed, published")


async def _publish(
    streams: Streams,
    stream: str,
    area: str,
    connection: asyncpg.Connection,
    progress: Callable[[int], None] | None,
) -> int:
    published, last, run = 0, 0, new_id()
    await connection.execute("CREATE INDEX ON lost (seq)")
    while rows := await connection.fetch(_ROWS, last, _PORTION):
        stored = await streams.bus.publish([_message(area, row, run) for row in rows])
        published += stored
        if progress is not None:
            progress(published)
        if stored < len(rows):
            raise BackfillFailed(f"{stream} has acknowledged {published} events only. Backfill again.")
        last = rows[-1]["seq"]
    return published


def _message(area: str, row: asyncpg.Record, run: UUID) -> Message:
    """The message of a row. A stream remembers ids of messages that it has lost, and would drop them as duplicates."""
    message = message_of(area, row)
    return message._replace(headers={**message.headers, "Nats-Msg-Id": f"backfill/{run}/{row['event_id']}"})
