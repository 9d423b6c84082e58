"""Events: the outboxes, the streams and the inboxes tell of the same ones.

    outbox ── relay ──▶ stream ── consumer ──▶ inbox

Sets of events are compared by their sums (`ops.audit.sums`). Where two sums differ, the events of that stretch are
read and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from mesh.db import outbox
from mesh.events.cloudevents import stream_of_area
from ops.audit.mesh import DATABASES
from ops.audit.reading import LONGEST_WAIT, Reading
from ops.audit.report import Check
from ops.audit.streams import Mark, Seen
from ops.audit.subscriptions import Subscription
from ops.audit.sums import EMPTY, ID_SUM, STRETCH, Key, Sum, Sums, add, begin_of, differing, of_types, stretch_of

STREAMS = tuple(stream_of_area(service) for service in DATABASES)
"""The streams of all services."""
LONGEST_LAG = timedelta(seconds=60)
"""An event that has waited longer to be published is a breach."""
_RETENTION = f"the {outbox.RETENTION.days} days of the outboxes"
_EXAMINED, _EXAMINED_EVENTS = 64, 200_000
"""The number of stretches, and of their events, that are read and named. In the others, the events are counted."""
_MARGIN = timedelta(minutes=1)
"""By how much an id may be older than its row, and the clocks of two machines may differ."""

_PUBLISHED = "FROM mesh.outbox, mesh.outbox_position WHERE seq <= through AND NOT gaps @> seq"
_OUTBOX_SUMS = f"""
SELECT type, left(event_id::text, 8) AS stretch, count(*) AS count, {ID_SUM} AS ids, sum(sequence) AS sequences
{_PUBLISHED} AND create_time >= $1 GROUP BY 1, 2
"""
_INBOX_SUMS = f"""
SELECT consumer, left(event_id::text, 8) AS stretch, count(*) AS count, {ID_SUM} AS ids
FROM mesh.inbox WHERE receive_time >= $1 GROUP BY 1, 2
"""
_OLDEST_ROW = "SELECT create_time FROM mesh.outbox ORDER BY seq LIMIT 1"
_OUTBOX_ROWS = f"""
SELECT event_id::text, type, sequence::text, aggregate_id::text {_PUBLISHED}
    AND create_time BETWEEN $2 AND $3 AND left(event_id::text, 8) = $1 AND create_time < $4
