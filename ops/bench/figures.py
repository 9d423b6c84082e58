"""The figures to reach on a machine of two cores, the load driver included, and what was measured of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from ops.bench.backlog import Drained
from ops.bench.latency import Latency
from ops.bench.result import Ordered, Result
from ops.bench.start import Starts

PYTHON = ("mesh", "customer", "product", "payment", "order")
"""The processes that are ours; the others are servers."""
_MIB = 2**20
_FLAT = 1.05
"""What the memory of a process may have grown to by the end of a long load, compared with when it was warm."""


@dataclass(frozen=True, slots=True)
class Series:
    """Everything that one `make bench` has measured."""

    runs: Mapping[str, Result]
    """By the names below."""
    events: Drained
    starts: Starts

    def ordered(self, name: str) -> Ordered:
        """What became of the orders of a run."""
        orders = self.runs[name].orders
        assert orders is not None, f"{name} has placed no orders"
        return orders


ORDERS_64 = "orders, 64 concurrent"
ORDERS_256 = "orders, 256 concurrent"
HOT_256 = "one hot product, 256 concurrent"
HALF = "orders, open loop at half of that of 64 concurrent"
MIXED = "1,000 users"
READS = "product reads, 64 concurrent"
LONG = "orders, open loop at half, for long"
GROWN_64, GROWN_256 = (
    tuple(f"orders, {users} concurrent, on a long past, {number} of 3" for number in (1, 2, 3)) for users in (64, 256)
)
YOUNG_64, YOUNG_256 = (
    tuple(f"orders, {users} concurrent, beside the past, {number} of 4" for number in (1, 2, 3, 4))
    for users in (64, 256)
)
"""On a second mesh that has no past, in turn with the loads on the one that has: what a machine can do drifts by a
fifth within minutes, so neither the first figure of all nor a single neighbour is a measure for it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    name: str
    to_reach: str
    measured: str
    is_reached: bool


def figures(series: Series) -> Iterator[Figure]:
    """All of them, in the order of their importance."""
    yield _ratio(series, "settled orders/s at 64 concurrent, 3 lines an order", ORDERS_64, 0.22)
    yield _ratio(series, "the same at 256 concurrent", ORDERS_256, 0.35)
    hot = "the same at 256, one hot product bought by all, exactly the stock sold"
    yield _of(series, hot, (HOT_256,), (ORDERS_256,), ORDERS_256)
    yield _at_most(
        "p99 of placing at half the 64-concurrent rate, open loop", series.runs[HALF].requests["place"].latency, 60
    )
    yield _mixed(series.runs[MIXED])
    yield _reads(series.runs[READS])
    rate = series.events.events_per_second
    yield Figure("a backlog of events drained", "≥ 4,000/s", f"{series.events.events:,} at {rate:,.0f}/s", rate >= 4000)
    yield _cpu(series)
    young = "a young mesh beside it, in turn"
    yield _of(series, "256 concurrent, on the past of a mesh", GROWN_256, YOUNG_256, young)
    yield _of(series, "64 concurrent, on the past of a mesh", GROWN_64, YOUNG_64, young)
    yield _memory(series)
    yield _flat(series.runs[LONG])
    starts = series.starts
    yield Figure(
        "cold start: `mesh up` to first order accepted",
        "≤ 6 s",
        f"{starts.again:.1f} s; {starts.fresh:.1f} s the first time, with all there is to make",
        max(starts.fresh, starts.again) <= 6,
    )
    slowest = max(starts.imports, key=lambda name: starts.imports[name])
    seconds = starts.imports[slowest]
    yield Figure("import time of a service", "≤ 1 s", f"{seconds:.2f} s ({slowest})", seconds <= 1)


