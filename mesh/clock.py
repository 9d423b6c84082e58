"""The time on which the processes of a service agree: that of their database (ADR-0029).

One process sets a deadline, another compares it, and the clocks of their machines may differ by minutes. Times that a
process writes come from here; sweeps compare with `now()` in SQL. The clock of the machine only decides what parties
outside the mesh check as well: when a token or a certificate expires.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import structlog

DRIFT = 0.0005
"""Seconds per second by which two clocks may drift apart: the most by which NTP slews a clock."""
_NOTEWORTHY_S = 1.0
"""Smaller changes of the database's clock are not logged."""

log = structlog.get_logger(__name__)


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The time now, aware, in UTC."""


def steady() -> float:
    """Seconds since the machine started, including time asleep. This clock cannot be set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class DatabaseClock:
    """The time of a database, without a query: a steady clock of this machine plus the offset of the database's clock.

    The database reads its clock between question and reply, so each reading bounds the offset. The bounds widen with
    time and narrow with each reading, so a slow reply does no harm. A reading outside the bounds means that the clock
    of the database was set, or that this is another server; it replaces them.
    """

    def __init__(self, steady: Callable[[], float] = steady) -> None:
        self.steady = steady
        """The steady clock, in seconds."""
        self._least = self._most = 0.0
        """The bounds of the offset as of `_read_at`, in seconds."""
        self._read_at: float | None = None
        """The steady time of the last reading; none before the first."""

    def observe(self, asked: float, answered: float, reading: datetime) -> None:
        """Use a reading of the database's clock, taken between the steady times `asked` and `answered`."""
        least, most = reading.timestamp() - answered, reading.timestamp() - asked
        if self._read_at is not None:
            drift = DRIFT * (answered - self._read_at)
            if least > self._most + drift or most < self._least - drift:
                moved = (least + most - self._least - self._most) / 2
                if abs(moved) >= _NOTEWORTHY_S:
                    log.warning("clock of the database was set", by_seconds=round(moved, 3))
            else:
                least, most = max(least, self._least - drift), min(most, self._most + drift)
        self._least, self._most, self._read_at = least, most, answered

    def now(self) -> datetime:
        """The database's time, aware, in UTC. Raises RuntimeError before the first reading."""
        if self._read_at is None:
            raise RuntimeError("the clock of the database has not been read: start the database first")
        return datetime.fromtimestamp(self.steady() + (self._least + self._most) / 2, UTC)
