"""Consumers: events from JetStream, applied in batches, each exactly once.

    stream ─ deliveries ─ batch ─ BEGIN · use case · inbox rows · COMMIT ─ acks

The inbox rows are written in the transaction of the effect, and events are acknowledged last, so a redelivery changes
nothing. Redeliveries are rare, so the first attempt is optimistic: the inbox is read only after a batch has failed
because of an existing row. An event that fails is retried with backoff. After `max_attempts` failures it is moved to
the dead-letter stream, with the error. A transient error, such as a lost database, is no failure of an event: the
whole batch is redelivered until it succeeds.

A batch that takes the database too long is retried in smaller parts, beside new events. An event that takes too long
even alone has failed.

An event that ends the process each time becomes a dead letter too (`mesh.events.attempts`), and so does one of a type
that this version does not know. No event waits for another one that fails, not even of the same aggregate: an effect
that needs an earlier event fails without it, and is retried.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import nats.js.api as js
import structlog

from mesh import tasks
from mesh.batch.group_commit import run_batch
from mesh.db import inbox
from mesh.db.recent import Recent
from mesh.errors import TRANSIENT, StatementTimeout
from mesh.events import cloudevents as events
from mesh.events.attempts import MAX_DELIVERIES, PAUSE_S, Attempts, ProcessEnded, deliveries, is_deadly, largest
from mesh.events.bus import DEAD_LETTERS
from mesh.events.cloudevents import Received, payloads, stream_of_area, type_of
from mesh.events.deliveries import Deliveries

if TYPE_CHECKING:
    from uuid import UUID

    from google.protobuf.message import Message
    from nats.aio.msg import Msg

    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.bus import Bus

M = TypeVar("M", bound="Message")

LINGER_S = 0.01
"""Seconds within which the events of one batch of a relay arrive."""
MAX_BATCH = 512
MAX_UNACKNOWLEDGED = 8 * MAX_BATCH
"""The maximum number of unacknowledged events of a consumer, in all its processes. The others wait in the stream. This
also limits the redeliveries while a database is down."""
ACK_WAIT_S = 5.0
"""The default number of seconds without an acknowledgement after which an event is redelivered. If its consumer was
only slow, the inbox recognizes the redelivery."""


REDRIVEN_FOR = "mesh-redriven-for"
"""The header of a redriven event that names its consumer. The others have applied the event before."""

_BACKOFF = tasks.Backoff(0.2, 30.0)
"""The pauses between the attempts at one event."""

log = structlog.get_logger(__name__)


class EventTypeUnknown(Exception):
    """This version of the consumer does not know the type of an event. A newer version does, or did before."""


def _unchanged(message: M) -> M:
    return message


@dataclass(frozen=True, slots=True)
class Handler(Generic[M]):
    """Handles events of one type: `apply` gets those of a batch, in the order of the stream, in one transaction."""

    payload: type[M]
    apply: Callable[[UnitOfWork, Sequence[Received[Any]]], Awaitable[None]]
    translate: Callable[[M], Any] = _unchanged
    """Converts the message to the value of the domain that `apply` gets as payload. By default it gets the message."""


class _Retry(NamedTuple):
    """How an event is retried."""

    failures: int = 0
    """The number of failures of the event itself."""
    most: int = MAX_BATCH
    """The maximum size of the part of a batch that contains it."""


_FIRST = _Retry()


class _Part(NamedTuple):
    """A part of a batch."""

    messages: Sequence[Msg]
    unfinished: int = 0
    """The number of attempts at each of its events that had no end."""


Handlers = Mapping[str, Handler[Any]]
"""The handlers by event type. Within a batch, types are applied in the order of this table: list causes before effects.

