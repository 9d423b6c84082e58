"""A consumer of the bench's own events, in a process: it reads its work as JSON and prints the result as JSON.

It is composed like those of the services: the consumer of the runtime, an inbox, and one statement for a batch.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
import uvloop

from commerce.order.v1 import events_pb2
from mesh.db.database import BulkInsert, Database
from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.cloudevents import Received
from mesh.events.consumers import Consumer, Handler
from mesh.events.relay import Relay
from mesh.observe import logs as telemetry

AREA = "bench"
SERVICE = "bench"
EVENT = f"commerce.{AREA}.placed"

applied = sa.Table(
    "applied",
    sa.MetaData(),
    sa.Column("order_id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("total", sa.Numeric(28, 9), nullable=False),
)
_ADD = BulkInsert(*applied.c)


@dataclass(frozen=True, slots=True)
class Work:
    """Apply so many events, then stop."""

    database_url: str
    nats_url: str
    events: int


@dataclass(frozen=True, slots=True)
class Done:
    """What it took."""

    seconds: float
    """From the start of the consumer until all were applied."""
    batches: int
    cpu_seconds: float
    """In that time."""


async def consume(work: Work) -> Done:
    """Apply as many events as the work says."""
    database, bus = Database(work.database_url), Bus(work.nats_url, name=SERVICE)
    consumer = Consumer(
        SERVICE,
        AREA,
        {EVENT: Handler(events_pb2.OrderPlaced, _apply)},
        bus=bus,
        # The effect publishes nothing, so the relay is never started.
        units=UnitsOfWork(database, Relay(SERVICE, database, bus)),
    )
    await database.start()
    await bus.start()
    await bus.connected()
    began, cpu = time.monotonic(), time.process_time()
    await consumer.start()
    # A consumer of the runtime does not report its progress.
    while consumer.applied < work.events:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    done = Done(time.monotonic() - began, consumer.batches, time.process_time() - cpu)
    for part in (consumer, bus, database):
        await part.stop()
    return done


async def _apply(work: UnitOfWork, events: Sequence[Received[Any]]) -> None:
    orders = (event.payload.order for event in events)
    await work.transaction.insert(
        _ADD,
        (
            (
                UUID(order.id),
                UUID(order.customer_id),
                Decimal(order.total_amount.units) + Decimal(order.total_amount.nanos).scaleb(-9),
            )
            for order in orders
        ),
    )


if __name__ == "__main__":
    telemetry.configure(SERVICE, "error")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(asdict(runner.run(consume(Work(**json.load(sys.stdin)))))))  # noqa: T201 - its answer
