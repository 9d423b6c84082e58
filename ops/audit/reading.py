"""The connections of an audit, and the time up to which it judges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from ops.audit.activity import OLDEST_UNPUBLISHED, Activity
from ops.audit.mesh import DATABASES, Mesh
from ops.audit.streams import Streams

MARGIN = timedelta(seconds=60)
"""By how much the window of an audit is older than the lag, by default, unless the mesh is at rest."""
LONGEST_WAIT = timedelta(minutes=10)
"""An event that waits for a consumer longer than this is a breach, so the window is not older because of it."""
_FUTURE = timedelta(days=1)
"""The window of an audit of a mesh at rest ends in the future: the clocks of its machines may differ."""
_SESSION = {
    "application_name": "mesh audit",
    "default_transaction_read_only": "on",
    # One process of the server, so that the services keep the other cores.
    "max_parallel_workers_per_gather": "0",
    "work_mem": "32MB",
    "jit": "off",
    "timezone": "UTC",
}
_COMMAND_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Window:
    """What an audit judges."""

    now: datetime
    """The time of the databases when the audit began."""
    since: datetime | None
    """Only what changed after this time; None for everything."""
    until: datetime
    """Only what has not changed after this time: it is older than the lag of every event."""
    is_idle: bool
    """Whether nothing was under way at the time `until`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The open connections of an audit."""

    databases: Mapping[str, asyncpg.Connection]
    """By the name of the service. Each statement sees one snapshot of its database."""
    streams: Streams
    window: Window

    async def fetch(self, service: str, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a query in the database of a service."""
        return await self.databases[service].fetch(query, *arguments)

    async def value(self, service: str, query: str, *arguments: Any) -> Any:
        """The first value of a query in the database of a service."""
        return await self.databases[service].fetchval(query, *arguments)


@asynccontextmanager
async def reading(
    mesh: Mesh, *, since: datetime | None, margin: timedelta, consumers: Sequence[tuple[str, str]]
) -> AsyncIterator[Reading]:
    """Connect to the databases and streams of a mesh, and measure its lag.

    `margin` of zero says that the mesh is at rest. `consumers` are the names of the streams and their consumers. Raises
    OSError, the errors of the database driver, or StreamsUnreadable.
    """
    async with AsyncExitStack() as stack:
        databases = {}
        for service, database in DATABASES.items():
            databases[service] = await asyncpg.connect(
                mesh.audit_url(database), server_settings=_SESSION, command_timeout=_COMMAND_TIMEOUT_S, timeout=30
            )
            stack.push_async_callback(databases[service].close)
        streams = await stack.enter_async_context(Streams.connected(mesh.nats_url))
        now: datetime = await databases["order"].fetchval("SELECT clock_timestamp()")
        yield Reading(databases, streams, await _window(databases, streams, now, since, margin, consumers))


async def _window(
    databases: Mapping[str, asyncpg.Connection],
    streams: Streams,
    now: datetime,
    since: datetime | None,
    margin: timedelta,
    consumers: Sequence[tuple[str, str]],
) -> Window:
    if not margin:
        return Window(now, since, now + _FUTURE, is_idle=True)
    activity = Activity({DATABASES[service]: each for service, each in databases.items()}, streams.jetstream)
    if not await activity.under_way():
        return Window(now, since, now, is_idle=True)
    unpublished = [await each.fetchval(OLDEST_UNPUBLISHED) for each in databases.values()]
    unapplied = [await streams.oldest_waiting(stream, consumer) for stream, consumer in consumers]
    oldest = min(filter(None, [*unpublished, *unapplied]), default=now)
    return Window(now, since, max(oldest, now - LONGEST_WAIT) - margin, is_idle=False)


def first_id(time: datetime) -> UUID:
    """The least UUIDv7 of a moment: ids that are made later are greater."""
    return UUID(int=int(time.timestamp() * 1000) << 80 | 0x7 << 76 | 0x8 << 60)


def time_of(id_: UUID) -> datetime:
    """When a UUIDv7 was made."""
    return datetime.fromtimestamp((id_.int >> 80) / 1000, UTC)
