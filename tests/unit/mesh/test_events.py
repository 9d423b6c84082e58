"""Events get their type from the contract of their payload, and consumers their table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from commerce.events.v1 import event_pb2
from commerce.order.v1 import events_pb2, order_pb2
from mesh.db.unit_of_work import UnitOfWork
from mesh.events.cloudevents import Event, EventUndeclared, Received, stream_of, type_of
from mesh.events.consumers import Handler, handlers
from ops import event_reference

ORDER = UUID(int=1)


async def apply(work: UnitOfWork, events: Sequence[Received[Any]]) -> None: ...


def test_an_event_has_the_type_and_stream_of_its_contract() -> None:
    payload = events_pb2.OrderPlaced(order=order_pb2.Order(id=str(ORDER)))
    assert Event.of(ORDER, 3, payload) == Event("commerce.order.placed", ORDER, 3, payload)
    assert type_of(events_pb2.OrderPlaced) == "commerce.order.placed"
    assert stream_of(events_pb2.OrderPlaced) == "ORDERS"


def test_a_payload_that_declares_no_event_is_an_error_with_its_name() -> None:
    with pytest.raises(EventUndeclared, match=r"commerce\.order\.v1\.Order declares no"):
        Event.of(ORDER, 1, order_pb2.Order())
    with pytest.raises(EventUndeclared, match=r"commerce\.order\.v1\.Order declares no"):
        stream_of(order_pb2.Order)
    with pytest.raises(EventUndeclared, match=r"commerce\.order\.v1\.Order declares no"):
        handlers(Handler(order_pb2.Order, apply))


def test_a_table_of_handlers_keeps_their_order() -> None:
    cancelled, placed = Handler(events_pb2.OrderCancelled, apply), Handler(events_pb2.OrderPlaced, apply)
    table = handlers(cancelled, placed)
    assert list(table.items()) == [("commerce.order.cancelled", cancelled), ("commerce.order.placed", placed)]


def test_a_table_has_one_handler_for_each_type() -> None:
    with pytest.raises(ValueError, match="two handlers"):
        handlers(Handler(events_pb2.OrderPlaced, apply), Handler(events_pb2.OrderPlaced, apply))


def test_consumers_are_read_from_the_tables_of_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parcel", "till", "silent"):
        (tmp_path / f"{name}_svc").mkdir()
        (tmp_path / f"{name}_svc" / "__init__.py").touch()
    (tmp_path / "parcel_svc" / "consumers.py").write_text(
        "from commerce.order.v1 import events_pb2\n"
        "from mesh.events.consumers import Handler, handlers\n"
        "def orders(parcels):\n"
        "    return handlers(Handler(events_pb2.OrderConfirmed, parcels.send))\n"
        "def cancelled(parcels, returns):\n"
        "    return handlers(Handler(events_pb2.OrderCancelled, returns.expect))\n"
    )
    (tmp_path / "till_svc" / "consumers.py").write_text(
        "from commerce.order.v1 import events_pb2\n"
        "from mesh.events.consumers import Handler, handlers\n"
        "def orders(till):\n"
        "    return handlers(Handler(events_pb2.OrderCancelled, till.apply))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert event_reference.consumers(("till", "parcel", "silent")) == {
        "commerce.order.v1.OrderConfirmed": ["parcel"],
        "commerce.order.v1.OrderCancelled": ["till", "parcel"],
    }


def test_the_reference_shows_each_event_with_its_consumers() -> None:
    file = FileDescriptorProto(package="commerce.parcel.v1", message_type=[DescriptorProto(name="ParcelSent")])
    declared = file.message_type[0].options.Extensions[event_pb2.event]
    declared.type, declared.stream, declared.aggregate = "commerce.parcel.sent", "PARCELS", "parcel.id"
    file.source_code_info.location.add(
        path=[4, 0], leading_comments=" ParcelSent is published when a parcel leaves\n the house. It is final.\n"
    )
    events = event_reference.events(FileDescriptorSet(file=[file]))
    text = event_reference.reference(events, {"commerce.parcel.v1.ParcelSent": ["till", "order"]})
    assert text.endswith(
        "## PARCELS\n\n"
        "| type | subject | published when | payload | consumers |\n|---|---|---|---|---|\n"
        "| `commerce.parcel.sent` | `commerce.parcel.sent.{parcel.id}` | A parcel leaves the house. It is final. "
        "| `commerce.parcel.v1.ParcelSent` | order, till |\n"
    )
    assert "| none |" in event_reference.reference(events, {})
