"""Calls to a provider: bounded in number and time, so that a slow provider delays no other, and never raising."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TypeVar

import structlog

from mesh.errors import MeshError
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


class Bounded:
    """A provider that is called at most `at_a_time` times at once, each for at most `timeout` seconds.

    A call that takes longer or raises counts as `Unknown`. An amount that the provider cannot move is never sent.
    """

    def __init__(self, provider: Provider, *, at_a_time: int = 256, timeout: float = 3.0) -> None:
        self._provider = provider
        self._slots = asyncio.Semaphore(at_a_time)
        self._timeout = timeout

    @property
    def minor_units(self) -> MinorUnits:
        """As the protocol says."""
        return self._provider.minor_units

    async def start(self) -> None:
        """Start the provider."""
        await self._provider.start()

    async def stop(self) -> None:
        """Stop the provider."""
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

    async def _answer(self, ask: Callable[[Question], Awaitable[Answer]], question: Question) -> Answer | Unknown:
        try:
            async with self._slots, asyncio.timeout(self._timeout):
                return await ask(question)
        except NotPayable:
            raise
        except TimeoutError:
            return Unknown("no answer in time")
        except MeshError as error:
            return Unknown(error.message)
        except Exception as error:
            log.exception("provider failed")
            return Unknown(repr(error))
