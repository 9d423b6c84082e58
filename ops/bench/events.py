"""`mesh bench events`: how fast a consumer that was away applies its backlog.

The events are those of orders of three lines, on a stream of the bench, which no service consumes. The consumer is a
process with a database of its own in the PostgreSQL of the mesh. Stream and database are removed afterwards.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import nats
import sqlalchemy as sa
from google.type import money_pb2
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.schema import CreateTable

from commerce.order.v1 import events_pb2, order_pb2
from mesh.db import schema
from mesh.events import cloudevents
from mesh.events.bus import Bus, Message
from mesh.ids import new_id
from ops.bench import machine, processes
from ops.bench.consumer import AREA, EVENT, SERVICE, Done, Work, applied
from ops.bench.load import Watcher
from ops.bench.result import Drained
from ops.running_mesh import RunningMesh
from stack.errors import StackError

BACKLOG = 50_000
"""Events, by default."""
_BEFORE = 1_000
"""The events that the consumer has applied before it was away."""
_STREAM = cloudevents.stream_of_area(AREA)
_IN_FLIGHT = 512
_DATABASE = "bench_scratch"


async def drain(mesh: RunningMesh, watcher: Watcher, *, count: int = BACKLOG) -> Drained:
    """Publish `count` events while the consumer is away, and measure how it applies them."""
    pids = {name: pid for name, pid in mesh.pids.items() if name in ("postgres", "nats")}
    async with _scratch(mesh) as (database, url), _bus(mesh) as bus:
        described = await machine.described(database)
        watcher.tell(f"publishing {count:,} events")
        await _publish(bus, _BEFORE)
        await _consume(Work(url, mesh.nats_url, _BEFORE))
        await _publish(bus, count)
        watcher.tell(f"draining {count:,} events")
        before = processes.cpu_seconds(pids)
        done = await _consume(Work(url, mesh.nats_url, count))
        used = {name: seconds - before[name] for name, seconds in processes.cpu_seconds(pids).items()}
        violations = await _violations(bus, database, _BEFORE + count)
    return Drained(
        machine=described,
        events=count,
        seconds=done.seconds,
        events_per_second=count / done.seconds,
        mean_batch=count / done.batches,
        cpu_microseconds_per_event=1e6 * done.cpu_seconds / count,
        cpu_seconds=used,
        violations=violations,
    )


@asynccontextmanager
async def _scratch(mesh: RunningMesh) -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A database with an inbox and the table of the effect, and its URL. It is dropped afterwards."""
    server = await mesh.connect("postgres")
    try:
        await server.execute(f"DROP DATABASE IF EXISTS {_DATABASE} WITH (FORCE)")
        await server.execute(f"CREATE DATABASE {_DATABASE}")
        try:
            connection = await mesh.connect(_DATABASE)
            try:
                await connection.execute(f"CREATE SCHEMA {schema.inbox.schema}")
                for table in (schema.inbox, applied):
                    await connection.execute(_definition(table))
                yield connection, mesh.url_for(_DATABASE)
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
async def _bus(mesh: RunningMesh) -> AsyncIterator[Bus]:
    """A connection to NATS with an empty stream, which is deleted afterwards."""
    bus = Bus(mesh.nats_url, name="mesh bench")
    await bus.start()
    await bus.connected()
    try:
        await _delete_stream(bus)
        await bus.ensure_stream_of(AREA)
        yield bus
    finally:
        await _delete_stream(bus)
        await bus.stop()


async def _delete_stream(bus: Bus) -> None:
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
    headers = cloudevents.headers(
        event_id=new_id(),
        event_type=EVENT,
        source=SERVICE,
        aggregate_id=UUID(order.id),
        sequence=1,
        time=datetime.now(UTC),
        traceparent="",
    )
    return Message(f"{EVENT}.{order.id}", events_pb2.OrderPlaced(order=order).SerializeToString(), headers)


def _order() -> order_pb2.Order:
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
        # The URLs hold passwords, and other users can see the arguments of a process.
        output, _ = await process.communicate(json.dumps(asdict(work)).encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise StackError("The consumer of the bench failed.")
    return Done(**json.loads(output))


async def _violations(bus: Bus, database: asyncpg.Connection, published: int) -> list[str]:
    """Violations of: every event was applied once, and none is left."""
    recorded = await database.fetchval(f"SELECT count(*) FROM {schema.inbox.fullname}")  # noqa: S608 - our own name
    effects = await database.fetchval(f"SELECT count(*) FROM {applied.name}")  # noqa: S608 - our own name
    consumer = await bus.jetstream.consumer_info(_STREAM, f"{SERVICE}-{AREA}")
    left = (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)
    return [
        *([f"{published} events were published, and {recorded} applied"] if recorded != published else []),
        *([f"{recorded} events were applied, and have {effects} effects"] if effects != recorded else []),
        *([f"the consumer has {left} events to apply"] if left else []),
    ]
