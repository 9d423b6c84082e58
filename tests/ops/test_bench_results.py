"""The published results: figures that are reached or not, in a file that is written around them by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from ops.bench import figures
from ops.bench.backlog import Drained
from ops.bench.calibration import Calibration
from ops.bench.database import Counters, DatabaseCost, Executed
from ops.bench.figures import Series
from ops.bench.latency import Latency
from ops.bench.markdown import BEGIN, END, written
from ops.bench.processes import Memory
from ops.bench.report import Progress
from ops.bench.result import Asked, Cost, Driven, Ordered, Result, Terms, rounded
from ops.bench.scenario import Scenario
from ops.bench.start import Starts

MACHINE = dict.fromkeys(
    ("processor", "cores", "memory_gib", "kernel", "python", "postgresql", "fsync", "synchronous_commit", "nats",
     "envoy", "grpcio", "asyncpg"), "1",
)  # fmt: skip
PROCESSES = ("mesh", "order", "postgres", "edge")
NAMES = [
    figures.ORDERS_64, figures.ORDERS_256, figures.HOT_256, figures.HALF, figures.MIXED, figures.LONG,
    *figures.GROWN_64, *figures.GROWN_256, *figures.YOUNG_64, *figures.YOUNG_256,
]  # fmt: skip


def result(*, settled: float = 1000.0) -> Result:
    """A run of orders that reaches everything."""
    latency = Latency.of([0.02] * 10)
    return Result(
        terms=Terms(
            scenario=Scenario.ORDERS, loop="closed", concurrency=64, seconds=600, lines=3, customers=64, products=300,
            rate_limit=200,
        ),
        machine=MACHINE,
        calibration=Calibration(echo_calls=5000, transactions=2000, transactions_on_uvloop=2500),
        requests={"place": Asked(per_second=settled, latency=latency)},
        failures={},
        orders=Ordered(
            placed=10, confirmed=10, accepted_per_second=settled, settled_per_second=settled,
            settling=latency, drain_seconds=0,
            cost=Cost(
                cpu_ms=dict.fromkeys(PROCESSES, 0.5), cpu_ms_total=1.5, statements=1, commits=1, log_bytes=1000
            ),
        ),
        cpu_seconds=dict.fromkeys(PROCESSES, 1.0),
        memory=dict.fromkeys(PROCESSES, Memory(rss=2**20, pss=2**20)),
        resident=dict.fromkeys(PROCESSES, [100 * 2**20] * 4),
        database=DatabaseCost.between(Counters(0, Counter(), Counter()), Counters(0, Counter(), Counter())),
        outbox_lag_seconds={"orders": 0.01},
        driver=Driven(workers=1, requests=10, cpu_microseconds_per_request=20, cpu_share=0.1, lateness=None),
        others_cores=0.0,
    )  # fmt: skip


def series() -> Series:
    """A series that reaches everything."""
    runs = dict.fromkeys(NAMES, result())
    reads = replace(result(), requests={"product": Asked(per_second=3000, latency=Latency.of([0.01]))}, orders=None)
    events = Drained(
        machine=MACHINE, events=50_000, seconds=5, events_per_second=10_000, mean_batch=256,
        cpu_microseconds_per_event=50, cpu_seconds={},
    )  # fmt: skip
    return Series({**runs, figures.READS: reads}, events, Starts(fresh=5.5, again=4, imports={"order": 0.5}))


def unreached(series: Series) -> list[str]:
    return [each.name for each in figures.figures(series) if not each.is_reached]


def test_what_is_reached_says_so() -> None:
    assert unreached(series()) == []


def test_orders_are_compared_with_the_transactions_of_either_client() -> None:
    first = next(figures.figures(series()))
    assert first.measured == "0.500 R (1,000/s, R = 2,000/s; 0.400 of the 2,500/s of a client on uvloop)"


def test_each_figure_is_missed_by_the_run_that_misses_it() -> None:
    reached = series()
    slow = Series({**reached.runs, figures.ORDERS_64: result(settled=400)}, reached.events, reached.starts)
    assert unreached(slow) == ["settled orders/s at 64 concurrent, 3 lines an order"]
    failing = replace(result(), failures={"place: 503 OVERLOADED": 1})
    assert len(unreached(Series({**reached.runs, figures.MIXED: failing}, reached.events, reached.starts))) == 1
    growing = replace(result(), resident={name: [100 * 2**20, 100 * 2**20, 106 * 2**20] for name in PROCESSES})
    leaking = Series({**reached.runs, figures.LONG: growing}, reached.events, reached.starts)
    assert unreached(leaking) == ["memory: flat over 10.0 minutes"]
    cold = Series(reached.runs, reached.events, Starts(fresh=7, again=4, imports={"order": 1.2}))
    assert unreached(cold) == ["cold start: `mesh up` to first order accepted", "import time of a service"]


def test_a_mesh_with_a_past_is_compared_with_what_a_young_one_did_in_turn_with_it() -> None:
    reached = series()
    drift = (150.0, 50.0, -50.0, -150.0)
    for there, ratio in ((1200.0, 0.83), (1260.0, 0.79)):
        runs = dict(reached.runs)
        runs |= {name: result(settled=there + by) for name, by in zip(figures.YOUNG_64, drift, strict=True)}
        runs |= {name: result(settled=1000 + by) for name, by in zip(figures.GROWN_64, (100.0, 0, -100.0), strict=True)}
        grown = Series(runs, reached.events, reached.starts)
        (figure,) = (each for each in figures.figures(grown) if each.name == "64 concurrent, on the past of a mesh")
        assert figure.measured == f"{ratio:.2f} (1,000/s of {there:,.0f}/s)"
        assert figure.is_reached == (ratio >= 0.8)


def test_what_was_written_by_hand_around_the_figures_stays() -> None:
    first = written("", series(), 10, 10, "abc")
    assert first.startswith("# What the mesh can do\n")
    by_hand = first.replace("# What", "# By hand: what", 1).replace(END, f"{END}\n\n## What each step gave\n")
    again = written(by_hand, series(), 10, 10, "def")
    assert again == by_hand.replace("`abc`", "`def`")
    assert again.count(BEGIN) == again.count(END) == 1


def test_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    heads = 0
    cells = None
    for line in written("", series(), 10, 10, "abc").splitlines():
        if not line.startswith("|"):
            cells = None
        elif cells is None:
            cells = line.count("|")
            heads += 1
        else:
            assert line.count("|") == cells, line
    assert heads == 6


def test_numbers_are_rounded_to_what_they_mean() -> None:
    assert rounded({"a": 1.23456789, "b": [12345.678, 7], "c": None}) == {"a": 1.235, "b": [12345.7, 7], "c": None}


def test_statements_are_counted_by_name_between_two_moments() -> None:
    placing, commit = ("orders", "store reply + add orders"), ("orders", "COMMIT")
    before = Counters(100, Counter({placing: 10, commit: 10}), Counter({placing: 50}))
    reading = ("product", "read stocks")
    after = Counters(600, Counter({placing: 20, commit: 15, reading: 4}), Counter({placing: 250, reading: 2}))
    cost = DatabaseCost.between(before, after)
    assert (cost.statements, cost.commits, cost.log_bytes) == (14, 5, 500)
    assert cost.by_name == {
        "orders": {"store reply + add orders": Executed(10, 20.0)},
        "product": {"read stocks": Executed(4, 0.5)},
    }


def test_the_yardsticks_are_the_mean_of_two_looks() -> None:
    assert Calibration(2000, 4000, 5000).mean(Calibration(4000, 5000, 7000)) == Calibration(3000, 4500, 6000)


def test_what_one_of_several_runs_found_is_told_even_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = replace(series().runs[figures.READS], failures={"place: 503": 2}, breaches=["stock is short"])
    with Progress.on_terminal() as progress:
        progress.found("64 [concurrent]", result())
        progress.found("reads", failed)
    assert capsys.readouterr().err.splitlines() == [
        "64 [concurrent]: 1,000 settled/s, place 1,000/s, p99 20.0 ms, 1.50 ms of CPU an order, the edge 0.500",
        "reads: product 3,000/s, p99 10.0 ms, 2 place: 503, the sums do not hold",
    ]
