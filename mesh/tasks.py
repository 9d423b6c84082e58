"""Background tasks: waiting in them, and an end that is for sure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

PORTION = 32
TURN_S = 0.001
"""How much is done at a time of what nobody waits for, and how long it lets others have their turns then (ADR-0025)."""


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
