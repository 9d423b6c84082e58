"""The published results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ops.bench.figures import Series, figures
from ops.bench.result import Result

BEGIN = "<!-- measured by `make bench`; edits between these lines are lost -->"
END = "<!-- end of what `make bench` writes -->"
_MIB = 2**20


def written(before: str, series: Series, past_orders: int, past_products: int, commit: str) -> str:
    """The file with the measured part made anew; what was written around it by hand stays."""
    measured = "\n".join([BEGIN, "", *_measured(series, past_orders, past_products, commit), END])
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if begin and end:
        return f"{head}{measured}{tail}"
    return f"{before or '# What the mesh can do' + chr(10)}\n{measured}\n"


def _measured(series: Series, past_orders: int, past_products: int, commit: str) -> Iterator[str]:
    first = next(iter(series.runs.values()))
    machine = first.machine
    yield f"Measured at commit `{commit}` on {machine['cores']} cores of {machine['processor']},"
    yield f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, load driver included, with the default settings:"
    yield f"fsync {machine['fsync']}, synchronous_commit {machine['synchronous_commit']}. Python {machine['python']},"
    yield f"PostgreSQL {machine['postgresql']}, NATS {machine['nats']}, Envoy {machine['envoy']},"
    yield f"grpcio {machine['grpcio']}, asyncpg {machine['asyncpg']}. R and E are measured within each run."
    yield f"The past of a mesh: {past_orders:,} orders of three lines, and {past_products:,} products. A load"
    yield f"lasts {first.terms.seconds:g} s, but the long one."
    yield ""
    yield from _table(
        ("figure", "to reach", "measured", ""),
        [(each.name, each.to_reach, each.measured, "✓" if each.is_reached else "**no**") for each in figures(series)],
    )
    yield "![Latency against load](latency.png)"
    yield ""
    runs = {name: each for name, each in series.runs.items() if each.orders}
    yield "## Orders"
    yield ""
    yield from _table(
        (
            "run",
            "accepted/s",
            "settled/s",
            "R, and on uvloop",
            "placing p50 / p95 / p99 / p99.9",
            "to confirmed p99",
            "outbox lag",
            "other things",
        ),
        [(name, *_orders(run)) for name, run in runs.items()],
    )
    yield "## What an order costs"
    yield ""
    costs = {name: run.orders.cost for name, run in runs.items() if run.orders and run.orders.cost}
    processes = list(first.cpu_seconds)
    yield "Milliseconds of CPU an order, which are seconds per 1,000 orders:"
    yield ""
    yield from _table(
        ("run", "all", *processes, "driver"),
        [
            (
                name,
                f"**{cost.cpu_ms_total:.2f}**",
                *(f"{cost.cpu_ms[process]:.3f}" for process in processes),
                f"{runs[name].driver.cpu_microseconds_per_request / 1e3:.3f}",
            )
            for name, cost in costs.items()
        ],
    )
    yield from _table(
        ("run", "statements", "commits", "bytes of log"),
        [
            (name, f"{cost.statements:.2f}", f"{cost.commits:.2f}", f"{cost.log_bytes:,.0f}")
            for name, cost in costs.items()
        ],
    )
    yield "## Statements"
    yield ""
    yield from _table(
        ("run", "database", "statement", "calls", "rows a call"),
        [
            (name, database, statement, f"{executed.calls:,}", f"{executed.rows_per_call:,.1f}")
            for name, run in runs.items()
            for database, statements in run.database.by_name.items()
            for statement, executed in statements.items()
        ],
    )
    yield "## Memory"
    yield ""
    yield "MiB at the end of each load; what processes share is split among them (PSS):"
    yield ""
    yield from _table(
        ("run", *processes),
        [
            (name, *(f"{run.memory[process].pss / _MIB:.0f}" for process in processes))
            for name, run in series.runs.items()
        ],
    )


def _orders(run: Result) -> Sequence[str]:
    orders, latency = run.orders, run.requests["place"].latency
    assert orders is not None, "only runs that have placed some"
    calibration = run.calibration
    return (
        f"{orders.accepted_per_second:,.0f}",
        f"{orders.settled_per_second:,.0f}",
        f"{calibration.transactions:,.0f}, {calibration.transactions_on_uvloop:,.0f}/s" if calibration else "",
        " / ".join(f"{each:,.0f}" for each in latency.percentiles.values()) + " ms" if latency else "",
        f"{orders.settling.percentiles['p99']:,.0f} ms" if orders.settling else "",
        f"{1e3 * max(run.outbox_lag_seconds.values()):,.0f} ms",
        f"{run.others_cores:.2f} cores",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
