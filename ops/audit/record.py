"""The record of the last audit: a file that `mesh status` shows, and from which the next audit goes on."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from ops.audit.report import Report
from ops.audit.streams import Mark


class Record:
    """The record in a file. It may be read while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def clean_until(self) -> datetime | None:
        """The time up to which everything was found clean: an incremental audit goes on there. None before a clean
        full audit, and after one that has found a breach."""
        until = self._read().get("cleanUntil")
        return datetime.fromisoformat(until) if until else None

    def marks(self) -> dict[str, Mark]:
        """The last messages of the streams when the last clean audit began."""
        return {stream: Mark(*mark) for stream, mark in self._read().get("marks", {}).items()}

    def keep(self, report: Report) -> None:
        """Write the report of an audit that has run all checks."""
        until: str | None = self._read().get("cleanUntil")
        marks = self.marks()
        if report.ok:
            until, marks = report.until.isoformat(), dict(report.marks)
        elif report.since is None:
            until = None
        scratch = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        scratch.write_text(json.dumps({"cleanUntil": until, "marks": marks, "last": report.as_json()}))
        scratch.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found
