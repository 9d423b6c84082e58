"""The auditor: checks the invariants of the mesh every minute, beside it."""

import sys
from collections.abc import Mapping

from stack.errors import StackError
from stack.servers import DATABASES, Servers
from stack.state import State
from stack.supervisor import Program

EVERY_S = 60.0
"""Seconds between two audits, by default."""


def interval(environment: Mapping[str, str]) -> float:
    """Seconds between two audits, from MESH_AUDIT_SECONDS; 0 for none. Raises StackError if that is no number."""
    given = environment.get("MESH_AUDIT_SECONDS") or str(EVERY_S)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise StackError(f"MESH_AUDIT_SECONDS: {given!r} is not a number of seconds. 0 runs no audit.")
    return seconds


def auditor(state: State, servers: Servers, environment: Mapping[str, str], every: float) -> Program:
    """The program that audits this mesh every `every` seconds. Its roles may read, and change nothing."""
    urls = {
        f"MESH_{role.removesuffix('_svc').upper()}_DATABASE_URL": servers.postgres.audit_url_of(database)
        for role, database in DATABASES.items()
    }
    inherited = {name: value for name, value in environment.items() if not name.startswith("MESH_")}
    return Program(
        name="audit",
        command=[sys.executable, "-P", "-m", "ops.audit", "--every", str(every)],
        environment={**inherited, **urls, "MESH_NATS_URL": servers.nats.url, "MESH_AUDIT_RECORD": str(state.audit)},
        address=str(state.audit),
        probe=_is_there,
    )


async def _is_there() -> None:
    """It answers nobody: it is ready when it runs."""
