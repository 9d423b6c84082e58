"""Optimistic writes: the database detects stale writes, and the effect runs again with locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from mesh.db.database import Statement, stale_write, unless_stale
from mesh.db.unit_of_work import MAX_STALE_WRITES, UnitOfWork
from mesh.errors import Code, NotFound, StaleWrite, Unavailable
from stack.servers import Servers
from tests.runtime.process import ADD_EFFECTS, Process, Scratch, do, effects, event, process

CHANGE = Statement(
    sa.update(effects)
    .where(effects.c.seq == sa.bindparam("number", type_=sa.BigInteger))
    .values(
        note=unless_stale(effects.c.note, sa.bindparam("known", type_=sa.String), sa.bindparam("new", type_=sa.String))
    ),
    refusals=stale_write(effects.c.note),
)


@pytest.fixture
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    await scratch.empty()
    async with process(scratch, servers) as started:
        yield started


async def row_with(scratch: Scratch, note: str) -> int:
    """The number of a new row."""
    return int(await scratch.admin.fetchval("INSERT INTO effects (note) VALUES ($1) RETURNING seq", note))


async def test_row_with_the_remembered_value_is_written(scratch: Scratch, here: Process) -> None:
    number = await row_with(scratch, "old")
    async with here.units.begin() as work:
        work.transaction.write(CHANGE, number=number, known="old", new="new")
    assert await scratch.notes() == ["new"]


async def test_changed_row_fails_the_whole_transaction(scratch: Scratch, here: Process) -> None:
    number = await row_with(scratch, "newer")

    async def change() -> None:
        async with here.units.begin() as work:
            work.transaction.add(ADD_EFFECTS, [("beside it",)])
            work.transaction.write(CHANGE, number=number, known="old", new="new")
            work.publish(event("test", uuid4(), 1))

    with pytest.raises(StaleWrite) as refusal:
        await change()
    assert (refusal.value.code, refusal.value.retry_after) == (Code.UNAVAILABLE, 0.0)
    assert await scratch.notes() == ["newer"]
    assert await scratch.count("mesh.outbox") == 0


@pytest.mark.parametrize("outcome", ["COMMIT", "ROLLBACK"])
async def test_concurrent_change_is_waited_for_and_makes_the_write_stale_if_committed(
    scratch: Scratch, here: Process, outcome: str
) -> None:
    number = await row_with(scratch, "old")
    another = await asyncpg.connect(scratch.url)
    await another.execute("BEGIN")
    await another.execute("UPDATE effects SET note = 'another' WHERE seq = $1", number)

    async def change() -> None:
        async with here.units.begin() as work:
            work.transaction.write(CHANGE, number=number, known="old", new="new")

    changing = asyncio.create_task(change())
    await scratch.somebody_waits()
    await another.execute(outcome)
    await another.close()
    if outcome == "COMMIT":
        with pytest.raises(StaleWrite):
            await changing
        assert await scratch.notes() == ["another"]
    else:
        await changing
        assert await scratch.notes() == ["new"]


async def test_stale_write_is_retried_pessimistically(scratch: Scratch, here: Process) -> None:
    number, attempts = await row_with(scratch, "newer"), []

    async def effect(work: UnitOfWork) -> str:
        attempts.append(work.pessimistic)
        work.transaction.add(ADD_EFFECTS, [("beside it",)])
        work.transaction.write(CHANGE, number=number, known="newer" if work.pessimistic else "old", new="new")
        return "done"

    assert await here.units.run_optimistically(effect) == "done"
    assert attempts == [False, True]
    assert await scratch.notes() == ["new", "beside it"]


async def test_any_failure_of_an_optimistic_attempt_is_retried_pessimistically(scratch: Scratch, here: Process) -> None:
    async def effect(work: UnitOfWork) -> None:
        await do(work, "again" if work.pessimistic else "at first")
        if not work.pessimistic:
            raise NotFound("it seems not to be there")

    with capture_logs() as lines:
        await here.units.run_optimistically(effect)
    assert await scratch.notes() == ["again"]
    assert [(line["event"], line["error"]) for line in lines] == [("run again with locks", "NotFound")]


async def test_failure_of_a_pessimistic_attempt_is_raised(scratch: Scratch, here: Process) -> None:
    attempts = []

    async def effect(work: UnitOfWork) -> None:
        attempts.append(work.pessimistic)
        await do(work, "never")
        raise NotFound("it is not there")

    with pytest.raises(NotFound):
        await here.units.run_optimistically(effect)
    assert attempts == [False, True]
    assert await scratch.notes() == []


async def test_transient_error_of_an_optimistic_attempt_is_not_retried(here: Process) -> None:
    attempts = []

    async def effect(work: UnitOfWork) -> None:
        attempts.append(work.pessimistic)
        raise Unavailable("gone")

    with pytest.raises(Unavailable):
        await here.units.run_optimistically(effect)
    assert attempts == [False]


async def test_effect_is_given_up_after_too_many_stale_writes(scratch: Scratch, here: Process) -> None:
    number, attempts = await row_with(scratch, "newer"), 0

    async def effect(work: UnitOfWork) -> None:
        nonlocal attempts
        attempts += 1
        work.transaction.write(CHANGE, number=number, known="old", new="new")

    with pytest.raises(StaleWrite):
        await here.units.run_optimistically(effect)
    assert attempts == 1 + MAX_STALE_WRITES
    assert await scratch.notes() == ["newer"]


class Batches:
    """An effect that stores each of its items, and rejects those that this attempt rejects."""

    def __init__(self, rejected: Mapping[bool, str]) -> None:
        """`rejected` are the items that an attempt rejects, for a pessimistic one (True) and an optimistic one."""
        self.ran: list[tuple[bool, str]] = []
        self._rejected = rejected

    async def __call__(self, work: UnitOfWork, items: Sequence[str]) -> list[str | Exception]:
        self.ran.append((work.pessimistic, "".join(items)))
        rejected = self._rejected.get(work.pessimistic, "")
        await do(work, *(item for item in items if item not in rejected))
        return [NotFound(item) if item in rejected else item.upper() for item in items]


async def test_items_rejected_by_an_optimistic_attempt_are_run_again_on_their_own(
    scratch: Scratch, here: Process
) -> None:
    effect = Batches({False: "bd", True: "d"})
    *kept, rejected = await here.units.run_each_optimistically(effect, "abcd")
    assert kept == ["A", "B", "C"]
    assert isinstance(rejected, NotFound)
    assert effect.ran == [(False, "abcd"), (True, "bd")]
    assert await scratch.notes() == ["a", "c", "b"]


async def test_items_rejected_by_a_pessimistic_attempt_are_rejected(scratch: Scratch, here: Process) -> None:
    number, effect = await row_with(scratch, "newer"), Batches({True: "b"})

    async def stale_at_first(work: UnitOfWork, items: Sequence[str]) -> list[str | Exception]:
        if not work.pessimistic:
            work.transaction.write(CHANGE, number=number, known="old", new="new")
        return await effect(work, items)

    kept, rejected = await here.units.run_each_optimistically(stale_at_first, "ab")
    assert kept == "A"
    assert isinstance(rejected, NotFound)
    assert effect.ran == [(False, "ab"), (True, "ab")]
    assert await scratch.notes() == ["newer", "a"]


async def test_items_accepted_by_an_optimistic_attempt_run_once(scratch: Scratch, here: Process) -> None:
    effect = Batches({})
    assert await here.units.run_each_optimistically(effect, "ab") == ["A", "B"]
    assert effect.ran == [(False, "ab")]
    assert await scratch.notes() == ["a", "b"]
