"""Calls to a provider: their bound, their retries and their breaker."""

from __future__ import annotations

import asyncio
import gc
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from typing import cast
from uuid import uuid4

import pytest

from payment_svc.providers import Absent, Bounded, ChargeRef, Inconclusive, Provider, ProviderUnavailable, Unknown
from tests.services import eventually


class Silent:
    """It never answers, and a test asks it for the outcome of a key only."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def probe(self) -> None:
        await asyncio.Event().wait()

    async def lookup(self, charge: ChargeRef) -> Absent:
        self.asked.append(charge.key)
        await asyncio.Event().wait()
        return Absent()


def ref(key: str) -> ChargeRef:
    return ChargeRef(key, Decimal(1), "EUR", uuid4(), datetime.now(UTC))


async def test_call_that_is_cancelled_while_it_waits_for_its_turn_never_reaches_the_provider() -> None:
    provider = Silent()
    bounded = Bounded("silent", cast("Provider", provider), at_a_time=1, timeout=60)
    calls = [asyncio.create_task(bounded.lookup(ref(key))) for key in ("first", "second")]
    await asyncio.sleep(0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        calls.clear()
        gc.collect()
    assert provider.asked == ["first"]
    assert [str(each.message) for each in seen] == []


class Fickle:
    """It fails as often as a test says, each time in the same way."""

    def __init__(self, failures: int, failure: Inconclusive | Exception) -> None:
        self.failures = failures
        self.failure = failure
        self.asked = 0
        self.probed = 0

    async def probe(self) -> None:
        self.probed += 1

    async def lookup(self, charge: ChargeRef) -> Absent | Inconclusive:  # noqa: ARG002  # as the protocol has it
        self.asked += 1
        if self.asked > self.failures:
            return Absent()
        if isinstance(self.failure, Exception):
            raise self.failure
        return self.failure


@pytest.mark.parametrize(
    ("failures", "failure", "asked", "outcome"),
    [
        (2, ProviderUnavailable("busy"), 3, Absent()),
        (9, ProviderUnavailable("busy"), 3, ProviderUnavailable("busy")),
        # It may have been done: what stands is looked up, not asked for again.
        (9, Unknown("cut off"), 1, Unknown("cut off")),
        (9, ConnectionResetError("cut off"), 1, Unknown("ConnectionResetError('cut off')")),
    ],
)
async def test_transient_errors_are_retried_and_unknown_outcomes_are_not(
    failures: int, failure: Inconclusive | Exception, asked: int, outcome: Absent | Inconclusive
) -> None:
    provider = Fickle(failures, failure)
    bounded = Bounded("fickle", cast("Provider", provider))
    assert await bounded.lookup(ref("key")) == outcome
    assert provider.asked == asked
    await bounded.breaker.stop()


async def test_retries_of_a_failing_provider_are_few_beside_its_calls() -> None:
    provider = Fickle(10_000, ProviderUnavailable("busy"))
    bounded = Bounded("fickle", cast("Provider", provider))
    await asyncio.gather(*(bounded.lookup(ref("key")) for _ in range(200)))
    # A reserve of 50, and a tenth of the calls.
    assert 200 < provider.asked <= 270
    await bounded.breaker.stop()


async def test_failures_of_a_provider_that_is_alive_leave_it_available() -> None:
    provider = Fickle(1, Unknown("cut off"))
    bounded = Bounded("fickle", cast("Provider", provider))
    await bounded.lookup(ref("key"))

    async def probed() -> bool:
        return provider.probed > 0

    await eventually(probed)
    assert bounded.is_available
    await bounded.breaker.stop()


async def test_provider_without_a_sign_of_life_is_not_called() -> None:
    provider = Silent()
    bounded = Bounded("silent", cast("Provider", provider), timeout=60)
    pending = asyncio.create_task(bounded.lookup(ref("first")))

    async def given_up() -> bool:
        return not bounded.is_available

    await eventually(given_up)
    assert await pending == Unknown("no answer in time")
    assert await bounded.lookup(ref("second")) == ProviderUnavailable("no sign of life")
    assert provider.asked == ["first"]
    await bounded.breaker.stop()
