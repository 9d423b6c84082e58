"""The refunder: asks providers for refunds, many at a time, with no transaction open.

Like the charger, it holds nothing that is not in the database. Whatever is cut off or learns nothing keeps its
`next_attempt_time`, and the sweep brings it back, in this process or in another. A refund has one key, so that two
processes that ask for it refund once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog

from mesh.errors import MeshError
from mesh.tasks import end
from payment_svc.domain import Refund, RefundContradiction
from payment_svc.providers import (
    Absent,
    Bounded,
    ProviderUnavailable,
    Refunded,
    RefundOutcome,
    RefundRequest,
    Refused,
    Unknown,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RefundAnswer:
    """What a provider answered when it was asked for a refund; to be recorded."""

    refund: Refund
    """As it was when the provider was asked."""
    outcome: RefundOutcome


class Refunder:
    """Carries refunds to their outcome. At most `most` of a provider are held; a stop waits for `timeout` seconds."""

    def __init__(
        self,
        providers: Mapping[str, Bounded],
        record: Callable[[RefundAnswer], Awaitable[Refund]],
        *,
        most: int = 4096,
        timeout: float = 3.0,
    ) -> None:
        self._providers = providers
        self._record = record
        self._most = most
        self._timeout = timeout
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._count: Counter[str] = Counter()
        """The number of refunds that are held, by their provider."""
        self._stopping = False

    async def start(self) -> None:
        """Nothing to do until refunds come."""

    async def stop(self) -> None:
        """Take nothing more, let calls under way end for as long as one may take, cut off the rest."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=self._timeout)
        await self.abandon()

    async def abandon(self) -> None:
        """Cut everything off at once, as the death of the process would."""
        self._stopping = True
        await end(*self._tasks.values())
        self._tasks.clear()
        self._count.clear()

    async def idle(self) -> None:
        """Wait until this process works on no refund."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    def room(self, provider: str) -> int:
        """How many more refunds of a provider it would take; none while the provider gives no sign of life."""
        known = self._providers.get(provider)
        if self._stopping or (known and not known.is_available):
            return 0
        return self._most - self._count[provider]

    def begin(self, refunds: Iterable[Refund]) -> None:
        """Ask for new refunds, which no provider has heard of. Call it after they are committed."""
        self._take(refunds, read_first=False)

    def resume(self, refunds: Iterable[Refund]) -> None:
        """Carry out refunds that may have been at the provider before: it is asked what it knows."""
        self._take(refunds, read_first=True)

    async def done(self, refund_id: UUID, timeout: float) -> None:
        """Wait until this process is done with a refund for now, at most `timeout` seconds."""
        if task := self._tasks.get(refund_id):
            await asyncio.wait([task], timeout=timeout)

    def _take(self, refunds: Iterable[Refund], *, read_first: bool) -> None:
        for refund in refunds:
            if refund.id not in self._tasks and not self._stopping and self._count[refund.provider] < self._most:
                self._count[refund.provider] += 1
                run = self._run(refund, read_first=read_first)
                self._tasks[refund.id] = asyncio.create_task(run, name=f"refund {refund.id}")

    async def _run(self, refund: Refund, *, read_first: bool) -> None:
        try:
            outcome = await self._ask(refund, read_first=read_first)
            if not isinstance(outcome, Refunded):
                # A refused refund needs a person; everything else is asked again.
                level = logging.ERROR if isinstance(outcome, Refused) else logging.WARNING
                log.log(level, "not refunded", refund=str(refund.id), outcome=repr(outcome))
            await self._record(RefundAnswer(refund, outcome))
        except RefundContradiction as error:
            log.error("provider contradicts the books", refund=str(refund.id), error=error.message)
        except MeshError as error:
            log.warning("refund left to the sweep", refund=str(refund.id), error=error.message)
        except Exception:
            log.exception("refund left to the sweep", refund=str(refund.id))
        finally:
            if self._tasks.pop(refund.id, None):
                self._count[refund.provider] -= 1

    async def _ask(self, refund: Refund, *, read_first: bool) -> RefundOutcome:
        """Refund under the one key, whatever happened before; an unknown outcome is looked up."""
        provider = self._providers.get(refund.provider)
        if provider is None:
            return ProviderUnavailable(f"there is no provider {refund.provider}")
        request = RefundRequest(
            refund.provider_key,
            f"payment-{refund.payment_id}",
            refund.charge_reference,
            refund.amount,
            refund.currency,
        )
        if read_first:
            standing = await provider.lookup_refund(request)
            if not isinstance(standing, Absent):
                return standing
        outcome = await provider.refund(request)
        if isinstance(outcome, Unknown):
            standing = await provider.lookup_refund(request)
            # Absent may still be on its way there: it is asked again later, under the same key.
            return outcome if isinstance(standing, Absent) else standing
        return outcome
