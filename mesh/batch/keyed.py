"""Group commit of changes with idempotency keys, whose new keys are not looked up (ADR-0026).

A key that has come to this process before is looked up ahead of the batch: a known retry waits for no batch and for no
other service. Duplicates in one batch run once. A change that fails is looked up afterwards: what an earlier attempt
has stored goes before any failure. A reply that another process stores meanwhile makes the commit fail with KeyTaken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mesh.batch.group_commit import GroupCommit
from mesh.db import idempotency
from mesh.db.idempotency import IdempotencyKey, IdempotencyKeyReused, Outcomes, Replay

if TYPE_CHECKING:
    from mesh.db.database import Database
    from mesh.rpc.replies import Change, Reply

R = TypeVar("R")


class Keyed(Protocol):
    """An item of a batch: what is asked, with its key."""

    @property
    def change(self) -> Change[Any]:
        """The call behind the item."""


Item = TypeVar("Item", bound=Keyed)
Work = Callable[[Sequence[Item]], Awaitable["Sequence[Reply[Any] | Exception]"]]


class KeyedGroupCommit(Generic[Item, R]):
    """Runs `work` over the fresh items of concurrent calls; `work` commits them with their replies.

    It gives one result an item, in order: the reply that it has stored, or the error of that item alone.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Reply[R] | Exception]]],
        *,
        database: Database,
        max_batch: int = 256,
    ) -> None:
        self._work = work
        self._database = database
        self._retries = idempotency.Retries()
        self._replays: GroupCommit[IdempotencyKey, None] = GroupCommit(f"replies of {name}", self._replay)
        self.batches: GroupCommit[Item, Reply[R]] = GroupCommit(name, self._run, max_batch=max_batch)
        """The batches below, for their counts."""

    async def submit(self, item: Item) -> Reply[R]:
        """The reply of `item`. Raises its error, Replay, or IdempotencyKeyReused."""
        key = item.change.key
        if key is not None and key in self._retries:
            await self._replays.submit(key)
        return await self.batches.submit(item)

    async def stored(self, items: Sequence[Item]) -> Outcomes:
        """What is stored under the keys of these items."""
        return await idempotency.find(self._database, [item.change.key for item in items])

    async def _replay(self, keys: Sequence[IdempotencyKey]) -> list[Exception | None]:
        found = await idempotency.find(self._database, keys)
        return [found.get(key) for key in keys]

    async def _run(self, batch: Sequence[Item]) -> list[Reply[R] | Exception]:
        keys = [item.change.key for item in batch]
        known = await idempotency.find(self._database, self._retries.among(key for key in keys if key is not None))
        results: dict[int, Reply[R] | Exception] = {}
        firsts: dict[bytes, int] = {}
        duplicates: list[int] = []
        fresh: list[int] = []
        for index, key in enumerate(keys):
            if key is not None and (outcome := known.get(key)):
                results[index] = outcome
            elif key is not None and firsts.setdefault(key.digest, index) != index:
                duplicates.append(index)
            else:
                fresh.append(index)
        if fresh:
            results |= zip(fresh, await self._work([batch[index] for index in fresh]), strict=True)
            failed = [index for index in fresh if isinstance(results[index], Exception)]
            stored = await self.stored([batch[index] for index in failed])
            results |= {index: stored[key] for index in failed if (key := keys[index]) is not None and key in stored}
        for index in duplicates:
            key = keys[index]
            assert key is not None, "only keys have duplicates"
            first = firsts[key.digest]
            results[index] = _as_first(results[first]) if key == keys[first] else IdempotencyKeyReused()
        return [results[index] for index in range(len(batch))]


def _as_first(result: Reply[Any] | Exception) -> Exception:
    """The result of a duplicate: the reply of the first call, sent again, or its error."""
    return result if isinstance(result, Exception) else Replay(result.wire)
