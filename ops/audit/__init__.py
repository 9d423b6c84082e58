"""The invariants of a mesh: nothing is oversold, double-charged or lost.

`Audit` reads the databases, streams and provider records of a mesh and checks what must always be true of them,
whatever has happened before: a load, a crash, or nothing at all. `Activity` tells what is still under way, and waits
until nothing is.
"""

from ops.audit.activity import Activity
from ops.audit.audit import NAMES, Audit
from ops.audit.mesh import DATABASES, Mesh
from ops.audit.reading import MARGIN
from ops.audit.report import Check, Report

__all__ = ["DATABASES", "MARGIN", "NAMES", "Activity", "Audit", "Check", "Mesh", "Report"]
