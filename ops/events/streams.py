"""The streams of a mesh, read without a durable consumer, so that a reading leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import asyncpg
import nats.errors
import nats.js.api as js
import nats.js.errors
from nats.aio.msg import Msg

from mesh.events.bus import Bus
from stack.errors import StackError

_CONNECT_S = 10.0
_PORTION = 512
_INACTIVE_S = 60.0


class Mesh(Protocol):
    """What these operations need to know of a mesh."""

    @property
    def nats_url(self) -> str:
        """A NATS user who may read and publish in all streams."""

    async def connect(self, database: str) -> asyncpg.Connection:
        """A connection to the database of a service, as a user who may read all of it and make temporary tables."""


class NatsUnreachable(StackError):
    """NATS does not answer."""


class StreamMissing(StackError):
    """A stream does not exist. The service whose events it has creates it when it starts."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A message of a stream: an event, or a dead letter."""

    stream: str
    number: int
    """Its place in the stream."""
    stored: datetime
    """When the stream stored it. A backfilled or redriven event has happened before."""
    subject: str
    headers: Mapping[str, str]
    data: bytes
    """Empty if only headers are read."""

    @property
    def id(self) -> str:
        """The id of the event; empty if the message is none."""
        return self.headers.get("ce-id", "")

    @property
    def type(self) -> str:
        """The type of the event; empty if the message is none."""
        return self.headers.get("ce-type", "")


class Streams:
    """The streams of a mesh."""

    def __init__(self, mesh: Mesh, bus: Bus) -> None:
        self.mesh = mesh
        self.bus = bus

    @classmethod
    @asynccontextmanager
    async def of(cls, mesh: Mesh) -> AsyncIterator[Streams]:
        """Connect to the streams of a mesh. Raises NatsUnreachable."""
        bus = Bus(mesh.nats_url, name="mesh events")
        await bus.start()
        try:
            try:
                await asyncio.wait_for(bus.connected(), _CONNECT_S)
            except TimeoutError:
                raise NatsUnreachable(f"NATS does not answer within {_CONNECT_S:g} s.") from None
            yield cls(mesh, bus)
        finally:
            await bus.stop()

    async def state(self, stream: str) -> js.StreamState:
        """The numbers of a stream. Raises StreamMissing."""
        try:
            return (await self.bus.jetstream.stream_info(stream)).state
        except nats.js.errors.NotFoundError:
            raise StreamMissing(f"The stream {stream} does not exist. Its service creates it.") from None

    async def get(self, stream: str, number: int) -> StoredEvent | None:
        """The message in this place of a stream, if there is one."""
        try:
            found = await self.bus.jetstream.get_msg(stream, number)
        except nats.js.errors.NotFoundError:
            return None
        stored = found.time or datetime.now(UTC)
        return StoredEvent(stream, number, stored, found.subject or "", found.headers or {}, found.data or b"")

    async def read(
        self,
        stream: str,
        subjects: Sequence[str] = (),
        *,
        first: int | None = None,
        since: datetime | None = None,
        headers_only: bool = False,
    ) -> AsyncIterator[StoredEvent]:
        """The messages of a stream in their order, up to the last one of now. Nothing if the stream does not exist.

        Args:
            stream: Its name.
            subjects: Only messages of these subjects, which may contain wildcards; by default all.
            first: Begin at this place.
            since: Or begin with what was stored at this time.
            headers_only: Leave out the payloads.
        """
        policy = js.DeliverPolicy.ALL
        if first is not None:
            policy = js.DeliverPolicy.BY_START_SEQUENCE
        elif since is not None:
            policy = js.DeliverPolicy.BY_START_TIME
        config = js.ConsumerConfig(
            deliver_policy=policy,
            opt_start_seq=first,
            opt_start_time=since.astimezone(UTC) if since is not None and first is None else None,
            filter_subjects=list(subjects) or None,
            ack_policy=js.AckPolicy.NONE,
            headers_only=headers_only,
            mem_storage=True,
            num_replicas=1,
            inactive_threshold=_INACTIVE_S,
        )
        context = self.bus.jetstream
        try:
            consumer = await context.add_consumer(stream, config)
        except nats.js.errors.NotFoundError:
            return
        left = consumer.num_pending or 0
        subscription = await context.pull_subscribe_bind(consumer.name, stream)
        try:
            while left > 0:
                try:
                    portion = await subscription.fetch(min(_PORTION, left), timeout=_CONNECT_S)
                except TimeoutError:
                    return  # the rest was deleted meanwhile
                for message in portion:
                    yield _stored(stream, message)
                left -= len(portion)
        finally:
            with suppress(nats.errors.Error, TimeoutError, OSError):
                await subscription.unsubscribe()
                await context.delete_consumer(stream, consumer.name)


def _stored(stream: str, message: Msg) -> StoredEvent:
    place = message.metadata
    return StoredEvent(
        stream, place.sequence.stream, place.timestamp, message.subject, message.headers or {}, message.data
    )