Types with the same `apply` are passed to it together, so that it can lock all rows at once.
"""


def handlers(*each: Handler[Any]) -> Handlers:
    """A table of handlers, by the event type that the contract declares for their payload.

    Raises EventUndeclared when a payload is not that of an event, ValueError when two handlers have the same type.
    """
    table = {type_of(handler.payload): handler for handler in each}
    if len(table) < len(each):
        raise ValueError("an event type has two handlers")
    return table


class Consumer:
    """Applies the events of one area to a service. All processes of the service share the work.

    A batch has at most `max_batch` events, and lingers for `linger` seconds after its first one (ADR-0012). Choose more
    if nobody waits for the effects. An event that has failed `max_attempts` times becomes a dead letter. One that is
    not acknowledged for `ack_wait` seconds is redelivered. Before events that may end the process, the consumer waits
    for `pause` seconds.
    """

    def __init__(
        self,
        service: str,
        area: str,
        handlers: Handlers,
        *,
        bus: Bus,
        units: UnitsOfWork,
        linger: float = LINGER_S,
        max_batch: int = MAX_BATCH,
        max_attempts: int = 8,
        ack_wait: float = ACK_WAIT_S,
        pause: float = PAUSE_S,
    ) -> None:
        self.name = f"{service}-{area}"
        self.applied = 0
        """The number of events that this process has applied."""
        self.batches = 0
        """The number of transactions for them."""
        self._area = area
        self._handlers = handlers
        self._bus = bus
        self._units = units
        self._linger = linger
        self._max_batch = max_batch
        self._max_attempts = max_attempts
        self._ack_wait = ack_wait
        self._pause = pause
        # Bounded, because another process may apply an event that has failed here.
        self._retries: Recent[str, _Retry] = Recent(most=MAX_UNACKNOWLEDGED)
        self._stream = stream_of_area(area)
        self._deliveries = Deliveries(self._stream, self.name, ahead=2 * max_batch, bus=bus, ensure=self._ensure)
        self._attempts = Attempts(self.name, units.database)
        self._background = tasks.Background(f"consumer {self.name}", self._run)

    async def start(self) -> None:
        """Start to consume, in the background."""
        self._bus.on_reconnect(self._deliveries.resume)
        self._background.start()

    async def stop(self) -> None:
        """Finish the current batch and return all other events, so that another process gets them immediately."""
        self._deliveries.end()
        await self._background.stop()
        await self._deliveries.hand_back()

    @property
    def buffered(self) -> int:
        """The number of events that have arrived and wait for the next batch."""
        return self._deliveries.in_hand

    @property
    def was_cancelled(self) -> bool:
        """Whether the last batch was cancelled because it did not finish in time."""
        return self._background.was_cancelled

    async def _run(self) -> None:
        while batch := await self._deliveries.take(self._max_batch, linger=self._linger):
            try:
                await self._consume(batch)
            except Exception:
                # The consumer must continue after any error. Events without an acknowledgement are redelivered, and the
                # inbox recognizes those that were applied.
                log.exception("events not acknowledged", consumer=self.name, count=len(batch))

    async def _ensure(self) -> None:
        """Create the streams and the consumer if they do not exist: NATS may have restarted with an empty store."""
        await self._bus.ensure_stream_of(self._area)
        await self._bus.ensure_stream(DEAD_LETTERS, "mesh.dead.>", max_age=0)
        await self._bus.ensure_consumer(
            self._stream,
            js.ConsumerConfig(
                durable_name=self.name,
                filter_subjects=[_subject(event_type) for event_type in self._handlers],
                deliver_policy=js.DeliverPolicy.ALL,
                ack_policy=js.AckPolicy.EXPLICIT,
                ack_wait=self._ack_wait,
                max_deliver=-1,
                max_ack_pending=MAX_UNACKNOWLEDGED,
            ),
            # This version does not apply these by choice. Other types are of a newer version, in another process.
            not_wanted=[_subject(event_type) for event_type in payloads().keys() - self._handlers.keys()],
        )

    async def _consume(self, batch: Sequence[Msg]) -> None:
        known = [message for message in batch if self._is_known(message)]
        if len(known) < len(batch):
            await self._reject(batch)
        try:
            parts = await self._parts(known)
        except TRANSIENT as error:
            log.warning("attempts not read", consumer=self.name, count=len(known), error=repr(error))
            for message in known:
                await message.nak(delay=1)
            return
        is_slow = has_paused = False
        for part in parts:
            if is_slow:
                # Only one slow part at a time, because new events wait meanwhile.
                for message in part.messages:
                    await message.nak(delay=1)
                continue
            if part.unfinished and not has_paused:
                has_paused = True
                await self._background.pause(self._pause)
            is_slow = await self._consume_part(part.messages)

    async def _parts(self, batch: Sequence[Msg]) -> list[_Part]:
        """Split a batch into parts that the database may finish in time, and the process may survive.

        Those with fewer unfinished attempts come first, then the larger ones.
        """
        redelivered = {_identity(message) for message in batch if deliveries(message) > 1}
        if not redelivered and not self._retries:
            return [_Part(batch)] if batch else []
        unfinished = await self._attempts.unfinished(redelivered)
        alike: dict[tuple[int, bool, int], list[Msg]] = {}
        for message in batch:
            identity = _identity(message)
            count = unfinished.get(identity, 0)
            if is_deadly(message, count):
                error = ProcessEnded(f"the process ended at each of {MAX_DELIVERIES} deliveries")
                await self._bury(message, error, attempts=MAX_DELIVERIES)
                await self._attempts.forget([identity])
                continue
            most = self._retry_of(message).most
            alike.setdefault((count, identity in redelivered, -most), []).append(message)
        parts: list[_Part] = []
        for (count, is_redelivered, negative_most), messages in sorted(alike.items()):
            most = min(-negative_most, largest(len(messages), count)) if is_redelivered else -negative_most
            parts += (_Part(messages[start : start + most], count) for start in range(0, len(messages), most))
        return parts

    async def _consume_part(self, part: Sequence[Msg]) -> bool:
        """Apply and acknowledge events. Returns whether the database took too long for some of them."""
        outcomes = await self._attempt(part)
        await self._bus.acknowledge(
            [message for message, outcome in zip(part, outcomes, strict=True) if outcome is None]
        )
        for message, outcome in zip(part, outcomes, strict=True):
            if outcome is None:
                if self._retries:
                    self._retries.take([_identity(message)])
            elif isinstance(outcome, StatementTimeout) and len(part) > 1:
                # `run_batch` has already tried the halves.
                retry = self._retry_of(message)._replace(most=max(1, len(part) // 4))
                self._retries.put({_identity(message): retry})
                await message.nak(delay=1)
            elif isinstance(outcome, TRANSIENT) and not isinstance(outcome, StatementTimeout):
                await message.nak(delay=1)
            else:
                await self._failed(message, outcome)
        return any(isinstance(outcome, StatementTimeout) for outcome in outcomes)

    async def _attempt(self, part: Sequence[Msg]) -> list[Exception | None]:
        """Apply events. Returns the error of each, or None. An attempt at redelivered events is recorded."""
        redelivered = [_identity(message) for message in part if deliveries(message) > 1]
        try:
            async with self._attempts.recorded(redelivered, self._background):
                return await run_batch(self._apply, part)
        except TRANSIENT as error:
            return [error] * len(part)

    def _retry_of(self, message: Msg) -> _Retry:
        return self._retries.get(_identity(message)) or _FIRST

    async def _apply(self, batch: Sequence[Msg]) -> list[Exception | None]:
        """Apply a batch in one transaction. If any event fails, raises its error and changes nothing."""
        received = {event.id: event for event in map(self._decode, batch)}
        applied = await self._units.run_optimistically(partial(self._apply_fresh, received))
        self.applied += applied
        self.batches += 1
        return [None] * len(batch)

    async def _apply_fresh(self, received: dict[UUID, Received[Any]], work: UnitOfWork) -> int:
        """Apply the events that were not applied before. Returns their number."""
        inbox_rows = [(event_id, self.name) for event_id in sorted(received)]
        if work.pessimistic:
            fresh = {row["event_id"] for row in await work.transaction.insert(inbox.RECORD_FRESH, inbox_rows)}
            received = {event_id: event for event_id, event in received.items() if event_id in fresh}
        by_type: dict[str, list[Received[Any]]] = {event_type: [] for event_type in self._handlers}
        for event in received.values():
            by_type[event.type].append(event)
        by_apply: dict[Any, list[Received[Any]]] = {}
        for event_type, events_of_type in by_type.items():
            by_apply.setdefault(self._handlers[event_type].apply, []).extend(events_of_type)
        for apply, events_of_it in by_apply.items():
            if events_of_it:
                await apply(work, events_of_it)
        if not work.pessimistic:
            work.caused_by(inbox.RECORD, inbox_rows)
        return len(received)

    def _is_known(self, message: Msg) -> bool:
        header = message.headers or {}
        return header.get("ce-type") in self._handlers and header.get(REDRIVEN_FOR, self.name) == self.name

    async def _reject(self, batch: Sequence[Msg]) -> None:
        """Acknowledge what was redriven for other consumers, and retry the types that this version does not know.

        A process of a newer version may apply those.
        """
        for message in batch:
            if self._is_known(message):
                continue
            header = message.headers or {}
            if header.get(REDRIVEN_FOR, self.name) != self.name:
                await message.ack()
            else:
                error = EventTypeUnknown(f"this version does not know the type {header.get('ce-type')}")
                await self._failed(message, error)

    def _decode(self, message: Msg) -> Received[Any]:
        header = message.headers or {}
        handler = self._handlers[header["ce-type"]]
        return events.received(header, handler.translate(handler.payload.FromString(message.data)))

    async def _failed(self, message: Msg, error: Exception) -> None:
        identity = _identity(message)
        retry = self._retry_of(message)
        attempts = retry.failures + 1
        self._retries.put({identity: retry._replace(failures=attempts)})
        details = {"consumer": self.name, "event_id": identity, "subject": message.subject, "attempt": attempts}
        if attempts < self._max_attempts:
            delay = _BACKOFF.after(attempts)
            log.warning("event failed", **details, again_in=delay, exc_info=error)
            await message.nak(delay=delay)
            return
        await self._bury(message, error, attempts=attempts)

    async def _bury(self, message: Msg, error: Exception, *, attempts: int) -> None:
        """Move an event to the dead letters."""
        identity = _identity(message)
        details = {"consumer": self.name, "event_id": identity, "subject": message.subject, "attempt": attempts}
        log.error("event moved to dead letters", **details, exc_info=error)
        headers = {
            **(message.headers or {}),
            # With the event's own id, the stream would drop the dead letter of a second consumer as a duplicate, and
            # without the place of the message that of an event that was redriven and fails again.
            "Nats-Msg-Id": f"{self.name}/{identity}/{message.metadata.sequence.stream}",
            "mesh-consumer": self.name,
            "mesh-subject": message.subject,
            "mesh-attempts": str(attempts),
            "mesh-error": _one_line(error),
        }
        await self._bus.jetstream.publish(f"mesh.dead.{self.name}.{message.subject}", message.data, headers=headers)
        await message.ack()
        self._retries.take([identity])


def _subject(event_type: str) -> str:
    return f"{event_type}.*"


def _identity(message: Msg) -> str:
    return (message.headers or {}).get("ce-id", f"{message.subject}/{message.metadata.sequence.stream}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
