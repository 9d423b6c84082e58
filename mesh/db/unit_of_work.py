"""A unit of work: one transaction that writes an effect, its events and its stored reply together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import structlog

from mesh.db import idempotency, outbox
from mesh.db.database import BulkInsert, Transaction
from mesh.errors import TRANSIENT, StaleWrite
from mesh.ids import new_id
from mesh.observe.trace import Trace

if TYPE_CHECKING:
    from uuid import UUID

    from mesh.clock import Clock
    from mesh.db.database import Database
    from mesh.db.idempotency import IdempotencyKey
    from mesh.events.cloudevents import Event
    from mesh.events.relay import Relay
    from mesh.rpc.call import Caller
    from mesh.rpc.replies import Change, Reply

Item = TypeVar("Item")
R = TypeVar("R")

log = structlog.get_logger(__name__)

MAX_STALE_WRITES = 3
"""The number of stale writes after which an effect is not run again."""


class UnitOfWork:
    """The transaction of a use case. Events and replies are collected and written at its end."""

    __slots__ = ("_after_commit", "_causes", "_event_of", "_events", "_history", "_steps", "pessimistic", "transaction")

    def __init__(
        self,
        transaction: Transaction,
        event_of: Callable[[Any], Event],
        history: BulkInsert | None,
        *,
        pessimistic: bool = False,
    ) -> None:
        self.transaction = transaction
        self.pessimistic = pessimistic
        """Whether to lock and read rows first: an optimistic attempt has failed, or a failure would be final."""
        self._event_of = event_of
        self._history = history
        self._events: list[tuple[Event, str, UUID]] = []
        self._steps: list[tuple[UUID, UUID, str, str, str]] = []
        self._causes: list[tuple[BulkInsert, Iterable[Sequence[Any]]]] = []
        self._after_commit: list[Callable[[], Awaitable[object]]] = []

    def publish(
        self, fact: object, trace: Trace | str = "", *, subject: UUID | None = None, actor: Caller | str = ""
    ) -> None:
        """Publish `fact`, a value of the domain, after the commit. `trace` is the trace of its cause.

        With `subject`, it is a step in the history of that subject, caused by `actor`.
        """
        event, traceparent = self._event_of(fact), trace if isinstance(trace, str) else trace.traceparent
        event_id = new_id()
        if subject is not None:
            traceparent = traceparent or Trace.new().traceparent
            self._steps.append((subject, event_id, event.type, Trace.id_in(traceparent), str(actor)))
        self._events.append((event, traceparent, event_id))

    def record(self, subject: UUID, step: str, traceparent: str, *, actor: str) -> None:
        """Add a step that publishes no event of its own to the history of `subject`."""
        traceparent = traceparent or Trace.new().traceparent
        self._steps.append((subject, new_id(), step, Trace.id_in(traceparent), actor))

    def caused_by(self, statement: BulkInsert, rows: Iterable[Sequence[Any]]) -> None:
        """Record the causes of the effect. They are written last, so the transaction's `returned` is theirs."""
        self._causes.append((statement, rows))

    def after_commit(self, action: Callable[[], Awaitable[object]], *, on_failure: Callable[[], object]) -> None:
        """Await `action` after the commit, without a connection, and before the caller goes on. It must not raise.

        Call `on_failure` instead if the transaction fails, because it may be committed nevertheless.
        """
        self._after_commit.append(action)
        self.transaction.on_failure(on_failure)

    async def finish(self) -> None:
        """Run what was to be done after the commit."""
        for action in self._after_commit:
            await action()

    def store_replies(self, replies: Iterable[tuple[IdempotencyKey | None, bytes]]) -> None:
        """Store the replies of a batch under their keys; see `mesh.db.idempotency.store_replies`."""
        idempotency.store_replies(self.transaction, replies)

    def flush(self) -> bool:
        """Write the collected events, steps and causes. Returns whether there are events."""
        self.transaction.add(outbox.APPEND, (outbox.row(*event) for event in self._events))
        if self._steps:
            if self._history is None:
                raise RuntimeError("this service declares no history")
            self.transaction.add(self._history, self._steps)
        for statement, rows in self._causes:
            self.transaction.add(statement, rows)
        return bool(self._events)


class ChangeUnderWay(UnitOfWork, Generic[R]):
    """The unit of work of one changing call."""

    __slots__ = ("_change", "is_answered")

    def __init__(
        self,
        transaction: Transaction,
        event_of: Callable[[Any], Event],
        history: BulkInsert | None,
        change: Change[R],
    ) -> None:
        super().__init__(transaction, event_of, history, pessimistic=True)
        self._change = change
        self.is_answered = False

    def reply(self, result: R) -> Reply[R]:
        """Create the reply for `result` and store it under the call's key."""
        made = self._change.reply(result)
        if self._change.key is not None:
            idempotency.store_reply(self.transaction, self._change.key, made.wire)
        self.is_answered = True
        return made


def _as_it_is(event: Event) -> Event:
    """The default of `event_of`, for processes that publish events themselves."""
    return event


class UnitsOfWork:
    """Begins units of work on a service's database, and wakes the relay after those that wrote events.

    `event_of` converts a published fact to its event. `history` adds steps to the history that the service declares
    (`mesh.db.history`). `clock` provides the times that are written; the default is the
    clock of the database.
    """

    def __init__(
        self,
        database: Database,
        relay: Relay,
        *,
        event_of: Callable[[Any], Event] = _as_it_is,
        history: BulkInsert | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.database = database
        self._relay = relay
        self._event_of = event_of
        self._history = history
        self._clock = clock or database.clock

    def now(self) -> datetime:
        """The time for rows, events and deadlines."""
        return self._clock.now()

    @asynccontextmanager
    async def begin(self, *, pessimistic: bool = False) -> AsyncIterator[UnitOfWork]:
        """A unit of work for a batch, an event or a sweep."""
        async with self.database.transaction() as transaction:
            work = UnitOfWork(transaction, self._event_of, self._history, pessimistic=pessimistic)
            yield work
            if work.flush():
                transaction.on_commit(self._relay.wake)
        await work.finish()

    async def run_optimistically(self, effect: Callable[[UnitOfWork], Awaitable[R]]) -> R:
        """Run `effect` in a unit of work of its own and return its result.

        The first attempt may rely on remembered rows if its statements raise StaleWrite when those have changed. Any
        failure of it may be caused by a stale memory, so the effect runs again with locks (`UnitOfWork.pessimistic`).
        Raises StaleWrite if every attempt meets one.
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
                # Only the type: the database's text may contain a row, and secrets in it.
                log.info("run again with locks", error=type(error).__name__)
            attempt += 1

    @asynccontextmanager
    async def once(self, change: Change[R]) -> AsyncIterator[ChangeUnderWay[R]]:
        """The unit of work of one call, which runs once for its key. The block must call `reply`.

        Raises Replay if an earlier call has made the change (the chain sends the stored reply), and
        IdempotencyKeyReused if the key was used for another request.
        """
        async with self.database.transaction() as transaction:
            if outcome := await idempotency.claim(transaction, change.key):
                raise outcome
            work = ChangeUnderWay(transaction, self._event_of, self._history, change)
            yield work
            if not work.is_answered:
                raise RuntimeError(f"{change.call.method} made no reply")
            if work.flush():
                transaction.on_commit(self._relay.wake)
        await work.finish()
