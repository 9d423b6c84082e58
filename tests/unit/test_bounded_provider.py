"""The bound on calls to a provider."""

from __future__ import annotations

import asyncio
import gc
import warnings
from datetime import UTC, datetime
from decimal import Decimal
from typing import cast
from uuid import uuid4

from payment_svc.providers import Absent, Bounded, ChargeRef, Provider


class Silent:
    """It never answers, and a test asks it for the outcome of a key only."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def lookup(self, charge: ChargeRef) -> Absent:
        self.asked.append(charge.key)
        await asyncio.Event().wait()
        return Absent()


def ref(key: str) -> ChargeRef:
    return ChargeRef(key, Decimal(1), "EUR", uuid4(), datetime.now(UTC))


async def test_call_that_is_cancelled_while_it_waits_for_its_turn_never_reaches_the_provider() -> None:
    provider = Silent()
    bounded = Bounded(cast("Provider", provider), at_a_time=1, timeout=60)
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
