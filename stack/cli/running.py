"""`mesh down` and `mesh status`: a mesh that runs, seen from outside."""

import asyncio
import json
import os
from pathlib import Path
from signal import SIGTERM

import typer
from rich.console import Console
from rich.table import Table

from stack.errors import NotRunning, StackError
from stack.state import RunRecord, State

_STOP_WITHIN = 180.0
"""Seconds: the services may take half a minute each for what is in flight, PostgreSQL one for its checkpoint."""


def stop(state: State) -> None:
    """Stop the mesh of this state and return when it has ended; fine if none is running.

    Raises:
        StackError: it is still stopping after three minutes.
    """
    console = Console(highlight=False)
    try:
        run = state.running()
    except NotRunning:
        with state.locked():
            left = asyncio.run(state.clear_remains())
        console.print(f"ended what a killed mesh had left: {', '.join(left)}" if left else "no mesh is running")
        return
    with console.status("stopping"):
        os.kill(run.supervisor.pid, SIGTERM)
        if not asyncio.run(run.supervisor.gone(_STOP_WITHIN)):
            raise StackError(
                f"The mesh is still stopping after {_STOP_WITHIN:g} s (pid {run.supervisor.pid});"
                " a second `mesh down` ends it at once."
            )
    console.print("stopped; the data stay")


def show_status(folder: Path, *, as_json: bool) -> bool:
    """Print what runs and whether it answers; return whether everything does."""
    run = _running(folder)
    if as_json:
        typer.echo(json.dumps(_as_json(run)))
    elif run is None:
        typer.echo("no mesh is running")
    else:
        _print(run)
    return run is not None and run.ready


def _running(folder: Path) -> RunRecord | None:
    try:
        return State.find(folder).running()
    except NotRunning:
        return None


def _as_json(run: RunRecord | None) -> dict[str, object]:
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
    }


def _print(run: RunRecord) -> None:
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
    console.print(f"The mesh {'is ready' if run.ready else 'is not ready'}: {run.edge}")
