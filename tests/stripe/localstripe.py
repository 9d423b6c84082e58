"""Runs localstripe, a fake of Stripe that others have written, and prints its address.

It is changed in two ways: it writes no file, and it ignores a parameter of Stripe's API that is newer than itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from localstripe.resources import PaymentIntent, Store
from localstripe.server import app


def prepare() -> None:
    """Change localstripe as said above."""
    create = PaymentIntent._api_create.__func__

    def create_without_types(cls: Any, /, **data: Any) -> Any:
        data.pop("allowed_payment_method_types", None)
        return create(cls, **data)

    PaymentIntent._api_create = classmethod(create_without_types)
    Store.dump_to_disk = lambda _: None


async def serve() -> None:
    """Serve until the process is stopped."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)  # noqa: T201 - the fixture reads it
    await asyncio.Event().wait()


if __name__ == "__main__":
    prepare()
    asyncio.run(serve())
