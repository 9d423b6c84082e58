"""Latencies, and when the requests of an open loop are due."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
"""The percentiles that are reported."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value of a sorted, non-empty sequence that at least this share of all do not exceed."""
    # The tolerance: 0.999 * 1000 is a little more than 999 in floating point.
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)]


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, in milliseconds."""

    count: int
    mean: float
    percentiles: dict[str, float]
    """By the names of `SHARES`."""
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency | None:
        """What these times come to; None when there are none."""
        ordered = sorted(seconds)
        if not ordered:
            return None
        return cls(
            count=len(ordered),
            mean=1e3 * math.fsum(ordered) / len(ordered),
            percentiles={name: 1e3 * percentile(ordered, share) for name, share in SHARES.items()},
            max=1e3 * ordered[-1],
        )


class Schedule:
    """The due times of an open loop: `rate` a second, evenly spaced, from `begin` until `end`.

    Nobody who is served slowly keeps the next one from being due, so a latency that counts from the due time holds the
    time that a request had to wait for its turn as well (coordinated omission).
    """

    def __init__(self, rate: float, begin: float, end: float) -> None:
        self._rate = rate
        self._begin = begin
        self._end = end
        self._taken = 0

    @property
    def next(self) -> float | None:
        """The next due time that was not taken; None after the last."""
        due = self._begin + self._taken / self._rate
        return due if due < self._end else None

    def take(self, now: float) -> list[float]:
        """All due times up to `now` that were not taken before."""
        due = []
        while (time := self.next) is not None and time <= now:
            due.append(time)
            self._taken += 1
        return due
