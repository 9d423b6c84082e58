"""Webhooks as a provider sends them: through the edge, over raw bytes."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import httpx
import pytest

from mesh.ids import new_id
from payment_svc.providers.sandbox.signatures import sign
from stack.state import State
from tests.running import BUSY, Json, RunningMesh, reason_of
from tests.services import eventually, new_key


async def send(
    mesh: RunningMesh,
    body: bytes,
    *,
    signed: bytes | None = None,
    event_id: str = "",
    client: httpx.AsyncClient | None = None,
) -> httpx.Response:
    """Send a webhook of the sandbox; `signed` are other bytes than those that are sent."""
    secret = json.loads(State(mesh.state).passwords.read_text())["sandbox webhooks"]
    headers = sign(secret, event_id or str(new_id()), body if signed is None else signed, now=datetime.now(UTC))
    headers["content-type"] = "application/json"
    return await (client or mesh.http).post("/v1/paymentWebhooks/sandbox", content=body, headers=headers)


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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [25, pytest.param(100, marks=pytest.mark.slow)])
async def test_repeated_webhooks_in_any_order_change_nothing_also_when_the_service_is_killed(
    mesh: RunningMesh, number: int
) -> None:
    shopper, product = await mesh.shopper("tok_visa"), await mesh.product(10)
    order = (await shopper.order({product: 2})).json()["id"]
    await shopper.decided(order)
    await mesh.stock_is(product, on_hand=8)
    payment = await mesh.ok("GET", f"/v1/orders/{order}/payment", token=shopper.token)
    refund = {"amount": {"currencyCode": "EUR", "units": "5"}, "reason": "damaged"}
    path = f"/v1/payments/{payment['id']}"
    refunded = await mesh.ok("POST", f"{path}:refund", refund, token=mesh.staff_token, key=new_key())

    async def state() -> list[Json]:
        reads = (path, f"{path}/entries", f"/v1/orders/{order}", f"/v1/products/{product}/stock")
        return [await mesh.ok("GET", each, token=mesh.staff_token) for each in reads]

    before = await state()
    assert before[0]["status"] == "PAYMENT_STATUS_PARTIALLY_REFUNDED"
    charge, refund_id = {"charge_key": f"payment-{payment['id']}"}, refunded["refund"]["id"]
    of_refund = {"refund_key": f"refund-{refund_id}"}
    told = [("captured", charge), ("refunded", of_refund), ("captured", charge), ("failed", charge)]
    events = {
        f"{payment['id']}-{index}": json.dumps({"type": f"charge.{kind}", "data": data}).encode()
        for index, (kind, data) in enumerate(told)
    }
    copies = [*events.items()] * number
    random.Random(24).shuffle(copies)
    sent, quarter = itertools.count(1), asyncio.Event()

    async def connection(share: Sequence[tuple[str, bytes]]) -> None:
        async with httpx.AsyncClient(base_url=mesh.edge, timeout=30) as client:
            for event_id, body in share:
                await eventually(partial(accepted, client, event_id, body))
                if next(sent) == len(copies) // 4:
                    quarter.set()

    async def accepted(client: httpx.AsyncClient, event_id: str, body: bytes) -> bool:
        """Send a webhook as a provider does, which sends it again unless it is accepted."""
        try:
            answer = await send(mesh, body, event_id=event_id, client=client)
        except httpx.TransportError:
            return False
        assert answer.status_code == 200 or answer.status_code in BUSY, answer.text
        return answer.status_code == 200

    async def kill() -> None:
        await quarter.wait()
        await mesh.kill("payment")

    await asyncio.gather(kill(), *(connection(copies[index::8]) for index in range(8)))

    async def applied() -> bool:
        query = "SELECT status FROM webhooks WHERE payment_id = $1 OR refund_id = $2"
        rows = await mesh.sql("payment_svc", query, UUID(payment["id"]), UUID(refund_id))
        assert len(rows) == len(events)
        return {row["status"] for row in rows} == {"APPLIED"}

    assert await eventually(applied)
    assert await state() == before
