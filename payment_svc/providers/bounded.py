"""Calls to a provider: bounded in number and time, so that a slow provider delays no other, and never raising.

A transient error is retried at once, within the time of the call. Whatever is left without an outcome after that is
asked for again by the sweeps, with a backoff that survives the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from random import uniform
from typing import TypeVar

import structlog

from mesh.errors import MeshError
from mesh.rpc.breaker import Breaker, BreakerOpen, State
from mesh.rpc.retries import RetryBudget
from payment_svc.providers.minor_units import MinorUnits, NotPayable
from payment_svc.providers.protocol import (
    Absent,
    Approved,
    Charge,
    ChargeRef,
    Declined,
    Inconclusive,
    Outcome,
    Provider,
    ProviderUnavailable,
    Record,
    RefundOutcome,
    RefundRequest,
    Refused,
    Unknown,
    Voided,
    Webhook,
)

Answer = TypeVar("Answer")
Question = TypeVar("Question")

log = structlog.get_logger(__name__)


_BACKOFFS_S = (0.05, 0.15, None)
"""The pauses before the second and the third attempt, less up to half of them as jitter."""


class _Inconclusive(Exception):
    """A call has ended without an outcome: the breaker asks for a sign of life."""


class Bounded:
    """A provider that is called at most `at_a_time` times at once, each for at most `timeout` seconds.

    A call that takes longer or raises counts as `Unknown`. An amount that the provider cannot move is never sent. While
    the provider gives no sign of life, it is not called, and calls count as `ProviderUnavailable`.
    """

    def __init__(self, name: str, provider: Provider, *, at_a_time: int = 256, timeout: float = 3.0) -> None:
        self.breaker = Breaker(f"provider {name}", provider.probe, means_down=_means_down)
        """The circuit breaker of the provider."""
        self._provider = provider
        self._slots = asyncio.Semaphore(at_a_time)
        self._timeout = timeout
        self._retries = RetryBudget()

    @property
    def is_available(self) -> bool:
        """Whether calls reach the provider. If not, what is due of it may as well wait."""
        return self.breaker.state is not State.OPEN

    @property
    def minor_units(self) -> MinorUnits:
        """As the protocol says."""
        return self._provider.minor_units

    async def start(self) -> None:
        """Start the provider."""
        await self._provider.start()

    async def stop(self) -> None:
        """Stop the provider."""
        await self.breaker.stop()
        await self._provider.stop()

    async def charge(self, charge: Charge) -> Outcome:
        """As the protocol says. What cannot be charged is declined."""
        try:
            return await self._answer(self._provider.charge, charge)
        except NotPayable as fault:
            return Declined(fault.reason)

    async def lookup(self, charge: ChargeRef) -> Outcome | Absent:
        """As the protocol says."""
        try:
            return await self._answer(self._provider.lookup, charge)
        except NotPayable:
            return Absent()

    async def void(self, charge: ChargeRef) -> Approved | Voided | Inconclusive:
        """As the protocol says."""
        try:
            return await self._answer(self._provider.void, charge)
        except NotPayable:
            return Voided()

    async def refund(self, refund: RefundRequest) -> RefundOutcome:
        """As the protocol says. What cannot be refunded is refused."""
        try:
            return await self._answer(self._provider.refund, refund)
        except NotPayable as fault:
            return Refused(fault.reason)

    async def lookup_refund(self, refund: RefundRequest) -> RefundOutcome | Absent:
        """As the protocol says."""
        try:
            return await self._answer(self._provider.lookup_refund, refund)
        except NotPayable:
            return Absent()

    async def record(self, charge: ChargeRef) -> Record | Absent | Inconclusive:
        """As the protocol says."""
        try:
            return await self._answer(self._provider.record, charge)
        except NotPayable:
            return Absent()

    def parse_webhook(self, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Webhook:
        """As the protocol says."""
        return self._provider.parse_webhook(headers, body, now=now)

    async def _answer(
        self, ask: Callable[[Question], Awaitable[Answer]], question: Question
    ) -> Answer | ProviderUnavailable | Unknown:
        self._retries.earn()
        outcome: Answer | ProviderUnavailable | Unknown = ProviderUnavailable("no sign of life")
        try:
            async with self._slots, self.breaker.guard(), asyncio.timeout(self._timeout):
                for backoff in _BACKOFFS_S:
                    outcome = Unknown("no answer in time")
                    outcome = await ask(question)
                    if not isinstance(outcome, ProviderUnavailable) or backoff is None or not self._retries.spend():
                        break
                    await asyncio.sleep(backoff * uniform(0.5, 1))  # noqa: S311  # it is no secret
                if isinstance(outcome, Inconclusive):
                    raise _Inconclusive
        except NotPayable:
            raise
        except (_Inconclusive, TimeoutError, BreakerOpen):
            # The outcome is that of the last attempt, or that there was none.
            pass
        except MeshError as error:
            outcome = Unknown(error.message)
        except Exception as error:
            log.exception("provider failed")
            outcome = Unknown(repr(error))
        return outcome


def _means_down(error: Exception) -> bool:
    return not isinstance(error, NotPayable)
