"""What a person sees of a run: progress while it lasts, then tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.markup import escape
from rich.padding import Padding
from rich.status import Status
from rich.table import Table

from ops.bench.backlog import Drained
from ops.bench.latency import Latency
from ops.bench.result import Result

_MIB = 2**20
_DISTURBED = 0.2
"""Cores. When more are busy with other things, the figures say little."""


class Progress:
    """Shows how far a run is, on one line of a terminal; anywhere else only what was found."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def tell(self, text: str) -> None:
        """What is being done now."""
        self._status.update(escape(text))

    def show(self, *, elapsed: float, seconds: float, answered: int, failed: int, lag: float) -> None:
        """How the load goes."""
        failures = f", [red]{failed} failed[/red]" if failed else ""
        rate = f", {answered / elapsed:,.0f}/s" if elapsed else ""
        behind = f"; outbox {1e3 * lag:,.0f} ms behind"
        self._status.update(f"{elapsed:3.0f} of {seconds:.0f} s: {answered:,} answered{rate}{failures}{behind}")

    def found(self, name: str, result: Result) -> None:
        """The figures of one of several runs, on a line that stays."""
        self._status.console.print(f"{escape(name)}: {', '.join(_in_short(result))}", soft_wrap=True)

    @classmethod
    @contextmanager
    def on_terminal(cls) -> Iterator[Progress]:
        """On standard error, so that what is printed can be piped on."""
        with Console(stderr=True, highlight=False).status("beginning") as status:
            yield cls(status)


def tables(result: Result) -> Group:
    """The figures."""
    parts = (_load(result), _requests(result), _orders(result), _processes(result), _statements(result))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts if part is not None))


def drained(result: Drained) -> Table:
    """How a backlog was drained."""
    table = _facts()
    table.add_row("backlog", f"{result.events:,} events")
    table.add_row("drained", f"[bold]{result.events_per_second:,.0f} events/s[/bold], in {result.seconds:.2f} s")
    table.add_row("mean batch", f"{result.mean_batch:.0f}")
    table.add_row("CPU an event", f"{result.cpu_microseconds_per_event:.0f} µs of the consumer")
    for name, seconds in result.cpu_seconds.items():
        table.add_row(f"CPU of {name}", f"{seconds:.2f} s")
    return table


def _in_short(result: Result) -> Iterator[str]:
    if result.orders:
        yield f"{result.orders.settled_per_second:,.0f} settled/s"
    for kind, asked in result.requests.items():
        p99 = f", p99 {asked.latency.percentiles['p99']:.1f} ms" if asked.latency else ""
        yield f"{kind} {asked.per_second:,.0f}/s{p99}"
    if result.orders and result.orders.cost:
        cost = result.orders.cost
        yield f"{cost.cpu_ms_total:.2f} ms of CPU an order, the edge {cost.cpu_ms['edge']:.3f}"
    for what, count in result.failures.items():
        yield f"[red]{count} {escape(what)}[/red]"
    if result.breaches:
        yield "[red]the sums do not hold[/red]"


