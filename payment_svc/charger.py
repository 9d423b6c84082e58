"""The charger: asks providers for what payments are due, many at a time, with no transaction open.

It holds nothing that is not in the database. Whatever is cut off, refused for lack of room or learns nothing keeps its
`next_attempt_time`, and the sweep brings it back, in this process or in another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

import structlog

from mesh.db.recent import Recent
from mesh.errors import MeshError
from mesh.tasks import end
from payment_svc.domain import PAYMENT_METHOD_NOT_FOUND, Due, Payment, ProviderContradiction
from payment_svc.providers import (
    Absent,
    ActionRequired,
    Approved,
    Bounded,
    Charge,
    ChargeRef,
    Declined,
    Inconclusive,
    NextAction,
    Outcome,
    ProviderUnavailable,
    Unknown,
    Voided,
)

Token = str | ProviderUnavailable | None
"""The provider's token to charge, or why it is not known now; none if the payment method does not exist."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """What a provider answered when it was asked for what was due; to be recorded."""

    payment: Payment
    """As it was when the provider was asked."""
    due: Due
    outcome: Outcome


@dataclass(slots=True)
class _Held:
    """A payment that this process works on, as it was when last heard of, and its task."""

    payment: Payment
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a provider has said that the customer must do, and when, in the event loop's time."""

    action: NextAction | None
    time: float

    @property
    def is_old(self) -> bool:
        """Whether the provider is to be asked again. A customer who reads without a pause does not flood it."""
        return asyncio.get_running_loop().time() - self.time > 1.0


