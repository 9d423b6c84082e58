"""Two workers of the order service on machines whose clocks differ."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from commerce.order.v1 import order_pb2
from mesh.settings import ServiceSettings
from order_svc.app import Settings
from stack.servers import Servers
from tests.clocks import environment_with_clock_ahead
from tests.mesh.house import house
from tests.services import Keys, eventually, settings_for


def as_environment(settings: ServiceSettings) -> dict[str, str]:
    """The settings as environment variables."""

    def text(value: object) -> str:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return ",".join(value) if isinstance(value, tuple) else str(value)

    return {f"MESH_{name.upper()}": text(value) for name, value in settings}


@asynccontextmanager
async def another_order_worker(environment: Mapping[str, str]) -> AsyncIterator[None]:
    """Run another process of the order service."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "order_svc", env=environment)
    try:
        yield
    finally:
        process.terminate()
        assert await process.wait() == 0


@pytest.mark.parametrize("minutes", [16, -16], ids=["ahead", "behind"])
async def test_order_worker_with_a_wrong_clock_cancels_only_overdue_orders(
    servers: Servers, keys: Keys, folder: Path, minutes: int
) -> None:
    async with house(servers, keys, order={"deadline_sweep_seconds": 3600.0}) as mesh:
        buyer, product = await mesh.buyer("tok_visa"), await mesh.product(2)
        # Without payments the orders stay PENDING.
        await mesh.services["payment"].stop()
        young, overdue = [await mesh.order(buyer, {product: 1}) for _ in range(2)]
        await mesh.sql(
            "order_svc", "UPDATE orders SET payment_deadline = now() - interval '1 s' WHERE id = $1", UUID(overdue.id)
        )
        targets = {f"{name}_target": (address,) for name, address in mesh.addresses.items()}
        own = as_environment(settings_for(Settings, "order", servers, keys, deadline_sweep_seconds=0.1, **targets))
        environment = environment_with_clock_ahead(timedelta(minutes=minutes), folder)

        async def is_cancelled() -> bool:
            return (await mesh.read(buyer, overdue.id)).cancel_reason == order_pb2.CANCEL_REASON_PAYMENT_TIMEOUT

        async with another_order_worker({**environment, **own}):
            await eventually(is_cancelled)
        assert (await mesh.read(buyer, young.id)).status == order_pb2.ORDER_STATUS_PENDING
