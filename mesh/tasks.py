"""Background tasks: running, waiting, backoff and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

PORTION = 32
TURN_S = 0.001
"""The size of a portion of background work, and the pause in seconds after it, in which other tasks run (ADR-0025)."""


def _one(_: object) -> int:
    return 1


async def in_portions(
    items: Iterable[T], *, weight: Callable[[T], int] = _one, portion: int = PORTION
) -> AsyncIterator[T]:
    """Yield the items, and let other tasks run before each new portion.

    A portion is as many items as weigh `portion` together; an item that weighs more is a portion of its own. For loops
    that would occupy the thread longer than a call should wait. Data read before the loop may change between portions.
    """
    weighed = 0
    for item in items:
        added = weight(item)
        if weighed and weighed + added > portion:
            weighed = 0
            await asyncio.sleep(TURN_S)
        weighed += added
        yield item


async def end(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel tasks and wait until they have ended. Their results and errors are ignored.

    The cancellation is repeated each second: in Python 3.11, `asyncio.wait_for` loses a cancellation that arrives
    together with the awaited result. Client libraries use it, and the task would continue.
    """
    ending = [task for task in tasks if task is not None]
    while pending := [task for task in ending if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=1)
    for task in ending:
        if not task.cancelled():
            task.exception()  # otherwise asyncio logs that it was never retrieved


class Background:
    """One task of a part of the service, from `start` to `stop`. `run` returns soon after `stopping` is set."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self.stopping = asyncio.Event()
        """Set when the task should finish its current work and return."""
        self._name = name
        self._run = run
        self._task: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Start the task."""
        self._task = asyncio.get_running_loop().create_task(self._until_done(), name=self._name)

    async def stop(self, timeout: float = 10.0) -> None:
        """Give the task `timeout` seconds to finish its current work, then cancel it."""
        self.stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout)
            await end(self._task)

    @property
    def was_cancelled(self) -> bool:
        """Whether the task was cancelled because it did not stop in time."""
        return self._task is not None and self._task.cancelled()

    async def pause(self, seconds: float) -> bool:
        """Wait for at most `seconds`. Returns whether the task should stop."""
        return await is_set_within(seconds, self.stopping)

    async def _until_done(self) -> None:
        await self._run()


class Backoff:
    """Growing pauses between attempts: `first` seconds, then twice as long each time, at most `most` seconds."""

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._next = first

    def next(self) -> float:
        """The pause before the next attempt, in seconds."""
        pause, self._next = self._next, min(self._next * 2, self._most)
        return pause

    def after(self, attempts: int) -> float:
        """The pause after this number of failed attempts (one or more), if the caller counts them."""
        return float(min(self._first * 2.0 ** min(attempts - 1, 64), self._most))

    def reset(self) -> None:
        """Begin with `first` again. Call this after a success."""
        self._next = self._first


async def is_set_within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event for at most `seconds`. Returns whether it is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
