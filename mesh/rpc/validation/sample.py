"""A small copy of an invalid request that violates the same rules (ADR 30)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mesh.rpc.validation.compiled import Items, items_of
from mesh.rpc.validation.paths import Fault, Path
from mesh.rpc.validation.sizes import too_many

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

Lists = Mapping[str, Items]
"""The rules of repeated fields, by full name."""


def lists_of(message_type: Descriptor) -> Lists:
    """The rules of the repeated fields of a message type that has a check, at any depth."""
    lists: dict[str, Items] = {}
    for field in message_type.fields:
        if field.is_repeated:
            lists[field.full_name] = items_of(field)
        if field.message_type is not None:
            lists |= lists_of(field.message_type)
    return lists


class Sample:
    """A copy of an invalid message that leaves out most of its valid items.

    It keeps the first `max_items` invalid items of all lists. For the rules of a list, it keeps the first `min_items`
    items, and the first two items with the same value of a unique key. Lists that are too long are not read, and of a
    text that is longer than `max_len` only as much is kept as makes it too long.
    """

    def __init__(self, message: Message, lists: Lists, *, max_items: int, max_len: int) -> None:
        self.message: Any = type(message)()
        self.too_long: list[Fault] = []
        """The lists that are too long, at most `max_items` of them."""
        self._lists = lists
        self._left = max_items
        self._kept_len = max_len + 1
        self._origins: dict[Path, list[int]] = {}
        self._copy(message, self.message, ())

    def original(self, path: Path) -> Path:
        """The place in the original message of a place in the copy."""
        parts = list(path)
        for at, part in enumerate(path):
            if isinstance(part, int):
                parts[at] = self._origins[path[:at]][part]
        return tuple(parts)

    def _copy(self, source: Message, target: Any, path: Path) -> None:
        for field, value in source.ListFields():
            here = (*path, field.name)
            if field.is_repeated:
                self._copy_items(self._lists[field.full_name], value, getattr(target, field.name), here)
            elif field.message_type is not None:
                part = getattr(target, field.name)
                part.SetInParent()
                self._copy(value, part, here)
            else:
                setattr(target, field.name, self._cut(value))

    def _cut(self, value: Any) -> Any:
        return value[: self._kept_len] if isinstance(value, str | bytes) else value

    def _copy_items(self, items: Items, source: Sequence[Any], target: Any, path: Path) -> None:
        origins = self._origins[path] = []
        if len(source) > items.max_items:
            if self._left:
                self._left -= 1
                self.too_long.append((path, too_many(items.max_items)))
            return
        needed = _needed(items, source)
        last = max(needed, default=-1)
        for index, item in enumerate(source):
            if not self._left and index > last:
                break
            is_invalid = self._left > 0 and items.valid is not None and not items.valid(item)
            if not is_invalid and index not in needed:
                continue
            left = self._left
            if hasattr(item, "ListFields"):
                self._copy(item, target.add(), (*path, len(origins)))
            else:
                target.append(self._cut(item))
            origins.append(index)
            if is_invalid and self._left == left:
                # Invalid items inside it have been counted instead.
                self._left -= 1


def _needed(items: Items, source: Sequence[Any]) -> set[int]:
    """The indexes of the items that the rules of the list depend on."""
    needed = set(range(min(items.min_items, len(source))))
    for key in items.keys:
        first: dict[object, int] = {}
        for index, item in enumerate(source):
            other = first.setdefault(key(item), index)
            if other != index:
                needed |= {other, index}
                break
    return needed
