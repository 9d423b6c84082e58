"""The auditor as a program: `python -m ops.audit`, once or again and again. `mesh up` and the CronJob run it.

It prints each report as a line of JSON. Exit codes: 0 clean, 1 a breach or no answer, 2 not understood.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from datetime import UTC, datetime, timedelta

import asyncpg
import orjson
import structlog
from pydantic import ValidationError

from mesh.observe import logs
from mesh.settings import errors_of
from ops.audit.audit import Audit
from ops.audit.record import Record
from ops.audit.report import Report
from ops.audit.settings import AuditSettings, ConfiguredMesh
from ops.audit.streams import StreamsUnreadable

UNREADABLE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, StreamsUnreadable)
"""What an audit raises if a part of the mesh does not answer."""
_AGAIN_S = 5.0
"""Seconds until the next attempt after one that had no answer."""

log = structlog.get_logger(__name__)


async def audit(settings: AuditSettings, since: datetime | None, *, full: bool) -> Report:
    """Run one audit, since the last clean one unless it is to be full, and keep its report."""
    record = Record(settings.audit_record) if settings.audit_record else None
    if since is None and record and not full:
        since = record.clean_until()
    report = await Audit(ConfiguredMesh(settings), since=since, marks=record.marks() if record else None).run()
    if record:
        record.keep(report)
    return report


async def repeat(settings: AuditSettings, every: float) -> None:
    """Audit every `every` seconds, until cancelled. An audit that has no answer is tried again sooner."""
    while True:
        pause = every
        try:
            report = await audit(settings, None, full=False)
        except UNREADABLE as error:
            log.warning("not audited", error=repr(error))
            pause = min(every, _AGAIN_S)
        else:
            for violation in report.violations:
                log.error("invariant broken", violation=violation)
            log.info("audited", ok=report.ok, seconds=round(report.seconds, 3))
        await asyncio.sleep(pause)


def main() -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m ops.audit", description=__doc__)
    parser.add_argument("--every", type=float, metavar="SECONDS", help="go on, with so long between two audits")
    parser.add_argument("--since", type=float, metavar="SECONDS", help="check what has changed in this time only")
    parser.add_argument("--full", action="store_true", help="check everything, also what was clean before")
    options = parser.parse_args()
    try:
        settings = AuditSettings()  # type: ignore[call-arg]  # its fields come from the environment
    except ValidationError as error:
        parser.error("; ".join(errors_of(error)))
    logs.configure("audit", "info")
    if options.every:
        # Orders go first.
        os.nice(10)
        return _until_told_to_stop(settings, options.every)
    since = datetime.now(UTC) - timedelta(seconds=options.since) if options.since else None
    try:
        report = asyncio.run(audit(settings, since, full=options.full))
    except UNREADABLE as error:
        log.error("not audited", error=repr(error))
        return 1
    sys.stdout.write(f"{orjson.dumps(report.as_json()).decode()}\n")
    return 0 if report.ok else 1


def _until_told_to_stop(settings: AuditSettings, every: float) -> int:
    async def run() -> None:
        repeating = asyncio.create_task(repeat(settings, every))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, repeating.cancel)
        await asyncio.wait([repeating])
        if not repeating.cancelled():
            repeating.result()

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
