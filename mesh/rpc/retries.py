"""Several attempts of one call: transient errors are retried, and an attempt without a reply is hedged.

A hedge is a further attempt beside the pending one; the first success counts. Every change carries an idempotency key,
so attempts may overlap. Round robin sends the next attempt to another worker if there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import count
from random import uniform
from typing import Any, TypeVar

from mesh.errors import MeshError, ResourceExhausted, Unavailable
from mesh.rpc.breaker import BreakerOpen

T = TypeVar("T")

MAX_ATTEMPTS = 4
FIRST_BACKOFF_S = 0.05
BACKOFF_FACTOR = 3
"""The backoff before the second, third and fourth attempt is 50, 150 and 450 ms, less up to half of it as jitter."""
RESERVE = 50.0
"""The largest number of extra attempts in a row."""
EARNED_PER_CALL = 0.1
"""The extra attempts that one call adds to the budget, up to `RESERVE`."""


class RetryBudget:
    """The extra attempts that are allowed: a tenth of the calls, plus a reserve."""

    def __init__(self) -> None:
        self._left = RESERVE

    def earn(self) -> None:
        """Count one call."""
        self._left = min(RESERVE, self._left + EARNED_PER_CALL)

    def spend(self) -> bool:
        """Whether one extra attempt is allowed, which is counted then."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Retries:
    """The retries of the calls to one peer, within one budget.

    Without a budget every caller of a failing peer would send it four times the load. With it, extra attempts are at
    most a tenth of the calls, plus a reserve.
    """

    def __init__(self, *, hedge_after: float | None) -> None:
        """`hedge_after`: the seconds without a reply after which an attempt is hedged; None for never."""
        self.retried = 0
        """The number of attempts that followed a transient error."""
        self.hedged = 0
        """The number of hedges."""
        self.over_budget = 0
        """The number of attempts that the budget did not allow."""
        self._hedge_after = hedge_after
        self._budget = RetryBudget()

    async def run(self, attempt: Callable[[], Coroutine[Any, Any, T]], deadline: float) -> T:
        """Return the result of the first attempt that succeeds.

        Raises the first error that is not transient. Raises the last transient one when there is no time until
        `deadline` (in the event loop's time), no attempt or no budget left.
        """
        loop = asyncio.get_running_loop()
        self._budget.earn()
        for made in count(1):
            try:
                return await self._race(attempt)
            except MeshError as failure:
                delay = _backoff(made, failure)
                is_last = made == MAX_ATTEMPTS or loop.time() + delay >= deadline
                if is_last or not _is_transient(failure) or not self._spend():
                    raise
            self.retried += 1
            await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")

    async def _race(self, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an attempt, and hedge it each time that there is no reply for `hedge_after` seconds."""
        hedge_after = self._hedge_after
        running = {asyncio.create_task(attempt())}
        try:
            while True:
                done, running = await asyncio.wait(running, timeout=hedge_after, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    best = min(done, key=lambda task: task.exception() is not None)
                    if not (running and _is_transient(best.exception())):
                        return best.result()
                elif self._spend():
                    self.hedged += 1
                    running.add(asyncio.create_task(attempt()))
                else:
                    hedge_after = None
        finally:
            for task in running:
                task.cancel()

    def _spend(self) -> bool:
        if self._budget.spend():
            return True
        self.over_budget += 1
        return False


def _is_transient(failure: BaseException | None) -> bool:
    # While the breaker is open, no worker of the peer answers.
    return isinstance(failure, Unavailable | ResourceExhausted) and not isinstance(failure, BreakerOpen)


def _backoff(made: int, failure: MeshError) -> float:
    """The seconds before the next attempt. Only an overloaded peer decides itself when it is called again."""
    backoff: float = FIRST_BACKOFF_S * BACKOFF_FACTOR ** (made - 1) * uniform(0.5, 1)  # noqa: S311  # it is no secret
    if isinstance(failure, ResourceExhausted) and failure.retry_after is not None:
        return failure.retry_after + backoff
    return backoff
