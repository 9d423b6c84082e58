"""Percentiles, and an open loop that leaves no slow moment out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.latency import SHARES, Latency, Schedule, percentile

seconds = st.floats(min_value=0, max_value=1e3, allow_nan=False)


def test_a_percentile_is_a_value_that_occurred() -> None:
    hundred = [float(each) for each in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    thousand = [float(each) for each in range(1, 1001)]
    assert percentile(thousand, 0.999) == 999
    assert percentile([7.0], 0.5) == percentile([7.0], 0.999) == 7


@given(st.lists(seconds, min_size=1), st.floats(min_value=0.001, max_value=1))
def test_a_percentile_is_the_least_value_that_the_share_does_not_exceed(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, share)
    enough = share * len(ordered) - 1e-6
    assert sum(value <= found for value in ordered) >= enough
    assert sum(value < found for value in ordered) < math.ceil(share * len(ordered))


@given(st.lists(seconds, min_size=1))
def test_percentiles_rise_to_the_most(values: list[float]) -> None:
    latency = Latency.of(values)
    assert latency is not None
    rising = [*(latency.percentiles[name] for name in SHARES), latency.max]
    assert rising == sorted(rising)
    assert latency.max == pytest.approx(1e3 * max(values))
    assert latency.count == len(values)


def test_there_is_no_latency_of_nothing() -> None:
    assert Latency.of([]) is None


@given(
    st.floats(min_value=0.5, max_value=500),
    st.floats(min_value=0.1, max_value=20),
    st.lists(st.floats(min_value=0, max_value=25), max_size=50),
)
def test_however_late_somebody_looks_every_request_was_due_when_it_was_due(
    rate: float, length: float, looks: list[float]
) -> None:
    begin = 1000.0
    schedule = Schedule(rate, begin, begin + length)
    taken = []
    for look in [*sorted(looks), length]:
        due = schedule.take(begin + look)
        assert all(time <= begin + look for time in due)
        taken += due
    assert schedule.next is None
    assert taken == [begin + number / rate for number in range(len(taken))]
    assert len(taken) == pytest.approx(rate * length, abs=1)


def test_a_stalled_server_shows_in_the_latency_of_all_who_waited() -> None:
    # 100 a second for a second, of which the server answers nothing for the first half, then all at once.
    latencies = [max(0.0, 0.5 - due) for due in Schedule(100, 0.0, 1.0).take(1.0)]
    latency = Latency.of(latencies)
    assert latency is not None
    assert latency.percentiles["p99"] == pytest.approx(490, abs=1)
    # A closed loop of one would have seen a single slow request among all.
    assert latency.percentiles["p95"] > 400
