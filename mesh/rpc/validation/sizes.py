"""The size limits of a contract: the number of items in lists, and the lengths of texts and bytes.

They are compared before any other rule is evaluated (ADR 30). A rule costs microseconds for each item, and a megabyte
holds half a million empty items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buf.validate import validate_pb2
from commerce.validation.v1 import validation_pb2
from mesh.rpc.validation.paths import Fault, Path

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

_UUID_LENGTH = 36
_Limits = Mapping[str, validation_pb2.Limit]
_WELL_KNOWN: Mapping[str, Sequence[validation_pb2.Limit]] = {
    "google.type.Money": [validation_pb2.Limit(field="currency_code", max_len=16)],
    "google.protobuf.FieldMask": [validation_pb2.Limit(field="paths", max_items=64, max_len=128)],
}
"""The limits of types that are used in the same way everywhere."""


class Unbounded(Exception):
    """A list or a text of a request has no limit in the contract: the server must not start."""


class Sizes:
    """The limits of a message type. Their texts are those of protovalidate for the same rules."""

    def __init__(self, message_type: Descriptor) -> None:
        """Raises Unbounded."""
        self._fields = _fields(message_type, {}, ())
        self.max_len = max((field.longest for field in self._fields), default=0)
        """The greatest length that any text may have, in characters or bytes."""

    def exceeded(self, message: Message) -> Iterator[Fault]:
        """The lists and the texts of a message that are too large. It does not read a list that is too long."""
        return _exceeded(message, self._fields, ())


@dataclass(frozen=True, slots=True)
class _Field:
    """The limits of a field."""

    name: str
    max_items: int | None
    """None if the field is not repeated."""
    max_len: int | None
    """Characters of a text, or bytes; None for messages."""
    too_long: str
    """The description of a violation of `max_len`."""
    inside: Sequence[_Field]
    """The limits inside a message."""

    @property
    def longest(self) -> int:
        """The greatest length of a text in it."""
        return max([self.max_len or 0, *(field.longest for field in self.inside)])


def _exceeded(message: Any, fields: Sequence[_Field], above: Path) -> Iterator[Fault]:
    for field in fields:
        path = (*above, field.name)
        if field.max_items is not None:
            values = getattr(message, field.name)
            if len(values) > field.max_items:
                yield path, too_many(field.max_items)
                continue
            for index, value in enumerate(values):
                yield from _exceeded_in(value, field, (*path, index))
        # Reading an unset message would create it.
        elif field.max_len is not None or message.HasField(field.name):
            yield from _exceeded_in(getattr(message, field.name), field, path)


def _exceeded_in(value: Any, field: _Field, path: Path) -> Iterator[Fault]:
    if field.max_len is None:
        yield from _exceeded(value, field.inside, path)
    elif len(value) > field.max_len:
        yield path, field.too_long


def too_many(max_items: int) -> str:
    """The description of a violation of `max_items`."""
    return f"must contain no more than {max_items} item(s)"


def _fields(message_type: Descriptor, limits: _Limits, above: tuple[Descriptor, ...]) -> list[_Field]:
    """The fields that have limits. `limits` are those of a type from another project, by field."""
    if message_type in above:
        raise Unbounded(f"{message_type.full_name} contains itself")
    above = (*above, message_type)
    made = (_field(field, limits.get(field.name, validation_pb2.Limit()), above) for field in message_type.fields)
    return [field for field in made if field.max_items is not None or field.max_len is not None or field.inside]


def _field(field: FieldDescriptor, limit: validation_pb2.Limit, above: tuple[Descriptor, ...]) -> _Field:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    max_items = None
    if field.is_repeated:
        max_items = _bound(field, limit, rules.repeated, "max_items")
        rules = rules.repeated.items
    if field.message_type is not None:
        declared = field.GetOptions().Extensions[validation_pb2.limits]
        limits = {each.field: each for each in (*_WELL_KNOWN.get(field.message_type.full_name, ()), *declared)}
        inside = _fields(field.message_type, limits, above) if max_items != 0 else []
        return _Field(field.name, max_items, None, "", inside)
    if field.type == field.TYPE_BYTES:
        max_len = _bound(field, limit, rules.bytes, "max_len")
        return _Field(field.name, max_items, max_len, f"must be at most {max_len} bytes", ())
    if field.type != field.TYPE_STRING:
        return _Field(field.name, max_items, None, "", ())
    if rules.string.uuid:
        return _Field(field.name, max_items, _UUID_LENGTH, "must be a valid UUID", ())
    if rules.string.Extensions[validation_pb2.uuid_or_me]:
        return _Field(field.name, max_items, _UUID_LENGTH, "must be a UUID or `me`", ())
    max_len = _bound(field, limit, rules.string, "max_len")
    return _Field(field.name, max_items, max_len, f"must be at most {max_len} characters", ())


def _bound(field: FieldDescriptor, limit: validation_pb2.Limit, rules: Message, name: str) -> int:
    for declared in (limit, rules):
        if declared.HasField(name):
            bound: int = getattr(declared, name)
            return bound
    raise Unbounded(f"{field.full_name} has no {name}, neither in its rules nor in (commerce.validation.v1.limits)")
