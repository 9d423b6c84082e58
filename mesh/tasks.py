"""Ending background tasks for sure."""

from __future__ import annotations

import asyncio
from typing import Any


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