"""
_OUTBOX_IDS = "SELECT event_id::text FROM mesh.outbox WHERE create_time BETWEEN $2 AND $3 AND event_id = ANY($1)"
_INBOX_IDS = "SELECT event_id::text FROM mesh.inbox WHERE event_id BETWEEN $1 AND $2 AND consumer = $3"
_WAITING = "SELECT event_id, type, aggregate_id, create_time FROM mesh.unpublished WHERE create_time < $1 LIMIT 100"
_COUNT_WAITING = "SELECT count(*) FROM mesh.unpublished WHERE create_time < $1"
_COUNT = "SELECT count(*) FROM mesh.outbox WHERE $1::timestamptz IS NULL OR create_time >= $1"
# The product service counts changes of stock apart from those of the product.
_FALLEN = r"""
SELECT aggregate_id, type, sequence, before FROM (
    SELECT aggregate_id, type, sequence, lag(sequence) OVER (
        PARTITION BY aggregate_id, type LIKE '%.stock\_%' ORDER BY seq
    ) AS before FROM mesh.outbox WHERE create_time >= $1
) AS each WHERE sequence < before LIMIT 1000
"""


async def published(reading: Reading) -> Check:
    """No event waits in an outbox longer than `LONGEST_LAG`."""
    limit = LONGEST_LAG.total_seconds()
    check = Check("outbox", f"every event is published within {limit:g} s", _RETENTION)
    before = reading.window.now - LONGEST_LAG
    for service in DATABASES:
        check.checked += await reading.value(service, _COUNT, reading.window.since)
        rows = await reading.fetch(service, _WAITING, before)
        check.breach_each(
            f"event {row['event_id']} ({row['type']}) of {row['aggregate_id']} is not published since"
            f" {row['create_time']:%Y-%m-%d %H:%M:%S}"
            for row in rows
        )
        if more := (await reading.value(service, _COUNT_WAITING, before) if rows else 0) - len(rows):
            check.breach(f"{more} more events of {service} are not published", max(0, more))
    return check


class Events:
    """Compares the events of outboxes, streams and inboxes. Each is summed once."""

    def __init__(
        self, reading: Reading, subscriptions: Sequence[Subscription], marks: Mapping[str, Mark] | None = None
    ) -> None:
        self._reading = reading
        self._marks = marks or {}
        self._subscriptions = subscriptions
        self._outboxes: dict[str, Sums] = {}
        self._begins: dict[str, str] = {}
        until = reading.window.until
        # The last stretch is compared only if it is whole, or if its events were all applied at its end.
        self._end = stretch_of(until + STRETCH if reading.window.is_idle else until)

    async def streamed(self) -> Check:
        """Each stream holds each published event, and the sequences of no aggregate fall."""
        check = Check(
            "streams",
            "the streams hold every published event of every aggregate with its sequence, and no other",
            _RETENTION,
        )
        for service in DATABASES:
            await self._compare_stream(check, service)
            for row in await self._reading.fetch(service, _FALLEN, self._from(await self._begin(service))):
                check.breach(
                    f"{row['type']} of {row['aggregate_id']} has sequence {row['sequence']} after {row['before']}"
                )
        return check

    async def applied(self) -> Check:
        """Each consumer has applied each of its events, once, and nothing else."""
        check = Check("applied", "each consumer has applied each of its events exactly once", _RETENTION)
        inboxes = {service: await self._inbox(service) for service in {each.service for each in self._subscriptions}}
        for subscription in self._subscriptions:
            begin = await self._begin(subscription.source)
            written = _without_sequences(
                of_types(await self._outbox(subscription.source), subscription.types, begin=begin, end=self._end)
            )
            recorded = of_types(inboxes[subscription.service], {subscription.consumer}, begin=begin, end=self._end)
            check.checked += _count(written)
            for number, stretch in enumerate(differing(written, recorded)):
                if number < _EXAMINED:
                    await self._examine_inbox(check, subscription, stretch)
                elif lost := written.get(stretch, EMPTY)[0] - recorded.get(stretch, EMPTY)[0]:
                    check.breach(
                        f"{subscription.consumer} has not applied {lost} events of {_time(stretch)}", abs(lost)
                    )
        return check

    async def _outbox(self, service: str) -> Sums:
        if service not in self._outboxes:
            rows = await self._reading.fetch(service, _OUTBOX_SUMS, self._from(await self._begin(service)))
            self._outboxes[service] = {
                (row["type"], row["stretch"]): (row["count"], int(row["ids"]), int(row["sequences"])) for row in rows
            }
        return self._outboxes[service]

    async def _inbox(self, service: str) -> Sums:
        sources = [each.source for each in self._subscriptions if each.service == service]
        begin = min([await self._begin(source) for source in sources])
        rows = await self._reading.fetch(service, _INBOX_SUMS, self._from(begin))
        return {(row["consumer"], row["stretch"]): (row["count"], int(row["ids"]), 0) for row in rows}

    async def _begin(self, service: str) -> str:
        """The first stretch that is compared: the first whole one of the outbox, or the one in which `since` is."""
        if service not in self._begins:
            oldest = await self._reading.value(service, _OLDEST_ROW) or self._reading.window.now
            since = self._reading.window.since if await self._is_continued(stream_of_area(service)) else None
            partition = oldest.replace(hour=0, minute=0, second=0, microsecond=0)
            # The rows of a dropped partition are missing, those of the first one ever are not.
            whole = partition if self._reading.window.now - partition < outbox.RETENTION else oldest + STRETCH
            self._begins[service] = stretch_of(max(whole, since) if since else whole)
        return self._begins[service]

    async def _is_continued(self, stream: str) -> bool:
        """Whether a stream still has the message that was its last one when it was found clean."""
        mark = self._marks.get(stream)
        return mark is None or await self._reading.streams.message(stream, mark.number) == mark

    @staticmethod
    def _from(begin: str) -> datetime:
        return begin_of(begin) - _MARGIN

    async def _compare_stream(self, check: Check, service: str) -> None:
        stream, begin = stream_of_area(service), await self._begin(service)
        written = await self._outbox(service)
        types = {event_type for event_type, _ in written}
        expected = of_types(written, types, begin=begin, end=self._end)
        check.checked += _count(expected)
        if await self._reading.streams.state(stream) is None:
            if lost := _count(expected):
                check.breach(f"the stream {stream} does not exist, and {lost} events were published to it", lost)
            return
        stored: dict[Key, Sum] = {}
        async for portion in self._reading.streams.read(stream, self._from(begin)):
            add(stored, (seen for seen in portion if seen.event_id))
            check.breach_each(
                f"{stream} has a message of {seen.aggregate_id} that is no event"
                for seen in portion
                if not seen.event_id
            )
        found = of_types(stored, types | {event_type for event_type, _ in stored}, begin=begin, end=self._end)
        stretches = list(differing(expected, found))
        examined = _first(stretches, expected)
        await self._examine_stream(check, service, stretches[:examined])
        for stretch in stretches[examined:]:
            if lost := expected.get(stretch, EMPTY)[0] - found.get(stretch, EMPTY)[0]:
                what = f"lacks {lost}" if lost > 0 else f"has {-lost} more"
                check.breach(f"{stream} {what} events of {_time(stretch)}", abs(lost))

    async def _examine_stream(self, check: Check, service: str, stretches: Sequence[str]) -> None:
        """Name the events of these stretches that the stream lacks, and those that only the stream has.

        An event that the stream holds twice is no breach: a relay that was away for long publishes again.
        """
        if not stretches:
            return
        stream = stream_of_area(service)
        wanted = {row.event_id: row for stretch in stretches for row in await self._rows(service, stretch)}
        chosen, more = set(stretches), dict[str, Seen]()
        async for portion in self._reading.streams.read(stream, self._from(stretches[0])):
            for seen in portion:
                if seen.event_id[:8] not in chosen:
                    continue
                row = wanted.pop(seen.event_id, None)
                if row is None:
                    more[seen.event_id] = seen
                elif row != seen:
                    check.breach(f"{stream} has event {seen.event_id} as {_text(seen)}, which is {_text(row)}")
        check.breach_each(f"{stream} lacks event {row.event_id}, {_text(row)}" for row in wanted.values())
        # Those are left that were found before, and those of which the outbox has no row.
        known = await self._known(service, more, stretches)
        check.breach_each(
            f"{stream} has event {seen.event_id}, {_text(seen)}, which {service} has not written"
            for seen in more.values()
            if seen.event_id not in known
        )

    async def _examine_inbox(self, check: Check, subscription: Subscription, stretch: str) -> None:
        """Name the events of a stretch that a consumer has not applied, and those that it alone knows."""
        before = await self._inbox_ids(subscription, stretch)
        rows = [row for row in await self._rows(subscription.source, stretch) if row.type in subscription.types]
        # Read again: an event may have been applied meanwhile.
        after = await self._inbox_ids(subscription, stretch)
        for row in rows:
            if row.event_id not in after:
                why = await self._why_not_applied(subscription, row) if len(check.violations) < 100 else ""
                check.breach(f"{subscription.consumer} has not applied event {row.event_id}, {_text(row)}{why}")
        unknown = before - {row.event_id for row in rows}
        for event_id in sorted(unknown - await self._known(subscription.source, unknown, [stretch])):
            check.breach(f"{subscription.consumer} has applied event {event_id}, which was never written")

    async def _why_not_applied(self, subscription: Subscription, row: Seen) -> str:
        streams, subject = self._reading.streams, f"{row.type}.{row.aggregate_id}"
        dead = await streams.dead_letter(subscription.consumer, subject)
        if dead.get("ce-id") == row.event_id:
            return f": it is a dead letter ({dead.get('mesh-error', '')})"
        found = await streams.last_of(subscription.stream, subject)
        if found is None:
            return f": {subscription.stream} lacks it"
        progress = await streams.progress(subscription.stream, subscription.consumer)
        if progress is None:
            return ": the consumer does not exist"
        is_done = found[0] <= progress.applied_through
        return ", and has acknowledged it" if is_done else f": it waits for more than {LONGEST_WAIT}"

    async def _rows(self, service: str, stretch: str) -> list[Seen]:
        """The events of a stretch that were there at the end of the window."""
        until = self._reading.window.until
        rows = await self._reading.fetch(service, _OUTBOX_ROWS, stretch, *_around([stretch]), until)
        return [Seen(row["event_id"], row["type"], row["sequence"], row["aggregate_id"]) for row in rows]

    async def _known(self, service: str, event_ids: Iterable[str], stretches: Sequence[str]) -> set[str]:
        ids = [UUID(each) for each in event_ids]
        return {row["event_id"] for row in await self._reading.fetch(service, _OUTBOX_IDS, ids, *_around(stretches))}

    async def _inbox_ids(self, subscription: Subscription, stretch: str) -> set[str]:
        first, last = (UUID(stretch + digit * 24) for digit in "0f")
        rows = await self._reading.fetch(subscription.service, _INBOX_IDS, first, last, subscription.consumer)
        return {row["event_id"] for row in rows}


def _first(stretches: Sequence[str], sums: Mapping[str, Sum]) -> int:
    """The number of the first stretches whose events are read: at least one."""
    events = 0
    for number, stretch in enumerate(stretches):
        events += sums.get(stretch, EMPTY)[0]
        if number and (number == _EXAMINED or events > _EXAMINED_EVENTS):
            return number
    return len(stretches)


def _around(stretches: Sequence[str]) -> tuple[datetime, datetime]:
    """The times between which the rows of events with ids of these stretches are."""
    return begin_of(min(stretches)) - _MARGIN, begin_of(max(stretches)) + STRETCH + _MARGIN


def _without_sequences(sums: Mapping[str, Sum]) -> dict[str, Sum]:
    return {stretch: (count, ids, 0) for stretch, (count, ids, _) in sums.items()}


def _count(sums: Mapping[str, Sum]) -> int:
    return sum(count for count, _, _ in sums.values())


def _time(stretch: str) -> str:
    return f"{begin_of(stretch):%Y-%m-%d %H:%M:%S} and the minute after"


def _text(seen: Seen) -> str:
    return f"{seen.type} of {seen.aggregate_id} with sequence {seen.sequence}"
