"""What the tests of Stripe share: the two fakes, and the provider that talks to one of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.stripe.fake import FakeStripe
from tests.stripe.servers import Localstripe, OurFake, StripeServer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
async def fake() -> AsyncIterator[FakeStripe]:
    """Our own fake, empty."""
    async with FakeStripe() as fake:
        yield fake


@pytest.fixture(scope="session")
async def localstripe_url() -> AsyncIterator[str]:
    """The address of a running localstripe."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.stripe.localstripe", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    yield (await process.stdout.readline()).decode().strip()
    process.kill()
    await process.wait()


@pytest.fixture(params=["localstripe", "fake"])
async def server(request: pytest.FixtureRequest, fake: FakeStripe, localstripe_url: str) -> AsyncIterator[StripeServer]:
    """Each of the two fakes."""
    if request.param == "fake":
        yield OurFake(fake)
        return
    async with httpx.AsyncClient(base_url=localstripe_url, auth=("sk_test_fake", "")) as client:
        yield Localstripe(localstripe_url, client)
