"""Calls to a provider: bounded in number and time, so that a slow provider delays no other, and never raising."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from mesh.errors import MeshError
from payment_svc.providers.protocol import (
    Absent,
    Approved,
    Charge,
    Declined,
    Provider,
    ProviderUnavailable,
    Refunded,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
)

Answer = TypeVar("Answer")
Question = TypeVar("Question")

log = structlog.get_logger(__name__)


class Bounded:
    """A provider that is called at most `at_a_time` times at once, each for at most `timeout` seconds.

    A call that takes longer or raises counts as `Unknown`.
    """

    def __init__(self, provider: Provider, *, at_a_time: int = 256, timeout: float = 3.0) -> None:
        self._provider = provider
        self._slots = asyncio.Semaphore(at_a_time)
        self._timeout = timeout

    async def charge(self, charge: Charge) -> Approved | Declined | Voided | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._answer(self._provider.charge, charge)

    async def lookup(self, key: str) -> Approved | Declined | Voided | Absent | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._answer(self._provider.lookup, key)

    async def void(self, key: str) -> Approved | Voided | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._answer(self._provider.void, key)

    async def refund(self, refund: RefundRequest) -> Refunded | Refused | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._answer(self._provider.refund, refund)

    async def lookup_refund(self, key: str) -> Refunded | Refused | Absent | ProviderUnavailable | Unknown:
        """As the protocol says."""
        return await self._answer(self._provider.lookup_refund, key)

    async def _answer(self, ask: Callable[[Question], Awaitable[Answer]], question: Question) -> Answer | Unknown:
        try:
            async with self._slots, asyncio.timeout(self._timeout):
                return await ask(question)
        except TimeoutError:
            return Unknown("no answer in time")
        except MeshError as error:
            return Unknown(error.message)
        except Exception as error:
            log.exception("provider failed")
            return Unknown(repr(error))
