"""Events on the wire: CloudEvents 1.0 in binary mode over NATS.

The context goes into headers (`ce-id`, `ce-type`, …), the payload is a protobuf message. The subject is
`<type>.<aggregate id>`, the type `commerce.<area>.<event>`, the stream `<AREA>S`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar
from uuid import UUID

from mesh.ids import parse_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

P = TypeVar("P")


class Event(NamedTuple):
    """Something that happened to an aggregate, to be published.

    `sequence` is the version of the aggregate after the event. It increases with each event, so events can be ordered.
    """

    type: str
    aggregate_id: UUID
    sequence: int
    payload: Message


class Received(NamedTuple, Generic[P]):
    """An event that a consumer applies. `payload` is its message, or the value that the message is translated to."""

    id: UUID
    type: str
    aggregate_id: UUID
    sequence: int
    traceparent: str
    payload: P


def stream_of(event_type: str) -> str:
    """The stream of the events of this type: `commerce.order.placed` is in ORDERS."""
    return f"{event_type.split('.')[1].upper()}S"


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
