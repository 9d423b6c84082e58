"""How the sandbox signs its webhooks: as the specification Standard Webhooks says (standardwebhooks.com).

The headers are `webhook-id`, the same each time that an event is sent; `webhook-timestamp`, in seconds since 1970; and
`webhook-signature`, `v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64. Several signatures, such as while a
secret is replaced, are separated by spaces. The key is the secret itself, in UTF-8.
"""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime

ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
"""The headers."""
TOLERANCE_S = 300
"""How old a signature may be, or how far in the future."""
_VERSION = "v1,"


def sign(secret: str, event_id: str, body: bytes, *, now: datetime) -> dict[str, str]:
    """The headers of a webhook."""
    timestamp = str(int(now.timestamp()))
    return {ID: event_id, TIMESTAMP: timestamp, SIGNATURE: _signature(secret, event_id, timestamp, body)}


def is_signed(secret: str, headers: Mapping[str, str], body: bytes, *, now: datetime) -> bool:
    """Whether the headers, with names in lower case, have a signature of this body that is not too old."""
    event_id, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
    if not secret or not event_id or not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        return False
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE_S:
        return False
    expected = _signature(secret, event_id, timestamp, body).encode()
    return any(hmac.compare_digest(expected, each.encode()) for each in headers.get(SIGNATURE, "").split(" "))


def _signature(secret: str, event_id: str, timestamp: str, body: bytes) -> str:
    signed = hmac.digest(secret.encode(), f"{event_id}.{timestamp}.".encode() + body, "sha256")
    return f"{_VERSION}{b64encode(signed).decode()}"
