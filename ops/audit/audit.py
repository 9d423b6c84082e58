"""An audit: what the databases, streams and providers of a mesh hold, checked against the invariants.

Table of contents:

    databases   what must be true within one database: on-hand, reserved, amounts, reconciliation, charges, refunds,
                deadlines
    orders      what three services know of an order: captures, sales, holds
    events      what outboxes, streams and inboxes tell: outbox, streams, applied
    replies     stored replies and their effects: replies
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from ops.audit.databases import INVARIANTS
from ops.audit.events import STREAMS, Events, published
from ops.audit.mesh import Mesh
from ops.audit.orders import Orders
from ops.audit.reading import MARGIN, Reading, reading
from ops.audit.replies import replies
from ops.audit.report import Check, Report
from ops.audit.streams import Mark
from ops.audit.subscriptions import subscriptions

NAMES = (
    "on-hand",
    "reserved",
    "sales",
    "holds",
    "captures",
    "amounts",
    "reconciliation",
    "charges",
    "refunds",
    "deadlines",
    "replies",
    "outbox",
    "streams",
    "applied",
)
"""The checks, in the order of a report."""
_ORDERS = frozenset({"captures", "sales", "holds"})


class Audit:
    """An audit of a mesh. It changes nothing, and may run at any time, under any load.

    Args:
        mesh: The mesh that is audited.
        since: Check only what has changed after this time; everything by default. That is right if what was there
            before had no breach: `ops.audit.record` keeps the time of the last clean audit.
        margin: By how much the window is older than the lag: what has changed later is not judged. Zero for a mesh
            that is at rest (`Activity.wait`).
        marks: The last messages of the streams when the audit that ended at `since` began. A stream that lacks its
            message has lost events, and is compared in full.
        names: The names of the checks to run; all by default.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        since: datetime | None = None,
        marks: Mapping[str, Mark] | None = None,
        margin: timedelta = MARGIN,
        names: Collection[str] = NAMES,
    ) -> None:
        self._mesh = mesh
        self._since = since
        self._marks = marks or {}
        self._margin = margin
        self._names = frozenset(names)

    async def run(self) -> Report:
        """Check each invariant once. Raises OSError, the errors of the database driver, or StreamsUnreadable."""
        begun = time.monotonic()
        subscribed = subscriptions()
        consumers = [(each.stream, each.consumer) for each in subscribed]
        async with reading(self._mesh, since=self._since, margin=self._margin, consumers=consumers) as opened:
            checks: list[Check] = []
            marks = {stream: mark for stream in STREAMS if (mark := await opened.streams.mark(stream))}
            started = time.monotonic()
            async for found in self._checks(opened, Events(opened, subscribed, self._marks)):
                ended = time.monotonic()
                for check in found:
                    check.seconds = (ended - started) / len(found)
                checks += [check for check in found if check.name in self._names]
                started = ended
        checks.sort(key=lambda check: NAMES.index(check.name))
        window = opened.window
        return Report(window.now, window.since, min(window.until, window.now), time.monotonic() - begun, checks, marks)

    async def _checks(self, opened: Reading, events: Events) -> AsyncIterator[Sequence[Check]]:
        """Run the chosen checks one after the other, so that an audit takes one core at most."""
        for each in INVARIANTS:
            if each.name in self._names:
                yield [await each.check(opened)]
        if self._names & _ORDERS:
            yield await Orders(opened).check()
        if "replies" in self._names:
            yield [await replies(opened)]
        if "outbox" in self._names:
            yield [await published(opened)]
        if "streams" in self._names:
            yield [await events.streamed()]
        if "applied" in self._names:
            yield [await events.applied()]
