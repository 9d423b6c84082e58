"""The bound on calls to a provider."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import cast

from payment_svc.providers import Absent, Bounded
from payment_svc.providers.protocol import Provider


class Silent:
    """It never answers, and a test asks it for the outcome of a key only."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def lookup(self, key: str) -> Absent:
        self.asked.append(key)
        await asyncio.Event().wait()
        return Absent()


async def test_call_that_is_cancelled_while_it_waits_for_its_turn_never_reaches_the_provider() -> None:
    provider = Silent()
    bounded = Bounded(cast("Provider", provider), at_a_time=1, timeout=60)
    calls = [asyncio.create_task(bounded.lookup(key)) for key in ("first", "second")]
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
