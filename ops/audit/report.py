"""The report of an audit: how much each invariant was checked for, within which retention, and each breach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ops.audit.streams import Mark

SHOWN = 100
"""The number of breaches of a check that are named; the others are counted."""


@dataclass(slots=True)
class Check:
    """One invariant that was checked."""

    name: str
    what: str
    """What is true, in a sentence."""
    retention: str
    """How far back it was checked."""
    checked: int = 0
    """The number of things it was checked for."""
    breaches: int = 0
    """The number of things for which it is not true."""
    violations: list[str] = field(default_factory=list)
    """The breaches with ids, at most `SHOWN` of them."""
    under_way: int = 0
    """The number of things that could not be judged yet, because an event or a request of them is on its way."""
    seconds: float = 0.0

    def breach(self, text: str, count: int = 1) -> None:
        """Add a breach. `count` is of how many things it tells."""
        self.breaches += count
        if len(self.violations) < SHOWN:
            self.violations.append(text)

    def breach_each(self, texts: Iterable[str]) -> None:
        """Add breaches."""
        for text in texts:
            self.breach(text)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "what": self.what,
            "checked": self.checked,
            "retention": self.retention,
            "underWay": self.under_way,
            "breaches": self.breaches,
            "violations": self.violations,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one audit."""

    time: datetime
    """When it began, by the clock of the databases."""
    since: datetime | None
    """Only what changed after this time was checked; None for a full audit."""
    until: datetime
    """What changed after this time was not judged."""
    seconds: float
    checks: list[Check]
    marks: Mapping[str, Mark] = field(default_factory=dict)
    """The last message of each stream when it began."""

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not any(check.breaches for check in self.checks)

    @property
    def violations(self) -> list[str]:
        """The breaches of all checks, each with the name of its check."""
        return [f"{check.name}: {each}" for check in self.checks for each in check.violations]

    def __getitem__(self, name: str) -> Check:
        """A check by its name. Raises KeyError."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def as_json(self) -> Mapping[str, Any]:
        """For programs, and for the record of the last audit."""
        return {
            "ok": self.ok,
            "time": self.time.isoformat(),
            "since": self.since and self.since.isoformat(),
            "until": self.until.isoformat(),
            "seconds": round(self.seconds, 3),
            "checks": [check.as_json() for check in self.checks],
        }
