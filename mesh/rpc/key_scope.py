"""The scope of the idempotency keys of anonymous callers, declared in the contract as a method option.

The key of any other caller is scoped by the caller (`mesh.db.idempotency`). Two anonymous callers may choose the same
key, so fields of the request must separate them.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from commerce.access.v1 import access_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor

KeyScope = Callable[[Message], bytes]
"""Returns 32 bytes, which are equal for requests with the same intent."""


class KeyScopeUndeclared(Exception):
    """The contract declares no scope for the keys of a method's anonymous callers, so the server must not start."""


def key_scope_of(method: MethodDescriptor) -> KeyScope:
    """The scope that a changing public method declares. Raises KeyScopeUndeclared."""
    names = method.GetOptions().Extensions[access_pb2.anonymous_key_scope]
    if not names:
        raise KeyScopeUndeclared(f"{method.full_name} declares no (commerce.access.v1.anonymous_key_scope)")
    fields = [_field(method, name) for name in names]

    def scope(request: Message) -> bytes:
        # A digest of each value, so that no two lists of values have the same concatenation.
        values = (blake2b(_text(getattr(request, field.name)), digest_size=32).digest() for field in fields)
        return blake2b(b"".join(values), digest_size=32).digest()

    return scope


def _field(method: MethodDescriptor, name: str) -> FieldDescriptor:
    field = method.input_type.fields_by_name.get(name)
    if field is None or field.is_repeated or field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
        raise KeyScopeUndeclared(f"{method.full_name} has no single text or message {name!r} to scope keys by")
    return field


def _text(value: str | Message) -> bytes:
    return value.lower().encode() if isinstance(value, str) else value.SerializeToString(deterministic=True)
