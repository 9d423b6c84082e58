"""Consumers: events from JetStream, applied in batches, each exactly once.

    stream ─ deliveries ─ batch ─ BEGIN · use case · inbox rows · COMMIT ─ acks

The inbox row is written in the transaction of the effect and the acknowledgement comes last, so an event that is
delivered again changes nothing. That few are is taken for granted: a batch is looked up in the inbox only once it has
failed for one that is there. An event that fails is tried again with growing pauses; after `MAX_ATTEMPTS` it is
parked in the dead-letter stream with what went wrong. A database or peer that is down is not the event's fault: then
the whole batch waits, for as long as it takes.

A batch that takes the database too long is tried again in smaller parts, beside new events. An event that takes too
long even alone has failed.
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
from mesh.events.bus import DEAD_LETTERS
from mesh.events.cloudevents import Received, stream_of
from mesh.events.deliveries import Deliveries

if TYPE_CHECKING:
    from uuid import UUID

    from google.protobuf.message import Message
    from nats.aio.msg import Msg

    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.bus import Bus

M = TypeVar("M", bound="Message")

MAX_ATTEMPTS = 8
"""Failures of one event before it is parked."""
LINGER_S = 0.01
"""Seconds within which what a relay publishes in one piece has come."""
MAX_BATCH = 512
MAX_UNACKNOWLEDGED = 8 * MAX_BATCH
"""Events of one consumer that may be out for delivery in all its processes. More wait in the stream, which also bounds
what is handed back again and again while a database is down."""
ACK_WAIT_S = 5
"""After this long without an acknowledgement an event is delivered again: its consumer has died, or is slow, and then
the second copy meets the inbox."""


_BACKOFF = tasks.Backoff(0.2, 30.0)
"""Between the attempts at one event."""

log = structlog.get_logger(__name__)


def _unchanged(message: M) -> M:
    return message


@dataclass(frozen=True, slots=True)
class Handler(Generic[M]):
    """What a consumer does with events of one type: `apply` gets all of a batch, in their order, in one transaction."""

    payload: type[M]
    apply: Callable[[UnitOfWork, Sequence[Received[Any]]], Awaitable[None]]
    translate: Callable[[M], Any] = _unchanged
    """Makes the value of the domain that `apply` gets as the event's payload; without it, `apply` gets the message."""


class _Retry(NamedTuple):
    """How an event is tried again."""

    failures: int = 0
    """How often it has failed by itself."""
    most: int = MAX_BATCH
    """The largest part of a batch to apply it in."""


_FIRST = _Retry()

Handlers = Mapping[str, Handler[Any]]
"""By event type. Within a batch the types are applied in the order of this table: list causes before effects.

Types with the same `apply` come to it together, in that order: for what must lock all it needs at once.
"""


