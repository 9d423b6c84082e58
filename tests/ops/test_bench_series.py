"""The published series: its figures, its tables and its files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ops.bench import series
from ops.bench.database import Counters, DatabaseCost, Executed
from ops.bench.latency import Latency
from ops.bench.report import markdown, show
from ops.bench.result import Answered, Cost, Drained, Driven, Ordered, Result, rounded
from ops.bench.scenario import Scenario, Terms
from ops.bench.series import END, Series

MACHINE = dict.fromkeys(
    ("processor", "cores", "memory_gib", "kernel", "python", "postgresql", "fsync", "synchronous_commit", "nats",
     "envoy", "grpcio", "asyncpg"), "1",
)  # fmt: skip
PROCESSES = ("order", "product", "payment", "customer", "postgres")
STATEMENTS = {"add orders": Executed(990, 20), "read orders": Executed(20, 1), "lock orders": Executed(1, 1)}
ORDERS = Terms(scenario=Scenario.ORDERS, concurrency=64)


def of_orders(*, confirmed: float = 1000.0, p99_s: float = 0.02) -> Result:
    """A load of orders that reaches every figure."""
    latency = Latency.of([p99_s] * 10)
    return Result(
        terms=ORDERS,
        machine=MACHINE,
        rate_limits={"customer": 200, "address": 0},
        customers=64,
        transactions=2000,
        requests={"place": Answered(confirmed, latency)},
        failures={},
        orders=Ordered(
            placed=10, confirmed=10, accepted_per_second=confirmed, confirmed_per_second=confirmed,
            to_confirmed=latency, drain_seconds=0,
            cost=Cost(cpu_ms=dict.fromkeys(PROCESSES, 0.3), cpu_ms_total=1.5, statements=1, commits=1, log_bytes=1000),
        ),
        cpu_seconds=dict.fromkeys(PROCESSES, 1.0),
        memory=dict.fromkeys(PROCESSES, 100 * 2**20),
        database=DatabaseCost(1000, 10, 1000, {"orders": STATEMENTS}),
        outbox_lag_seconds={"orders": 0.01},
        driver=Driven(requests=10, cpu_microseconds_per_request=20, cpu_share=0.1, lateness=None),
        others_cores=0.0,
    )  # fmt: skip


def a_series(**changed: Result) -> Series:
    """A series that reaches every figure, apart from what is changed."""
    loads = dict.fromkeys((series.FEW, series.MANY, series.HALF, series.HOT, series.MIXED), of_orders())
    reads = replace(of_orders(), requests={"product": Answered(3000, Latency.of([0.01]))}, orders=None)
    events = Drained(
        machine=MACHINE, events=50_000, seconds=5, events_per_second=10_000, mean_batch=256,
        cpu_microseconds_per_event=50, cpu_seconds={"nats": 1.0},
    )  # fmt: skip
    return Series(
        "abc",
        4.0,
        {**loads, series.READS: reads} | {getattr(series, name): each for name, each in changed.items()},
        events,
    )


LARGE = replace(of_orders(), memory=dict.fromkeys(PROCESSES, 200 * 2**20))


def missed(measured: Series) -> list[str]:
    return [figure.name for figure in measured.figures() if not figure.is_reached]


def test_a_series_that_reaches_every_figure_misses_none() -> None:
    assert missed(a_series()) == []


@pytest.mark.parametrize(
    ("changed", "figures"),
    [
        ({"FEW": of_orders(confirmed=400)}, ["confirmed orders, 64 users"]),
        ({"MANY": of_orders(confirmed=600)}, ["confirmed orders, 256 users"]),
        ({"HOT": of_orders(confirmed=700)}, ["confirmed orders, one hot product, 256 users"]),
        ({"HALF": of_orders(p99_s=0.07)}, ["p99 of placing: orders, half the rate of 64 users"]),
        ({"MIXED": of_orders(p99_s=0.3)}, ["p99 of placing: mixed, 1,000 users"]),
        ({"MIXED": replace(of_orders(), failures={"place: 503": 1})}, ["p99 of placing: mixed, 1,000 users"]),
        ({"READS": LARGE}, ["memory of a service, the largest"]),
    ],
)  # fmt: skip
def test_a_load_misses_its_own_figure(changed: dict[str, Result], figures: list[str]) -> None:
    assert missed(a_series(**changed)) == figures


def test_a_slow_start_and_a_slow_consumer_miss_their_figures() -> None:
    slow = replace(a_series(), start_seconds=7, events=replace(a_series().events, events_per_second=3999))
    assert missed(slow) == ["events applied from a backlog", "`mesh up` in an empty folder"]


def test_violations_name_their_load() -> None:
    broken = a_series(HOT=replace(of_orders(), violations=["stock is short"]))
    assert broken.violations == ["one hot product, 256 users: stock is short"]


def test_publishing_replaces_the_measured_part_and_keeps_the_text_around_it(tmp_path: Path) -> None:
    a_series().publish(tmp_path)
    results = tmp_path / "RESULTS.md"
    by_hand = results.read_text().replace("# Results", "# By hand", 1).replace(END, f"{END}\n\n## Explanation\n")
    results.write_text(by_hand)
    replace(a_series(), commit="def").publish(tmp_path)
    assert results.read_text() == by_hand.replace("`abc`", "`def`")
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["commit"] == "def"
    assert content["loads"][series.FEW]["orders"]["confirmed_per_second"] == 1000
    assert len((tmp_path / "results.json").read_text().splitlines()) < 1000


def test_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    loads: dict[str, Result | Drained] = {**a_series().loads, series.EVENTS: a_series().events}
    tables = "\n".join(markdown(loads)).split("## ")[1:]
    assert [table.split("\n", 1)[0] for table in tables] == [
        "Load", "Requests", "Orders", "CPU", "Memory, MiB", "PostgreSQL", "Rows of a statement", "Events",
    ]  # fmt: skip
    for table in tables:
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert "| orders: add orders | 20.0 |" in tables[6]
    assert "read orders" in tables[6]
    assert "lock orders" not in tables[6]


def test_a_load_is_shown_with_its_failures_and_whether_the_invariants_hold() -> None:
    console = Console(record=True, width=100)
    show(console, of_orders())
    show(console, replace(of_orders(), failures={"place: 503": 2}, violations=["stock is short"]))
    shown = console.export_text()
    assert shown.count("The invariants hold.") == 1
    assert "failed: place: 503" in shown


def test_numbers_are_rounded_to_four_digits() -> None:
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
