"""`make bench`: measure the whole series on a mesh of its own, and publish it in this folder."""

import argparse
import sys
from pathlib import Path

from mesh.observe import logs as telemetry
from ops.bench.ending import run_optimistically
from ops.bench.report import Progress
from ops.bench.series import FOLDER, FULL, QUICK, measure
from ops.bench.sweep import require_matplotlib
from stack.errors import StackError


def main() -> int:
    """Exits with 1 when a sum did not hold, or the series could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m ops.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only see whether the series works: short, on little data")
    parser.add_argument(
        "--to", type=Path, default=FOLDER, metavar="DIR", help="where the results go (default: ops/bench/)"
    )
    arguments = parser.parse_args()
    telemetry.configure("bench", "error")
    try:
        require_matplotlib()
        with Progress.on_terminal() as progress:
            measured = run_optimistically(measure(QUICK if arguments.quick else FULL, progress))
        measured.publish(arguments.to)
        breaches = measured.breaches
    except StackError as error:
        breaches = [str(error)]
    except KeyboardInterrupt:
        breaches = ["interrupted; what it had started is stopped, and nothing was published"]
    for breach in breaches:
        sys.stderr.write(f"bench: {breach}\n")
    if not breaches:
        sys.stdout.write(f"The sums hold. The results are in {arguments.to / 'RESULTS.md'}.\n")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
