"""`mesh down` and `mesh status`: a mesh that runs, seen from outside."""

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGTERM
from time import monotonic, sleep
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from stack.errors import AlreadyRunning, NotRunning, StackError
from stack.state import RunRecord, State

_STOP_WITHIN = 300.0
"""Seconds: more than all graces of what is stopped one after the other (see `Program`), which are 235 together."""

SAID_WITHIN_S = 30.0
"""Seconds that a mesh has, from the lock of its folder, to say who it is. First it ends what a killed one has left."""


def stop(state: State, *, said_within: float = SAID_WITHIN_S) -> None:
    """Stop the mesh of this state and return when it has ended; fine if none is running.

    Raises:
        StackError: it is still stopping after five minutes.
    """
    console = Console(highlight=False)
    run = _running_or_cleared(state, said_within)
    if not isinstance(run, RunRecord):
        console.print(f"ended what a killed mesh had left: {', '.join(run)}" if run else "no mesh is running")
        return
    with console.status("stopping"):
        os.kill(run.supervisor.pid, SIGTERM)
        if not asyncio.run(run.supervisor.gone(_STOP_WITHIN)):
            raise StackError(
                f"The mesh is still stopping after {_STOP_WITHIN:g} s (pid {run.supervisor.pid});"
                " a second `mesh down` ends it at once."
            )
    console.print("stopped; the data stay")


def _running_or_cleared(state: State, said_within: float) -> RunRecord | list[str]:
    """Return the running mesh, or, if none is, the names of what a killed one had left and was ended."""
    begun = monotonic()
    while True:
        with contextlib.suppress(NotRunning):
            return state.running()
        with contextlib.suppress(AlreadyRunning), state.locked():
            return asyncio.run(state.clear_remains())
        if monotonic() - begun > said_within:
            raise StackError(f"Something else than a running mesh is at work in {state.folder}, as `mesh migrate` is.")
        sleep(0.05)


def show_status(folder: Path, *, as_json: bool) -> bool:
    """Print what runs and whether it answers; return whether everything does."""
    run = _running(folder)
    if as_json:
        typer.echo(json.dumps(_as_json(run, folder)))
    elif run is None:
        typer.echo("no mesh is running")
    else:
        _print(run, folder)
    return run is not None and run.ready


def _running(folder: Path) -> RunRecord | None:
    try:
        return State.find(folder).running()
    except NotRunning:
        return None


def _as_json(run: RunRecord | None, folder: Path) -> dict[str, object]:
    if run is None:
        return {"ready": False, "edge": None, "processes": []}
    return {
        "ready": run.ready,
        "edge": run.edge,
        "processes": [
            {
                "name": process.name,
                "pid": process.identity.pid if process.identity else None,
                "ready": process.ready,
                "address": process.address,
            }
            for process in run.processes
        ],
        "audit": State.find(folder).last_audit(),
    }


def _print(run: RunRecord, folder: Path) -> None:
    table = Table("process", "pid", "ready", "restarts", box=None, header_style="bold")
    table.add_column("address", overflow="fold")
    for process in run.processes:
        table.add_row(
            process.name,
            str(process.identity.pid) if process.identity else "-",
            "[green]yes[/green]" if process.ready else "[red]no[/red]",
            str(process.restarts),
            process.address,
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(_last_audit(State.find(folder).last_audit()))
    console.print(f"The mesh {'is ready' if run.ready else 'is not ready'}: {run.edge}")


def _last_audit(last: Mapping[str, Any] | None) -> str:
    """The last audit in a line."""
    if last is None:
        return "It has not been audited yet."
    age = (datetime.now(UTC) - datetime.fromisoformat(last["time"])).total_seconds()
    breaches = {check["name"]: check["breaches"] for check in last["checks"] if check["breaches"]}
    if not breaches:
        return f"The last audit, {age:.0f} s ago, was [green]clean[/green]."
    found = ", ".join(f"{name} ({count:,})" for name, count in breaches.items())
    return f"The last audit, {age:.0f} s ago, has found [red]breaches[/red]: {found}. `mesh audit` names them."
