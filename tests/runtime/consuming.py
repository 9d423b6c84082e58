"""Consumers on the real servers: publishing, consuming, and the effects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from uuid import UUID, uuid4

from google.protobuf.wrappers_pb2 import StringValue
from nats.aio.client import Client

from mesh.db.unit_of_work import UnitOfWork
from mesh.events import consumers
from mesh.events.cloudevents import Received, headers, stream_of_area
from mesh.events.consumers import Consumer, Handler
from tests.runtime.process import Process, Scratch, do
from tests.services import TEST_TIMEOUT_S, eventually

Apply = Callable[[UnitOfWork, Sequence[Received[StringValue]]], Awaitable[None]]


class Publisher:
    """Publishes events of one area like its relay."""

    def __init__(self, client: Client, area: str, *, timeout: float = TEST_TIMEOUT_S) -> None:
        self.area = area
        self._timeout = timeout
        self._js = client.jetstream()

    async def __call__(
        self, text: str, *, event_id: UUID | None = None, kind: str = "happened", message_id: str | None = None
    ) -> UUID:
        event_id, aggregate = event_id or uuid4(), uuid4()
        header = headers(
            event_id=event_id,
            event_type=f"commerce.{self.area}.{kind}",
            source=self.area,
            aggregate_id=aggregate,
            sequence=1,
            time=datetime.now(UTC),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        if message_id is not None:
            header["Nats-Msg-Id"] = message_id
        await self.raw(f"commerce.{self.area}.{kind}.{aggregate}", StringValue(value=text).SerializeToString(), header)
        return event_id

    async def numbers(self, numbers: range) -> None:
        """Publish each number as text, in order."""
        for number in numbers:
            await self(str(number))

    async def raw(self, subject: str, payload: bytes, header: dict[str, str] | None = None) -> None:
        await self._js.publish(subject, payload, timeout=self._timeout, headers=header)


async def record(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
    """Store the texts of the events in their order."""
    await do(work, *(event.payload.value for event in events))


@asynccontextmanager
async def consuming(
    here: Process,
    area: str,
    apply: Apply = record,
    *,
    service: str = "test",
    kinds: Sequence[str] = ("happened",),
    apart: bool = False,
    linger: float = consumers.LINGER_S,
    ack_wait: float = 2 * TEST_TIMEOUT_S,
    **limits: int,
) -> AsyncIterator[Consumer]:
    """A consumer that runs. By default no event is redelivered because a busy machine is slow."""

    def applying() -> Apply:
        # A function for each type, so that the types are not passed together.
        return partial(apply) if apart else apply

    handlers = {f"commerce.{area}.{kind}": Handler(StringValue, applying()) for kind in kinds}
    consumer = Consumer(
        service, area, handlers, bus=here.bus, units=here.units, linger=linger, ack_wait=ack_wait, **limits
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def applied(scratch: Scratch, count: int) -> list[str]:
    """The effects, once there are at least `count`."""

    async def enough() -> bool:
        return await scratch.count("effects") >= count

    await eventually(enough)
    return await scratch.notes()


async def acknowledged(here: Process, area: str, service: str = "test") -> None:
    """Wait until all events of the stream are acknowledged."""

    async def is_done() -> bool:
        info = await here.bus.jetstream.consumer_info(stream_of_area(area), f"{service}-{area}")
        return bool(info.num_ack_pending == 0 and info.num_pending == 0)

    await eventually(is_done)


class Gate:
    """Blocks the first batch, so that all later events wait behind it."""

    def __init__(self) -> None:
        self._entered, self._opened = asyncio.Event(), asyncio.Event()

    async def record(self, work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        self._entered.set()
        await self._opened.wait()
        await record(work, events)

    async def shut(self, publish: Publisher) -> None:
        await publish("gate")
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await self._entered.wait()

    def open(self) -> None:
        self._opened.set()


def buffered(consumer: Consumer, count: int) -> Callable[[], Awaitable[bool]]:
    """The condition that so many events have arrived at a consumer and wait for its next batch."""

    async def is_so() -> bool:
        return consumer.buffered == count

    return is_so
