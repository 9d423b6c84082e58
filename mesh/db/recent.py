"""What a process has written or seen last, for whoever in it needs the same next: it need not be read again.

Such a value may have been changed by another process since. Whoever writes a successor of it lets the database decide
(`mesh.db.database.unless_stale`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key. Their weights sum to `most` at most: the oldest values are dropped first.

    `weight` is 1 for each value by default. Give one where callers decide how large a value is.
    """

    def __init__(self, *, most: int = 4096, weight: Callable[[Value], int] | None = None) -> None:
        self._most = most
        self._weight = weight or _one
        self._total = 0
        self._values: dict[Key, Value] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._values

    def __len__(self) -> int:
        """The number of values."""
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value, which stays."""
        return self._values.get(key)

    def put(self, values: Mapping[Key, Value]) -> None:
        """Keep these; what is a row of the database must be committed."""
        for key, value in values.items():
            if key in self._values:
                self._total -= self._weight(self._values[key])
            self._values[key] = value
            self._total += self._weight(value)
        while self._total > self._most:
            self._pop(next(iter(self._values)))

    def take(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Those that are there, and are no more afterwards: who fails with them will ask the database."""
        return {key: self._pop(key) for key in keys if key in self._values}

    def _pop(self, key: Key) -> Value:
        value = self._values.pop(key)
        self._total -= self._weight(value)
        return value


def _one(_: object) -> int:
    return 1
