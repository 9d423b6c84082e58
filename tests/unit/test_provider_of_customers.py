"""Calls of the customer service to payment providers: bounded in number and time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from customer_svc.domain import Card, ProviderTokenUnknown, ProviderUnavailable
from customer_svc.providers import Bounded
from mesh.rpc.breaker import State
from tests.services import eventually

ADA = uuid4()
NOW = datetime(2026, 11, 28, tzinfo=UTC)
CARD = Card("far", "visa", "4242", 1, 2040, "tok_visa")


class Far:
    """A provider that a test stops and continues."""

    currencies: Collection[str] = ()

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.asked = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def probe(self) -> None:
        await self.goes_on.wait()

    async def describe(self, token: str, customer_id: UUID, now: datetime) -> Card:  # noqa: ARG002  # as the protocol has it
        self.asked += 1
        if token == "tok_broken":
            raise ConnectionResetError(token)
        if token != "tok_visa":
            raise ProviderTokenUnknown("far")
        await self.goes_on.wait()
        return CARD


async def test_provider_that_does_not_answer_is_left_alone_until_it_gives_a_sign_of_life() -> None:
    provider = Far()
    bounded = Bounded("far", provider, timeout=0.05)
    assert await bounded.describe("tok_visa", ADA, NOW) == CARD
    provider.goes_on.clear()

    async def is_left_alone() -> bool:
        asked = provider.asked
        with pytest.raises(ProviderUnavailable):
            await bounded.describe("tok_visa", ADA, NOW)
        return bounded.breaker.state is State.OPEN and provider.asked == asked

    await eventually(is_left_alone)
    provider.goes_on.set()

    async def answers() -> bool:
        try:
            return await bounded.describe("tok_visa", ADA, NOW) == CARD
        except ProviderUnavailable:
            return False

    await eventually(answers)
    await bounded.stop()


async def test_failure_of_a_provider_tells_nothing_of_the_token() -> None:
    bounded = Bounded("far", Far())
    with capture_logs() as lines, pytest.raises(ProviderUnavailable) as failure:
        await bounded.describe("tok_broken", ADA, NOW)
    assert "tok_broken" not in repr((lines, failure.value, failure.value.metadata, failure.value.__cause__))
    assert [line["provider"] for line in lines if line["log_level"] == "warning"] == ["far"]
    with pytest.raises(ProviderTokenUnknown):
        await bounded.describe("tok_of_nobody", ADA, NOW)
    await bounded.stop()
