"""The process of one provider is stopped, as SIGSTOP does it; orders are paid by another one meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.payment.process import House, method_of, order
from tests.services import eventually
from tests.stripe.servers import SECRET_KEY, provider_at

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Far:
    """Our own fake of Stripe, in a process of its own, and the token of a card there."""

    process: asyncio.subprocess.Process
    url: str
    token: str


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.stripe.process", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    url, token = (await process.stdout.readline()).decode().split()
    yield Far(process, url, token)
    process.kill()
    await process.wait()


async def test_stopped_process_of_a_provider_delays_no_payment_of_another(house: House, far: Far) -> None:
    house.wallets.tokens[method_of("card")] = far.token
    waiting, others = [order("card", provider="stripe") for _ in range(20)], [order() for _ in range(20)]
    async with provider_at(far.url) as stripe:
        process = await house.process(others={"stripe": stripe}, at_a_time=8, most=10, timeout=30)
        far.process.send_signal(signal.SIGSTOP)
        await process.placed(*waiting)

        async def given_up() -> bool:
            await process.sweep()
            return not process.called["stripe"].is_available

        await eventually(given_up)
        await process.placed(*others)
        for each in others:
            await house.becomes(each, "CAPTURED", sweeper=process)
        assert {await house.status(each) for each in waiting} == {"PENDING"}
        far.process.send_signal(signal.SIGCONT)
        for each in waiting:
            await house.becomes(each, "CAPTURED", sweeper=process)
        async with httpx.AsyncClient(base_url=far.url, headers={"Authorization": f"Bearer {SECRET_KEY}"}) as client:
            reply = await client.get("/v1/payment_intents", params={"limit": 100})
        paid = [each["metadata"]["order_id"] for each in reply.json()["data"] if each["status"] == "succeeded"]
        assert sorted(paid) == sorted(each.order.id for each in waiting)
        await process.kill()
