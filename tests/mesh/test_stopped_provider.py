"""The process of one payment provider is stopped, as SIGSTOP does it. Orders are paid by another one meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from commerce.order.v1 import order_pb2
from stack.servers import Servers
from tests.mesh.house import house
from tests.processes import ROOT
from tests.services import Keys
from tests.stripe.servers import SECRET_KEY, WEBHOOK_SECRET

ORDERS = 20


@dataclass
class FarStripe:
    """Our own fake of Stripe in a process of its own, and a payment method there."""

    process: asyncio.subprocess.Process
    url: str
    method: str

    async def paid_orders(self) -> list[str]:
        """The ids of the orders for which it has taken money, one for each charge."""
        async with httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {SECRET_KEY}"}) as client:
            reply = await client.get("/v1/payment_intents", params={"limit": 100})
        return [each["metadata"]["order_id"] for each in reply.json()["data"] if each["status"] == "succeeded"]


@pytest.fixture
async def far() -> AsyncIterator[FarStripe]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.stripe.process", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url, method = (await process.stdout.readline()).decode().split()
    yield FarStripe(process, url, method)
    process.kill()
    await process.wait()


async def test_orders_are_paid_while_the_process_of_another_provider_is_stopped(
    servers: Servers, keys: Keys, far: FarStripe
) -> None:
    stripe: dict[str, Any] = {
        "payment_providers": ("stripe", "sandbox"),
        "stripe_secret_key": SecretStr(SECRET_KEY),
        "stripe_api_url": far.url,
    }
    # Less room than there are orders, so that those of the stopped provider would fill it if it were shared.
    room = {"provider_calls": 8, "payment_queue": 10}
    payment = {**stripe, **room, "stripe_webhook_secret": SecretStr(WEBHOOK_SECRET)}
    async with house(servers, keys, customer=stripe, payment=payment) as mesh:
        waiting, other = await mesh.buyer(far.method), await mesh.buyer("tok_visa", provider="sandbox")
        product = await mesh.product(2 * ORDERS)
        far.process.send_signal(signal.SIGSTOP)
        held_up = [(await mesh.order(waiting, {product: 1})).id for _ in range(ORDERS)]
        paid = [(await mesh.order(other, {product: 1})).id for _ in range(ORDERS)]
        for each in paid:
            assert (await mesh.decided(other, each)).status == order_pb2.ORDER_STATUS_CONFIRMED
        assert {(await mesh.read(waiting, each)).status for each in held_up} == {order_pb2.ORDER_STATUS_PENDING}
        far.process.send_signal(signal.SIGCONT)
        for each in held_up:
            assert (await mesh.decided(waiting, each)).status == order_pb2.ORDER_STATUS_CONFIRMED
        assert sorted(await far.paid_orders()) == sorted(held_up)
