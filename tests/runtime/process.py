"""The runtime alone, on the real servers: a database with its tables and a table of effects."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import op
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from google.protobuf.wrappers_pb2 import StringValue
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from mesh import tasks
from mesh.db import migrations
from mesh.db.database import BulkInsert, Database, Statement
from mesh.db.idempotency import IdempotencyKey
from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
from mesh.events.bus import Bus
from mesh.events.cloudevents import Event
from mesh.events.relay import LINGER_S, Relay
from mesh.lifecycle import Part
from mesh.rpc.call import Call, Caller, Kind
from mesh.rpc.replies import Change
from stack.servers import Servers
from tests.services import eventually

metadata = sa.MetaData()
effects = sa.Table(
    "effects",
    metadata,
    sa.Column("seq", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("note", sa.String, nullable=False),
)
ADD_EFFECTS = BulkInsert(effects.c.note)
BACKEND = Statement(sa.select(sa.func.pg_backend_pid().label("pid")))
FAIL = Statement(sa.select(sa.func.fail(sa.bindparam("state", type_=sa.String))))
METHOD = "/commerce.test.v1.TestService/Change"


@dataclass(frozen=True, slots=True)
class Scratch:
    """The database of one test module, with a connection of a superuser."""

    url: str
    admin: asyncpg.Connection

    async def notes(self) -> list[str]:
        """The committed effects, in order."""
        return [row["note"] for row in await self.admin.fetch("SELECT note FROM effects ORDER BY seq")]

    async def count(self, table: str) -> int:
        """The number of rows of a table."""
        return int(await self.admin.fetchval(f"SELECT count(*) FROM {table}"))

    async def end_backend(self, pid: int) -> None:
        """End a session of the database, as a crash of its backend would."""
        assert await self.admin.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)

    async def somebody_waits(self) -> int:
        """Wait until a backend waits for another transaction. Returns its process id."""

        async def waiting() -> int | None:
            pid: int | None = await self.admin.fetchval(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            return pid

        return await eventually(waiting)

    async def empty(self) -> None:
        """Delete all rows."""
        await self.admin.execute("TRUNCATE effects, mesh.idempotency, mesh.inbox, mesh.outbox, mesh.attempts")


MIGRATIONS = (
    migrations.create_runtime_tables,
    migrations.index_ages,
    migrations.publish_by_position,
    migrations.count_attempts,
)
"""The steps of the services' migrations for the runtime, in order."""


@asynccontextmanager
async def scratch_database(
    servers: Servers, made_by: Sequence[Callable[[], None]] = MIGRATIONS
) -> AsyncIterator[Scratch]:
    """A database with the runtime's tables, created by the code of the services' migrations."""
    async with new_database(servers) as url:
        await migrate(url, *made_by, _make_what_tests_need)
        admin = await asyncpg.connect(url)
        try:
            yield Scratch(url, admin)
        finally:
            await admin.close()


@asynccontextmanager
async def new_database(servers: Servers) -> AsyncIterator[str]:
    """The URL of an empty database, for a superuser. The database is dropped afterwards."""
    name = f"scratch_{uuid4().hex}"
    await _as_superuser(servers, f"CREATE DATABASE {name}")
    try:
        yield servers.postgres.superuser_url_of(name)
    finally:
        await _as_superuser(servers, f"DROP DATABASE {name} WITH (FORCE)")


async def kept_plan(connection: asyncpg.Connection, statement: Statement) -> list[str]:
    """The generic plan that a session caches for a statement."""
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE this AS {statement.sql}")
    parameters = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", statement.sql))))
    plan = [row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE this{parameters and f'({parameters})'}")]
    await connection.execute("DEALLOCATE this")
    return plan


async def _as_superuser(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.postgres.superuser_url)
    await connection.execute(statement)
    await connection.close()


def _make_what_tests_need() -> None:
    metadata.create_all(op.get_bind())
    op.execute(
        "CREATE FUNCTION fail(state text) RETURNS void LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'as the test wants' USING ERRCODE = state; END $$"
    )


async def migrate(url: str, *steps: Callable[[], None]) -> None:
    """Run these steps of migrations in one transaction."""

    def run(connection: sa.Connection) -> None:
        with Operations.context(MigrationContext.configure(connection)):
            for step in steps:
                step()

    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), poolclass=sa.NullPool)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


@dataclass(frozen=True, slots=True)
class Process:
    """The parts of the runtime in one process of a service."""

    database: Database
    bus: Bus
    relay: Relay
    units: UnitsOfWork


@asynccontextmanager
async def process(
    scratch: Scratch,
    servers: Servers,
    *,
    area: str = "test",
    relaying: bool = False,
    linger: float = LINGER_S,
    poll: float = 0.05,
    **more: Any,
) -> AsyncIterator[Process]:
    """A process with its own pool and its own connection to NATS. Its relay runs if it is `relaying`, with `more`."""
    database = Database(scratch.url, max_connections=4)
    bus = Bus(servers.nats.url, name=area)
    relay = Relay(area, database, bus, linger=linger, poll=poll, **more)
    async with AsyncExitStack() as parts:
        running: list[Part] = [database, bus, *([relay] if relaying else [])]
        for part in running:
            await part.start()
            parts.push_async_callback(part.stop)
        yield Process(database, bus, relay, UnitsOfWork(database, relay))


class Lingers:
    """Makes each wait of exactly `seconds` last until `end` is called. Other waits are only counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.begun = 0
        self.other_waits = 0
        self._over = asyncio.Event()
        really = tasks.is_set_within

        async def is_set_within(some: float, event: asyncio.Event) -> bool:
            if some != seconds:
                self.other_waits += 1
                return await really(some, event)
            self.begun += 1
            await self._over.wait()
            return event.is_set()

        monkeypatch.setattr(tasks, "is_set_within", is_set_within)

    async def has_begun(self) -> bool:
        """Whether such a wait has begun."""
        return self.begun > 0

    def end(self) -> None:
        """End the current wait and all later ones."""
        self._over.set()


def new_area() -> str:
    """An area of events that no other test uses."""
    return f"t{uuid4().hex[:12]}"


def event(area: str, aggregate: UUID, sequence: int, text: str = "") -> Event:
    """An event of an aggregate."""
    return Event(f"commerce.{area}.happened", aggregate, sequence, StringValue(value=text or str(sequence)))


def change(
    key: str | None = None, request: str = "request", *, caller: str = "ada", method: str = METHOD
) -> Change[str]:
    """A change whose reply is a text."""
    who = Caller(Kind.CUSTOMER, caller)
    stored_under = IdempotencyKey.of(key, who, method, StringValue(value=request)) if key is not None else None
    return Change(Call(method, caller=who, key=stored_under), lambda result: StringValue(value=result))


def text_of(reply: bytes) -> str:
    """The text in a reply."""
    return StringValue.FromString(reply).value


async def do(work: UnitOfWork, *notes: str) -> None:
    """Write effects."""
    await work.transaction.insert(ADD_EFFECTS, [(note,) for note in notes])


async def fail_as(work: UnitOfWork, state: str) -> None:
    """Raise an error with this SQLSTATE in the database."""
    await work.transaction.fetch(FAIL, state=state)


async def backend_of(work: UnitOfWork) -> int:
    """The backend that runs the transaction."""
    row = await work.transaction.fetch_one(BACKEND)
    assert row is not None
    return int(row["pid"])
