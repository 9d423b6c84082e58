"""Group commit: work that arrives together is committed together.

Calls of a hot use case join one batch: while a batch is being committed, the next one gathers. There is no timer, so
a lone call waits for nobody, and the batch grows by itself just as fast as the load does. Reads are grouped in the same
way: a look begins after all its calls have come, so each sees what was committed before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar, cast

from mesh.errors import NOBODYS_FAULT, ResourceExhausted, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

BatchWork = Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]]
"""A use case over a batch: one result an item, in order. An item refused by a rule gets its error as its result."""


async def run_batch(work: BatchWork[Item, Result], items: Sequence[Item]) -> list[Result | Exception]:
    """Run `work` over `items` so that one bad item fails alone. Never raises; a failure is its item's result.

    When `work` raises, nothing of its batch took effect: the batch is halved and each half tried by itself, down to
    the item that is at fault. What is nobody's fault (`NOBODYS_FAULT`) fails the whole batch at once: a part that does
    not answer would be waited for again in every half.
    """
    try:
        results = list(await work(items))
    except NOBODYS_FAULT as error:
        return [error] * len(items)
    except Exception as error:  # noqa: BLE001  # it becomes its item's result
        if len(items) == 1:
            return [error]
        middle = len(items) // 2
        return await run_batch(work, items[:middle]) + await run_batch(work, items[middle:])
    if len(results) != len(items):
        # Nobody can tell which result is whose, and what took effect is not to be done again.
        return [RuntimeError(f"{len(items)} items went into a batch, {len(results)} results came out")] * len(items)
    return results


class _Entry(NamedTuple, Generic[Item, Result]):
    """What one call brings, and the future of what it gets."""

    items: Sequence[Item]
    results: asyncio.Future[Sequence[Result | Exception]]


class GroupCommit(Generic[Item, Result]):
    """Gathers the items of concurrent calls into batches and gives each call its own result.

    `lanes` batches run at a time, each of at most `max_batch` items; at most `max_waiting` more wait, and whoever comes
    then is refused as OVERLOADED. One lane is the rule: a second one halves the batches, and where both want the same
    rows it only waits for the first (ADR-0011).

    With `rest` a lane lets calls gather after each batch for as long as that one took, at most `rest` seconds: for
    reads, which are so quick that hardly any would come together. Who comes to an idle group still waits for nobody.
    """

    def __init__(
        self,
        name: str,
        work: BatchWork[Item, Result],
        *,
        max_batch: int = 256,
        max_waiting: int = 4096,
        lanes: int = 1,
        rest: float = 0.0,
    ) -> None:
        self.name = name
        self.batches = 0
        """Batches run so far."""
        self.items = 0
        """Items in them; `items / batches` is the mean batch."""
        self._work = work
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._lanes = lanes
        self._rest = rest
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._count = 0
        """Items in `_waiting`."""
        self._has_cancelled = False
        """Whether calls were cancelled since the queue was last looked through."""
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def submit(self, item: Item) -> Result:
        """The result of `item`, raised when it is an error.

        Cancelling a call that still waits takes its item out; one that is being committed runs on, and is committed
        or not as a whole: a retry with the same idempotency key tells.
        """
        (result,) = await self.submit_all((item,))
        if isinstance(result, Exception):
            raise result
        return result

    async def submit_all(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        """The results of all `items` of one call, in order; they go into the same batch. Cancelled as in `submit`.

        Raises ValueError when they are more than a batch takes: the contract must bound what a call brings.
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
            # Not at once but in this turn of the loop, so that calls that arrived together start together.
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
                if self._rest:
                    await asyncio.sleep(min(asyncio.get_running_loop().time() - began, self._rest))
        except BaseException:
            # Only the end of the process gets here: whoever waits must not wait for ever.
            self._interrupt([*batch, *self._waiting])
            raise
        finally:
            # In the same turn as the last look at the queue: whoever comes next must see that this lane is free.
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
