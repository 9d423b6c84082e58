"""The clock of a database, as a process tracks it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.clock import DRIFT, DatabaseClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
"""The database's time when the steady clock of these tests is at 0."""
SECOND = timedelta(seconds=1)


class Machine:
    """A machine, its database, and the clock with which the machine tracks that of the database."""

    def __init__(self) -> None:
        self.steady = 0.0
        self.databases_clock = NOON
        self.clock = DatabaseClock(lambda: self.steady)

    def passes(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.steady += seconds
        self.databases_clock += seconds * SECOND

    def reads(self, *, there: float, back: float) -> None:
        """Read the database's clock; question and reply take `there` and `back` seconds."""
        asked = self.steady
        self.passes(there)
        reading = self.databases_clock
        self.passes(back)
        self.clock.observe(asked, self.steady, reading)

    @property
    def error(self) -> float:
        """How far the clock is from the database's, in seconds."""
        return abs((self.clock.now() - self.databases_clock) / SECOND)


def test_database_clock_is_not_known_before_its_first_reading() -> None:
    with pytest.raises(RuntimeError, match="start the database first"):
        DatabaseClock().now()


def test_database_clock_advances_between_readings() -> None:
    machine = Machine()
    machine.reads(there=0.001, back=0.001)
    machine.passes(3600)
    assert machine.clock.now() == NOON + 3600 * SECOND + 0.002 * SECOND


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 60)), min_size=1))
def test_database_clock_errs_by_half_of_the_fastest_reading_at_most(readings: list[tuple[float, float, float]]) -> None:
    machine, fastest = Machine(), float("inf")
    for there, back, pause in readings:
        machine.reads(there=there, back=back)
        machine.passes(pause)
        fastest = min(fastest, there + back)
        # The bounds widen with time, and datetimes are whole microseconds.
        assert machine.error <= fastest / 2 + DRIFT * machine.steady + 1e-5


def test_database_clock_stays_accurate_after_a_slow_reply() -> None:
    machine = Machine()
    machine.reads(there=0.001, back=0.001)
    machine.reads(there=0, back=8)
    assert machine.error < 0.01


@pytest.mark.parametrize("minutes", [16, -16])
def test_database_clock_follows_a_database_whose_clock_was_set(minutes: int) -> None:
    machine = Machine()
    machine.reads(there=0.001, back=0.001)
    machine.databases_clock += minutes * timedelta(minutes=1)
    machine.reads(there=0.2, back=0.1)
    assert machine.error <= 0.15


def test_database_clock_follows_a_database_whose_clock_drifts() -> None:
    machine = Machine()
    for _ in range(1000):
        machine.reads(there=0.001, back=0.001)
        machine.passes(10)
        machine.databases_clock += 10 * DRIFT / 2 * SECOND
        assert machine.error < 0.01
