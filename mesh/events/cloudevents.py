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

    `sequence` is the aggregate's version after it: it grows by event, and tells a consumer which of two is newer.
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
    """The stream that holds events of this type: `commerce.order.placed` is in ORDERS."""
    return f"{event_type.split('.')[1].upper()}S"


def headers(
    *, event_id: UUID, event_type: str, source: str, aggregate_id: UUID, sequence: int, time: datetime, traceparent: str
) -> dict[str, str]:
    """The headers of an event. `Nats-Msg-Id` lets the stream drop a second copy that comes soon after the first."""
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
    """The event behind a message's headers. Raises KeyError or ValueError when it is not one of ours."""
    return Received(
        parse_id(header["ce-id"]),
        header["ce-type"],
        parse_id(header["ce-subject"]),
        int(header["ce-sequence"]),
        header.get("traceparent", ""),
        payload,
    )
