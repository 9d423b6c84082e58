"""What lives in this process: objects by kind, and the size of each container."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from tests.services import eventually

_CONTAINERS = (dict, list, set, deque, OrderedDict)


@dataclass(frozen=True, slots=True)
class Census:
    """The objects of a moment."""

    kinds: Counter[str]
    """Objects that the collector knows, by type."""
    sizes: dict[int, tuple[str, int]]
    """Entries of each container, with the type of its owner, by `id`."""

    @classmethod
    def taken(cls) -> Census:
        """Count what lives now."""
        gc.collect()
        objects = gc.get_objects()
        kinds = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in objects)
        sizes: dict[int, tuple[str, int]] = {}
        # A container of plain values is not known to the collector, but to its owner.
        for owner in objects:
            for each in (owner, *gc.get_referents(owner)):
                if isinstance(each, _CONTAINERS):
                    sizes.setdefault(id(each), (_named(owner), len(each)))
        return cls(kinds, sizes)

    def grown_since(self, before: Census, by: int) -> dict[str, int]:
        """Kinds of objects, and containers named by their owners, that have grown by at least `by`."""
        kinds = {kind: count - before.kinds[kind] for kind, count in self.kinds.items()}
        containers = {
            f"in {owner}": size - before.sizes[key][1]
            for key, (owner, size) in self.sizes.items()
            if key in before.sizes
        }
        return {name: growth for name, growth in (kinds | containers).items() if growth >= by}


async def tasks_are_at_most(count: int) -> None:
    """Wait until so many tasks exist: those of the servers' supervisors come and go."""

    async def are_they() -> bool:
        return len(asyncio.all_tasks()) <= count

    await eventually(are_they)


def _named(owner: Any) -> str:
    name = getattr(owner, "__qualname__", None) or type(owner).__qualname__
    return f"{getattr(owner, '__module__', None) or type(owner).__module__}.{name}"
