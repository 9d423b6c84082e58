"""The payloads of events, decoded with the contracts."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.events.cloudevents import payloads


def decoded(event_type: str, data: bytes) -> dict[str, Any]:
    """The payload as JSON objects.

    What these contracts do not know is shown too: `@unknownFields` has the numbers of the fields that a newer version
    has added at the top, and `@undecoded` the bytes (base64) of a payload of an unknown type, or of none.
    """
    payload = payloads().get(event_type)
    if payload is None:
        return _undecoded(data)
    try:
        message = payload.FromString(data)
    except DecodeError:
        return _undecoded(data)
    found: dict[str, Any] = json_format.MessageToDict(message)
    fields: Iterable[Any] = UnknownFieldSet(message)  # type: ignore[assignment]  # its types leave out that it is one
    unknown = sorted({field.field_number for field in fields})
    return {**found, "@unknownFields": unknown} if unknown else found


def _undecoded(data: bytes) -> dict[str, Any]:
    return {"@undecoded": base64.b64encode(data).decode()}
