"""Trace context as the W3C defines it."""

from __future__ import annotations

import re

import pytest

from mesh.observe.trace import Trace

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_following_a_trace_makes_a_new_span_of_it() -> None:
    trace = Trace.following(f"00-{TRACE_ID}-{SPAN_ID}-01")
    assert trace.trace_id == TRACE_ID
    assert trace.span_id != SPAN_ID
    assert trace.traceparent == f"00-{TRACE_ID}-{trace.span_id}-01"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
        f" 00-{TRACE_ID}-{SPAN_ID}-01",
    ],
    ids=repr,
)
def test_invalid_traceparent_begins_a_new_trace(header: str) -> None:
    trace = Trace.following(header)
    assert trace.trace_id != TRACE_ID
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace.traceparent)
    assert Trace.following(header).trace_id != trace.trace_id
