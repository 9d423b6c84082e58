"""The position of a relay in an outbox whose rows become visible out of order (ADR-0017).

A row gets its number when it is inserted and becomes visible when its transaction commits. A missing number below the
highest visible one may therefore appear later, or never if its transaction is rolled back. Transaction ids decide
which: a transaction obtains its id before it draws a number, so the transaction behind a missing number has a lower id
than any transaction that begins afterwards. Once all transactions below such an id have ended and the number is still
missing, it was never committed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple


class Gap(NamedTuple):
    """A range of numbers, both ends included, that are not published."""

    first: int
    last: int
    bound: int | None = None
    """Only transactions with an id below this one can still fill the gap. None while it is not known."""


class Position(NamedTuple):
    """All events up to the number `through` are published, except those in `gaps`, which are in ascending order."""

    through: int
    gaps: tuple[Gap, ...] = ()

    def after(self, seen: Sequence[int], published: Collection[int], *, ended: int, is_all: bool) -> Position:
        """The position after a read of the outbox and the publication of some of its events.

        Args:
            seen: The numbers that were read, in ascending order: those in the gaps and above `through`.
            published: Those of them whose events the stream has acknowledged.
            ended: At the time of the read, all transactions with a lower id had ended.
            is_all: Whether `seen` is complete. Otherwise it contains only the lowest numbers.
        """
        if not seen:
            return self
        through = max(self.through, seen[-1])
        complete = through if is_all else seen[-1]
        done = sorted(published)
        gaps: list[Gap] = []
        for gap in (*self.gaps, Gap(self.through + 1, through)):
            for first, last in _without(gap.first, gap.last, done):
                if gap.bound is not None and gap.bound <= ended and last <= complete:
                    # No other number can appear. Those that were read but not published stay in a gap.
                    there = seen[bisect_left(seen, first) : bisect_right(seen, last)]
                    gaps += (Gap(*run, gap.bound) for run in _runs(there))
                else:
                    gaps.append(Gap(first, last, gap.bound))
        return Position(through, tuple(gaps))

    def bounded(self, transaction: int) -> Position:
        """The position with a bound for its gaps: only transactions that began before this one can still fill them."""
        return Position(self.through, tuple(gap._replace(bound=gap.bound or transaction) for gap in self.gaps))


def _without(first: int, last: int, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges that remain of a range without these numbers, which are in ascending order."""
    for number in numbers[bisect_left(numbers, first) : bisect_right(numbers, last)]:
        if first < number:
            yield first, number - 1
        first = number + 1
    if first <= last:
        yield first, last


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The ranges of consecutive numbers among these, which are in ascending order."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = last = number
        elif number == last + 1:
            last = number
        else:
            yield first, last
            first = last = number
    if first is not None and last is not None:
        yield first, last
