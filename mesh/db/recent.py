"""A cache of the values that a process has written or read most recently.

Another process may have changed such a value. A write that is based on it must let the database check the version
(`mesh.db.database.unless_stale`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key. The sum of their weights is at most `most`; the oldest values are dropped first.

    By default each value weighs 1. Pass `weight` if callers decide how large a value is.
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
        """The value, or None. It is kept."""
        return self._values.get(key)

    def put(self, values: Mapping[Key, Value]) -> None:
        """Keep values. Values of database rows must be committed."""
        for key, value in values.items():
            if key in self._values:
                self._total -= self._weight(self._values[key])
            self._values[key] = value
            self._total += self._weight(value)
        while self._total > self._most:
            self._pop(next(iter(self._values)))

    def take(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Remove and return the values of these keys. After a failed attempt, the next one then reads the database."""
        return {key: self._pop(key) for key in keys if key in self._values}

    def clear(self) -> None:
        """Remove all values."""
        self._values.clear()
        self._total = 0

    def _pop(self, key: Key) -> Value:
        value = self._values.pop(key)
        self._total -= self._weight(value)
        return value


def _one(_: object) -> int:
    return 1
