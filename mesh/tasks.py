"""Background tasks: waiting in them, and an end that is for sure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

PORTION = 32
TURN_S = 0.001
"""How much is done at a time of what nobody waits for, and how long it lets others have their turns then (ADR-0025)."""


async def in_portions(items: Iterable[T]) -> AsyncIterator[T]:
    """The items one by one; after each `PORTION` of them others have their turns.

    For a batch that takes the thread for longer than somebody in a call should wait. What the loop around it has read
    may be out of date after each item.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % PORTION == 0:
            await asyncio.sleep(TURN_S)


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended, whatever they end with.

    Asked again each second: in Python 3.11 `asyncio.wait_for`, which client libraries wait with, loses a cancellation
    that comes in the same moment as what it waited for, and the task would live on.
    """
    ending = [task for task in tasks if task is not None]
    while pending := [task for task in ending if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=1)
    for task in ending:
        if not task.cancelled():
            task.exception()  # it is known now, and asyncio need not complain


async def is_set_within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event, for so many seconds at most; whether it has come."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
