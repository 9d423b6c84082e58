"""A database that is lost: nothing is written in part, callers get an error, and later calls succeed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from traceback import format_exception
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa

from mesh.batch.group_commit import GroupCommit
from mesh.db.database import BulkInsert, Statement
from mesh.db.outbox import APPEND, row
from mesh.db.schema import inbox
from mesh.errors import Code, InvalidArgument, Unavailable
from stack.servers import Servers
from tests.runtime.process import (
    ADD_EFFECTS,
    Process,
    Scratch,
    backend_of,
    change,
    do,
    event,
    fail_as,
    process,
)
from tests.services import TEST_TIMEOUT_S, new_key

ECHO = Statement(sa.select(sa.bindparam("number", type_=sa.Integer).label("number")))
SLEEP = Statement(sa.select(sa.func.pg_sleep(60).label("slept")))


@pytest.fixture
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    await scratch.empty()
    async with process(scratch, servers) as started:
        yield started


@pytest.mark.parametrize("when", ["between two statements", "before the commit"])
async def test_database_lost_during_a_batch_fails_all_its_calls_and_leaves_no_rows(
    scratch: Scratch, here: Process, when: str
) -> None:
    attempts = []

    async def work(batch: Sequence[str]) -> list[str | Exception]:
        attempts.append(len(batch))
        asked = [change(new_key()) for _ in batch]
        async with here.units.begin() as unit:
            unit.store_replies((each.key, each.reply("done").wire) for each in asked)
            await do(unit, *batch)
            unit.publish(event("test", uuid4(), 1))
            if len(attempts) == 1:
                await scratch.end_backend(await backend_of(unit))
                if when == "between two statements":
                    await do(unit, "after the end")
        return list(batch)

    group = GroupCommit("test", work)
    results = await asyncio.gather(*(group.submit(str(item)) for item in range(20)), return_exceptions=True)
    assert attempts == [20], "a transient error does not split the batch"
    for result in results:
        assert isinstance(result, Unavailable)
        assert (result.code, result.reason) == (Code.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        assert result.retry_after is not None
    for table in ("effects", "mesh.idempotency", "mesh.outbox"):
        assert await scratch.count(table) == 0, table

    assert await asyncio.gather(*(group.submit(str(item)) for item in range(3))) == ["0", "1", "2"]
    assert await scratch.notes() == ["0", "1", "2"]
    assert await scratch.count("mesh.outbox") == 1


async def test_connections_that_are_all_lost_at_once_are_replaced_by_later_calls(
    scratch: Scratch, here: Process
) -> None:
    await here.database.check()
    await scratch.admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(TEST_TIMEOUT_S):
        while True:
            try:
                await here.database.check()
                break
            except Unavailable:
                continue
        assert (await asyncio.gather(*(here.database.check() for _ in range(4)))) == [None] * 4


AILMENTS = (
    "53100 53200 53300 57014 57P01 57P04 58030 28000 28P01 3D000 25006 25P04 40P01"
    # disk full, out of memory, too many connections, cancelled, shut down, dropped, I/O, not authorized, bad password,
    # no such database, read only, transaction timeout, deadlock
)


@pytest.mark.parametrize("state", AILMENTS.split())
async def test_error_of_the_database_is_unavailable_and_error_of_a_statement_is_raised(
    here: Process, state: str
) -> None:
    with pytest.raises(Unavailable):
        async with here.units.begin() as work:
            await fail_as(work, state)
    with pytest.raises(asyncpg.CheckViolationError):
        async with here.units.begin() as work:
            await fail_as(work, "23514")


async def test_cancelled_call_rolls_back_and_releases_a_usable_connection(scratch: Scratch, here: Process) -> None:
    begun = asyncio.Event()

    async def change() -> None:
        async with here.units.begin() as work:
            await do(work, "never")
            begun.set()
            await work.transaction.fetch(SLEEP)

    for _ in range(6):  # more often than there are connections
        begun.clear()
        running = asyncio.create_task(change())
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    async with asyncio.timeout(TEST_TIMEOUT_S):
        async with here.units.begin() as work:
            await do(work, "after")
    assert await scratch.notes() == ["after"]


async def test_value_out_of_range_is_an_error_of_the_statement(here: Process) -> None:
    async with here.database.reading() as reading:
        assert await reading.fetch_one(ECHO, number=1)
    async with here.database.reading() as reading:
        with pytest.raises(asyncpg.DataError, match="int32"):
            await reading.fetch_one(ECHO, number=2**40)


async def test_text_that_postgresql_cannot_store_is_an_invalid_argument(here: Process) -> None:
    with pytest.raises(InvalidArgument):
        async with here.units.begin() as work:
            await do(work, "nul \0 in it")


async def test_statement_rejects_missing_and_unknown_parameters(here: Process) -> None:
    async with here.database.reading() as reading:
        for wrong in ({}, {"number": 1, "other": 2}):
            with pytest.raises(TypeError, match="number"):
                await reading.fetch_one(ECHO, **wrong)


async def test_action_on_commit_runs_after_the_commit_and_not_after_a_rollback(scratch: Scratch, here: Process) -> None:
    seen: list[int] = []

    async with here.database.transaction() as transaction:
        transaction.on_commit(lambda: seen.append(1))
        assert not seen
    assert seen == [1]

    async def fail() -> None:
        async with here.database.transaction() as transaction:
            transaction.on_commit(lambda: seen.append(2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert seen == [1]
    assert await scratch.count("effects") == 0


async def test_buffered_writes_are_sent_together_before_the_next_read(scratch: Scratch, here: Process) -> None:
    happened = row(event("test", uuid4(), 1), "")
    async with here.database.transaction() as transaction:
        before = here.database.statements
        transaction.add(ADD_EFFECTS, [("first",), ("second",)])
        transaction.add(APPEND, [happened])
        transaction.add(ADD_EFFECTS, [])
        assert here.database.statements == before
        assert await transaction.fetch_one(ECHO, number=1)
        assert here.database.statements == before + 2, "both inserts in one statement, and the read"
        transaction.add(ADD_EFFECTS, [("third",)])
        assert await scratch.notes() == []
    assert here.database.statements == before + 3
    assert await scratch.notes() == ["first", "second", "third"]
    assert await scratch.count("mesh.outbox") == 1


async def test_buffered_writes_that_are_sent_together_all_fail_when_one_fails(scratch: Scratch, here: Process) -> None:
    class Taken(Exception):
        """The event id exists already."""

    async def fail(meaning: str) -> None:
        twice = (uuid4(), "test")
        async with here.database.transaction() as transaction:
            transaction.add(ADD_EFFECTS, [("never",)])
            transaction.add(BulkInsert(inbox.c.event_id, inbox.c.consumer, refusals={meaning: Taken}), [twice, twice])

    with pytest.raises(Taken):
        await fail("inbox_pkey")
    with pytest.raises(asyncpg.UniqueViolationError):
        await fail("another")
    assert await scratch.notes() == []


async def test_database_that_cannot_be_opened_is_unavailable(here: Process) -> None:
    from mesh.db.database import Database

    with pytest.raises(Unavailable):
        await Database("postgresql://nobody@/nowhere?host=/no/such/folder").start()
    with pytest.raises(Unavailable):
        await Database(here.database.url).check()


async def test_error_about_a_row_does_not_contain_the_row(here: Process) -> None:
    secret = str(uuid4())
    row = (uuid4(), secret)
    with pytest.raises(asyncpg.UniqueViolationError) as failure:
        async with here.database.transaction() as transaction:
            transaction.add(BulkInsert(inbox.c.event_id, inbox.c.consumer), [row, row])
    logged = "".join(format_exception(failure.value))
    assert "violates unique constraint" in logged
    assert secret not in logged