class Consumer:
    """Applies the events of one area to a service. All processes of the service share the work.

    Others have `linger` seconds to come after the first event of a batch (ADR-0012): the less anybody waits for its
    effects, the more.
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
    ) -> None:
        self.name = f"{service}-{area}"
        self.applied = 0
        """Events applied by this process so far."""
        self.batches = 0
        """Transactions that took."""
        self._area = area
        self._handlers = handlers
        self._bus = bus
        self._units = units
        self._linger = linger
        # Bounded, because another process may apply an event that has failed here.
        self._retries: Recent[str, _Retry] = Recent(most=MAX_UNACKNOWLEDGED)
        self._stream = stream_of(f"commerce.{area}.")
        self._deliveries = Deliveries(self._stream, self.name, ahead=2 * MAX_BATCH, bus=bus, ensure=self._ensure)
        self._background = tasks.Background(f"consumer {self.name}", self._run)

    async def start(self) -> None:
        """Begin to consume, in the background."""
        self._bus.on_reconnect(self._deliveries.resume)
        self._background.start()

    async def stop(self) -> None:
        """Finish the batch under way and hand back the rest, so that another process gets it at once."""
        self._deliveries.end()
        await self._background.stop()
        await self._deliveries.hand_back()

    @property
    def was_cancelled(self) -> bool:
        """Whether its last batch had to be cancelled, because it did not finish in time."""
        return self._background.was_cancelled

    async def _run(self) -> None:
        while batch := await self._deliveries.take(MAX_BATCH, linger=self._linger):
            try:
                await self._consume(batch)
            except Exception:
                # Whatever it is, the consumer goes on. Effects are kept, acknowledgements may be lost: the events are
                # delivered again, and those that were applied meet the inbox.
                log.exception("events not acknowledged", consumer=self.name, count=len(batch))

    async def _ensure(self) -> None:
        """Make streams and consumer if they are not there: NATS may have come back with an empty store."""
        await self._bus.ensure_stream_of(self._area)
        await self._bus.ensure_stream(DEAD_LETTERS, "mesh.dead.>", max_age=0)
        await self._bus.ensure_consumer(
            self._stream,
            js.ConsumerConfig(
                durable_name=self.name,
                filter_subjects=[f"{event_type}.*" for event_type in self._handlers],
                deliver_policy=js.DeliverPolicy.ALL,
                ack_policy=js.AckPolicy.EXPLICIT,
                ack_wait=ACK_WAIT_S,
                max_deliver=-1,
                max_ack_pending=MAX_UNACKNOWLEDGED,
            ),
        )

    async def _consume(self, batch: Sequence[Msg]) -> None:
        is_slow = False
        for part in self._parts(batch):
            if is_slow:
                # One part that takes too long is enough: new events wait meanwhile.
                for message in part:
                    await message.nak(delay=1)
            else:
                is_slow = await self._consume_part(part)

    def _parts(self, batch: Sequence[Msg]) -> list[Sequence[Msg]]:
        """The batch, in parts that the database may finish in time: the largest part first."""
        if not self._retries:
            return [batch]
        by_size: dict[int, list[Msg]] = {}
        for message in batch:
            by_size.setdefault(self._retry_of(message).most, []).append(message)
        return [
            messages[start : start + size]
            for size, messages in sorted(by_size.items(), reverse=True)
            for start in range(0, len(messages), size)
        ]

    async def _consume_part(self, part: Sequence[Msg]) -> bool:
        """Apply events and acknowledge them; whether the database took too long for some of them."""
        outcomes = await run_batch(self._apply, part)
        await self._bus.acknowledge(
            [message for message, outcome in zip(part, outcomes, strict=True) if outcome is None]
        )
        for message, outcome in zip(part, outcomes, strict=True):
            if outcome is None:
                if self._retries:
                    self._retries.take([_identity(message)])
            elif isinstance(outcome, StatementTimeout) and len(part) > 1:
                # `run_batch` has tried the halves.
                retry = self._retry_of(message)._replace(most=max(1, len(part) // 4))
                self._retries.put({_identity(message): retry})
                await message.nak(delay=1)
            elif isinstance(outcome, TRANSIENT) and not isinstance(outcome, StatementTimeout):
                await message.nak(delay=1)
            else:
                await self._failed(message, outcome)
        return any(isinstance(outcome, StatementTimeout) for outcome in outcomes)

    def _retry_of(self, message: Msg) -> _Retry:
        return self._retries.get(_identity(message)) or _FIRST

    async def _apply(self, batch: Sequence[Msg]) -> list[Exception | None]:
        """Apply a batch in one transaction. Raises, with nothing done, when any event of it fails."""
        received = {event.id: event for event in map(self._decode, batch)}
        applied = await self._units.run_optimistically(partial(self._apply_fresh, received))
        self.applied += applied
        self.batches += 1
        return [None] * len(batch)

    async def _apply_fresh(self, received: dict[UUID, Received[Any]], work: UnitOfWork) -> int:
        """Apply those that were not applied before; how many that are."""
        inbox_rows = [(event_id, self.name) for event_id in sorted(received)]
        if work.pessimistic:
            fresh = {row["event_id"] for row in await work.transaction.insert(inbox.RECORD_FRESH, inbox_rows)}
            received = {event_id: event for event_id, event in received.items() if event_id in fresh}
        by_type: dict[str, list[Received[Any]]] = {event_type: [] for event_type in self._handlers}
        for event in received.values():
            by_type[event.type].append(event)
        by_apply: dict[Any, list[Received[Any]]] = {}
        for event_type, news in by_type.items():
            by_apply.setdefault(self._handlers[event_type].apply, []).extend(news)
        for apply, events_of_it in by_apply.items():
            if events_of_it:
                await apply(work, events_of_it)
        if not work.pessimistic:
            work.caused_by(inbox.RECORD, inbox_rows)
        return len(received)

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
        if attempts < MAX_ATTEMPTS:
            delay = _BACKOFF.after(attempts)
            log.warning("event failed", **details, again_in=delay, exc_info=error)
            await message.nak(delay=delay)
            return
        log.error("event parked", **details, exc_info=error)
        headers = {
            **(message.headers or {}),
            # The event's own id would be dropped as a copy when two consumers park the same event.
            "Nats-Msg-Id": f"{self.name}/{identity}",
            "mesh-consumer": self.name,
            "mesh-subject": message.subject,
            "mesh-attempts": str(attempts),
            "mesh-error": _one_line(error),
        }
        await self._bus.jetstream.publish(f"mesh.dead.{self.name}.{message.subject}", message.data, headers=headers)
        await message.ack()
        self._retries.take([identity])


def _identity(message: Msg) -> str:
    return (message.headers or {}).get("ce-id", f"{message.subject}/{message.metadata.sequence.stream}")


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
