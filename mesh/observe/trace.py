"""W3C trace context: the ids that tie one request's log lines, calls and events together across the mesh."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Trace:
    """One span's place in a trace: 16 bytes of trace id, 8 of span id, both in lower-case hex."""

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> Trace:
        """The root of a new trace."""
        return cls(os.urandom(16).hex(), os.urandom(8).hex())

    @classmethod
    def following(cls, traceparent: str) -> Trace:
        """A new span below `traceparent`; a new trace when that is empty or not of the form the W3C defines."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
            return cls.new()
        return cls(match[1], os.urandom(8).hex())

    @property
    def traceparent(self) -> str:
        """The header for whatever this span calls."""
        return f"00-{self.trace_id}-{self.span_id}-01"
