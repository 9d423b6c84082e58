"""`make rehearse`: the overlay `rehearsal` on this machine, an order through it, and its policies put to the test."""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import ArgumentParser

from tests.k8s.rehearsal import node


def main() -> None:
    """Rehearse. Exits with 0, with 1 if something is not as it must be, with 2 if this machine cannot rehearse."""
    parser = ArgumentParser(prog="make rehearse", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="take only two of the arrows away, in place of each in turn"
    )
    options = parser.parse_args()
    if missing := node.missing():
        sys.stderr.write(f"the rehearsal needs what is missing here: {', '.join(missing)}\n")
        sys.exit(2)
    node.enter("tests.k8s.rehearsal", sys.argv[1:])
    # Programs are started while gRPC has threads; they do not go on with its connections.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from tests.k8s.rehearsal import rehearsal  # after that, for gRPC reads it when it is imported

    try:
        asyncio.run(rehearsal.rehearse(is_short=options.short))
    except rehearsal.FAILURES as error:
        sys.exit(f"the rehearsal has failed: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
