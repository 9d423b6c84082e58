"""`make bench`: measure the series on a mesh of its own, and publish it in this folder."""

import argparse
import sys
from pathlib import Path

from mesh.observe import logs
from ops.bench.report import Progress
from ops.bench.series import FOLDER, measure
from ops.bench.signals import run_until_signal
from stack.errors import StackError


def main() -> int:
    """Returns 1 when an invariant is violated, or the series could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m ops.bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each load")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="DIR", help="where the results go")
    arguments = parser.parse_args()
    logs.configure("bench", "error")
    try:
        with Progress.on_terminal() as progress:
            series = run_until_signal(measure(progress, seconds=arguments.seconds))
        series.publish(arguments.to)
        violations = series.violations
    except StackError as error:
        violations = [str(error)]
    except KeyboardInterrupt:
        violations = ["interrupted; nothing was published"]
    for violation in violations:
        sys.stderr.write(f"bench: {violation}\n")
    if not violations:
        sys.stdout.write(f"The invariants hold. The results are in {arguments.to / 'RESULTS.md'}.\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
