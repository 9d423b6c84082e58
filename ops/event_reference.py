"""The reference of events in `docs/events.md`, made of the contracts and of the services' tables of consumers."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from commerce.events.v1 import event_pb2
from stack.services import NAMES

_INTRODUCTION = """\
# Events

`mesh contracts generate` makes this file from the contracts in `proto/` and from the `consumers.py` of each service.

Every event is a CloudEvent in binary mode: its attributes are headers, such as `ce-type`, and its payload is a protobuf
message. A service publishes it to a JetStream stream. Its subject is its type, followed by the id of its aggregate.
"""
_HEAD = "| type | subject | published when | payload | consumers |\n|---|---|---|---|---|\n"


class ContractEvent(NamedTuple):
    """An event that the contracts declare."""

    type: str
    stream: str
    aggregate: str
    """The path of the field that has the id of the aggregate."""
    payload: str
    """The full name of the message."""
    comment: str
    """The comment of the message, in one line. Empty if the descriptors have no comments."""


def events(descriptors: FileDescriptorSet) -> list[ContractEvent]:
    """All events that these contracts declare."""
    return [event for file in descriptors.file for event in _events(file)]


def _events(file: FileDescriptorProto) -> Iterator[ContractEvent]:
    comments = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
    for number, message in enumerate(file.message_type):
        if message.options.HasExtension(event_pb2.event):
            declared = message.options.Extensions[event_pb2.event]
            comment = comments.get((FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, number), "")
            yield ContractEvent(
                declared.type,
                declared.stream,
                declared.aggregate,
                f"{file.package}.{message.name}",
                " ".join(comment.split()),
            )


def consumers(services: Sequence[str] = NAMES) -> dict[str, list[str]]:
    """The services that consume each payload, by its full name. Their tables are the public functions of
    `consumers.py`."""
    found = defaultdict[str, list[str]](list)
    for service in services:
        if find_spec(f"{service}_svc.consumers") is not None:
            module = import_module(f"{service}_svc.consumers")
            for name, table in vars(module).items():
                if inspect.isfunction(table) and table.__module__ == module.__name__ and name[0] != "_":
                    handlers = table(*(_Named() for _ in inspect.signature(table).parameters))
                    for handler in handlers.values():
                        found[handler.payload.DESCRIPTOR.full_name].append(service)
    return found


class _Named:
    """In place of the use cases of a service: each attribute is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


def reference(declared: Sequence[ContractEvent], consumed_by: Mapping[str, Sequence[str]]) -> str:
    """The text of `docs/events.md`."""
    streams = defaultdict[str, list[ContractEvent]](list)
    for event in declared:
        streams[event.stream].append(event)
    return _INTRODUCTION + "".join(
        f"\n## {stream}\n\n{_HEAD}" + "".join(_row(event, consumed_by.get(event.payload, ())) for event in those)
        for stream, those in sorted(streams.items())
    )


def _row(event: ContractEvent, services: Sequence[str]) -> str:
    when = event.comment.removeprefix(f"{event.payload.rpartition('.')[2]} is published when ")
    cells = (
        f"`{event.type}`",
        f"`{event.type}.{{{event.aggregate}}}`",
        when[:1].upper() + when[1:],
        f"`{event.payload}`",
        ", ".join(sorted(services)) or "none",
    )
    return f"| {' | '.join(cells)} |\n"
