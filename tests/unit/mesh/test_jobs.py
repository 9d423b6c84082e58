"""Periodic jobs: they run again after success and failure, until they are stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from mesh.jobs import Periodic
from tests.services import TEST_TIMEOUT_S

LONG = 3600.0


class Turns:
    """Work that returns or raises the given outcomes, one for each run, and then returns False."""

    def __init__(self, *outcomes: object) -> None:
        self.count = 0
        self._outcomes = list(outcomes)
        self._turned = asyncio.Condition()

    async def work(self) -> object:
        async with self._turned:
            self.count += 1
            self._turned.notify_all()
        outcome = self._outcomes.pop(0) if self._outcomes else False
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(TEST_TIMEOUT_S), self._turned:
            await self._turned.wait_for(lambda: self.count >= count)


async def during(job: Periodic, scenario: Callable[[], Awaitable[None]]) -> None:
    await job.start()
    try:
        await scenario()
    finally:
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await job.stop()


async def test_job_runs_immediately_and_again_while_there_is_more() -> None:
    turns = Turns(True, True, False)
    await during(Periodic("test", LONG, turns.work), lambda: turns.reach(3))
    assert turns.count == 3, "then it waits"


async def test_job_runs_again_after_its_interval() -> None:
    turns = Turns()
    await during(Periodic("test", 0.001, turns.work), lambda: turns.reach(5))


async def test_failure_does_not_end_the_job() -> None:
    turns = Turns(RuntimeError("met something"), OSError("and again"))
    await during(Periodic("test", 0.001, turns.work), lambda: turns.reach(4))


async def test_only_true_means_that_there_is_more() -> None:
    turns = Turns(7)
    await during(Periodic("test", LONG, turns.work), lambda: turns.reach(1))
    assert turns.count == 1


async def test_stop_finishes_the_current_run_and_starts_no_other() -> None:
    entered, gate, ended = asyncio.Event(), asyncio.Event(), []

    async def work() -> bool:
        entered.set()
        await gate.wait()
        ended.append(True)
        return True

    job = Periodic("test", LONG, work)
    await job.start()
    await entered.wait()
    stopping = asyncio.create_task(job.stop())
    await asyncio.sleep(0)
    assert not stopping.done()
    gate.set()
    async with asyncio.timeout(TEST_TIMEOUT_S):
        await stopping
    assert ended == [True]


async def test_job_that_was_never_started_can_be_stopped() -> None:
    await Periodic("test", LONG, Turns().work).stop()
