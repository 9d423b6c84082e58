"""The reply of a changing call: created once, stored under the call's key, and sent.

    rpc.py      Change(call, encode)          the call, and the conversion of its result to a message
    use case    async with units.once(change) as work: … return work.reply(result)
    database    key, request hash and `Reply.wire` are written in the transaction of the effect
    chain       sends `Reply.wire`; for a second call with the same key `once` raises `Replay` with the stored bytes

A reply with a secret is never stored: such a method takes no `Change` and returns its message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.db.idempotency import IdempotencyKey
    from mesh.observe.trace import Trace
    from mesh.rpc.call import Call, Caller

R = TypeVar("R")


class Reply(NamedTuple, Generic[R]):
    """The result of a change, and the bytes that are stored and sent for it."""

    value: R
    wire: bytes


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
    """A call that changes something, and the conversion of its result to the reply."""

    call: Call
    to_message: Callable[[R], Message]

    @property
    def caller(self) -> Caller:
        """The caller."""
        return self.call.caller

    @property
    def trace(self) -> Trace:
        """The trace of the change and its events."""
        return self.call.trace

    @property
    def key(self) -> IdempotencyKey | None:
        """The key under which the reply is stored; None if the caller sent none."""
        return self.call.key

    def reply(self, result: R) -> Reply[R]:
        """The reply for `result`."""
        return Reply(result, self.to_message(result).SerializeToString())


def to_wire(reply: Message | Reply[Any]) -> bytes:
    """The bytes of a servicer's reply."""
    return reply.wire if isinstance(reply, Reply) else reply.SerializeToString()
