"""Latency against load: an open loop at rising rates, and the picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ops.bench.result import Result
from ops.bench.run import Watcher, Wish, run
from ops.running_mesh import RunningMesh
from stack.errors import StackError

SHARES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The rates, as shares of what the closed loop has reached."""


async def sweep(target: RunningMesh, wish: Wish, capacity: float, watcher: Watcher) -> list[Result]:
    """Place orders at each share of `capacity`, that of the closed loop in orders a second."""
    results = []
    for share in SHARES:
        name = f"{100 * share:.0f} % of {capacity:,.0f} orders/s"
        watcher.tell(name)
        at_rate = replace(wish, rate=max(1.0, share * capacity), concurrency=None, calibrated=False)
        results.append(await run(target, at_rate, watcher))
        watcher.found(name, results[-1])
    return results


def require_matplotlib() -> None:
    """Raise StackError now rather than after the runs."""
    try:
        import matplotlib  # noqa: F401, ICN001, PLC0415 - it is for developers, and takes long to import
    except ImportError:
        raise StackError("A plot needs matplotlib: `make setup` installs it.") from None


def plot(results: Sequence[Result], file: Path) -> None:
    """Draw percentiles of placing, and of the whole way to CONFIRMED, against the rate; as PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    rates = [result.terms.rate or 0.0 for result in results]
    for name in ("p50", "p99", "p99.9"):
        axes.plot(rates, [_percentile(result, name) for result in results], marker="o", label=f"placing, {name}")
    settling = [_settling(result, "p99") for result in results]
    axes.plot(rates, settling, marker="s", linestyle="--", color="grey", label="placed to confirmed, p99")
    machine = results[0].machine
    axes.set(
        title=f"Latency against load, {machine['cores']} cores, load driver included",
        xlabel="orders a second, open loop, three lines each",
        ylabel="milliseconds, from the moment the request was due",
        yscale="log",
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(left=0)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=120, metadata={"Software": None})


def _percentile(result: Result, name: str) -> float:
    latency = result.requests["place"].latency
    return latency.percentiles[name] if latency else float("nan")


def _settling(result: Result, name: str) -> float:
    latency = result.orders.settling if result.orders else None
    return latency.percentiles[name] if latency else float("nan")