def _load(result: Result) -> Table:
    terms, driver = result.terms, result.driver
    table = _facts()
    load = f"{terms.concurrency} at a time" if terms.rate is None else f"{terms.rate:g} a second, open loop"
    thinking = f", {terms.think:g} s to think" if terms.think else ""
    table.add_row("load", f"{terms.scenario}: {load}{thinking}, {terms.seconds:g} s")
    limit = f"{terms.rate_limit}/s for each customer" if terms.rate_limit else "none"
    table.add_row("rate limit in force", f"{limit}, {terms.customers} customers")
    machine = result.machine
    table.add_row(
        "machine",
        f"{machine['cores']} cores {machine['processor']}, {machine['memory_gib']} GiB,"
        f" load {machine['load_before']:.2f} before the run",
    )
    if result.calibration:
        table.add_row("E, bare echo through Envoy", f"{result.calibration.echo_calls:,.0f} calls/s")
        on_uvloop = result.calibration.transactions_on_uvloop
        table.add_row(
            "R, raw one-order transaction", f"{result.calibration.transactions:,.0f}/s; {on_uvloop:,.0f}/s on uvloop"
        )
    table.add_row(
        "driver",
        f"{driver.cpu_microseconds_per_request:.0f} µs of CPU a request, {100 * driver.cpu_share:.0f} % of a core"
        + (f", sends {driver.lateness.percentiles['p99']:.1f} ms late (p99)" if driver.lateness else ""),
    )
    busy = f"{result.others_cores:.2f} cores"
    table.add_row("busy with other things", f"[red]{busy}[/red]" if result.others_cores > _DISTURBED else busy)
    for what, count in result.failures.items():
        table.add_row("[red]failed[/red]", f"{count} {escape(what)}")
    if result.sold_out_refusals:
        table.add_row("refused, for it was sold out", f"{result.sold_out_refusals} buyers")
    return table


def _requests(result: Result) -> Table:
    table = Table("request", box=None, header_style="bold", title_justify="left")
    for name in ("per second", "of E", "p50", "p95", "p99", "p99.9", "most"):
        table.add_column(name, justify="right")
    for kind, asked in result.requests.items():
        of_echo = f"{asked.per_second / result.calibration.echo_calls:.2f}" if result.calibration else "-"
        table.add_row(kind, f"{asked.per_second:,.1f}", of_echo, *_latency(asked.latency))
    if result.orders:
        table.add_row("placed to confirmed", "", "", *_latency(result.orders.settling))
    return table


def _latency(latency: Latency | None) -> list[str]:
    if latency is None:
        return ["-"] * 5
    return [f"{each:,.1f} ms" for each in (*latency.percentiles.values(), latency.max)]


def _orders(result: Result) -> Table | None:
    orders = result.orders
    if orders is None:
        return None
    table = _facts()
    table.add_row("accepted", f"{orders.accepted_per_second:,.1f} orders/s")
    of_r = f" = {result.settled_of_transactions:.3f} R" if result.settled_of_transactions is not None else ""
    table.add_row("settled", f"[bold]{orders.settled_per_second:,.1f} orders/s{of_r}[/bold]")
    table.add_row("drained", f"{orders.drain_seconds:.2f} s after the load")
    if orders.cost:
        table.add_row("CPU an order", f"{orders.cost.cpu_ms_total:.2f} ms, the driver not counted")
        table.add_row(
            "PostgreSQL an order",
            f"{orders.cost.statements:.2f} statements, {orders.cost.commits:.2f} commits,"
            f" {orders.cost.log_bytes:,.0f} bytes of log",
        )
    table.add_row("outbox, oldest unpublished", f"{1e3 * max(result.outbox_lag_seconds.values()):,.0f} ms")
    return table


def _processes(result: Result) -> Table:
    table = Table("process", box=None, header_style="bold")
    for name in ("CPU s", "ms an order", "PSS MiB", "RSS at first", "most"):
        table.add_column(name, justify="right")
    for name, seconds in result.cpu_seconds.items():
        memory = result.memory[name]
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{result.orders.cost.cpu_ms[name]:.3f}" if result.orders and result.orders.cost else "-",
            f"{memory.pss / _MIB:.0f}",
            f"{result.resident[name][0] / _MIB:.0f}",
            f"{max(result.resident[name]) / _MIB:.0f}",
        )
    return table


def _statements(result: Result) -> Table:
    table = Table("database", "statement", box=None, header_style="bold")
    for name in ("calls", "rows a call"):
        table.add_column(name, justify="right")
    for database, statements in result.database.by_name.items():
        for name, executed in statements.items():
            table.add_row(database, name, f"{executed.calls:,}", f"{executed.rows_per_call:,.1f}")
    return table


def _facts() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2, 0, 0))
