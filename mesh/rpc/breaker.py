"""A circuit breaker: calls to a dependency that does not answer fail at once.

                a call waits for `suspect_after` seconds or fails in transport,
                and then `PROBES_TO_OPEN` probes in a row fail
        CLOSED ─────────────────────────────────────────────────────────────────▶ OPEN
          ▲                                                                        │
          └──────────────────────────── a probe succeeds ──────────────────────────┘

A slow or failed call opens nothing by itself. It starts probes in the background, and only these decide. A dependency
that is slow but alive answers the probe, so its calls keep all their time. When the breaker opens, the pending calls
fail as well: they wait for the same dependency, and a batch behind them would wait with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

import structlog

from mesh import tasks
from mesh.errors import Unavailable

PROBES_TO_OPEN = 2
"""The number of failed probes in a row that open the breaker. One may be lost when a connection or a worker dies."""

Probe = Callable[[], Awaitable[object]]
"""Asks the dependency for a sign of life. Raises if there is none."""

log = structlog.get_logger(__name__)


class State(StrEnum):
    """Whether calls reach the dependency."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"


class BreakerOpen(Unavailable):
    """The dependency does not answer. A call that was pending may have taken effect: retry with the same key."""

    def __init__(self, dependency: str, retry_after: float) -> None:
        super().__init__(
            f"the {dependency} service does not answer", metadata={"service": dependency}, retry_after=retry_after
        )


class Breaker:
    """Guards the calls to one dependency. A part of a service: `stop` ends the probes.

    `means_down` tells the exceptions of a transport, which start the probes, from the errors that the dependency
    answers with. All times are in seconds.
    """

    def __init__(
        self,
        dependency: str,
        probe: Probe,
        *,
        means_down: Callable[[Exception], bool],
        suspect_after: float = 1.0,
        probe_timeout: float = 1.0,
        probe_interval: float = 0.5,
    ) -> None:
        self.dependency = dependency
        self.state = State.CLOSED
        self.opened = 0
        """The number of times that it has opened."""
        self.refused = 0
        """The number of calls that were not sent because it was open."""
        self.interrupted = 0
        """The number of pending calls that failed because it opened."""
        self.probes = 0
        """The number of probes."""
        self._probe = probe
        self._means_down = means_down
        self._suspect_after = suspect_after
        self._probe_timeout = probe_timeout
        self._probe_interval = probe_interval
        self._answers = 0
        """The number of calls that the dependency has answered."""
        self._pending: dict[asyncio.Timeout, float] = {}
        """The pending calls and when they began, oldest first."""
        self._probing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Do nothing: probes start when they are needed."""

    async def stop(self) -> None:
        """End the probes."""
        await tasks.end(self._probing)

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Guard one call. Raises BreakerOpen at once if the breaker is open, or as soon as it opens."""
        if self.state is State.OPEN:
            self.refused += 1
            raise BreakerOpen(self.dependency, self._probe_interval)
        loop = asyncio.get_running_loop()
        suspicion = loop.call_later(self._suspect_after, self._suspect)
        pending = asyncio.timeout(None)
        try:
            async with pending:
                self._pending[pending] = loop.time()
                yield
            self._answers += 1
        except Exception as error:
            if pending.expired():
                self.interrupted += 1
                raise BreakerOpen(self.dependency, self._probe_interval) from None
            if self._means_down(error):
                self._suspect()
            else:
                self._answers += 1
            raise
        finally:
            suspicion.cancel()
            self._pending.pop(pending, None)

    def _suspect(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_while_in_doubt(), name=f"breaker {self.dependency}")

    async def _probe_while_in_doubt(self) -> None:
        """Probe until the dependency answers and no call has waited for longer than `suspect_after`."""
        loop = asyncio.get_running_loop()
        failed = 0
        while True:
            began = loop.time()
            if await self._is_alive():
                failed = 0
                self._close()
                if not self._has_overdue_calls():
                    return
            else:
                failed += 1
                if failed == PROBES_TO_OPEN:
                    self._open()
            await asyncio.sleep(began + self._probe_interval - loop.time())

    async def _is_alive(self) -> bool:
        """Whether the dependency answers a probe, or a call meanwhile."""
        self.probes += 1
        answers = self._answers
        try:
            async with asyncio.timeout(self._probe_timeout):
                await self._probe()
        except Exception as error:  # noqa: BLE001  # every failure of a probe means the same
            log.debug("probe failed", dependency=self.dependency, error=repr(error))
            return self._answers > answers
        return True

    def _has_overdue_calls(self) -> bool:
        oldest = next(iter(self._pending.values()), None)
        return oldest is not None and oldest + self._suspect_after <= asyncio.get_running_loop().time()

    def _open(self) -> None:
        self.state = State.OPEN
        self.opened += 1
        log.warning("breaker opened", dependency=self.dependency, pending=len(self._pending))
        for pending in self._pending:
            pending.reschedule(asyncio.get_running_loop().time())

    def _close(self) -> None:
        if self.state is State.OPEN:
            self.state = State.CLOSED
            log.info("breaker closed", dependency=self.dependency, refused=self.refused)
