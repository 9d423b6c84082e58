"""What a process has written or seen last, for whoever in it needs the same next: it need not be read again.

Such a value may have been changed by another process since. Whoever writes a successor of it lets the database decide
(`mesh.db.database.unless_overtaken`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by key, at most `most` of them: the oldest go first."""

    def __init__(self, *, most: int = 4096) -> None:
        self._most = most
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
        self._values |= values
        for key in list(islice(self._values, max(0, len(self._values) - self._most))):
            del self._values[key]

    def take(self, keys: Iterable[Key]) -> dict[Key, Value]:
        """Those that are there, and are no more afterwards: who fails with them will ask the database."""
        return {key: self._values.pop(key) for key in keys if key in self._values}
