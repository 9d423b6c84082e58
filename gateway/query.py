"""The query parameters of the methods, derived from the contracts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

Parameter = Mapping[str, Any]
"""The `type` of a parameter as the text after "must be"; of an enum also its `values`."""

_TYPES = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_INT32: "a 32-bit integer",
    FieldDescriptor.TYPE_INT64: "a 64-bit integer",
}
_IN_TEXT_FORM = {"google.protobuf.FieldMask", "google.protobuf.Timestamp", "google.protobuf.Duration"}


def parameters(request: Descriptor, rule: HttpRule, in_path: frozenset[str]) -> dict[str, Parameter]:
    """The fields that are neither in the path nor in the body, by each name that the transcoder accepts.

    Raises ValueError for a field whose values the edge cannot check.
    """
    found = {}
    for path in fields(request, rule.body, in_path):
        parameter = _parameter(path[-1])
        found[".".join(field.name for field in path)] = parameter
        found[".".join(field.json_name for field in path)] = parameter
    return found


def fields(request: Descriptor, body: str, in_path: frozenset[str]) -> Iterator[tuple[FieldDescriptor, ...]]:
    """The fields that are neither in the path nor in the body, each as a path from the request."""
    if body != "*":
        for path in _leaves(request):
            if ".".join(field.name for field in path) not in in_path and path[0].name != body:
                yield path


def _leaves(message: Descriptor, above: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    """The fields that a query can set, each as a path from the request; repeated messages cannot be set."""
    for field in message.fields:
        path = (*above, field)
        if field.message_type is None or field.message_type.full_name in _IN_TEXT_FORM:
            yield path
        elif not field.is_repeated and field.message_type not in [outer.message_type for outer in above]:
            yield from _leaves(field.message_type, path)


def _parameter(field: FieldDescriptor) -> Parameter:
    if field.enum_type is not None:
        return {"type": f"a value of {field.enum_type.name}", "values": dict.fromkeys(_values(field.enum_type), True)}
    if field.message_type is not None:
        return {"type": "text"}
    if field.type not in _TYPES:
        raise ValueError(f"the edge cannot check {field.full_name} as a query parameter")
    return {"type": _TYPES[field.type]}


def _values(enum: EnumDescriptor) -> Iterator[str]:
    for value in enum.values:
        yield value.name
        yield str(value.number)
