"""`mesh bench events`: a consumer that was away finds a backlog, and how fast it catches up.

The events are those of orders of three lines, on a stream of the bench's own, which the services do not hear; the
consumer is a process of its own with a database of its own in the mesh's PostgreSQL. Both are gone afterwards.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import nats
import sqlalchemy as sa
from google.type import money_pb2
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.schema import CreateTable

from commerce.order.v1 import events_pb2, order_pb2
from mesh.db import schema
from mesh.events import cloudevents as events
from mesh.events.bus import Bus, Message
from mesh.ids import new_id
from ops.bench import machine, processes
from ops.bench.consumer import AREA, EVENT, SERVICE, Done, Work, heard
from ops.bench.result import rounded
from ops.bench.run import Watcher
from ops.running_mesh import RunningMesh
from stack.errors import StackError

BACKLOG = 50_000
"""Events, unless told otherwise."""
_BEFORE = 1_000
"""What the consumer has applied in its first life."""
_STREAM = events.stream_of(EVENT)
_IN_FLIGHT = 512
_DATABASE = "bench_scratch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """How a backlog was drained."""

    machine: Mapping[str, object]
    events: int
    seconds: float
    """From the start of the consumer until the last event was applied."""
    events_per_second: float
    mean_batch: float
    cpu_microseconds_per_event: float
    """Of the consumer."""
    cpu_seconds: Mapping[str, float]
    """Of the servers meanwhile."""
    breaches: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        content: dict[str, Any] = rounded(asdict(self))
        return content


async def drain(target: RunningMesh, watcher: Watcher, *, count: int = BACKLOG) -> Drained:
    """Let a consumer be away for `count` events, and measure how it catches up."""
    pids = {name: pid for name, pid in target.pids.items() if name in ("postgres", "nats")}
    async with _scratch(target) as (database, url), _bus(target) as bus:
        described = await machine.described(database)
        watcher.tell(f"publishing {count:,} events")
        await _publish(bus, _BEFORE)
        await _consume(Work(url, target.nats_url, _BEFORE))
        await _publish(bus, count)
        watcher.tell(f"draining {count:,} events")
        before = processes.cpu_seconds(pids)
        done = await _consume(Work(url, target.nats_url, count))
        used = {name: seconds - before[name] for name, seconds in processes.cpu_seconds(pids).items()}
        breaches = await _breaches(bus, database, _BEFORE + count)
    return Drained(
        machine=described,
        events=count,
        seconds=done.seconds,
        events_per_second=count / done.seconds,
        mean_batch=count / done.batches,
        cpu_microseconds_per_event=1e6 * done.cpu_seconds / count,
        cpu_seconds=used,
        breaches=breaches,
    )


@asynccontextmanager
async def _scratch(target: RunningMesh) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A database of its own in the mesh's PostgreSQL, with an inbox and the table of the effect; gone afterwards."""
    server = await target.connect("postgres")
    try:
        await server.execute(f"DROP DATABASE IF EXISTS {_DATABASE} WITH (FORCE)")
        await server.execute(f"CREATE DATABASE {_DATABASE}")
        try:
            connection = await target.connect(_DATABASE)
            try:
                await connection.execute(f"CREATE SCHEMA {schema.inbox.schema}")
                for table in (schema.inbox, heard):
                    await connection.execute(_definition(table))
                yield connection, target.url_for(_DATABASE)
            finally:
                await connection.close()
        finally:
            await server.execute(f"DROP DATABASE {_DATABASE} WITH (FORCE)")
    finally:
        await server.close()


def _definition(table: sa.Table) -> str:
    compiled = CreateTable(table).compile(dialect=dialect.dialect())  # type: ignore[no-untyped-call]  # it has no types
    return str(compiled)


@asynccontextmanager
async def _bus(target: RunningMesh) -> AsyncIterator[Bus]:
    """A connection, with the stream made anew and deleted afterwards."""
    bus = Bus(target.nats_url, name="mesh bench")
    await bus.start()
    await bus.connected()
    try:
        await _forget(bus)
        await bus.ensure_stream_of(AREA)
        yield bus
    finally:
        await _forget(bus)
        await bus.stop()


async def _forget(bus: Bus) -> None:
    try:
        await bus.jetstream.delete_stream(_STREAM)
    except nats.js.errors.NotFoundError:
        return


async def _publish(bus: Bus, count: int) -> None:
    """Publish as a relay does: many in flight, each acknowledged. Raises StackError when one is not."""
    for begin in range(0, count, _IN_FLIGHT):
        messages = [_message() for _ in range(min(_IN_FLIGHT, count - begin))]
        if await bus.publish(messages) < len(messages):
            raise StackError("The backlog could not be published.")


def _message() -> Message:
    order = _order()
    header = events.headers(
        event_id=new_id(),
        event_type=EVENT,
        source=SERVICE,
        aggregate_id=UUID(order.id),
        sequence=1,
        time=datetime.now(UTC),
        traceparent="",
    )
    placed = events_pb2.OrderPlaced(order=order, provider="sandbox")
    return Message(f"{EVENT}.{order.id}", placed.SerializeToString(), header)


def _order() -> order_pb2.Order:
    """An order of three lines."""
    price = money_pb2.Money(currency_code="EUR", units=9, nanos=990_000_000)
    return order_pb2.Order(
        id=str(new_id()),
        customer_id=str(new_id()),
        status=order_pb2.ORDER_STATUS_PENDING,
        items=[
            order_pb2.OrderItem(
                id=str(new_id()),
                product_id=str(new_id()),
                sku=f"BENCH-{new_id()}",
                name="Bench product",
                quantity=1,
                unit_price=price,
                line_total=price,
            )
            for _ in range(3)
        ],
        total_amount=money_pb2.Money(currency_code="EUR", units=29, nanos=970_000_000),
        payment_method_id=str(new_id()),
        etag="1",
    )


async def _consume(work: Work) -> Done:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "ops.bench.consumer"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        # By a pipe: other users see the arguments of a process, and the URLs hold passwords.
        said, _ = await process.communicate(json.dumps(asdict(work)).encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise StackError("The consumer of the bench failed.")
    return Done(**json.loads(said))


async def _breaches(bus: Bus, database: asyncpg.Connection, published: int) -> list[str]:
    """Every event applied once, and none left."""
    applied = await database.fetchval(f"SELECT count(*) FROM {schema.inbox.fullname}")  # noqa: S608 - our own name
    effects = await database.fetchval(f"SELECT count(*) FROM {heard.name}")  # noqa: S608 - the same
    consumer = await bus.jetstream.consumer_info(_STREAM, f"{SERVICE}-{AREA}")
    left = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
    return [
        *([f"{published} events were published, and {applied} applied"] if applied != published else []),
        *([f"{applied} events were applied, and have {effects} effects"] if effects != applied else []),
        *([f"the consumer has {left} events to apply"] if left else []),
    ]