def _ratio(series: Series, name: str, run: str, least: float) -> Figure:
    settled = series.ordered(run).settled_per_second
    calibration, ratio = series.runs[run].calibration, series.runs[run].settled_of_transactions
    if calibration is None or ratio is None:
        raise AssertionError("the series measures none without yardsticks")
    on_uvloop = calibration.transactions_on_uvloop
    measured = (
        f"{ratio:.3f} R ({settled:,.0f}/s, R = {calibration.transactions:,.0f}/s;"
        f" {settled / on_uvloop:.3f} of the {on_uvloop:,.0f}/s of a client on uvloop)"
    )
    return Figure(name, f"≥ {least:g} R", measured, ratio >= least)


def _of(series: Series, name: str, runs: Sequence[str], others: Sequence[str], than: str) -> Figure:
    here, there = (mean(series.ordered(run).settled_per_second for run in names) for names in (runs, others))
    ratio = here / there
    return Figure(name, f"≥ 0.8 of {than}", f"{ratio:.2f} ({here:,.0f}/s of {there:,.0f}/s)", ratio >= 0.8)


def _at_most(name: str, latency: Latency | None, most: float) -> Figure:
    measured = latency.percentiles["p99"] if latency else float("inf")
    return Figure(name, f"≤ {most:g} ms", f"{measured:.1f} ms", measured <= most)


def _mixed(run: Result) -> Figure:
    latency = run.requests["place"].latency
    measured = latency.percentiles["p99"] if latency else float("inf")
    failed = sum(run.failures.values())
    rate = sum(asked.per_second for asked in run.requests.values())
    return Figure(
        "1,000 concurrent users (1 s think time, 70 % product reads, 20 % own orders, 10 % orders)",
        "no error; p99 of placing ≤ 250 ms",
        f"{failed} errors; {measured:.0f} ms, at {rate:,.0f} requests/s",
        not failed and measured <= 250,
    )


def _reads(run: Result) -> Figure:
    assert run.calibration is not None, "the series measures none without"
    rate, echo = run.requests["product"].per_second, run.calibration.echo_calls
    return Figure(
        "product reads through the edge",
        "≥ 0.5 E",
        f"{rate / echo:.2f} E ({rate:,.0f}/s, E = {echo:,.0f}/s)",
        rate / echo >= 0.5,
    )


def _cpu(series: Series) -> Figure:
    costs = {name: series.ordered(name).cost for name in (ORDERS_64, ORDERS_256)}
    totals = {name: cost.cpu_ms_total for name, cost in costs.items() if cost}
    return Figure(
        "CPU of all processes but the driver per settled order",
        "≤ 2 ms",
        "; ".join(f"{total:.2f} ms ({name})" for name, total in totals.items()),
        max(totals.values()) <= 2,
    )


def _memory(series: Series) -> Figure:
    most: dict[str, int] = {}
    for run in series.runs.values():
        for name, resident in _python(run).items():
            most[name] = max(most.get(name, 0), *resident)
    return Figure(
        "memory: all Python processes, at any of these loads",
        "≤ 150 MiB each",
        ", ".join(f"{name} {size / _MIB:.0f}" for name, size in most.items()) + " MiB resident",
        max(most.values()) <= 150 * _MIB,
    )


def _flat(run: Result) -> Figure:
    # Once warm, after a quarter.
    grown = {name: resident[-1] / resident[len(resident) // 4] for name, resident in _python(run).items()}
    most = max(grown, key=lambda name: grown[name])
    return Figure(
        f"memory: flat over {run.terms.seconds / 60:.1f} minutes",
        f"grows by less than {100 * (_FLAT - 1):.0f} %",
        f"{100 * (grown[most] - 1):+.1f} % ({most})",
        grown[most] < _FLAT,
    )


def _python(run: Result) -> dict[str, list[int]]:
    """The resident bytes of the services' processes, over time, by name."""
    # A service of several workers is order-1 and so on; the supervisor is Python too.
    return {name: sizes for name, sizes in run.resident.items() if name.partition("-")[0] in PYTHON}
