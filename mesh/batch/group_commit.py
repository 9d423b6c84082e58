"""Group commit: work that arrives together is committed together.

While a batch of calls is being committed, all further calls of the use case join the next one. There is no timer, so a
lone call does not wait, and batches grow with the load. Reads are grouped in the same way. A batch of reads begins
after all its calls have arrived, so each call sees everything that was committed before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar, cast

from mesh.errors import TRANSIENT, ResourceExhausted, StatementTimeout, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

BatchWork = Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]
"""A use case for a batch: returns one result for each item, in order. The result of a rejected item is its error."""


async def run_batch(work: BatchWork[Item, Result], items: Sequence[Item]) -> list[Result | Exception]:
    """Run `work` for `items` so that an item that fails does not fail the others. Never raises.

    Returns one result for each item, in order; the result of a failed item is its error. `work` must have no effect if
    it raises. Then the batch is split into halves, and each half is tried separately, until the failing item is alone.
    A transient error (`TRANSIENT`) fails the whole batch immediately, because each half would wait again for the
    part that does not answer. A batch that takes the database too long may be too large, so it is split once.
    """
    return await _run_batch(work, items, may_be_large=True)


async def _run_batch(
    work: BatchWork[Item, Result], items: Sequence[Item], *, may_be_large: bool
) -> list[Result | Exception]:
    try:
        results = list(await work(items))
    except TRANSIENT as error:
        is_large = isinstance(error, StatementTimeout) and may_be_large and len(items) > 1
        if not is_large:
            return [error] * len(items)
        may_be_large = False
    except Exception as error:  # noqa: BLE001  # it becomes its item's result
        if len(items) == 1:
            return [error]
    else:
        if len(results) != len(items):
            # The results cannot be assigned to the items, and the effects must not be repeated.
            return [RuntimeError(f"{len(items)} items went into a batch, {len(results)} results came out")] * len(items)
        return results
    middle = len(items) // 2
    halves = items[:middle], items[middle:]
    return [result for half in halves for result in await _run_batch(work, half, may_be_large=may_be_large)]


class _Entry(NamedTuple, Generic[Item, Result]):
    """The items of one call, and the future of their results."""

    items: Sequence[Item]
    results: asyncio.Future[Sequence[Result | Exception]]


class GroupCommit(Generic[Item, Result]):
    """Collects the items of concurrent calls into batches and returns to each call its own results.

    At most `lanes` batches run at a time, each with at most `max_batch` items. At most `max_waiting` items wait;
    further calls are rejected as OVERLOADED. Use one lane unless the work waits for something other than this process's
    CPU: a second lane halves the batches, and waits for the first one where both need the same rows (ADR-0011).

    With `linger`, a lane lingers after each batch for as long as that batch took, at most `linger` seconds (ADR-0012).
    Reads use it, because they are so fast that few of them would share a batch. A call that finds the group idle never
    waits.
    """

    def __init__(
        self,
        name: str,
        work: BatchWork[Item, Result],
        *,
        max_batch: int = 256,
        max_waiting: int = 4096,
        lanes: int = 1,
        linger: float = 0.0,
    ) -> None:
        self.name = name
        self.batches = 0
        """The number of batches that were run."""
        self.items = 0
        """The number of items in these batches; `items / batches` is the mean size."""
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._lanes = lanes
        self._linger = linger
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._count = 0
        """The number of items in `_waiting`."""
        self._has_cancelled = False
        """Whether calls were cancelled since the last removal of cancelled entries."""
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    @property
    def waiting(self) -> int:
        """The number of calls that wait for a batch."""
        return len(self._waiting)

    async def idle(self) -> None:
        """Wait until no batch runs and no call waits."""
        while self._running:
            await asyncio.wait(self._running)

    async def submit(self, item: Item) -> Result:
        """Return the result of `item`, or raise it if it is an error.

        Cancelling removes an item that still waits. The batch of an item that is being committed continues, so the
        outcome of a cancelled call is unknown; a retry with the same idempotency key returns it.
        """
        (result,) = await self.submit_all((item,))
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_all(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        """Return the results of all `items` of one call, in order. They run in the same batch.

        Cancelling works as in `submit`. Raises ValueError if there are more than `max_batch` items, which the contract
        must prevent, and ResourceExhausted / OVERLOADED if too many items wait.
        """
        if not items:
            return []
        if len(items) > self._max_batch:
            raise ValueError(f"a call brings {len(items)} {self.name}, a batch takes {self._max_batch}")
        if self._count + len(items) > self._max_waiting and self._has_cancelled:
            self._forget_cancelled()
        if self._count + len(items) > self._max_waiting:
            raise ResourceExhausted(
                f"{self._count} {self.name} are waiting", metadata={"queue": self.name}, retry_after=1.0
            )
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Result] = _Entry(items, loop.create_future())
        self._waiting.append(entry)
        self._count += len(items)
        if not self._scheduled and len(self._running) < self._lanes:
            # At the end of this turn of the event loop, so that calls that arrived together share the first batch.
            self._scheduled = True
            loop.call_soon(self._open_lane)
        try:
            return await entry.results
        except asyncio.CancelledError:
            self._has_cancelled = True
            raise

    def _open_lane(self) -> None:
        self._scheduled = False
        lane = asyncio.get_running_loop().create_task(self._run_lane(), name=f"group commit {self.name}")
        self._running.add(lane)

    async def _run_lane(self) -> None:
        batch: list[_Entry[Item, Result]] = []
        try:
            while batch := self._next_batch():
                began = asyncio.get_running_loop().time()
                items = [item for entry in batch for item in entry.items]
                self.batches += 1
                self.items += len(items)
                results = iter(await run_batch(self._work, items))
                for entry in batch:
                    own = list(islice(results, len(entry.items)))
                    if not entry.results.done():
                        entry.results.set_result(own)
                if self._linger:
                    await asyncio.sleep(min(asyncio.get_running_loop().time() - began, self._linger))
        except BaseException:
            # This happens only when the process ends. The waiting calls must not hang.
            self._interrupt([*batch, *self._waiting])
            raise
        finally:
            # In the same turn of the event loop as the last check of the queue, so that the next call sees a free lane.
            self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _interrupt(self, entries: Sequence[_Entry[Item, Result]]) -> None:
        for entry in entries:
            if not entry.results.done():
                entry.results.set_exception(Unavailable(f"{self.name} was interrupted"))

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        batch: list[_Entry[Item, Result]] = []
        room = self._max_batch
        while self._waiting and len(self._waiting[0].items) <= room:
            entry = self._waiting.popleft()
            self._count -= len(entry.items)
            if not entry.results.done():
                batch.append(entry)
                room -= len(entry.items)
        return batch

    def _forget_cancelled(self) -> None:
        self._has_cancelled = False
        self._waiting = deque(entry for entry in self._waiting if not entry.results.done())
        self._count = sum(len(entry.items) for entry in self._waiting)
