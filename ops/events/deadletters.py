"""Dead letters: grouped by their cause, and redriven to their consumer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

import nats.js.errors

from mesh.events.bus import DEAD_LETTERS, Message
from mesh.events.cloudevents import stream_of_area
from mesh.events.consumers import REDRIVEN_FOR
from ops.events.streams import StoredEvent, Streams
from stack.errors import StackError

_PORTION = 50
_EXAMPLES = 3
_VARIABLE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\d+")
"""The parts of an error that differ between events: ids and numbers."""
REDRIVEN_BY, REDRIVEN_TIME = "mesh-redriven-by", "mesh-redriven-time"


class RedriveFailed(StackError):
    """A stream has not acknowledged a redriven event. It is still a dead letter."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters; the default is all."""

    event_ids: Collection[str] = ()
    types: Collection[str] = ()
    consumers: Collection[str] = ()
    since: datetime | None = None
    """Dead since this time."""

    def matches(self, letter: StoredEvent) -> bool:
        """Whether a dead letter is selected."""
        return (
            (not self.event_ids or letter.id in self.event_ids)
            and (not self.types or letter.type in self.types)
            and (not self.consumers or consumer_of(letter) in self.consumers)
        )


@dataclass(slots=True)
class Group:
    """Dead letters of one consumer, type and cause."""

    consumer: str
    type: str
    cause: str
    """The error, with `*` in place of ids and numbers."""
    count: int = 0
    first: datetime | None = None
    last: datetime | None = None
    examples: list[str] = field(default_factory=list)
    """Ids of a few of the events."""


@dataclass(slots=True)
class Redriven:
    """What a redrive has done, or would do."""

    count: int = 0
    by_consumer: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """Wanted event ids that are no dead letters."""


class DeadLetters:
    """The dead letters of a mesh."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def read(self, selection: Selection, *, headers_only: bool = False) -> AsyncIterator[StoredEvent]:
        """The selected dead letters, oldest first."""
        async for letter in self._streams.read(DEAD_LETTERS, since=selection.since, headers_only=headers_only):
            if selection.matches(letter):
                yield letter

    async def groups(self, selection: Selection) -> list[Group]:
        """The selected dead letters by consumer, type and cause; the largest group first."""
        groups: dict[tuple[str, str, str], Group] = {}
        async for letter in self.read(selection, headers_only=True):
            cause = _VARIABLE.sub("*", letter.headers.get("mesh-error", ""))
            key = (consumer_of(letter), letter.type, cause)
            group = groups.setdefault(key, Group(*key))
            group.count += 1
            group.first = group.first or letter.stored
            group.last = letter.stored
            if len(group.examples) < _EXAMPLES:
                group.examples.append(letter.id or f"{letter.stream}/{letter.number}")
        return sorted(groups.values(), key=lambda group: -group.count)

    async def redrive(self, selection: Selection, *, by: str, rate: float, dry_run: bool = False) -> Redriven:
        """Publish the selected dead letters again, for their consumer alone, and delete them.

        Each carries who has redriven it, and when, in its headers. One that fails again becomes a dead letter again.
        An interrupted redrive can be repeated: events that were published already have no second effect.

        Args:
            selection: Which.
            by: Who redrives them.
            rate: At most this many a second.
            dry_run: Only count them.

        Raises:
            RedriveFailed: A stream has not acknowledged one. It and those after it are still dead letters.
        """
        done, seen = Redriven(), set[str]()
        portion: list[StoredEvent] = []
        pace = _Pace(rate)
        # Those that fail again meanwhile are not among them: a reading ends with the last one of its beginning.
        async for letter in self.read(selection, headers_only=dry_run):
            seen.add(letter.id)
            done.by_consumer[consumer_of(letter)] = done.by_consumer.get(consumer_of(letter), 0) + 1
            done.count += 1
            portion.append(letter)
            if len(portion) >= min(_PORTION, max(1, rate / 10)):
                if not dry_run:
                    await self._publish(portion, by)
                    await pace.wait(len(portion))
                portion = []
        if portion and not dry_run:
            await self._publish(portion, by)
        done.missing = sorted(set(selection.event_ids) - seen)
        return done

    async def _publish(self, letters: list[StoredEvent], by: str) -> None:
        by_stream: dict[str, list[StoredEvent]] = {}
        for letter in letters:
            area = letter.headers["mesh-subject"].split(".")[1]
            by_stream.setdefault(stream_of_area(area), []).append(letter)
        for stream, those in by_stream.items():
            stored = await self._streams.bus.publish([_redriven(letter, by) for letter in those])
            for letter in those[:stored]:
                try:
                    await self._streams.bus.jetstream.delete_msg(DEAD_LETTERS, letter.number)
                except nats.js.errors.NotFoundError:
                    continue  # another redrive has deleted it
            if stored < len(those):
                raise RedriveFailed(
                    f"{stream} has not acknowledged {len(those) - stored} events; they stay dead letters."
                )


def consumer_of(letter: StoredEvent) -> str:
    """The consumer of a dead letter."""
    return letter.headers.get("mesh-consumer", "")


def _redriven(letter: StoredEvent, by: str) -> Message:
    headers = {
        # Those of NATS are for the message that they came with.
        **{name: value for name, value in letter.headers.items() if not name.startswith("Nats-")},
        # The stream would drop a second event with the id of the first as a duplicate.
        "Nats-Msg-Id": f"redrive/{letter.number}",
        REDRIVEN_FOR: consumer_of(letter),
        REDRIVEN_BY: " ".join(by.split()),
        REDRIVEN_TIME: datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Message(letter.headers["mesh-subject"], letter.data, headers)


class _Pace:
    """Keeps a loop at a rate."""

    def __init__(self, rate: float) -> None:
        self._seconds = 1 / rate
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()

    async def wait(self, count: int) -> None:
        """Wait until so many more may follow."""
        self._due = max(self._due, self._loop.time() - 1) + count * self._seconds
        await asyncio.sleep(max(0.0, self._due - self._loop.time()))
