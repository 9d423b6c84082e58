"""Placing orders, in groups: stock is held, then the orders are committed with their events and replies."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from commerce.order.v1 import order_pb2
from mesh.batch.group_commit import GroupCommit
from mesh.db import idempotency
from mesh.db.idempotency import IdempotencyKey, IdempotencyKeyReused, Replay
from mesh.errors import TRANSIENT, InvalidArgument, MeshError, Unimplemented, Violation
from mesh.ids import new_id
from mesh.rpc.replies import Reply
from order_svc import store, wire
from order_svc.domain import (
    CustomerNotFound,
    Hold,
    HoldLost,
    HoldRequest,
    Order,
    PaymentMethod,
    PaymentMethodMissing,
    merged,
    placed,
)

if TYPE_CHECKING:
    from mesh.db.recent import Recent
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change
    from order_svc.peers import CustomerPeer, StockPeer
    from order_svc.usecases.unused_holds import UnusedHolds

T = TypeVar("T")


@dataclass(slots=True)
class Placing:
    """A wish to place an order. What is made here stays the same for every attempt at it."""

    change: Change[order_pb2.Order]
    customer_id: UUID
    quantities: dict[UUID, int]
    payment_method_id: UUID | None
    order_id: UUID = field(default_factory=new_id)
    hold_key: bytes = b""

    def __post_init__(self) -> None:
        # Without an idempotency key every attempt is one of its own.
        self.hold_key = self.change.key.digest if self.change.key else os.urandom(32)


@dataclass(slots=True)
class Ready:
    """A placing with all that its order is made of."""

    index: int
    placing: Placing
    method: PaymentMethod | None
    hold: Hold


@dataclass(slots=True)
class Made:
    """An order that is to be written."""

    index: int
    change: Change[order_pb2.Order]
    order: Order
    reply: Reply[order_pb2.Order]
    method: PaymentMethod | None


_UNPRICED = {"PRICE_CHANGED", "PRODUCT_NOT_FOUND", "PRODUCT_ARCHIVED", "CURRENCY_MISMATCH", "VALIDATION_FAILED"}
"""Why there is no hold whose total is zero. Without a payment method, there is no order then."""

Placed = tuple[Order, order_pb2.Order]
"""An order as it was placed, and its message."""
Results = dict[int, Reply[order_pb2.Order] | Exception]
"""What came of each placing, by its place in the batch."""


class Placement:
    """Places orders, in groups: one question to the customer service, one to the product service, one commit."""

    def __init__(
        self,
        units: UnitsOfWork,
        customers: CustomerPeer,
        stock: StockPeer,
        unused_holds: UnusedHolds,
        *,
        recent: Recent[UUID, Placed],
        payment_deadline: timedelta,
        hold_margin: timedelta,
    ) -> None:
        self._units = units
        self._recent = recent
        self._customers = customers
        self._stock = stock
        self.unused_holds = unused_holds
        self._deadline = payment_deadline
        self._hold_margin = hold_margin
        self._retries = idempotency.Retries()
        self._replays: GroupCommit[IdempotencyKey, None] = GroupCommit("stored replies", self._replay)
        self.group: GroupCommit[Placing, Reply[order_pb2.Order]] = GroupCommit(
            "order placement", self._place, max_batch=256
        )

    async def place(
        self,
        change: Change[order_pb2.Order],
        customer_id: UUID | None,
        lines: Iterable[tuple[UUID, int]],
        payment_method_id: UUID | None,
        *,
        draft: bool,
    ) -> Reply[order_pb2.Order]:
        """Place an order: its stock is held when this returns, its payment is under way.

        What it returns is the order's message, made once for the reply and for the event.

        Raises what the customer service says of the payment method and the product service of the stock;
        InvalidArgument (CURRENCY_MISMATCH; staff must name the customer), CustomerNotFound, HoldLost; Replay.
        """
        if draft:
            raise Unimplemented("drafts are not there yet: place the order at once")
        owner = customer_id or change.caller.customer_id
        if owner is None:
            raise InvalidArgument(
                "the request is not valid", violations=[Violation("customer_id", "staff must name the customer")]
            )
        change.caller.own(owner, CustomerNotFound(owner))
        placing = Placing(change, owner, merged(lines), payment_method_id)
        if change.key is not None and change.key in self._retries:
            # Ahead of the batch, which waits for other services, and they may not answer.
            await self._replays.submit(change.key)
        return await self.group.submit(placing)

    async def _replay(self, batch: Sequence[IdempotencyKey]) -> list[Exception | None]:
        """The batch behind the replies of known retries: the stored one of each, none where there is none yet."""
        stored = await idempotency.find(self._units.database, batch)
        return [stored.get(key) for key in batch]

    async def _place(self, batch: Sequence[Placing]) -> list[Reply[order_pb2.Order] | Exception]:
        """The batch behind `place`; see `mesh.batch.group_commit`."""
        retries = self._retries.among(placing.change.key for placing in batch if placing.change.key is not None)
        answered = await idempotency.find(self._units.database, retries)
        results: Results = {}
        fresh: list[tuple[int, Placing]] = []
        firsts: dict[bytes, int] = {}
        duplicates: list[tuple[int, int]] = []
        for index, placing in enumerate(batch):
            key = placing.change.key
            if key and (outcome := answered.get(key)):
                results[index] = outcome
            elif key and (first := firsts.setdefault(key.digest, index)) != index:
                duplicates.append((index, first))
            else:
                fresh.append((index, placing))

        ready = await self._hold(await self._payable(fresh, results), results)
        made = self._make(ready, results)
        await self._look_again(fresh, results)
        await self._write(made, results)
        for index, first in duplicates:
            results[index] = _as_duplicate(batch[index], batch[first], results[first])
        self.unused_holds.release(each.hold.order_id for each in ready if isinstance(results[each.index], Exception))
        return [results[index] for index in range(len(batch))]

    async def _look_again(self, fresh: Sequence[tuple[int, Placing]], results: Results) -> None:
        """Look failed placings up: an order that an earlier attempt has placed goes before any failure.

        This process may not know a retry for one. Its first attempt's hold may be sold already, so that there is
        nothing to adopt and no stock for another hold; or another service, which that attempt could ask, is down now.
        """
        refused = {index: placing.change.key for index, placing in fresh if index in results}
        stored = await idempotency.find(self._units.database, refused.values())
        for index, key in refused.items():
            if key is not None and (outcome := stored.get(key)):
                results[index] = outcome

    async def _payable(
        self, fresh: Sequence[tuple[int, Placing]], results: Results
    ) -> list[tuple[int, Placing, PaymentMethod | None]]:
        """Those with a payment method, and those of customers who have none: they may order what costs nothing.

        The others get their result.
        """
        if not fresh:
            return []
        question = self._customers.payment_methods(
            [(placing.customer_id, placing.payment_method_id) for _, placing in fresh],
            [placing.change.call for _, placing in fresh],
        )
        methods = await _answer_for_each(question, len(fresh))
        payable = []
        for (index, placing), method in zip(fresh, methods, strict=True):
            if isinstance(method, MeshError):
                results[index] = method
            else:
                payable.append((index, placing, method))
        return payable

    async def _hold(
        self, payable: Sequence[tuple[int, Placing, PaymentMethod | None]], results: Results
    ) -> list[Ready]:
        """Those whose stock is held; the others get their result."""
        if not payable:
            return []
        question = self._stock.reserve(
            [
                HoldRequest(each.order_id, each.hold_key, each.customer_id, each.quantities, only_if_free=not method)
                for _, each, method in payable
            ],
            self._units.now() + self._deadline + self._hold_margin,
            [placing.change.call for _, placing, _ in payable],
        )
        holds = await _answer_for_each(question, len(payable))
        ready = []
        for (index, placing, method), hold in zip(payable, holds, strict=True):
            if isinstance(hold, MeshError):
                unpaid = method is None and hold.reason in _UNPRICED
                results[index] = PaymentMethodMissing(placing.customer_id) if unpaid else hold
            else:
                ready.append(Ready(index, placing, method, hold))
        return ready

    def _make(self, ready: Sequence[Ready], results: Results) -> list[Made]:
        """The orders that are to be written; those who cannot have one get their result."""
        made: list[Made] = []
        now = self._units.now()
        for each in ready:
            try:
                order = placed(
                    each.placing.customer_id,
                    each.hold,
                    [new_id() for _ in each.hold.lines],
                    each.method,
                    now=now,
                    deadline=self._deadline,
                )
            except MeshError as refusal:
                results[each.index] = refusal
            else:
                change = each.placing.change
                method = each.method if order.payment_method_id else None
                made.append(Made(each.index, change, order, change.reply(wire.order(order)), method))
        return made

    async def _write(self, made: Sequence[Made], results: Results) -> None:
        """Commit the orders with their events and replies. One whose key is answered already gets that answer."""
        while made:
            try:
                await self._commit(made)
            except (idempotency.KeyTaken, HoldLost) as stale_write:
                stored = await idempotency.find(self._units.database, [each.change.key for each in made])
                if not stored and isinstance(stale_write, HoldLost):
                    raise
                results.update((each.index, stored[each.change.key]) for each in made if each.change.key in stored)
                made = [each for each in made if each.change.key not in stored]
            else:
                results.update((each.index, each.reply) for each in made)
                return

    async def _commit(self, made: Sequence[Made]) -> None:
        """All in one statement. Raises KeyTaken or HoldLost, with nothing done, when another attempt came first."""
        async with self._units.begin() as work:
            work.store_replies((each.change.key, each.reply.wire) for each in made)
            store.add_orders(work.transaction, [each.order for each in made])
            for each in made:
                work.publish(wire.placed(each.order, each.reply.value, each.method), each.change.trace)
        self._recent.put({each.order.id: (each.order, each.reply.value) for each in made})


async def _answer_for_each(question: Awaitable[list[T | MeshError]], count: int) -> list[T | MeshError]:
    """What another service answers about each of `count` placings.

    When it fails and the failure says nothing of the request, or there is one placing only, that failure is the answer
    for each. Any other is raised: `run_batch` finds the placing that is at fault.
    """
    try:
        return await question
    except MeshError as failure:
        if count > 1 and not isinstance(failure, TRANSIENT):
            raise
        return [failure] * count


def _as_duplicate(duplicate: Placing, first: Placing, result: Reply[order_pb2.Order] | Exception) -> Exception:
    """What comes of a placing whose key another one of its batch has too: the same, if it is the same request."""
    if duplicate.change.key != first.change.key:
        return IdempotencyKeyReused()
    return result if isinstance(result, Exception) else Replay(result.wire)