class Charger:
    """Carries payments as far as they go. Two chargers may well work on one payment: the keys keep it charged once.

    At most `most` of each provider are held, so that a slow one leaves room for the others. A stop waits for `timeout`
    seconds, which no call of a provider exceeds.

    `token_of` returns the provider's token to charge, none if the payment method does not exist, and raises MeshError
    if that is not known now.
    """

    def __init__(
        self,
        providers: Mapping[str, Bounded],
        token_of: Callable[[Payment], Awaitable[str | None]],
        record: Callable[[ProviderAnswer], Awaitable[Payment]],
        *,
        most: int = 4096,
        timeout: float = 3.0,
    ) -> None:
        self._providers = providers
        self._token_of = token_of
        self._record = record
        self._most = most
        self._timeout = timeout
        self._held: dict[UUID, _Held] = {}
        self._actions: Recent[UUID, _Asked] = Recent(most=most)
        self._count: Counter[str] = Counter()
        """The number of payments that are held, by their provider."""
        self._stopping = False

    async def start(self) -> None:
        """Nothing to do until payments come."""

    async def stop(self) -> None:
        """Take nothing more, let calls under way end for as long as one may take, cut off the rest."""
        self._stopping = True
        if tasks := self._tasks:
            await asyncio.wait(tasks, timeout=self._timeout)
        await self.abandon()

    async def abandon(self) -> None:
        """Cut everything off at once, as the death of the process would."""
        self._stopping = True
        await end(*self._tasks)
        self._held.clear()
        self._count.clear()

    async def idle(self) -> None:
        """Wait until this process works on no payment."""
        while tasks := self._tasks:
            await asyncio.wait(tasks)

    @property
    def _tasks(self) -> list[asyncio.Task[None]]:
        return [held.task for held in self._held.values()]

    def room(self, provider: str) -> int:
        """How many more payments of a provider it would take; none while the provider gives no sign of life."""
        known = self._providers.get(provider)
        if self._stopping or (known and not known.is_available):
            return 0
        return self._most - self._count[provider]

    def begin(self, payments: Iterable[Payment]) -> None:
        """Carry out what is due of new payments, which no provider has heard of. Call it after they are committed."""
        self._take(payments, read_first=False)

    def resume(self, payments: Iterable[Payment]) -> None:
        """Carry out what is due of payments that may have been at the provider before: it is asked what it knows."""
        self._take(payments, read_first=True)

    async def done(self, payment_id: UUID, timeout: float) -> None:
        """Wait until this process is done with a payment for now, at most `timeout` seconds."""
        if held := self._held.get(payment_id):
            await asyncio.wait([held.task], timeout=timeout)

    async def next_action(self, payment: Payment) -> NextAction | None:
        """What the customer must do for a payment that waits for them, as the provider says it within the last second.

        None if the provider does not answer, or has an outcome by now: then the payment is resumed.
        """
        asked = self._actions.get(payment.id)
        if asked is None or asked.is_old:
            provider = self._providers.get(payment.provider)
            standing = await provider.lookup(_ref(payment)) if provider else None
            action = standing.next_action if isinstance(standing, ActionRequired) else None
            self._actions.put({payment.id: (asked := _Asked(action, asyncio.get_running_loop().time()))})
            if isinstance(standing, Approved | Declined | Voided):
                self.resume([payment])
        return asked.action

    def _take(self, payments: Iterable[Payment], *, read_first: bool) -> None:
        for payment in payments:
            held = self._held.get(payment.id)
            if held is not None:
                # Under way already: its task sees what is new when it comes to it.
                held.payment = max(held.payment, payment, key=_version)
            elif not self._stopping and self._count[payment.provider] < self._most:
                self._count[payment.provider] += 1
                run = self._run(payment.id, read_first=read_first)
                self._held[payment.id] = _Held(payment, asyncio.create_task(run, name=f"charge {payment.id}"))

    async def _run(self, payment_id: UUID, *, read_first: bool) -> None:
        held = self._held[payment_id]
        try:
            token = await self._token(held.payment)
            carried = await self._advance(held.payment, token, read_first=read_first)
            while carried.version < held.payment.version:
                carried = await self._advance(held.payment, token, read_first=True)
        except ProviderContradiction as error:
            log.error("provider contradicts the books", payment=str(payment_id), error=error.message)
        except MeshError as error:
            log.warning("payment left to the sweep", payment=str(payment_id), error=error.message)
        except Exception:
            log.exception("payment left to the sweep", payment=str(payment_id))
        finally:
            # Nothing is awaited since the last look at what is new, so nothing new is lost.
            if self._held.pop(payment_id, None):
                self._count[held.payment.provider] -= 1

    async def _token(self, payment: Payment) -> Token:
        if payment.token or payment.due is not Due.CHARGE:
            return payment.token
        try:
            return await self._token_of(payment)
        except MeshError as error:
            return ProviderUnavailable(error.message)

    async def _advance(self, payment: Payment, token: Token, *, read_first: bool) -> Payment:
        """Ask for what is due, write the answer down, and so on until nothing is due or nothing was learnt."""
        while due := payment.due:
            outcome = await self._ask(payment, due, token, read_first=read_first)
            payment = await self._record(ProviderAnswer(payment, due, outcome))
            if isinstance(outcome, Inconclusive):
                log.warning("outcome inconclusive", payment=str(payment.id), due=due, outcome=repr(outcome))
                if payment.due is due:
                    break
            elif isinstance(outcome, ActionRequired) and payment.due is Due.LOOKUP:
                break
        return payment

    async def _ask(self, payment: Payment, due: Due, token: Token, *, read_first: bool) -> Outcome:
        provider = self._providers.get(payment.provider)
        if provider is None:
            return ProviderUnavailable(f"there is no provider {payment.provider}")
        match due:
            case Due.CHARGE:
                return await self._charge(provider, payment, token, read_first=read_first)
            case Due.LOOKUP:
                standing = await provider.lookup(_ref(payment))
                return Unknown("the provider has lost the charge") if isinstance(standing, Absent) else standing
            case Due.VOID:
                return await provider.void(_ref(payment))

    async def _charge(self, provider: Bounded, payment: Payment, token: Token, *, read_first: bool) -> Outcome:
        """Charge under the payment's one key, whatever happened before; an unknown outcome is looked up."""
        standing = await provider.lookup(_ref(payment)) if read_first else Absent()
        if token is None:
            return await self._decline(provider, payment) if isinstance(standing, Absent | Voided) else standing
        if not isinstance(standing, Absent):
            return standing
        if isinstance(token, ProviderUnavailable):
            return token
        charge = Charge(payment.provider_key, token, payment.amount, payment.currency, payment.order_id)
        outcome = await provider.charge(charge)
        if isinstance(outcome, Unknown):
            standing = await provider.lookup(_ref(payment))
            # Absent may still be on its way there: it is asked again later, under the same key.
            return outcome if isinstance(standing, Absent) else standing
        return outcome

    async def _decline(self, provider: Bounded, payment: Payment) -> Outcome:
        """Decline a payment without a payment method. The void fences off an attempt that may be under way."""
        standing = await provider.void(_ref(payment))
        return Declined(PAYMENT_METHOD_NOT_FOUND) if isinstance(standing, Voided) else standing


def _ref(payment: Payment) -> ChargeRef:
    return ChargeRef(
        payment.provider_key,
        payment.amount,
        payment.currency,
        payment.order_id,
        payment.create_time,
        payment.provider_reference,
    )


def _version(payment: Payment) -> int:
    return payment.version
