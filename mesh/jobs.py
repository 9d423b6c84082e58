"""Periodic background jobs, such as sweeps and purges."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from mesh import tasks

log = structlog.get_logger(__name__)


class Periodic:
    """Runs `work` immediately and then every `interval` seconds.

    If `work` returns True, there is more to do and it runs again immediately. A failure is logged, and the job
    continues at the next interval.
    """

    def __init__(self, name: str, interval: float, work: Callable[[], Awaitable[object]]) -> None:
        self._name = name
        self._interval = interval
        self._work = work
        self._background = tasks.Background(name, self._run)

    async def start(self) -> None:
        """Start the job in the background."""
        self._background.start()

    async def stop(self) -> None:
        """Wait up to 10 s for the current run, then cancel it."""
        await self._background.stop()

    async def _run(self) -> None:
        while not self._background.stopping.is_set():
            more = False
            try:
                more = await self._work() is True
            except Exception as error:  # noqa: BLE001  # a failed run must not end the job
                log.warning("job failed", job=self._name, error=repr(error), again_in=self._interval)
            if not more:
                await self._background.pause(self._interval)
