"""The mesh as most tests of this folder want it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.rpc.validation.money import MINOR_UNITS
from stack.servers import Servers
from tests.mesh.house import House, house
from tests.services import Keys, empty_bus


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    await empty_bus(servers)


@pytest.fixture
async def mesh(servers: Servers, keys: Keys) -> AsyncIterator[House]:
    """All four services, running for this test alone. The sandbox takes every currency but XPF."""
    taken = tuple(sorted({*MINOR_UNITS} - {"XPF"}))
    settings: dict[str, dict[str, Any]] = {
        "customer": {"sandbox_currencies": taken},
        "payment": {
            "sandbox_currencies": taken,
            "sandbox_slow_seconds": 1.0,
            "sandbox_action_seconds": 3600.0,
            "provider_timeout": 0.5,
            "event_attempts": 2,
        },
        "product": {"hold_sweep_seconds": 0.2},
    }
    async with house(servers, keys, **settings) as running:
        yield running
