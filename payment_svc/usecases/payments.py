"""Payments as people and services read and request them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.db.idempotency import Replay
from mesh.ids import new_id, parse_id
from payment_svc.domain import Due, Entry, NewPayment, Payment, PaymentNotFound, PaymentStatus, ProviderNotFound

if TYPE_CHECKING:
    from mesh.db.history import Step
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call
    from mesh.rpc.replies import Change, Reply
    from payment_svc.charger import Charger
    from payment_svc.providers import NextAction
    from payment_svc.store import PaymentStore

REPLY_MARGIN_S = 0.5
"""How long before the caller's deadline the outcome is no longer waited for, so that the reply arrives in time."""


class Payments:
    """Payments as people and services read and request them."""

    def __init__(
        self,
        units: UnitsOfWork,
        payments: PaymentStore,
        charger: Charger,
        pages: Pages,
        *,
        providers: Collection[str],
        lease: timedelta,
    ) -> None:
        self._units = units
        self._payments = payments
        self._charger = charger
        self._pages = pages
        self._providers = providers
        self._lease = lease

    async def get_payment(self, call: Call, payment_id: UUID) -> tuple[Payment, NextAction | None]:
        """A payment of the caller's own, and what they must do for it; any for staff. Raises PaymentNotFound."""
        async with self._units.database.reading() as reading:
            payment = await self._payments.read(reading, payment_id)
        call.caller.own(payment.customer_id, PaymentNotFound(payment_id=payment_id))
        return await self._seen(call, payment)

    async def get_order_payment(self, call: Call, order_id: UUID) -> tuple[Payment, NextAction | None]:
        """The payment of an order of the caller's own, and what they must do for it; of any order for staff.

        Raises PaymentNotFound.
        """
        async with self._units.database.reading() as reading:
            payment = await self._payments.read_of_order(reading, order_id)
        call.caller.own(payment.customer_id, PaymentNotFound(order_id=order_id))
        return await self._seen(call, payment)

    async def _seen(self, call: Call, payment: Payment) -> tuple[Payment, NextAction | None]:
        """A payment as the caller sees it, and what they must do if it is theirs and waits for them.

        The provider is asked for that each time, since its secret is not stored. If it has an outcome by now, that is
        recorded first. Without an answer of the provider, there is no action.
        """
        is_owner = call.caller.customer_id == payment.customer_id
        if not is_owner or payment.due is not Due.LOOKUP:
            return payment, None
        action = await self._charger.next_action(payment)
        if action is None:
            await self._charger.done(payment.id, timeout=_timeout(call))
            async with self._units.database.reading() as reading:
                payment = await self._payments.read(reading, payment.id)
        return payment, action

    async def get_order_payments(self, order_ids: Sequence[UUID]) -> list[Payment]:
        """The payments of these orders; orders without one are left out."""
        async with self._units.database.reading() as reading:
            return await self._payments.read_of_orders(reading, order_ids)

    async def list_payments(
        self, *, status: PaymentStatus | None, order_id: UUID | None, page_size: int, page_token: str
    ) -> tuple[list[Payment], str]:
        """A page of payments, newest first, and the token of the next page. With `order_id`, that order's payment."""
        scope = f"payments\0{status}\0{order_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        async with self._units.database.reading() as reading:
            if order_id is not None:
                payment = await self._payments.find_of_order(reading, order_id)
                return [payment] if payment and status in (None, payment.status) else [], ""
            before = parse_id(position[0]) if position else None
            found = await self._payments.list_payments(reading, status=status, before=before, most=size + 1)
        return self._pages.page(scope, found, size, lambda payment: [str(payment.id)])

    async def list_entries(
        self, payment_id: UUID, *, page_size: int, page_token: str
    ) -> tuple[Payment, list[Entry], str]:
        """A payment, a page of its ledger, oldest first, and the token of the next page. Raises PaymentNotFound."""
        scope = f"entries\0{payment_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        after = (datetime.fromisoformat(position[0]), parse_id(position[1])) if position else None
        async with self._units.database.reading() as reading:
            payment = await self._payments.read(reading, payment_id)
            found = await self._payments.list_entries(reading, payment_id, after=after, most=size + 1)
        page, token = self._pages.page(scope, found, size, lambda entry: [entry.create_time.isoformat(), str(entry.id)])
        return payment, page, token

    async def get_timeline(self, order_id: UUID) -> list[Step]:
        """The events of the payment of an order, oldest first; none if it has none yet."""
        async with self._units.database.reading() as reading:
            return await self._payments.history(reading, order_id)

    async def process_payment(self, change: Change[Payment], new: NewPayment) -> Reply[Payment]:
        """Begin the payment of an order, or find it, and wait for its outcome as long as the caller does.

        A key stands for the payment, not for its state at that time: a replay returns the payment as it is now.
        Raises ProviderNotFound, or PaymentStateRefused when the order has another payment or is cancelled.
        """
        if new.provider not in self._providers:
            raise ProviderNotFound(new.provider)
        try:
            async with self._units.once(change) as work:
                now = self._units.now()
                begun = Payment.begin(new_id(), new, change.trace.traceparent, now, now + self._lease)
                added = await self._payments.add_unless_known(work, [begun])
                payment = await self._payments.read_of_order(work.transaction, new.order_id)
                payment.require_same(new)
                work.transaction.on_commit(lambda: self._charger.begin(added))
                work.reply(payment)
        except Replay:
            async with self._units.database.reading() as reading:
                payment = await self._payments.read_of_order(reading, new.order_id)
        await self._charger.done(payment.id, timeout=_timeout(change.call))
        async with self._units.database.reading() as reading:
            return change.reply(await self._payments.read_of_order(reading, new.order_id))

    async def sweep(self, *, most: int = 500) -> bool:
        """Take up payments whose retry is due, or whose process has died. Returns whether there may be more.

        Those of each provider are taken up apart, so that many of one that does not answer keep no other waiting.
        """
        more = False
        for provider in self._providers:
            room = min(most, self._charger.room(provider))
            if room <= 0:
                continue
            async with self._units.begin() as work:
                leased = await self._payments.lease_overdue(work, self._lease, provider, most=room)
            self._charger.resume(leased)
            more = more or len(leased) == room
        return more


def _timeout(call: Call) -> float:
    """How many seconds the caller leaves for an outcome; none without a deadline."""
    return max(0.0, (call.remaining() or 0.0) - REPLY_MARGIN_S)
