"""Watches: streams of the states of aggregates, such as orders. All watches of a process share one subscription.

A service publishes an event after it has changed an aggregate. While a process has watches, it subscribes to all events
of their area. An event wakes the watches of its aggregate, and each of them reads the current state; those that are
woken together share one read. A watch stores no states: while its client does not read, it remembers only that there
is a newer one.

The subscription may lose events. So all watches read again when it begins, after each reconnection, and every
`READ_AGAIN_S` seconds in any case. Changes without an event are found within `TICK_S` seconds, and so are all changes
while NATS cannot be reached.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar
from uuid import UUID

import nats.errors
import structlog

from mesh import tasks
from mesh.batch.group_commit import BatchWork, GroupCommit
from mesh.errors import TRANSIENT

if TYPE_CHECKING:
    from mesh.events.bus import Bus

State = TypeVar("State")

TICK_S = 1.0
"""Seconds between two checks for lost events, and between two reads of states whose changes publish no event."""
READ_AGAIN_S = 30.0
"""Seconds after which a state is read again in any case."""
_NOTHING = object()

log = structlog.get_logger(__name__)


class Watches(Generic[State]):
    """The watches of one kind of aggregate in this process."""

    def __init__(
        self,
        area: str,
        read: BatchWork[UUID, State],
        *,
        bus: Bus,
        version: Callable[[State], object],
        is_announced: Callable[[State], bool],
        read_again: float = READ_AGAIN_S,
    ) -> None:
        """Watch the aggregates whose ids are in the subjects of the events of an area.

        Args:
            area: The area of the events, such as `order`.
            read: Returns the current state for each id, or the error that ends its watches.
            bus: Where the events are.
            version: Two states with the same version are the same state.
            is_announced: Whether every change of this state publishes an event.
            read_again: Seconds after which a state is read again in any case.
        """
        self.reads = GroupCommit(f"{area} watches", read, max_waiting=sys.maxsize, linger=0.005)
        """The batches of reads. Their number is bounded by that of the open streams."""
        self.version = version
        self.is_announced = is_announced
        self._topic = f"commerce.{area}.>"
        self._bus = bus
        self._read_again_after = read_again
        self._watches: dict[str, set[Watch[State]]] = {}
        self._listening: asyncio.Task[None] | None = None
        self.is_subscribed = False
        """Whether the events of the area are heard."""
        self._heard_on = 0
        """The connection on which all watches have read since the subscription began."""
        self._read_again = 0.0
        """When all watches read again, in the event loop's time."""

    @property
    def count(self) -> int:
        """The number of watches."""
        return sum(map(len, self._watches.values()))

    async def start(self) -> None:
        """Do nothing: the first watch subscribes."""

    async def stop(self) -> None:
        """End the subscription. All watches must have ended before."""
        await tasks.end(self._listening)
        await self._unsubscribe()

    @contextmanager
    def of(self, aggregate_id: UUID) -> Iterator[Watch[State]]:
        """A watch of one aggregate, until the end of the block."""
        key, watch = str(aggregate_id), Watch(self, aggregate_id)
        self._watches.setdefault(key, set()).add(watch)
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen(), name=f"watches of {self._topic}")
        try:
            yield watch
        finally:
            self._watches[key].discard(watch)
            if not self._watches[key]:
                del self._watches[key]

    async def _listen(self) -> None:
        """Subscribe while there are watches, and wake those that may have missed something."""
        try:
            while self._watches:
                try:
                    await self._catch_up()
                except Exception:
                    # Watches must go on after any error.
                    log.exception("watches interrupted", topic=self._topic)
                await asyncio.sleep(TICK_S)
                if not self._watches:
                    await self._unsubscribe()
        finally:
            # In the same turn of the event loop as the last check of the watches.
            self._listening = None

    async def _catch_up(self) -> None:
        """Wake the watches that may have missed an event, and those that are due."""
        if not self.is_subscribed:
            self.is_subscribed = await self._subscribe()
        connection = self._bus.connection if self.is_subscribed else 0
        now = asyncio.get_running_loop().time()
        may_have_missed = not connection or connection != self._heard_on or now >= self._read_again
        if may_have_missed:
            self._heard_on, self._read_again = connection, now + self._read_again_after
        await self._wake(all_of_them=may_have_missed)

    async def _subscribe(self) -> bool:
        """Subscribe to the events. Returns whether the server has confirmed it."""
        if not self._bus.connection:
            return False
        try:
            async with asyncio.timeout(TICK_S):
                await self._bus.on_signal(self._topic, self._heard)
                await self._bus.flush()
        except (OSError, TimeoutError, nats.errors.Error) as error:
            log.warning("events cannot be heard", topic=self._topic, error=repr(error))
            await self._bus.off_signal(self._topic)
            return False
        return True

    async def _unsubscribe(self) -> None:
        self.is_subscribed, self._heard_on = False, 0
        await self._bus.off_signal(self._topic)

    def _heard(self, subject: str) -> None:
        for watch in self._watches.get(subject.rpartition(".")[2], ()):
            watch.wake()

    async def _wake(self, *, all_of_them: bool) -> None:
        """Wake all watches, or those that are due."""
        watches = [watch for each in self._watches.values() for watch in each if all_of_them or watch.is_due]
        async for watch in tasks.in_portions(watches):
            watch.wake()


class Watch(Generic[State]):
    """One stream of the states of an aggregate. Create it with `Watches.of`."""

    __slots__ = ("_aggregate_id", "_may_differ", "_of", "_seen", "is_due")

    def __init__(self, of: Watches[State], aggregate_id: UUID) -> None:
        self.is_due = False
        """Whether to read again at the next tick: the next change may publish no event, or the last read failed."""
        self._of = of
        self._aggregate_id = aggregate_id
        self._seen: object = _NOTHING
        self._may_differ = asyncio.Event()
        self._may_differ.set()

    def wake(self) -> None:
        """Read again: the state may have changed."""
        self._may_differ.set()

    async def next(self) -> State:
        """The current state at the first call; later the newest one, as soon as it differs from the last result.

        Raises the error of the read. After the first state, transient errors are retried instead.
        """
        while True:
            await self._may_differ.wait()
            # Before the read, so that a change during the read is not missed.
            self._may_differ.clear()
            try:
                state = await self._of.reads.submit(self._aggregate_id)
            except TRANSIENT as error:
                if self._seen is _NOTHING:
                    raise
                log.debug("not read", aggregate=str(self._aggregate_id), error=repr(error))
                self.is_due = True
                continue
            self.is_due = not self._of.is_announced(state)
            version = self._of.version(state)
            if version != self._seen:
                self._seen = version
                return state
