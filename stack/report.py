"""What a mesh says about itself while it starts and runs: to a terminal, a log, or a waiting process."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self


class Kind(StrEnum):
    """What a report is about."""

    BEGUN = "begun"
    """Something is waited for."""
    DONE = "done"
    """What was waited for is there."""
    NOTE = "note"
    """Something happened that the person may want to know."""
    READY = "ready"
    """Everything is there; the text is the URL of the edge."""
    STOPPING = "stopping"
    """The end has begun."""
    FAILED = "failed"
    """The mesh cannot run; the text says why."""


@dataclass(frozen=True, slots=True)
class Report:
    """One thing said."""

    kind: Kind
    text: str

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        content = json.loads(line)
        return cls(Kind(content["kind"]), content["text"])


Listener = Callable[[Report], None]
"""Receives every event, and raises nothing: the mesh does not depend on its readers."""
