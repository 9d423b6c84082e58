"""What a person sees: progress during a load, then tables, of one load in a terminal or of a series in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from ops.bench.latency import Latency
from ops.bench.result import Drained, Result

Cells = dict[str, str]
"""A column of a table: cells by the label of their row."""

_MIB = 2**20
_DISTURBED = 0.2
"""Cores. If other programs use more, the figures say little."""
_SHOWN = 0.01
"""Statements that are a smaller share of a database's calls are left out of the tables."""


class Progress:
    """Shows progress on one line of a terminal, and nothing anywhere else."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def tell(self, text: str) -> None:
        """The step that begins now."""
        self._status.update(escape(text))

    def show(self, *, elapsed: float, seconds: float, answered: int, failed: int, lag: float) -> None:
        """The load so far."""
        failures = f", [red]{failed} failed[/red]" if failed else ""
        rate = f", {answered / elapsed:,.0f}/s" if elapsed else ""
        behind = f"; outbox {1e3 * lag:,.0f} ms behind"
        self._status.update(f"{elapsed:3.0f} of {seconds:.0f} s: {answered:,} answered{rate}{failures}{behind}")

    @classmethod
    @contextmanager
    def on_terminal(cls) -> Iterator[Progress]:
        """On standard error, so that the result can be piped."""
        with Console(stderr=True, highlight=False).status("beginning") as status:
            yield cls(status)


def show(console: Console, result: Result | Drained) -> None:
    """Print the tables of one load."""
    for title, cells in tables(result).items():
        table = Table(title=title, box=None, show_header=False, title_justify="left", title_style="bold")
        for label, cell in cells.items():
            table.add_row(label, cell)
        console.print(table)
        console.print()
    if not result.violations:
        console.print("[green]The invariants hold.[/green]")


def markdown(results: Mapping[str, Result | Drained]) -> Iterator[str]:
    """The lines of the tables of a series, with a column for each load."""
    columns = {name: tables(result) for name, result in results.items()}
    for title in dict.fromkeys(title for each in columns.values() for title in each):
        shown = {name: each[title] for name, each in columns.items() if title in each}
        yield f"## {title}"
        yield ""
        yield f"| | {' | '.join(shown)} |"
        yield f"|---|{'---|' * len(shown)}"
        for label in dict.fromkeys(label for cells in shown.values() for label in cells):
            yield f"| {label} | {' | '.join(cells.get(label, '') for cells in shown.values())} |"
        yield ""


def tables(result: Result | Drained) -> dict[str, Cells]:
    """The figures of a load, by the titles of the tables that they belong to."""
    if isinstance(result, Drained):
        return {"Events": _events(result)}
    found = {
        "Load": _load(result),
        "Requests": _requests(result),
        "Orders": _orders(result),
        "CPU": _cpu(result),
        "Memory, MiB": {name: f"{size / _MIB:.0f}" for name, size in result.memory.items()},
        "PostgreSQL": _postgres(result),
        "Rows of a statement": _statements(result),
    }
    return {title: cells for title, cells in found.items() if cells}


def _load(result: Result) -> Cells:
    terms = result.terms
    cells = {
        "users": f"{terms.connections}" if terms.rate is None else f"open loop, {terms.rate:,.0f}/s",
        "measured": f"{terms.seconds:g} s",
        "rate limit of a customer": _limit(result.rate_limits["customer"]),
        "rate limit of an address": _limit(result.rate_limits["address"]),
        "driver": f"{result.driver.cpu_microseconds_per_request:.0f} µs of CPU a request",
        "other programs": f"{result.others_cores:.2f} cores"
        + (", too many" if result.others_cores > _DISTURBED else ""),
    }
    if result.transactions:
        cells["R"] = f"{result.transactions:,.0f}/s"
    return cells | {f"failed: {what}": f"{count}" for what, count in result.failures.items()}


def _limit(rate: int) -> str:
    return f"{rate:,}/s" if rate else "none"


def _requests(result: Result) -> Cells:
    cells = {}
    for kind, answered in result.requests.items():
        cells[kind] = f"{answered.per_second:,.0f}/s"
        cells |= _percentiles(kind, answered.latency)
    if result.driver.lateness:
        cells["sent late, p99"] = f"{result.driver.lateness.percentiles['p99']:.1f} ms"
    return cells


def _percentiles(what: str, latency: Latency | None) -> Cells:
    if latency is None:
        return {}
    label = f"{what}: {', '.join(latency.percentiles)}"
    return {label: ", ".join(f"{each:,.0f}" for each in latency.percentiles.values()) + " ms"}


def _orders(result: Result) -> Cells:
    orders = result.orders
    if orders is None:
        return {}
    cells = {
        "confirmed": f"{orders.confirmed_per_second:,.0f}/s",
        **({"of R": f"{ratio:.3f}"} if (ratio := result.confirmed_of_transactions) else {}),
        "accepted": f"{orders.accepted_per_second:,.0f}/s",
        **_percentiles("placed to confirmed", orders.to_confirmed),
        "decided after the load": f"{orders.drain_seconds:.2f} s",
        "outbox lag at most": f"{1e3 * max(result.outbox_lag_seconds.values()):,.0f} ms",
    }
    if result.sold_out_refusals:
        cells["refused because sold out"] = f"{result.sold_out_refusals}"
    return cells


def _cpu(result: Result) -> Cells:
    cost = result.orders.cost if result.orders else None
    if cost is None:
        return {name: f"{seconds:.2f} s" for name, seconds in result.cpu_seconds.items()}
    each = {name: f"{milliseconds:.3f} ms an order" for name, milliseconds in cost.cpu_ms.items()}
    return {"all processes": f"{cost.cpu_ms_total:.2f} ms an order", **each}


def _postgres(result: Result) -> Cells:
    cost = result.orders.cost if result.orders else None
    if cost is None:
        return {}
    return {
        "statements": f"{cost.statements:.2f} an order",
        "commits": f"{cost.commits:.2f} an order",
        "write-ahead log": f"{cost.log_bytes:,.0f} bytes an order",
    }


def _statements(result: Result) -> Cells:
    cells = {}
    for database, statements in result.database.by_name.items():
        calls = sum(executed.calls for executed in statements.values())
        for name, executed in statements.items():
            if executed.calls >= _SHOWN * calls:
                cells[f"{database}: {name}"] = f"{executed.rows_per_call:,.1f}"
    return cells


def _events(result: Drained) -> Cells:
    return {
        "applied": f"{result.events:,}",
        "rate": f"{result.events_per_second:,.0f}/s",
        "mean batch": f"{result.mean_batch:.0f}",
        "CPU of the consumer": f"{result.cpu_microseconds_per_event:.0f} µs an event",
        **{f"CPU of {name}": f"{seconds:.2f} s" for name, seconds in result.cpu_seconds.items()},
    }
