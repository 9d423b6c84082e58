"""The invariants of a mesh: nothing is oversold, double-charged or lost.

`Audit` reads the databases of a mesh and checks what must always be true of them, whatever has happened before: a load,
a crash, or nothing at all. `Activity` tells what is still under way, and waits until nothing is.
"""

from ops.audit.activity import Activity
from ops.audit.audit import Audit, Mesh, Scope
from ops.audit.invariants import Check

__all__ = ["Activity", "Audit", "Check", "Mesh", "Scope"]
