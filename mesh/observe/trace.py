"""W3C trace context: the ids that connect the log lines, calls and events of one request across the mesh."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Trace:
    """A span of a trace: a trace id of 16 bytes and a span id of 8 bytes, both in lower-case hexadecimal."""

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> Trace:
        """The root of a new trace."""
        return cls(os.urandom(16).hex(), os.urandom(8).hex())

    @classmethod
    def following(cls, traceparent: str) -> Trace:
        """A new span with `traceparent` as its parent, or the root of a new trace if `traceparent` is not valid."""
        match = _TRACEPARENT.fullmatch(traceparent)
        if match is None or set(match[1]) == {"0"} or set(match[2]) == {"0"}:
            return cls.new()
        return cls(match[1], os.urandom(8).hex())

    @staticmethod
    def id_in(traceparent: str) -> str:
        """The trace id in a valid `traceparent`."""
        return traceparent[3:35]

    @property
    def traceparent(self) -> str:
        """The `traceparent` header for calls that this span makes."""
        return f"00-{self.trace_id}-{self.span_id}-01"
