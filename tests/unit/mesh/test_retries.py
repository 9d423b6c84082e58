"""Several attempts of one call: which errors are retried, for how long, and within which budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from mesh.errors import DeadlineExceeded, MeshError, NotFound, ResourceExhausted, Unavailable
from mesh.rpc import retries as module
from mesh.rpc.breaker import BreakerOpen
from mesh.rpc.retries import EARNED_PER_CALL, MAX_ATTEMPTS, RESERVE, Retries
from tests.services import eventually

Attempt = Callable[[], Coroutine[Any, Any, str]]


class Attempts:
    """The attempts of one call, each of which does what a test says, the last of them from then on."""

    def __init__(self, *behaviours: Callable[[], Awaitable[str]]) -> None:
        self.made = 0
        self.cancelled = 0
        self._behaviours = behaviours

    async def __call__(self) -> str:
        self.made += 1
        try:
            return await self._behaviours[min(self.made, len(self._behaviours)) - 1]()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def fails(error: MeshError) -> Callable[[], Awaitable[str]]:
    async def attempt() -> str:
        raise error

    return attempt


async def answers() -> str:
    return "reply"


async def hangs() -> str:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def run(attempts: Attempts, *, hedge_after: float | None = None, within: float = 60.0) -> str:
    retries = Retries(hedge_after=hedge_after)
    return await retries.run(attempts, asyncio.get_running_loop().time() + within)


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.0001)


@pytest.mark.parametrize("error", [Unavailable("away"), ResourceExhausted("busy", retry_after=0.0)], ids=repr)
async def test_transient_error_is_retried(error: MeshError) -> None:
    attempts = Attempts(fails(error), fails(error), answers)
    assert await run(attempts) == "reply"
    assert attempts.made == 3


@pytest.mark.parametrize(
    "error", [NotFound("none"), DeadlineExceeded("late"), BreakerOpen("stock", 0.5), ValueError()], ids=repr
)
async def test_other_error_is_not_retried(error: Any) -> None:
    attempts = Attempts(fails(error), answers)
    with pytest.raises(type(error)):
        await run(attempts)
    assert attempts.made == 1


async def test_last_transient_error_is_raised_when_all_attempts_fail() -> None:
    attempts = Attempts(fails(Unavailable("first")), fails(Unavailable("later")))
    with pytest.raises(Unavailable, match="later"):
        await run(attempts)
    assert attempts.made == MAX_ATTEMPTS


async def test_attempt_that_would_start_after_the_deadline_is_not_made() -> None:
    attempts = Attempts(fails(ResourceExhausted("busy", retry_after=30.0)), answers)
    with pytest.raises(ResourceExhausted):
        await run(attempts, within=20.0)
    assert attempts.made == 1


async def test_hedge_that_succeeds_cancels_the_attempts_without_a_reply() -> None:
    attempts = Attempts(hangs, hangs, answers)
    assert await run(attempts, hedge_after=0.01) == "reply"
    await asyncio.sleep(0)
    assert (attempts.made, attempts.cancelled) == (3, 2)


async def test_slow_attempt_still_succeeds_when_its_hedge_fails() -> None:
    hedge_failed = asyncio.Event()

    async def slow() -> str:
        await hedge_failed.wait()
        return "reply"

    async def hedge() -> str:
        asyncio.get_running_loop().call_soon(hedge_failed.set)
        raise Unavailable("away")

    attempts = Attempts(slow, hedge)
    assert await run(attempts, hedge_after=0.01) == "reply"
    assert attempts.made == 2


async def test_call_to_a_single_worker_is_not_hedged() -> None:
    async def slow() -> str:
        await asyncio.sleep(0.05)
        return "reply"

    attempts = Attempts(slow)
    assert await run(attempts, hedge_after=None) == "reply"
    assert attempts.made == 1


async def test_extra_attempts_of_a_failing_peer_stay_within_the_budget() -> None:
    retries = Retries(hedge_after=None)
    attempts = Attempts(fails(Unavailable("away")))
    deadline = asyncio.get_running_loop().time() + 60.0
    calls = 1000
    outcomes = await asyncio.gather(*(retries.run(attempts, deadline) for _ in range(calls)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    extra = attempts.made - calls
    assert RESERVE <= extra <= RESERVE + EARNED_PER_CALL * calls
    assert (retries.retried, retries.over_budget > 0) == (extra, True)


async def test_hedges_of_calls_to_a_hanging_peer_stay_within_the_budget() -> None:
    retries = Retries(hedge_after=0.001)
    attempts = Attempts(hangs)
    deadline = asyncio.get_running_loop().time() + 60.0
    calls = [asyncio.create_task(retries.run(attempts, deadline)) for _ in range(200)]

    async def every_call_wants_more() -> bool:
        return retries.over_budget == len(calls)

    await eventually(every_call_wants_more)
    assert attempts.made - len(calls) == retries.hedged == RESERVE
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await asyncio.sleep(0)
    assert attempts.cancelled == attempts.made


async def test_cancelling_a_call_cancels_its_attempts() -> None:
    attempts = Attempts(hangs)
    call = asyncio.create_task(run(attempts, hedge_after=0.01))

    async def is_hedged() -> bool:
        return attempts.made >= 2

    await eventually(is_hedged)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert attempts.cancelled == attempts.made
