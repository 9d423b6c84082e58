"""Housekeeping: expired rows are deleted in portions, and all others are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest

from mesh.db import attempts, inbox
from mesh.db.housekeeping import housekeeping
from mesh.db.idempotency import RETENTION
from mesh.events.bus import MAX_AGE_S
from stack.servers import Servers
from tests.runtime.process import Process, Scratch, process
from tests.services import eventually

REPLIES = (
    "INSERT INTO mesh.idempotency (digest, caller, method, request_hash, reply, create_time) "
    "SELECT gen_random_uuid()::text::bytea, '', '', '', '', now() - $1::interval FROM generate_series(1, $2::int)"
)
EVENTS = (
    "INSERT INTO mesh.inbox (event_id, consumer, receive_time) "
    "SELECT gen_random_uuid(), 'test', now() - $1::interval FROM generate_series(1, $2::int)"
)
ATTEMPTS = (
    "INSERT INTO mesh.attempts (consumer, event, unfinished, begin_time) "
    "SELECT 'test', gen_random_uuid()::text, 1, now() - $1::interval FROM generate_series(1, $2::int)"
)
MINUTE = timedelta(minutes=1)


@pytest.fixture
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    await scratch.empty()
    async with process(scratch, servers) as started:
        yield started


@asynccontextmanager
async def at_work(here: Process) -> AsyncIterator[None]:
    """Run the jobs, in portions of ten rows. The next run would be in an hour."""
    async with AsyncExitStack() as stack:
        for job in housekeeping(here.database, portion=10):
            await job.start()
            stack.push_async_callback(job.stop)
        yield


async def test_expired_rows_are_purged_immediately_in_portions(scratch: Scratch, here: Process) -> None:
    for statement, age in ((REPLIES, RETENTION), (EVENTS, inbox.RETENTION), (ATTEMPTS, attempts.RETENTION)):
        await scratch.admin.execute(statement, age + MINUTE, 25)
        await scratch.admin.execute(statement, age - MINUTE, 3)

    async def only_recent_rows() -> bool:
        tables = ("mesh.idempotency", "mesh.inbox", "mesh.attempts")
        return [await scratch.count(table) for table in tables] == [3, 3, 3]

    commits = here.database.commits
    async with at_work(here):
        await eventually(only_recent_rows)
    assert here.database.commits - commits == 9, "portions of ten, ten and five rows in each table"


async def test_purge_that_fails_does_not_stop_the_other_purge(scratch: Scratch, here: Process) -> None:
    await scratch.admin.execute(EVENTS, inbox.RETENTION + MINUTE, 25)

    async def none() -> bool:
        return await scratch.count("mesh.inbox") == 0

    locked = scratch.admin.transaction()
    await locked.start()
    await scratch.admin.execute("LOCK mesh.idempotency IN ACCESS EXCLUSIVE MODE")
    async with at_work(here):
        try:
            await eventually(none)
        finally:
            await locked.rollback()


def test_inbox_keeps_ids_longer_than_a_stream_keeps_events() -> None:
    assert inbox.RETENTION.total_seconds() > MAX_AGE_S
