"""Erasure: a customer's personal data is deleted everywhere, also if the process dies in between.

    check ─ mark ─ orders ─ sessions ─ stored replies ─ rows and event
              │       └ open orders after all: the mark is removed
              └ from here on, the customer is gone for everybody else, and a sweep finishes what is not finished

Every step can run twice. The row of the customer is deleted last: until then, it says that the erasure has begun.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import structlog

from customer_svc.domain import BegunErasure, CustomerErased, CustomerHasOpenOrders, same_email
from customer_svc.usecases.customers import whose
from mesh.db import idempotency
from mesh.errors import MeshError
from mesh.observe.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from customer_svc.session_store import SessionStore
    from customer_svc.store import ErasureStore
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.rpc.call import Call
    from mesh.rpc.replies import Change, Reply

log = structlog.get_logger(__name__)


class OrderErasure(Protocol):
    """Erases customers from the orders."""

    async def erase_customer(self, customer_id: UUID, *, only_check: bool = False, calls: Sequence[Call] = ()) -> None:
        """Erase a customer, or only check whether that is possible. Raises CustomerHasOpenOrders."""
        ...


class Erasure:
    """Erases customers."""

    def __init__(
        self, units: UnitsOfWork, erasures: ErasureStore, sessions: SessionStore, orders: OrderErasure
    ) -> None:
        self._units = units
        self._erasures = erasures
        self._sessions = sessions
        self._orders = orders

    async def delete_customer(self, change: Change[None], named: UUID | None, *, etag: str) -> Reply[None]:
        """Erase a customer, or finish an erasure that has begun.

        Raises CustomerNotFound; EtagMismatch or CustomerHasOpenOrders, and nothing has changed then; Unavailable.
        """
        customer_id = whose(change.caller, named)
        for outcome in (await idempotency.find(self._units.database, [change.key])).values():
            raise outcome
        async with self._units.begin() as work:
            (await self._erasures.load(work, customer_id)).require_etag(etag)
        # Before the mark, so that an erasure that is refused leaves no moment in which the customer is gone.
        await self._orders.erase_customer(customer_id, only_check=True, calls=[change.call])
        begun = self._units.now()
        async with self._units.begin() as work:
            customer = await self._erasures.load(work, customer_id)
            customer.require_etag(etag)
            self._erasures.mark(work, customer_id, begun)
        await self._erase_elsewhere(BegunErasure(customer_id, customer.email, begun), [change.call])
        async with self._units.once(change) as work:
            await self._erase_rows(work, customer_id, change.trace)
            return work.reply(None)

    async def finish(self, age: timedelta, *, most: int = 100) -> bool:
        """Finish the erasures that began more than `age` ago. Returns whether there may be more."""
        async with self._units.database.reading() as reading:
            unfinished = await self._erasures.list_begun(reading, age, most=most)
        finished = 0
        for erasure in unfinished:
            try:
                await self._erase_elsewhere(erasure, [])
                async with self._units.begin() as work:
                    await self._erase_rows(work, erasure.customer_id, Trace.new())
                finished += 1
            except MeshError as error:
                log.warning("erasure not finished", customer=str(erasure.customer_id), error=error.message)
        return finished == most

    async def _erase_elsewhere(self, erasure: BegunErasure, calls: Sequence[Call]) -> None:
        """Erase all but the rows of this service. Raises CustomerHasOpenOrders and calls the erasure off then.

        Another call may have begun it again since: that one may have erased the orders already, and has to finish.
        """
        customer_id = erasure.customer_id
        await self._erasures.forget(customer_id)
        try:
            await self._orders.erase_customer(customer_id, calls=calls)
        except CustomerHasOpenOrders:
            # One was placed between the check and the mark.
            async with self._units.begin() as work:
                await self._erasures.unmark(work, customer_id, erasure.begun)
            raise
        await self._sessions.end_all(customer_id)
        await self._sessions.forget_sign_ins(same_email(erasure.email))
        # None is added meanwhile: changes of a customer lock their row, and do not find one that is marked.
        await idempotency.erase(self._units.database, str(customer_id))

    async def _erase_rows(self, work: UnitOfWork, customer_id: UUID, trace: Trace) -> None:
        customer = await self._erasures.find(work, customer_id)
        # Otherwise another call, or the sweep, has finished the same erasure.
        if customer is not None:
            await self._erasures.delete(work, customer_id)
            work.publish(CustomerErased(customer, self._units.now()), trace)
