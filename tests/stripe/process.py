"""Our own fake in a process of its own, which a test can stop: it prints its address and a new payment method."""

from __future__ import annotations

import asyncio

from tests.stripe.fake import VISA, FakeStripe


async def main() -> None:
    """Serve until the process is killed."""
    async with FakeStripe() as fake:
        print(fake.url, fake.method(VISA), flush=True)  # noqa: T201  # it is read by the test
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
