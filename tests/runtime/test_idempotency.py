"""Idempotency on real PostgreSQL: the same key and the same request change nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from mesh.batch.group_commit import run_batch
from mesh.db import idempotency
from mesh.db.database import Row, Statement, Transaction
from mesh.db.idempotency import IdempotencyKeyReused, Replay
from mesh.db.unit_of_work import UnitsOfWork
from mesh.errors import Code, Unavailable
from mesh.rpc.replies import Change, Reply
from stack.servers import Servers
from tests.runtime.process import Process, Scratch, change, do, process, text_of
from tests.services import TEST_TIMEOUT_S, new_key

pytestmark = pytest.mark.usefixtures("nothing_yet")


@pytest.fixture(scope="module")
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    async with process(scratch, servers) as started:
        yield started


@pytest.fixture(scope="module")
async def there(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    """Another process of the same service."""
    async with process(scratch, servers) as started:
        yield started


async def reply_to(units: UnitsOfWork, asked: Change[str], note: str = "done") -> str:
    """Make a change once and return the reply that its caller gets."""

    async def use_case() -> Reply[str]:
        async with units.once(asked) as work:
            await do(work, note)
            return work.reply(note)

    try:
        return text_of((await use_case()).wire)
    except Replay as replay:
        return text_of(replay.wire)


async def test_same_key_and_request_get_the_stored_reply_and_have_one_effect(
    scratch: Scratch, here: Process, there: Process
) -> None:
    key = new_key()
    assert await reply_to(here.units, change(key), "first") == "first"
    assert await reply_to(here.units, change(key), "second") == "first"
    assert await reply_to(there.units, change(key), "third") == "first", "in another process as well"
    assert await scratch.notes() == ["first"]


async def test_second_attempt_waits_for_the_first_and_gets_its_reply(
    scratch: Scratch, here: Process, there: Process
) -> None:
    key = new_key()
    async with asyncio.timeout(TEST_TIMEOUT_S):
        async with here.units.once(change(key)) as work:
            await do(work, "first")
            second = asyncio.create_task(reply_to(there.units, change(key), "second"))
            await scratch.somebody_waits()
            assert not second.done()
            work.reply("first")
        assert await second == "first"
    assert await scratch.notes() == ["first"]


async def test_second_attempt_that_waits_for_a_failing_first_one_runs(
    scratch: Scratch, here: Process, there: Process
) -> None:
    key = new_key()
    seconds: list[asyncio.Task[str]] = []

    async def fail() -> None:
        async with here.units.once(change(key)) as work:
            await do(work, "first")
            seconds.append(asyncio.create_task(reply_to(there.units, change(key), "second")))
            await scratch.somebody_waits()
            raise ZeroDivisionError

    async with asyncio.timeout(TEST_TIMEOUT_S):
        with pytest.raises(ZeroDivisionError):
            await fail()
        assert await seconds[0] == "second"
    assert await scratch.notes() == ["second"]


async def test_failed_attempt_leaves_no_row(scratch: Scratch, here: Process) -> None:
    async def fail() -> None:
        async with here.units.once(change(new_key())) as work:
            await do(work, "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await scratch.count("mesh.idempotency") == 0
    assert await scratch.notes() == []


@pytest.mark.parametrize(
    "other", [{"request": "another"}, {"method": "/commerce.test.v1.TestService/Other"}], ids=["request", "method"]
)
async def test_key_of_another_request_is_refused(scratch: Scratch, here: Process, other: dict[str, str]) -> None:
    key = new_key()
    await reply_to(here.units, change(key))
    with pytest.raises(IdempotencyKeyReused) as refusal:
        await reply_to(here.units, change(key, **other))
    assert (refusal.value.code, refusal.value.reason) == (Code.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")
    assert await scratch.notes() == ["done"]


async def test_same_key_of_another_caller_is_another_key(scratch: Scratch, here: Process) -> None:
    key = new_key()
    assert await reply_to(here.units, change(key, caller="ada"), "hers") == "hers"
    assert await reply_to(here.units, change(key, caller="bob"), "his") == "his"
    assert await scratch.notes() == ["hers", "his"]


async def test_change_without_a_key_is_made_each_time(scratch: Scratch, here: Process) -> None:
    for _ in range(2):
        await reply_to(here.units, change())
    assert await scratch.notes() == ["done", "done"]
    assert await scratch.count("mesh.idempotency") == 0


async def place(units: UnitsOfWork, batch: Sequence[Change[str]]) -> list[str | Exception]:
    """A use case for a batch that does not claim its keys."""
    while True:
        taken = await idempotency.find(units.database, [each.key for each in batch])
        results: list[str | Exception] = [taken.get(each.key, "done") if each.key else "done" for each in batch]
        fresh = [each for each, result in zip(batch, results, strict=True) if result == "done"]
        try:
            async with units.begin() as work:
                work.store_replies((each.key, each.reply("done").wire) for each in fresh)
                await do(work, *("done" for _ in fresh))
        except idempotency.KeyTaken:
            continue
        return results


async def test_duplicate_keys_in_one_batch_take_effect_once_and_both_get_the_reply(
    scratch: Scratch, here: Process
) -> None:
    duplicate, other = new_key(), new_key()
    batch = [change(duplicate), change(other), change(duplicate), change(duplicate, "another request")]
    results = await run_batch(lambda items: place(here.units, items), batch)
    assert [type(result) for result in results] == [str, str, Replay, IdempotencyKeyReused]
    assert isinstance(results[2], Replay)
    assert text_of(results[2].wire) == "done"
    assert await scratch.notes() == ["done", "done"]


async def test_stored_replies_are_read_in_one_statement(here: Process) -> None:
    known, fresh = new_key(), new_key()
    await reply_to(here.units, change(known))
    before = here.database.statements
    asked = [change(known), change(fresh), change(), change(known, "another")]
    found = await idempotency.find(here.database, [each.key for each in asked])
    assert here.database.statements == before + 1
    assert [type(found.get(each.key)) if each.key else None for each in asked] == [
        Replay,
        type(None),
        None,
        IdempotencyKeyReused,
    ], "each outcome depends on the request, not only on the key"
    assert await idempotency.find(here.database, [None]) == {}
    assert here.database.statements == before + 1, "no keys, no statement"


async def test_batches_with_the_same_keys_in_opposite_order_do_not_deadlock(
    scratch: Scratch, here: Process, there: Process
) -> None:
    for _ in range(10):
        texts = [new_key() for _ in range(20)]
        forwards, backwards = [change(text) for text in texts], [change(text) for text in reversed(texts)]
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await asyncio.gather(place(here.units, forwards), place(there.units, backwards))
    assert len(await scratch.notes()) == 200


async def test_stored_replies_are_purged_after_a_day(scratch: Scratch, here: Process) -> None:
    old, young = new_key(), new_key()
    for key in (old, young):
        await reply_to(here.units, change(key))
    for key, age in ((old, timedelta(hours=24, minutes=1)), (young, timedelta(hours=23, minutes=59))):
        await scratch.admin.execute(
            "UPDATE mesh.idempotency SET create_time = now() - $2::interval WHERE digest = $1",
            change(key).key.digest,  # type: ignore[union-attr]  # it has a key
            age,
        )
    async with here.database.transaction() as transaction:
        assert await transaction.execute(idempotency.PURGE, age=idempotency.RETENTION, most=10) == 1
    assert await reply_to(here.units, change(young), "again") == "done"
    assert await reply_to(here.units, change(old), "again") == "again"


@pytest.mark.parametrize("at_once", [False, True])
async def test_replies_that_name_somebody_are_erased_in_portions(
    scratch: Scratch, here: Process, at_once: bool
) -> None:
    replies = {new_key(): f"of {person} {number}" for number in range(5) for person in ("ada", "bob")}
    for key, text in replies.items():
        await reply_to(here.units, change(key), text)
    if at_once:
        await scratch.admin.execute("UPDATE mesh.idempotency SET create_time = now()")
    await idempotency.erase(here.database, "ada", portion=3)
    stored = await idempotency.find(here.database, [change(key).key for key in replies])
    left = [text_of(outcome.wire) for outcome in stored.values() if isinstance(outcome, Replay)]
    assert sorted(left) == sorted(text for text in replies.values() if "bob" in text)


async def test_reply_that_is_purged_while_it_is_read_makes_the_call_unavailable(
    scratch: Scratch, here: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, fetch = new_key(), Transaction.fetch
    await reply_to(here.units, change(key), "first")

    async def too_late(self: Transaction, statement: Statement, **values: Any) -> list[Row]:
        if statement is idempotency.FIND:
            await scratch.admin.execute("DELETE FROM mesh.idempotency")
        return await fetch(self, statement, **values)

    monkeypatch.setattr(Transaction, "fetch", too_late)
    with pytest.raises(Unavailable):
        await reply_to(here.units, change(key), "second")
    assert await scratch.notes() == ["first"]


async def test_change_that_makes_no_reply_is_a_fault_and_changes_nothing(scratch: Scratch, here: Process) -> None:
    with pytest.raises(RuntimeError, match="made no reply"):
        async with here.units.once(change(new_key())) as work:
            await do(work, "never")
    assert await scratch.notes() == []
    assert await scratch.count("mesh.idempotency") == 0
