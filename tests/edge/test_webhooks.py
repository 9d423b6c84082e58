"""Webhooks as a provider sends them: through the edge, over raw bytes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import httpx

from mesh.ids import new_id
from payment_svc.providers.sandbox.signatures import sign
from stack.state import State
from tests.running import Json, RunningMesh, reason_of
from tests.services import eventually


async def send(mesh: RunningMesh, body: bytes, *, signed: bytes | None = None, event_id: str = "") -> httpx.Response:
    """Send a webhook of the sandbox; `signed` are other bytes than those that are sent."""
    secret = json.loads(State(mesh.state).passwords.read_text())["sandbox webhooks"]
    headers = sign(secret, event_id or str(new_id()), body if signed is None else signed, now=datetime.now(UTC))
    headers["content-type"] = "application/json"
    return await mesh.http.post("/v1/paymentWebhooks/sandbox", content=body, headers=headers)


async def test_edge_passes_the_bytes_of_a_webhook_unchanged_and_its_refusal_as_json(mesh: RunningMesh) -> None:
    for body in (b'{ "data":{},\r\n\t"type" : "\\u00e9"}\n', b"\0\x1f\x8b not JSON \xff", "…é".encode()):
        accepted = await send(mesh, body)
        assert (accepted.status_code, accepted.json()) == (200, {})
        refused = await send(mesh, body, signed=body.strip() + b" ")
        assert (refused.status_code, reason_of(refused)) == (401, "WEBHOOK_SIGNATURE_INVALID")


async def test_sandbox_tells_of_a_dispute_by_webhook_and_nothing_else_moves(mesh: RunningMesh) -> None:
    shopper, product = await mesh.shopper("tok_dispute"), await mesh.product(10)
    order = (await shopper.order({product: 1})).json()["id"]
    confirmed = await shopper.decided(order)
    assert confirmed["status"] == "ORDER_STATUS_CONFIRMED"

    async def disputed() -> Json | None:
        payment = await mesh.ok("GET", f"/v1/orders/{order}/payment", token=shopper.token)
        return payment if payment.get("disputeTime") else None

    payment = await eventually(disputed)
    assert (payment["status"], payment["refundedAmount"]["units"]) == ("PAYMENT_STATUS_CAPTURED", "0")
    listed = await mesh.ok("GET", f"/v1/payments/{payment['id']}/entries", token=mesh.staff_token)
    types = [entry["type"].removeprefix("PAYMENT_ENTRY_TYPE_") for entry in listed["entries"]]
    assert types == ["CAPTURE", "DISPUTE"]
    assert await shopper.decided(order) == confirmed
    timeline = await mesh.ok("GET", f"/v1/orders/{order}/timeline", token=shopper.token)
    assert "commerce.payment.disputed" in [event["type"] for event in timeline["events"]]
    [webhook] = await mesh.sql("payment_svc", "SELECT * FROM webhooks WHERE payment_id = $1", UUID(payment["id"]))
    assert webhook["type"] == "dispute.created"
