"""The breaker: what opens it, what it does to calls, and what closes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.rpc.breaker import Breaker, BreakerOpen, State
from tests.services import eventually


class Dependency:
    """A dependency whose state a test sets."""

    def __init__(self) -> None:
        self.is_alive = True
        self.dies_for_one_probe = False
        self.probes = 0
        self.probes_at_once = 0
        self.called = 0
        self.go_on = asyncio.Event()

    async def probe(self) -> None:
        assert self.probes_at_once == 0, "one probe at a time"
        self.probes_at_once += 1
        try:
            await asyncio.sleep(0)
            if not self.is_alive or self.dies_for_one_probe:
                self.dies_for_one_probe = False
                raise ConnectionError("no sign of life")
        finally:
            self.probes_at_once -= 1
            self.probes += 1

    async def call(self, breaker: Breaker, error: Exception | None = None) -> str:
        async with breaker.guard():
            self.called += 1
            if error is not None:
                raise error
            return "reply"

    async def wait(self, breaker: Breaker) -> str:
        async with breaker.guard():
            await self.go_on.wait()
            return "reply"

    async def is_probed_again(self) -> None:
        """Return after one more probe has begun and ended."""
        seen = self.probes

        async def probed() -> bool:
            return self.probes >= seen + 2

        await eventually(probed)


@asynccontextmanager
async def guarded(dependency: Dependency, **more: Any) -> AsyncIterator[Breaker]:
    timings = {"suspect_after": 60.0, "probe_interval": 0.001, **more}
    breaker = Breaker("stock", dependency.probe, means_down=lambda e: isinstance(e, ConnectionError), **timings)
    await breaker.start()
    try:
        yield breaker
    finally:
        await breaker.stop()


async def until(breaker: Breaker, state: State) -> None:
    async def so() -> bool:
        return breaker.state is state

    await eventually(so)


async def probes_are(count: int, dependency: Dependency) -> None:
    async def so() -> bool:
        return dependency.probes == count

    await eventually(so)


async def test_breaker_opens_after_two_failed_probes_and_refuses_calls_without_sending_them() -> None:
    states: list[State] = []

    class Dead(Dependency):
        async def probe(self) -> None:
            states.append(breaker.state)
            await super().probe()

    dependency = Dead()
    dependency.is_alive = False
    async with guarded(dependency, probe_interval=0.01) as breaker:
        with pytest.raises(ConnectionError):
            await dependency.call(breaker, ConnectionError())
        assert breaker.state is State.CLOSED
        await until(breaker, State.OPEN)
        await dependency.is_probed_again()
        assert states[:3] == [State.CLOSED, State.CLOSED, State.OPEN]
        assert breaker.opened == 1
        with pytest.raises(BreakerOpen) as refusal:
            await dependency.call(breaker)
        assert (refusal.value.reason, refusal.value.metadata) == ("DEPENDENCY_UNAVAILABLE", {"service": "stock"})
        assert refusal.value.retry_after == 0.01
        assert (dependency.called, breaker.refused) == (1, 1)


async def test_breaker_that_opens_fails_the_pending_calls() -> None:
    dependency = Dependency()
    async with guarded(dependency, suspect_after=0.01) as breaker:
        dependency.is_alive = False
        waiting = [asyncio.create_task(dependency.wait(breaker)) for _ in range(3)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [BreakerOpen] * 3
        assert (breaker.state, breaker.interrupted) == (State.OPEN, 3)


async def test_breaker_closes_when_a_probe_succeeds() -> None:
    dependency = Dependency()
    async with guarded(dependency) as breaker:
        dependency.is_alive = False
        with pytest.raises(ConnectionError):
            await dependency.call(breaker, ConnectionError())
        await until(breaker, State.OPEN)
        dependency.is_alive = True
        await until(breaker, State.CLOSED)
        assert await dependency.call(breaker) == "reply"


async def test_slow_call_is_probed_for_and_not_interrupted() -> None:
    dependency = Dependency()
    async with guarded(dependency, suspect_after=0.0) as breaker:
        slow = asyncio.create_task(dependency.wait(breaker))
        await dependency.is_probed_again()
        dependency.go_on.set()
        assert await slow == "reply"
        assert (breaker.state, breaker.opened) == (State.CLOSED, 0)


async def test_slow_call_is_interrupted_when_its_dependency_dies_later() -> None:
    dependency = Dependency()
    async with guarded(dependency, suspect_after=0.0) as breaker:
        slow = asyncio.create_task(dependency.wait(breaker))
        await dependency.is_probed_again()
        dependency.is_alive = False
        with pytest.raises(BreakerOpen):
            await slow


async def test_one_failed_probe_does_not_open_the_breaker() -> None:
    dependency = Dependency()
    async with guarded(dependency) as breaker:
        for number in range(1, 6):
            dependency.dies_for_one_probe = True
            with pytest.raises(ConnectionError):
                await dependency.call(breaker, ConnectionError())
            await probes_are(2 * number, dependency)
        assert breaker.opened == 0


async def test_error_that_the_dependency_answers_with_starts_no_probe() -> None:
    dependency = Dependency()
    async with guarded(dependency) as breaker:
        dependency.is_alive = False
        for _ in range(3):
            with pytest.raises(LookupError):
                await dependency.call(breaker, LookupError())
        assert (breaker.probes, breaker.state) == (0, State.CLOSED)


async def test_answered_call_counts_as_a_sign_of_life_while_probes_fail() -> None:
    class OneWorkerHangs(Dependency):
        async def probe(self) -> None:
            await self.call(breaker)
            await super().probe()

    dependency = OneWorkerHangs()
    dependency.is_alive = False
    async with guarded(dependency) as breaker:
        for number in range(1, 6):
            with pytest.raises(ConnectionError):
                await dependency.call(breaker, ConnectionError())
            await probes_are(number, dependency)
        assert breaker.opened == 0


async def test_probe_that_hangs_fails_after_its_timeout() -> None:
    class Hanging(Dependency):
        async def probe(self) -> None:
            await self.go_on.wait()

    dependency = Hanging()
    async with guarded(dependency, probe_timeout=0.01) as breaker:
        with pytest.raises(ConnectionError):
            await dependency.call(breaker, ConnectionError())
        await until(breaker, State.OPEN)


async def test_cancelled_call_says_nothing_about_the_dependency() -> None:
    dependency = Dependency()
    async with guarded(dependency) as breaker:
        waiting = asyncio.create_task(dependency.wait(breaker))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (breaker.probes, breaker.interrupted) == (0, 0)
