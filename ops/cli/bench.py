"""`mesh bench`: one load against a running mesh."""

import json
import sys
from pathlib import Path

import typer
from rich.console import Console

from mesh.observe import logs as telemetry
from ops.bench.backlog import Drained, drain
from ops.bench.ending import run_optimistically
from ops.bench.report import Progress, drained, tables
from ops.bench.result import Result
from ops.bench.run import Wish, run
from ops.bench.scenario import Scenario
from ops.bench.sweep import plot, require_matplotlib, sweep
from ops.running_mesh import RunningMesh
from stack.errors import StackError


class SumsBroken(StackError):
    """Something went wrong under load."""


def measure(folder: Path, wish: Wish, *, as_json: bool, picture: Path | None) -> None:
    """Run the load, and print what it found; with `picture`, draw latency against load there.

    Raises:
        SumsBroken: the figures are printed, but an order, a piece of stock, a payment or an event is not as it must be.
        StackError: no mesh is running, or it cannot be measured.
    """
    telemetry.configure("bench", "error")
    target = RunningMesh.find(folder)
    if picture is not None:
        require_matplotlib()
    with Progress.on_terminal() as progress:
        result = run_optimistically(_measured(target, wish, progress))
    _show(result, as_json=as_json)
    breaches = list(result.breaches)
    if picture is not None and isinstance(result, Result) and result.orders:
        with Progress.on_terminal() as progress:
            points = run_optimistically(sweep(target, wish, result.orders.settled_per_second, progress))
        plot(points, picture)
        breaches += [breach for point in points for breach in point.breaches]
    if breaches:
        raise SumsBroken("the sums do not hold:\n" + "\n".join(f"  {each}" for each in breaches))


async def _measured(target: RunningMesh, wish: Wish, progress: Progress) -> Result | Drained:
    if wish.scenario is Scenario.EVENTS:
        return await drain(target, progress)
    return await run(target, wish, progress)


def _show(result: Result | Drained, *, as_json: bool) -> None:
    """Print a result for a person, or for programs."""
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(tables(result) if isinstance(result, Result) else drained(result))
    if not result.breaches:
        console.print("[green]The sums hold.[/green]")
