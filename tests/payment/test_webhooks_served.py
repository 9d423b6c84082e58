"""ReceiveWebhook over gRPC: signed bytes are accepted, anything else is refused by name and counted."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from google.api.httpbody_pb2 import HttpBody

from commerce.payment.v1 import payment_pb2
from mesh.ids import new_id
from payment_svc.providers.sandbox.signatures import TOLERANCE_S, sign
from tests.payment.process import WEBHOOK_SECRET, House
from tests.payment.served import Wire, stub
from tests.services import new_key, refused

BODY = b'{"type": "charge.captured", "data": {}}'


def signed(body: bytes = BODY, *, secret: str = WEBHOOK_SECRET, age: int = 0) -> dict[str, str]:
    return sign(secret, str(new_id()), body, now=datetime.now(UTC) - timedelta(seconds=age))


async def receive(wire: Wire, headers: dict[str, str], body: bytes = BODY, provider: str = "sandbox") -> None:
    request = payment_pb2.ReceiveWebhookRequest(provider=provider, payload=HttpBody(data=body))
    await wire.gateway(stub(wire.gateway).ReceiveWebhook, request, metadata=tuple(headers.items()), key=new_key())


@pytest.mark.parametrize("body", [BODY, b"\0raw\xff", b"[]", b'{"type": 5, "data": []}', b"x" * 262_144])
async def test_signed_webhook_is_accepted_whatever_its_body(wire: Wire, body: bytes) -> None:
    headers = signed(body)
    for _ in range(2):
        await receive(wire, headers, body)
    headers["webhook-signature"] = f"v1,bm90aGluZw== {headers['webhook-signature']}"
    await receive(wire, headers, body)


@pytest.mark.parametrize(
    "changed",
    [
        lambda: {"webhook-signature": ""},
        lambda: {"webhook-signature": "v1,abc"},
        lambda: {"webhook-signature": signed(secret="another")["webhook-signature"]},
        lambda: {"webhook-id": "another"},
        lambda: {"webhook-id": ""},
        lambda: {"webhook-timestamp": "1"},
        lambda: {"webhook-timestamp": "soon"},
        lambda: {"webhook-timestamp": "9" * 5000},
        lambda: signed(b"another body"),
        lambda: signed(secret=""),
        lambda: signed(age=TOLERANCE_S + 60),
        lambda: signed(age=-TOLERANCE_S - 600),
    ],
)
async def test_webhook_without_a_valid_signature_is_refused(wire: Wire, changed: Callable[[], dict[str, str]]) -> None:
    error = await refused(receive(wire, {**signed(), **changed()}))
    assert (error.code.name, error.reason) == ("UNAUTHENTICATED", "WEBHOOK_SIGNATURE_INVALID")


async def test_webhook_is_refused_if_its_provider_is_not_there_or_it_is_too_large(wire: Wire) -> None:
    error = await refused(receive(wire, signed(), provider="nobody"))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "PROVIDER_NOT_FOUND")
    large = b"x" * 262_145
    error = await refused(receive(wire, signed(large), large))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")


async def test_webhooks_without_a_valid_signature_are_counted_and_not_stored(house: House) -> None:
    process, event_id = await house.process(), str(new_id())
    for _ in range(3):
        error = await refused(process.webhook(event_id, {}, secret="another"))
        assert error.reason == "WEBHOOK_SIGNATURE_INVALID"
    assert process.webhooks.refused == {"sandbox": 3}
    assert not await house.connection.fetchval("SELECT count(*) FROM webhooks WHERE event_id = $1", event_id)
