"""The relay: publishes the events of an outbox to JetStream in the order of their commits, and loses none.

One relay of each service is active: the one whose session holds an advisory lock. It does all its work on that
connection, so it loses the connection and the lock together, and two relays never publish at the same time. A commit in
its own process wakes it, and so does a core NATS message after a commit in another process. It also polls every second,
in case such a message is lost. It does not use NOTIFY, which serializes all commits of the server.

Published rows are not marked: the relay stores its position after each batch (`mesh.events.position`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import nats.js.errors
import structlog

from mesh import tasks
from mesh.clock import steady
from mesh.db import outbox
from mesh.db.database import READ_CLOCK, SESSION, Row
from mesh.events import cloudevents as events
from mesh.events.bus import Message
from mesh.events.position import Gap, Position

if TYPE_CHECKING:
    from mesh.db.database import Database
    from mesh.events.bus import Bus

_LOCK = 0x0B0C_5EED
"""The advisory lock of the active relay. It is local to the database, so every service uses the same number."""

SESSION_SETTINGS = (
    SESSION
    | outbox.BY_INDEX
    | {
        # These end the session of a paused or disconnected process, and so release its lock.
        "idle_session_timeout": "30s",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
)
"""The settings of the relay's session. It is never idle for long, since it polls."""
LINGER_S = 0.1
"""The default linger in seconds (ADR-0012)."""
_MAINTENANCE = timedelta(hours=1)
"""The interval between the maintenance runs of partitions."""

log = structlog.get_logger(__name__)


class Relay:
    """Publishes a service's outbox. Start one in every process; one of them is active.

    After a batch that was not full it lingers for `linger` seconds (ADR-0012). An idle relay publishes immediately.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        bus: Bus,
        *,
        linger: float = LINGER_S,
        batch: int = 512,
        poll: float = 1.0,
        repair: float = 60.0,
        session: Mapping[str, str] = SESSION_SETTINGS,
    ) -> None:
        """A relay of the events of `service`.

        An idle relay looks for events every `poll` seconds. `repair` is the pause in seconds after a failed maintenance
        of partitions. `session` are the settings of its database session.
        """
        self.published = 0
        """The number of events that this process has published."""
        self.active = False
        """Whether this process holds the lock."""
        self._service = service
        self._database = database
        self._bus = bus
        self._linger = linger
        self._batch = batch
        self._poll = poll
        self._repair = timedelta(seconds=repair)
        self._session = dict(session)
        self._woken = asyncio.Event()
        self._background = tasks.Background(f"relay {service}", self._run)
        self._calls: set[asyncio.Task[None]] = set()
        self._position = Position(0)

    async def start(self) -> None:
        """Start in the background."""
        self._background.start()

    async def stop(self) -> None:
        """Publish all events of the outbox, then stop. If that fails, the events remain for another process."""
        self._background.stopping.set()
        self._woken.set()
        await self._background.stop()

    def wake(self) -> None:
        """Report new events. Call this after each commit that wrote some."""
        if self.active:
            self._woken.set()
        else:
            call = asyncio.get_running_loop().create_task(self._bus.signal(self._topic))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    @property
    def _topic(self) -> str:
        return f"mesh.relay.{self._service}"

    async def _run(self) -> None:
        backoff = tasks.Backoff(self._poll, 10.0)
        while not self._background.stopping.is_set():
            try:
                await self._lead()
                await self._background.pause(self._poll)
                backoff.reset()
            except Exception:
                # The relay must restart after any error, because orders wait for its events.
                pause = backoff.next()
                log.exception("relay interrupted", relay=self._service, again_in=pause)
                await self._background.pause(pause)

    async def _lead(self) -> None:
        """Take the lock and publish until the relay stops. Returns at once if another process holds the lock."""
        await self._bus.connected()
        connection = await asyncpg.connect(
            self._database.url, timeout=5, command_timeout=15, server_settings=self._session
        )
        try:
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                return
            self.active = True
            await self._bus.ensure_stream_of(self._service)
            await self._bus.on_signal(self._topic, lambda _: self._woken.set())
            log.info("relay active", relay=self._service)
            ((through, gaps),) = await connection.fetch(outbox.POSITION.sql)
            self._position = Position(through, tuple(Gap(gap.lower, gap.upper - 1) for gap in gaps))
            maintenance = steady()
            while True:
                self._woken.clear()
                if steady() >= maintenance:
                    pause = await self._maintain(connection)
                    maintenance = steady() + pause.total_seconds()
                rows = await self._read(connection)
                if rows:
                    await self._publish(connection, rows)
                elif self._background.stopping.is_set():
                    return
                if len(rows) < self._batch and not self._background.stopping.is_set():
                    if rows:
                        await self._background.pause(self._linger)
                    await tasks.is_set_within(self._poll, self._woken)
        finally:
            self.active = False
            try:
                await self._bus.off_signal(self._topic)
            finally:
                # This releases the lock in any case.
                await connection.close(timeout=2)

    async def _maintain(self, connection: asyncpg.Connection) -> timedelta:
        """Maintain the partitions. Returns the time until the next run. A failure must not delay events."""
        try:
            # The database sets the times of the rows, so its clock determines the day.
            await outbox.maintain_partitions(connection, await connection.fetchval(READ_CLOCK))
        except asyncpg.PostgresError as error:
            log.warning("partitions not maintained", relay=self._service, error=repr(error))
            return self._repair
        return _MAINTENANCE

    async def _read(self, connection: asyncpg.Connection) -> list[Row]:
        """The oldest unpublished rows, at most one batch."""
        through, gaps = self._position
        values = {
            "through": through,
            "firsts": [gap.first for gap in gaps],
            "lasts": [gap.last for gap in gaps],
            "most": self._batch,
        }
        return await connection.fetch(outbox.UNPUBLISHED.sql, *outbox.UNPUBLISHED.arguments(values))

    async def _publish(self, connection: asyncpg.Connection, rows: list[Row]) -> None:
        """Publish rows and move the position past the acknowledged ones. Raises if some were not acknowledged."""
        stored = await self._bus.publish([message_of(self._service, row) async for row in tasks.in_portions(rows)])
        done = rows[:stored]
        if done:
            position = self._position.after(
                [row["seq"] for row in rows],
                [row["seq"] for row in done],
                ended=rows[0]["ended"],
                is_all=len(rows) < self._batch,
            )
            values = {
                "new_through": position.through,
                "new_gaps": [asyncpg.Range(gap.first, gap.last + 1) for gap in position.gaps],
            }
            transaction_id = await connection.fetchval(outbox.MOVE.sql, *outbox.MOVE.arguments(values))
            self._position = position.bounded(transaction_id)
            self.published += len(done)
        if len(done) < len(rows):
            raise nats.js.errors.Error(f"{len(rows) - len(done)} of {len(rows)} events not acknowledged")


def message_of(service: str, row: Row) -> Message:
    """The message of an event of a service, from its row of the outbox."""
    headers = events.headers(
        event_id=row["event_id"],
        event_type=row["type"],
        source=service,
        aggregate_id=row["aggregate_id"],
        sequence=row["sequence"],
        time=row["create_time"],
        traceparent=row["traceparent"],
    )
    return Message(f"{row['type']}.{row['aggregate_id']}", row["payload"], headers)
