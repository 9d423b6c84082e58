"""Recognizes events that end the process of their consumer, by the attempts that had no end.

A consumer handles the exceptions of an event, but not the end of its process, by `exit` or for lack of memory. The
server then delivers again all events that the process had. So an attempt at redelivered events is recorded in the
database before it begins. Each end of a process reduces the size of the next attempt at the same events, until the
event that ends it is alone. The first delivery is not recorded, which keeps the usual case fast.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from mesh import tasks
from mesh.db import attempts
from mesh.errors import TRANSIENT

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from mesh.db.database import Database

MAX_DELIVERIES = 5
"""The number of deliveries, by the server's count, after which an event becomes a dead letter whose attempts have ended
their process each time."""
_LARGEST = 64
"""The maximum number of redelivered events in one attempt. Each attempt without an end leaves an eighth of it."""
PAUSE_S = 1.0
"""Seconds before attempts that may end the process. The effects that other events have begun finish in them, such as
charges, which would otherwise wait until another process takes them over."""
_V1_TOKENS = 9

log = structlog.get_logger(__name__)


class ProcessEnded(Exception):
    """All attempts at an event have ended the process of its consumer."""


def deliveries(message: Msg) -> int:
    """How often the server has delivered a message. Cheaper than its `metadata`, and called for each message."""
    tokens: list[str] = message.reply.split(".")
    return int(tokens[4 if len(tokens) == _V1_TOKENS else 6])


def is_deadly(message: Msg, unfinished: int) -> bool:
    """Whether to give up an event at which so many attempts had no end. The first delivery is not among them."""
    return deliveries(message) > MAX_DELIVERIES and unfinished >= MAX_DELIVERIES - 1


def largest(events: int, unfinished: int) -> int:
    """The maximum size of a part of so many redelivered events, at each of which so many attempts had no end.

    An event is alone in its last two attempts, so that it is certain which one ends the process.
    """
    return max(1, min(_LARGEST >> 3 * unfinished, events // 8))


class Attempts:
    """The attempts of one consumer at redelivered events, in all its processes."""

    def __init__(self, consumer: str, database: Database) -> None:
        self._consumer = consumer
        self._database = database

    async def unfinished(self, events: Collection[str]) -> Mapping[str, int]:
        """How many attempts at these events had no end; events without one are left out."""
        if not events:
            return {}
        async with self._database.reading() as reading:
            rows = await reading.fetch(attempts.UNFINISHED, consumer=self._consumer, events=sorted(events))
        return {row["event"]: row["unfinished"] for row in rows}

    @asynccontextmanager
    async def recorded(self, events: Collection[str], background: tasks.Background) -> AsyncIterator[None]:
        """Record an attempt at these events for the time of the block. Errors of the database before it are raised.

        After the block, a database that cannot be reached is waited for until `background` stops: an attempt that ended
        must not look like one that did not.
        """
        names = sorted(set(events))
        if not names:
            yield
            return
        async with self._database.transaction() as transaction:
            transaction.write(attempts.BEGIN, consumer=self._consumer, events=names)
        yield
        backoff = tasks.Backoff(0.2, 5.0)
        while True:
            try:
                await self.forget(names)
            except TRANSIENT as error:
                log.warning("attempts not ended", consumer=self._consumer, count=len(names), error=repr(error))
                if await background.pause(backoff.next()):
                    return
            else:
                return

    async def forget(self, events: Collection[str]) -> None:
        """Delete the attempts at these events."""
        async with self._database.transaction() as transaction:
            transaction.write(attempts.END, consumer=self._consumer, events=sorted(events))
