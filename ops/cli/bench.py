"""`mesh bench`: one load on a running mesh."""

import json
import sys
from pathlib import Path

import typer
from rich.console import Console

from mesh.observe import logs
from ops.bench.events import drain
from ops.bench.load import run
from ops.bench.report import Progress, show
from ops.bench.result import Drained, Result
from ops.bench.scenario import Scenario, Terms
from ops.bench.signals import run_until_signal
from ops.running_mesh import RunningMesh
from stack.errors import StackError


class InvariantViolated(StackError):
    """The audit after a load has found violations."""


def measure(folder: Path, terms: Terms, *, as_json: bool) -> None:
    """Run the load and print its figures.

    Raises:
        InvariantViolated: the figures are printed, but an order, stock, a payment or an event is not as it must be.
        StackError: no mesh is running, or it cannot be measured.
    """
    logs.configure("bench", "error")
    mesh = RunningMesh.find(folder)
    with Progress.on_terminal() as progress:
        result = run_until_signal(_measured(mesh, terms, progress))
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        show(Console(highlight=False, width=None if sys.stdout.isatty() else 120), result)
    if result.violations:
        raise InvariantViolated(
            "the invariants are violated:\n" + "\n".join(f"  {violation}" for violation in result.violations)
        )


async def _measured(mesh: RunningMesh, terms: Terms, progress: Progress) -> Result | Drained:
    return await (drain(mesh, progress) if terms.scenario is Scenario.EVENTS else run(mesh, terms, progress))
