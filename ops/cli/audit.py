"""`mesh audit`: the invariants of a running mesh, checked now."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Collection
from pathlib import Path

import asyncpg
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.audit import DATABASES, NAMES, Audit, Report
from ops.audit.__main__ import UNREADABLE
from ops.audit.record import Record
from ops.running_mesh import RunningMesh
from stack.errors import StackError

SMALL = 20_000
"""A mesh with so many orders is checked in full when a person asks."""


def audit(folder: Path, *, names: Collection[str], full: bool, as_json: bool) -> bool:
    """Audit the mesh of a state folder and print the report. Returns whether nothing is broken.

    Without `full`, only what has changed since the last clean audit is checked, unless the mesh is small. A report of
    all checks is kept for `mesh status`.

    Raises:
        StackError: no mesh is running, or a part of it does not answer.
    """
    mesh = RunningMesh.find(folder)
    record = Record(mesh.state.audit)
    try:
        report = asyncio.run(_audited(mesh, record, names or NAMES, full=full))
    except UNREADABLE as error:
        raise StackError(f"The mesh cannot be audited: {error!r}") from error
    if not names:
        record.keep(report)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        _show(Console(highlight=False, width=None if sys.stdout.isatty() else 120), report)
    return report.ok


async def _audited(mesh: RunningMesh, record: Record, names: Collection[str], *, full: bool) -> Report:
    full = full or await _is_small(mesh)
    return await Audit(mesh, since=None if full else record.clean_until(), marks=record.marks(), names=names).run()


async def _is_small(mesh: RunningMesh) -> bool:
    """Whether to check everything takes a few seconds only."""
    connection = await asyncpg.connect(mesh.audit_url(DATABASES["order"]))
    try:
        query = "SELECT count(*) FROM (SELECT FROM orders LIMIT $1) AS orders"
        return bool(await connection.fetchval(query, SMALL + 1) <= SMALL)
    finally:
        await connection.close()


def _show(console: Console, report: Report) -> None:
    table = Table("check", box=None, header_style="bold")
    table.add_column("looked at", justify="right")
    table.add_column("breaches", justify="right")
    table.add_column("within")
    table.add_column("what must be true", overflow="fold")
    for check in report.checks:
        colour = "red" if check.breaches else "green"
        table.add_row(
            check.name, f"{check.checked:,}", f"[{colour}]{check.breaches:,}[/{colour}]", check.retention, check.what
        )
    console.print(table)
    for check in report.checks:
        for violation in check.violations:
            console.print(f"[red]{check.name}[/red]: {escape(violation)}", soft_wrap=True)
        if more := check.breaches - len(check.violations):
            console.print(f"[red]{check.name}[/red]: and {more:,} more", soft_wrap=True)
    what = "everything" if report.since is None else f"what has changed since {report.since:%Y-%m-%d %H:%M:%S}"
    result = "clean" if report.ok else "broken"
    console.print(
        f"The mesh is {result}: checked {what}, until {report.until:%Y-%m-%d %H:%M:%S} UTC, in {report.seconds:.1f} s.",
        soft_wrap=True,
    )
