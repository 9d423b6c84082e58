"""Events on the wire: CloudEvents 1.0 in binary mode over NATS.

The context goes into headers (`ce-id`, `ce-type`, …), the payload is a protobuf message. Its contract declares the type
`commerce.<area>.<event>` and the stream `<AREA>S`. The subject is `<type>.<aggregate id>`.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
from uuid import UUID

import commerce
from commerce.events.v1 import event_pb2
from mesh.ids import parse_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

P = TypeVar("P")


class EventUndeclared(TypeError):
    """The contract of a message does not declare that it is the payload of an event."""


class Event(NamedTuple):
    """Something that happened to an aggregate, to be published.

    `sequence` is the version of the aggregate after the event. It increases with each event, so events can be ordered.
    """

    type: str
    aggregate_id: UUID
    sequence: int
    payload: Message

    @classmethod
    def of(cls, aggregate_id: UUID, sequence: int, payload: Message) -> Event:
        """The event with this payload. Raises EventUndeclared when the contract does not declare its type."""
        return cls(_declared(payload.DESCRIPTOR).type, aggregate_id, sequence, payload)


class Received(NamedTuple, Generic[P]):
    """An event that a consumer applies. `payload` is its message, or the value that the message is translated to."""

    id: UUID
    type: str
    aggregate_id: UUID
    sequence: int
    traceparent: str
    payload: P


def type_of(payload: type[Message]) -> str:
    """The type of the events with this payload. Raises EventUndeclared when its contract declares none."""
    return _declared(payload.DESCRIPTOR).type


def stream_of(payload: type[Message]) -> str:
    """The stream that holds the events with this payload. Raises EventUndeclared when its contract declares none."""
    return _declared(payload.DESCRIPTOR).stream


@cache
def payloads() -> Mapping[str, type[Message]]:
    """The payloads of all events that the contracts declare, by type."""
    areas = (area.name for area in pkgutil.iter_modules(commerce.__path__))
    names = (f"commerce.{area}.v1.events_pb2" for area in areas)
    modules = (importlib.import_module(name) for name in names if importlib.util.find_spec(name))
    return {
        _declared(message).type: getattr(module, name)
        for module in modules
        for name, message in module.DESCRIPTOR.message_types_by_name.items()
        if message.GetOptions().HasExtension(event_pb2.event)
    }


@cache
def _declared(payload: Descriptor) -> event_pb2.Event:
    options = payload.GetOptions()
    if not options.HasExtension(event_pb2.event):
        raise EventUndeclared(f"{payload.full_name} declares no (commerce.events.v1.event)")
    return options.Extensions[event_pb2.event]


def stream_of_area(area: str) -> str:
    """The stream that holds all events of an area: those of `order` are in ORDERS."""
    return f"{area.upper()}S"


def headers(
    *, event_id: UUID, event_type: str, source: str, aggregate_id: UUID, sequence: int, time: datetime, traceparent: str
) -> dict[str, str]:
    """The headers of an event. The stream uses `Nats-Msg-Id` to drop a second copy."""
    return {
        "Nats-Msg-Id": str(event_id),
        "ce-specversion": "1.0",
        "ce-id": str(event_id),
        "ce-type": event_type,
        "ce-source": f"//commerce-mesh/{source}",
        "ce-subject": str(aggregate_id),
        "ce-time": time.isoformat(),
        "ce-sequence": str(sequence),
        "ce-datacontenttype": "application/protobuf",
        "traceparent": traceparent,
    }


def received(header: Mapping[str, str], payload: P) -> Received[P]:
    """The event of a message with these headers. Raises KeyError or ValueError if it is not an event of the mesh."""
    return Received(
        parse_id(header["ce-id"]),
        header["ce-type"],
        parse_id(header["ce-subject"]),
        int(header["ce-sequence"]),
        header.get("traceparent", ""),
        payload,
    )
