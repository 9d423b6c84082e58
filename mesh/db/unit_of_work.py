"""A unit of work: one transaction in which an effect, its events and its stored reply are written, or none of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

from mesh.db import idempotency, outbox
from mesh.db.database import BulkInsert, Transaction
from mesh.errors import TRANSIENT, StaleWrite

if TYPE_CHECKING:
    from mesh.clock import Clock
    from mesh.db.database import Database
    from mesh.db.idempotency import IdempotencyKey
    from mesh.events.cloudevents import Event
    from mesh.events.relay import Relay
    from mesh.observe.trace import Trace
    from mesh.rpc.replies import Change, Reply

Item = TypeVar("Item")
R = TypeVar("R")

log = structlog.get_logger(__name__)

MAX_STALE_WRITES = 3
"""How often one effect is done anew when others keep overtaking it."""


class UnitOfWork:
    """What a use case writes with. Statements go to `transaction`; events and replies are written at the end."""

    __slots__ = ("_causes", "_event_of", "_events", "pessimistic", "transaction")

    def __init__(
        self, transaction: Transaction, event_of: Callable[[Any], Event], *, pessimistic: bool = False
    ) -> None:
        self.transaction = transaction
        self.pessimistic = pessimistic
        """Whether nothing may be taken for granted: an attempt that did has failed, or there will be none after it."""
        self._event_of = event_of
        self._events: list[tuple[Event, str]] = []
        self._causes: list[tuple[BulkInsert, Iterable[Sequence[Any]]]] = []

    def publish(self, fact: object, trace: Trace | str = "") -> None:
        """Publish what has happened, a value of the domain, once this has committed; `trace` is what caused it."""
        self._events.append((self._event_of(fact), trace if isinstance(trace, str) else trace.traceparent))

    def caused_by(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> None:
        """Write down what led to this: after all else, so that the statement's count of rows is that of the causes."""
        self._causes.append((statement, rows))

    def store_replies(self, replies: Iterable[tuple[IdempotencyKey | None, bytes]]) -> None:
        """Store the replies of a batch under their keys; see `mesh.db.idempotency.store_replies`."""
        idempotency.store_replies(self.transaction, replies)

    def flush(self) -> bool:
        """Write what was gathered; whether there are events among it."""
        self.transaction.add(outbox.APPEND, (outbox.row(event, trace) for event, trace in self._events))
        for statement, rows in self._causes:
            self.transaction.add(statement, rows)
        return bool(self._events)


class ChangeUnderWay(UnitOfWork, Generic[R]):
    """The unit of work of one changing call."""

    __slots__ = ("_change", "is_answered")

    def __init__(self, transaction: Transaction, event_of: Callable[[Any], Event], change: Change[R]) -> None:
        super().__init__(transaction, event_of, pessimistic=True)
        self._change = change
        self.is_answered = False

    def reply(self, result: R) -> Reply[R]:
        """Make the reply for `result`, and store it under the call's key."""
        made = self._change.reply(result)
        if self._change.key is not None:
            idempotency.store_reply(self.transaction, self._change.key, made.wire)
        self.is_answered = True
        return made


def _as_it_is(event: Event) -> Event:
    """For a process that publishes events and has no facts of its own."""
    return event


class UnitsOfWork:
    """Begins units of work on a service's database, and wakes the relay when one has left events.

    `event_of` makes the event of what a use case publishes. Times that are written come from `clock`, by default the
    database's.
    """

    def __init__(
        self,
        database: Database,
        relay: Relay,
        *,
        event_of: Callable[[Any], Event] = _as_it_is,
        clock: Clock | None = None,
    ) -> None:
        self.database = database
        self._relay = relay
        self._event_of = event_of
        self._clock = clock or database.clock

    def now(self) -> datetime:
        """The time for rows, events and deadlines."""
        return self._clock.now()

    @asynccontextmanager
    async def begin(self, *, pessimistic: bool = False) -> AsyncIterator[UnitOfWork]:
        """A unit of work that no single call stands behind: a batch, an event, a sweep."""
        async with self.database.transaction() as transaction:
            work = UnitOfWork(transaction, self._event_of, pessimistic=pessimistic)
            yield work
            if work.flush():
                transaction.on_commit(self._relay.wake)

    async def run_optimistically(self, effect: Callable[[UnitOfWork], Awaitable[R]]) -> R:
        """Do `effect` in a unit of work of its own; what it gives.

        At first it may take for granted what this process knows, without a look, as long as its statements make the
        transaction fail with StaleWrite when that is not so any more. Whatever it fails with may come of that, so it is
        done again, and has to look then (`UnitOfWork.pessimistic`). Raises StaleWrite when others come first each time.
        """
        return await self._attempt(effect, 0)

    async def run_each_optimistically(
        self, effect: Callable[[UnitOfWork, Sequence[Item]], Awaitable[Sequence[R | Exception]]], items: Sequence[Item]
    ) -> list[R | Exception]:
        """Run `effect` for a batch; it returns one result for each item, in order, and an error for a rejected item.

        The optimistic attempt may reject an item because of stale data. So rejected items are run again with locks,
        in a unit of work of their own: the other items are committed by then, and need no locks. If that one fails,
        this raises its error although the other items are committed. The caller repeats the batch then, so the effect
        must recognize items that are committed already.
        """
        is_final = False

        async def run(work: UnitOfWork) -> Sequence[R | Exception]:
            nonlocal is_final
            is_final = work.pessimistic
            return await effect(work, items)

        results = list(await self._attempt(run, 0))
        rejected = [index for index, result in enumerate(results) if isinstance(result, Exception)]
        if rejected and not is_final:
            again = [items[index] for index in rejected]
            for index, result in zip(rejected, await self._attempt(lambda work: effect(work, again), 1), strict=True):
                results[index] = result
        return results

    async def _attempt(self, effect: Callable[[UnitOfWork], Awaitable[R]], attempt: int) -> R:
        """Run `effect` until it succeeds; attempts after number 0 are pessimistic."""
        while True:
            try:
                async with self.begin(pessimistic=attempt > 0) as work:
                    return await effect(work)
            except StaleWrite:
                if attempt == MAX_STALE_WRITES:
                    raise
            except TRANSIENT:
                raise
            except Exception as error:
                if attempt > 0:
                    raise
                # By its kind alone: what the database says of a row may hold secrets.
                log.info("done again", error=type(error).__name__)
            attempt += 1

    @asynccontextmanager
    async def once(self, change: Change[R]) -> AsyncIterator[ChangeUnderWay[R]]:
        """The unit of work of one call, carried out once for its key.

        Raises Replay when it was carried out before (the chain answers with the stored reply), and
        IdempotencyKeyReused when the key stands for another request. The block must make its `reply`.
        """
        async with self.database.transaction() as transaction:
            if outcome := await idempotency.claim(transaction, change.key):
                raise outcome
            work = ChangeUnderWay(transaction, self._event_of, change)
            yield work
            if not work.is_answered:
                raise RuntimeError(f"{change.call.method} was carried out under a key, and made no reply")
            if work.flush():
                transaction.on_commit(self._relay.wake)
