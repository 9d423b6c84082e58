"""Work that is done again and again in the background: sweeps, purges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mesh import tasks

log = structlog.get_logger(__name__)


class Periodic:
    """Does `work` at once and then every `interval` seconds; at once again as long as it answers True (there is more).

    A failure is logged and tried again at the next turn: what a sweep is for must not end the sweep.
    """

    def __init__(self, name: str, interval: float, work: Callable[[], Awaitable[object]]) -> None:
        self._name = name
        self._interval = interval
        self._work = work
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, in the background."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Let the turn under way end, and do no other."""
        self._stopped.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=10)
            await tasks.end(self._task)

    async def _run(self) -> None:
        while not self._stopped.is_set():
            more = False
            try:
                more = await self._work() is True
            except Exception as error:  # noqa: BLE001  # what a sweep meets must not end the sweep
                log.warning("job failed", job=self._name, error=repr(error), again_in=self._interval)
            if not more:
                await tasks.is_set_within(self._interval, self._stopped)
