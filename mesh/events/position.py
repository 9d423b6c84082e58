"""How far a relay has come in an outbox whose rows appear out of order, without a mark on any row (ADR-0017).

Rows are numbered when they are written and appear when their transaction commits, so a number below the last one may
still be missing. It comes later, or never, if its transaction is rolled back. Which of the two is not guessed by the
clock: a transaction has its id before it draws a number. When a number is seen to be missing, the transaction that drew
it has an id lower than any that is given out from then on. Once all transactions below such an id have ended, and the
number is still missing, it was never committed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple


class Gap(NamedTuple):
    """Numbers, from the first to the last, of events that are not published."""

    first: int
    last: int
    bound: int | None = None
    """They can only come from transactions with an id below this; None until one is known."""


class Position(NamedTuple):
    """All events up to the number `through` are published, but for those in `gaps`, which are in order."""

    through: int
    gaps: tuple[Gap, ...] = ()

    def after(self, seen: Sequence[int], published: Collection[int], *, ended: int, is_all: bool) -> Position:
        """The position after a look at the outbox that has `seen` these numbers, and published some of them.

        `seen` holds, in order, what there was in the gaps and behind `through`: all of it if `is_all`, the lowest
        otherwise. When the look was taken, all transactions with an id below `ended` had ended.
        """
        if not seen:
            return self
        through = max(self.through, seen[-1])
        looked = through if is_all else seen[-1]
        done = sorted(published)
        gaps: list[Gap] = []
        for gap in (*self.gaps, Gap(self.through + 1, through)):
            for first, last in _without(gap.first, gap.last, done):
                if gap.bound is not None and gap.bound <= ended and last <= looked:
                    # Nothing will come any more. What was there, and could not be published, stays.
                    there = seen[bisect_left(seen, first) : bisect_right(seen, last)]
                    gaps += (Gap(*run, gap.bound) for run in _runs(there))
                else:
                    gaps.append(Gap(first, last, gap.bound))
        return Position(through, tuple(gaps))

    def bounded(self, transaction: int) -> Position:
        """The same, once a transaction with this id has begun: whoever may still fill a gap has begun before it."""
        return Position(self.through, tuple(gap._replace(bound=gap.bound or transaction) for gap in self.gaps))


def _without(first: int, last: int, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """What is left of a range without these numbers, which are in order."""
    for number in numbers[bisect_left(numbers, first) : bisect_right(numbers, last)]:
        if first < number:
            yield first, number - 1
        first = number + 1
    if first <= last:
        yield first, last


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """These numbers, which are in order, as ranges."""
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
