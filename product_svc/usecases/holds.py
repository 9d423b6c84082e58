"""Stock set aside for orders: taken in groups, then sold or given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

import structlog

from mesh import tasks
from mesh.batch.group_commit import GroupCommit, run_batch
from mesh.db.recent import Recent
from mesh.errors import MeshError
from product_svc import store
from product_svc.domain import (
    Hold,
    HoldLine,
    HoldMissing,
    HoldState,
    Movement,
    MovementReason,
    Offer,
    Reservation,
    Shelf,
)
from product_svc.usecases.inventory import movement, write_down

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.events.cloudevents import Received
    from mesh.rpc.replies import Change, Reply

_ASK_AGAIN = timedelta(minutes=1)
"""The time until the order service is asked again about a hold that it has decided to keep."""

HoldStates = dict[UUID, HoldState]
"""Where holds are in their lives, by order."""

log = structlog.get_logger(__name__)


class Orders(Protocol):
    """What the sweeper asks the order service."""

    async def resolve_holds(self, order_ids: Sequence[UUID]) -> dict[UUID, HoldState]:
        """What each order wants of its hold: HELD to keep it, COMMITTED, or RELEASED for good."""


class Holds:
    """Stock set aside for orders: taken in groups, then sold or given back."""

    def __init__(self, units: UnitsOfWork, orders: Orders, *, low_stock_threshold: int) -> None:
        self._units = units
        self._orders = orders
        self._threshold = low_stock_threshold
        self._recent: Recent[UUID, Hold] = Recent(most=16_384, weight=lambda hold: len(hold.lines))
        self._offers: Recent[UUID, Offer] = Recent(most=10_000)
        self.group: GroupCommit[Reservation, Hold] = GroupCommit(
            "stock holds", self._reserve, max_batch=1000, max_waiting=20_000
        )

    async def reserve(self, reservations: Sequence[Reservation]) -> Sequence[Hold | Exception]:
        """Hold stock for each, all lines or none; one result each.

        A reservation whose key holds already gets that hold back, under the order id of its first attempt. Results may
        be ProductNotFound, ProductArchived, CurrencyMismatch, TotalTooLarge, PriceChanged, StockInsufficient or
        HoldKeyReused. Raises OVERLOADED when too many wait.
        """
        return await self.group.submit_all(reservations)

    async def _reserve(self, batch: Sequence[Reservation]) -> list[Hold | Exception]:
        """The batch behind `reserve`: optimistic, and pessimistic where that is known to be in vain or has failed."""
        wanted: Counter[UUID] = Counter()
        for reservation in batch:
            wanted.update(reservation.quantities)
        offers = self._offers.take(wanted)
        short = False
        if missing := wanted.keys() - offers.keys():
            async with self._units.database.reading() as reading:
                found = await store.get_offers(reading, missing)
            offers |= {offer.product_id: offer for offer, _ in found}
            short = any(wanted[offer.product_id] > left for offer, left in found)

        sold: dict[int, list[HoldLine]] = {}
        refused: list[int] = []
        for index, reservation in enumerate(batch):
            try:
                sold[index] = reservation.lines(offers)
            except MeshError:
                refused.append(index)

        async def reserve(work: UnitOfWork) -> _Reserved:
            if short or work.pessimistic:
                return await self._by_a_look(work, [batch[index] for index in sold])
            return self._by_offers(work, [(batch[index], lines) for index, lines in sold.items()], offers)

        async def reserve_refused(work: UnitOfWork) -> _Reserved:
            return await self._by_a_look(work, [batch[index] for index in refused])

        # Offers may be outdated: only under a lock is a refusal one. The others need no lock for that, and so go apart.
        results: dict[int, Hold | Exception] = {}
        for indexes, effect in ((refused, reserve_refused), (list(sold), reserve)):
            if indexes:
                reserved = await self._units.run_optimistically(effect)
                self._recent.put({hold.order_id: hold for hold in reserved.holds})
                self._offers.put(reserved.offers)
                results.update(zip(indexes, reserved.results, strict=True))
        return [results[index] for index in range(len(batch))]

    def _by_offers(
        self,
        work: UnitOfWork,
        batch: Sequence[tuple[Reservation, Sequence[HoldLine]]],
        offers: Mapping[UUID, Offer],
    ) -> _Reserved:
        """Hold these lines without a look at the stock: the database refuses what is short, or is not sold like that.

        Raises what keeps one of the batch from its hold. Only a look tells whether it really does.
        """
        made: dict[bytes, Hold] = {}
        taken: Counter[UUID] = Counter()
        results: list[Hold | Exception] = []
        for reservation, lines in batch:
            if hold := made.get(reservation.key):
                results.append(reservation.adopts(hold))
                continue
            taken.update(reservation.quantities)
            hold = made[reservation.key] = reservation.hold(lines)
            results.append(hold)
        holds = list(made.values())
        store.add_holds(work.transaction, holds)
        # Last, for with that PostgreSQL begins: stock is locked before the holds on it, as by whoever settles them.
        store.set_aside(
            work.transaction, ((offers[key], quantity) for key, quantity in taken.items()), self._units.now()
        )
        return _Reserved(results, holds, {key: offers[key] for key in taken})

    async def _by_a_look(self, work: UnitOfWork, batch: Sequence[Reservation]) -> _Reserved:
        """Hold stock under a lock, each as far as it reaches; or adopt what an earlier attempt holds under a key."""
        products = {product_id for reservation in batch for product_id in reservation.quantities}
        shelf = Shelf(*await store.lock_offers(work.transaction, products))
        # Not before the lock: a hold whose release was waited for is not there any more.
        keys = [reservation.key for reservation in batch] if work.pessimistic else []
        known = await store.live_holds(work.transaction, keys)
        results = [_taken(shelf, reservation, known) for reservation in batch]
        if refused := [index for index, result in enumerate(results) if isinstance(result, Exception)]:
            # It may be the earlier attempt that holds what is missing now.
            if not work.pessimistic:
                known |= await store.live_holds(work.transaction, [batch[index].key for index in refused])
            for index in refused:
                results[index] = _taken(shelf, batch[index], known)
        store.add_holds(work.transaction, shelf.holds)
        store.change_stocks(work.transaction, shelf.changes, self._units.now())
        return _Reserved(results, shelf.holds, {})

    async def commit(self, work: UnitOfWork, order_ids: Sequence[UUID]) -> dict[UUID, HoldState]:
        """Sell what these orders hold. A hold that is released already stays so: a cancelled order is final."""
        return await self.settle(work, confirmed=order_ids, cancelled=[])

    async def release(self, work: UnitOfWork, order_ids: Sequence[UUID]) -> dict[UUID, HoldState]:
        """Give back what these orders hold, or take back what they were sold."""
        return await self.settle(work, confirmed=[], cancelled=order_ids)

    async def commit_stock(self, change: Change[HoldStates], order_ids: Sequence[UUID]) -> Reply[HoldStates]:
        """`commit` as a call of its own."""
        async with self._units.once(change) as work:
            return work.reply(await self.commit(work, order_ids))

    async def release_stock(self, change: Change[HoldStates], order_ids: Sequence[UUID]) -> Reply[HoldStates]:
        """`release` as a call of its own."""
        async with self._units.once(change) as work:
            return work.reply(await self.release(work, order_ids))

    async def on_settled(self, work: UnitOfWork, events: Sequence[Received[Any]]) -> None:
        """Orders were paid, or cancelled. Raises HoldMissing when a paid one has no hold: it must have had one."""
        confirmed = [event.aggregate_id for event in events if event.type == ORDER_CONFIRMED]
        cancelled = [event.aggregate_id for event in events if event.type != ORDER_CONFIRMED]
        states = await self.settle(work, confirmed=confirmed, cancelled=cancelled)
        for order_id in confirmed:
            if order_id not in states:
                raise HoldMissing(order_id)

    async def sweep(self, *, most: int = 500) -> bool:
        """Settle holds whose time is over, each as its order says; whether there may be more.

        Nothing is released on suspicion: the order service is asked, and what it calls released can never be ordered.
        """
        async with self._units.database.reading() as reading:
            expired = await store.expired_holds(reading, most)
        if not expired:
            return False
        wishes = await self._orders.resolve_holds(expired)

        async def settle(batch: Sequence[UUID]) -> list[None]:
            confirmed = [each for each in batch if wishes[each] is HoldState.COMMITTED]
            cancelled = [each for each in batch if wishes[each] is HoldState.RELEASED]
            await self._units.run_optimistically(partial(self.settle, confirmed=confirmed, cancelled=cancelled))
            return [None] * len(batch)

        # One that cannot be settled is put off like those that are kept, and is not in the way of the others.
        later = [each for each in expired if wishes[each] is HoldState.HELD]
        ripe = [each for each in expired if wishes[each] is not HoldState.HELD]
        for order_id, failure in zip(ripe, await run_batch(settle, ripe), strict=True):
            if failure is not None:
                log.error("hold not settled", order=str(order_id), exc_info=failure)
                later.append(order_id)
        async with self._units.begin() as work:
            await store.postpone_holds(work.transaction, later, _ASK_AGAIN)
        return len(expired) == most

    async def settle(
        self, work: UnitOfWork, *, confirmed: Sequence[UUID], cancelled: Sequence[UUID]
    ) -> dict[UUID, HoldState]:
        """`commit` these and `release` those, all at once; the states in which they all are now.

        One after the other, in one transaction, the two would lock stock out of order and meet other holds head-on.
        Holds are not locked but taken to be as this process has made them, or else as they are read here, and so is
        what is on hand, at first: the transaction fails with StaleWrite when one of them has moved since.
        """
        concerned = {*confirmed, *cancelled}
        found = self._recent.take(concerned)
        if others := concerned - found.keys():
            found |= await store.get_holds(work.transaction, others)
        states = {order_id: hold.state for order_id, hold in found.items()}
        moves: list[tuple[Hold, HoldState]] = []
        for order_ids, steps in ((confirmed, _SOLD), (cancelled, _GIVEN_BACK)):
            for order_id in order_ids:
                if order_id in states and (new := steps.get(states[order_id])):
                    states[order_id] = new
                    moves.append((found[order_id], new))
        if moves:
            now = self._units.now()
            products = {line.product_id for hold, _ in moves for line in hold.lines}
            look = store.lock_stocks if work.pessimistic else store.peek_stocks
            shelf = Shelf(await look(work.transaction, products), [])
            movements: list[Movement] = []
            async for hold, new in tasks.in_portions(moves):
                for line in hold.lines:
                    stock, quantity = shelf.stock(line.product_id), line.quantity
                    match new:
                        case HoldState.COMMITTED:
                            shelf.put(stock.sell(quantity))
                            movements.append(_settled(shelf, hold, line, -quantity, MovementReason.SALE, now))
                        case HoldState.RETURNED:
                            shelf.put(stock.move(quantity))
                            movements.append(_settled(shelf, hold, line, quantity, MovementReason.RETURN, now))
                        case _:
                            shelf.put(stock.release(quantity))
            ended = {hold.order_id: hold.state for hold, _ in moves}
            # First, and then the stock, for with these PostgreSQL ends: who wants the stock does not wait for the rest.
            store.write_hold_states(work.transaction, ((key, old, states[key]) for key, old in ended.items()))
            await write_down(work, shelf, movements, now, self._threshold, "")
        return states


class _Reserved(NamedTuple):
    """What came of a batch of reservations."""

    results: list[Hold | Exception]
    holds: Sequence[Hold]
    """New ones."""
    offers: Mapping[UUID, Offer]
    """By which they were made without a look, and the next ones can be: none of them is short."""


def _taken(shelf: Shelf, reservation: Reservation, known: dict[bytes, Hold]) -> Hold | Exception:
    """What a reservation gets: the hold that its key has by now, a new one, or a refusal."""
    try:
        if hold := known.get(reservation.key):
            return reservation.adopts(hold)
        hold = known[reservation.key] = shelf.hold(reservation)
    except MeshError as refusal:
        return refusal
    return hold


ORDER_CONFIRMED, ORDER_CANCELLED = "commerce.order.confirmed", "commerce.order.cancelled"

_SOLD = {HoldState.HELD: HoldState.COMMITTED}
_GIVEN_BACK = {HoldState.HELD: HoldState.RELEASED, HoldState.COMMITTED: HoldState.RETURNED}


def _settled(shelf: Shelf, hold: Hold, line: HoldLine, delta: int, reason: MovementReason, now: datetime) -> Movement:
    return movement(shelf, line.product_id, delta, reason, hold.order_id, "", now, "service:order")
