"""Calls to a provider: bounded in number and time, so that a slow provider delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import datetime
from uuid import UUID

import structlog

from customer_svc.domain import Card, ProviderTokenUnknown, ProviderUnavailable
from customer_svc.providers.protocol import Provider
from mesh.rpc.breaker import Breaker

log = structlog.get_logger(__name__)


class Bounded:
    """A provider that is called at most `at_a_time` times at once, each for at most `timeout` seconds.

    While it gives no sign of life, it is not called at all.
    """

    def __init__(self, name: str, provider: Provider, *, at_a_time: int = 64, timeout: float = 3.0) -> None:
        self._name = name
        self._provider = provider
        self._slots = asyncio.Semaphore(at_a_time)
        self._timeout = timeout
        self.breaker = Breaker(f"provider {name}", provider.probe, means_down=_means_down)
        """The circuit breaker of the provider."""

    @property
    def currencies(self) -> Collection[str]:
        """As the protocol says."""
        return self._provider.currencies

    async def start(self) -> None:
        """Start the provider."""
        await self._provider.start()

    async def stop(self) -> None:
        """Stop the provider."""
        await self.breaker.stop()
        await self._provider.stop()

    async def describe(self, token: str, customer_id: UUID, now: datetime) -> Card:
        """As the protocol says. Raises ProviderTokenUnknown or ProviderUnavailable."""
        try:
            async with self._slots, self.breaker.guard(), asyncio.timeout(self._timeout):
                return await self._provider.describe(token, customer_id, now)
        except ProviderTokenUnknown:
            raise
        except Exception as error:  # noqa: BLE001  # its text may hold the token
            log.warning("provider did not describe a token", provider=self._name, error=type(error).__name__)
            raise ProviderUnavailable(self._name) from None


def _means_down(error: Exception) -> bool:
    return not isinstance(error, ProviderTokenUnknown)
