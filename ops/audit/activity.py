"""What is still under way in a mesh: undecided orders, refunds without an outcome, unpublished events, events that a
consumer has not applied.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import nats
from nats.js import JetStreamContext

from mesh.db.outbox import BY_INDEX
from ops.audit.mesh import DATABASES, Mesh

TIMEOUT_S = 60.0
"""How long a mesh that is not at rest may make no progress."""
_POLL_S = 0.1

# Each by its partial index, however many orders there are.
_UNDECIDED = """
SELECT (SELECT count(*) FROM orders WHERE status = 'PENDING') +
    (SELECT count(*) FROM orders WHERE status = 'CANCELLING')
"""
_REFUNDS = "SELECT count(*) FROM refunds WHERE next_attempt_time IS NOT NULL"
_UNPUBLISHED = "SELECT count(*) FROM mesh.unpublished"
# The view mesh.unpublished would read all rows behind the position; this reads the first.
OLDEST_UNPUBLISHED = """
SELECT min(create_time) FROM mesh.outbox_position, LATERAL (
    (SELECT create_time FROM mesh.outbox WHERE seq > through ORDER BY seq LIMIT 1)
    UNION ALL
    (SELECT create_time FROM unnest(gaps) AS gap JOIN mesh.outbox ON seq >= lower(gap) AND seq < upper(gap))
) AS waiting
"""
_LAG = f"SELECT extract(epoch FROM clock_timestamp() - ({OLDEST_UNPUBLISHED}))::float8"


class Activity:
    """What is under way in one mesh."""

    def __init__(self, databases: Mapping[str, asyncpg.Connection], streams: JetStreamContext) -> None:
        self._databases = databases
        self._streams = streams

    @classmethod
    @asynccontextmanager
    async def of(cls, mesh: Mesh) -> AsyncIterator[Activity]:
        """Connect to the databases and streams of a mesh."""
        async with AsyncExitStack() as stack:
            client = await nats.connect(mesh.nats_url, name="mesh audit")
            stack.push_async_callback(client.close)
            databases = {}
            by_index = "; ".join(f"SET {name} = {value}" for name, value in BY_INDEX.items())
            for database in sorted(DATABASES.values()):
                databases[database] = await asyncpg.connect(mesh.audit_url(database))
                stack.push_async_callback(databases[database].close)
                await databases[database].execute(by_index)
            yield cls(databases, client.jetstream())

    async def outbox_lag(self) -> dict[str, float]:
        """The age in seconds of the oldest unpublished event, by database; 0 where all are published."""
        return {name: float(await each.fetchval(_LAG) or 0.0) for name, each in self._databases.items()}

    async def under_way(self) -> list[str]:
        """What is under way now; nothing in a mesh at rest."""
        return (await self._read())[0]

    async def wait(self, timeout_s: float = TIMEOUT_S) -> list[str]:
        """Wait until the mesh is at rest. Returns what is still under way when nothing has changed for `timeout_s`."""
        seen: object = None
        since = time.monotonic()
        while True:
            under_way, state = await self._read()
            if not under_way:
                return []
            if state != seen:
                seen, since = state, time.monotonic()
            elif time.monotonic() - since > timeout_s:
                return under_way
            await asyncio.sleep(_POLL_S)

    async def _read(self) -> tuple[list[str], object]:
        """What is under way, and something that differs whenever something has moved."""
        # The streams come first and last: a message that moved anything in between shows in one of them.
        before, behind = await self._last_messages(), await self._behind()
        unpublished = {name: await each.fetchval(_UNPUBLISHED) for name, each in self._databases.items()}
        undecided = await self._databases["orders"].fetchval(_UNDECIDED)
        refunds = await self._databases["payment"].fetchval(_REFUNDS)
        after, behind_after = await self._last_messages(), await self._behind()
        found = [
            *([f"{undecided} orders are not decided"] if undecided else []),
            *([f"{refunds} refunds have no outcome"] if refunds else []),
            *(f"{count} events of {name} are not published" for name, count in unpublished.items() if count),
            *(f"consumer {name} has {count} events to apply" for name, count in (behind | behind_after).items()),
        ]
        if before != after and not found:
            found = ["events are being published"]
        return found, (after, behind_after, unpublished, undecided, refunds)

    async def _last_messages(self) -> dict[str, int]:
        """The number of the last message of each stream."""
        return {each.config.name or "": each.state.last_seq for each in await self._streams.streams_info()}

    async def _behind(self) -> dict[str, int]:
        """How many events each consumer has still to apply; only consumers that have some."""
        behind = {}
        for stream in await self._last_messages():
            for consumer in await self._streams.consumers_info(stream):
                left = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
                # Consumers that are not durable only read, as those of another audit.
                if left and consumer.config.durable_name:
                    behind[consumer.name] = left
        return behind
