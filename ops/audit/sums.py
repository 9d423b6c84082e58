"""Sums of sets of events, by which two sets are compared without reading both into memory.

A sum has the number of events, and the sum of the last 48 bits of their ids and of their sequences, for each type and
each stretch of 65.536 s in which ids were made: the first eight digits of a UUIDv7 are its time in units of that. Sums
are made where the events are, in any order. Two different sets with the same sum are as likely as two equal random ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta

from ops.audit.streams import Seen

Key = tuple[str, str]
"""The type of an event, or the name of its consumer, and its stretch: the first eight digits of its id."""
Sum = tuple[int, int, int]
"""The number of the events, the sum of their ids and that of their sequences."""
Sums = Mapping[Key, Sum]

STRETCH = timedelta(milliseconds=65536)
EMPTY: Sum = (0, 0, 0)

# Of the rows of a table with the ids of events, in SQL.
ID_SUM = "sum(('x' || right(event_id::text, 12))::bit(48)::bigint)"


def stretch_of(time: datetime) -> str:
    """The stretch in which a time is."""
    return f"{int(time.timestamp() * 1000) >> 16:08x}"


def begin_of(stretch: str) -> datetime:
    """When a stretch begins."""
    return datetime.fromtimestamp((int(stretch, 16) << 16) / 1000, UTC)


def add(sums: dict[Key, Sum], seen: Iterable[Seen]) -> None:
    """Add events."""
    for event_id, event_type, sequence, _ in seen:
        key = (event_type, event_id[:8])
        count, ids, sequences = sums.get(key, EMPTY)
        sums[key] = (count + 1, ids + int(event_id[-12:], 16), sequences + int(sequence or 0))


def of_types(sums: Sums, types: Collection[str], *, begin: str, end: str) -> dict[str, Sum]:
    """The sums of some types together, by stretch, of the stretches from `begin` until before `end`."""
    found: dict[str, Sum] = {}
    for (event_type, stretch), (count, ids, sequences) in sums.items():
        if event_type in types and begin <= stretch < end:
            before = found.get(stretch, EMPTY)
            found[stretch] = (before[0] + count, before[1] + ids, before[2] + sequences)
    return found


def differing(left: Mapping[str, Sum], right: Mapping[str, Sum]) -> Iterator[str]:
    """The stretches whose sums differ, in order."""
    return iter(sorted(each for each in left.keys() | right.keys() if left.get(each, EMPTY) != right.get(each, EMPTY)))
