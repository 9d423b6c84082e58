"""Placing orders, in groups: payment methods and addresses are selected, stock is held, the orders are committed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from mesh.batch.keyed import KeyedGroupCommit
from mesh.db.idempotency import KeyTaken, find
from mesh.errors import (
    TRANSIENT,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    MeshError,
    NotFound,
    StaleWrite,
)
from mesh.ids import new_id
from order_svc.domain import (
    FREE,
    CurrencyNotSupported,
    Hold,
    HoldLost,
    HoldRequest,
    Order,
    OrderNotFound,
    OrderPlaced,
    OrderRequest,
    PaymentMethodMissing,
    Selection,
    Total,
    placed,
)
from order_svc.usecases.owner import owner_of

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from order_svc.peers import CustomerPeer, StockPeer
    from order_svc.store import OrderStore
    from order_svc.usecases.holds import UnusedHolds

T = TypeVar("T")

_NOT_FREE = {"PRICE_CHANGED", "PRODUCT_NOT_FOUND", "PRODUCT_ARCHIVED", "CURRENCY_MISMATCH", "VALIDATION_FAILED"}
"""Why there is no hold whose total is zero. Without a payment method, there is no order then."""
_REFUSALS = (AlreadyExists, FailedPrecondition, InvalidArgument, NotFound)
"""Errors that are caused by the request: it was not placed, and will not be."""


@dataclass(slots=True)
class Placing:
    """A request to place an order. Its order id and hold key stay the same in every attempt."""

    change: Change[Order]
    customer_id: UUID
    request: OrderRequest
    draft: Order | None = None
    """The draft that is placed, if it is one: its placing has begun."""
    is_asked: bool = False
    """Whether the product service was asked to hold its stock."""
    may_hold: bool = False
    """Whether stock is held for it, or may be, though it is refused."""
    order_id: UUID = field(default_factory=new_id)
    hold_key: bytes = b""

    def __post_init__(self) -> None:
        # Without an idempotency key, no other call adopts the hold.
        self.hold_key = self.change.key.digest if self.change.key else os.urandom(32)
        if self.draft is not None:
            # A hold of a call with another key gets this key and the current prices, because it has the same order id.
            # The key may have been used for another draft, and then has a hold.
            self.order_id = self.draft.id
            self.hold_key = sha256(self.draft.id.bytes + self.hold_key).digest()


@dataclass(slots=True)
class _Attempt:
    """A placing on its way: each step adds its part, or the failure that ends it."""

    placing: Placing
    selection: Selection | None = None
    hold: Hold | None = None
    reply: Reply[Order] | None = None
    failure: Exception | None = None

    @property
    def change(self) -> Change[Order]:
        return self.placing.change

    @property
    def expected_total(self) -> Total | None:
        """The total without which nothing is held. Who has no payment method may order what costs nothing."""
        expected = self.placing.request.expected_total
        return FREE if expected is None and self.selection and not self.selection.payment_method else expected

    @property
    def likely_currency(self) -> str:
        """The currency that is expected, or that of the draft; empty if it costs nothing or is not known yet."""
        placing = self.placing
        if (expected := placing.request.expected_total) is not None:
            return expected.currency if expected.amount else ""
        return placing.draft.currency if placing.draft and placing.draft.total else ""

    @property
    def provider(self) -> str:
        """The payment provider of the customer's payment method; empty if there is none."""
        return self.selection.payment_method.provider if self.selection and self.selection.payment_method else ""

    @property
    def result(self) -> Reply[Order] | Exception:
        result = self.failure or self.reply
        assert result is not None, "every step ends in a reply or a failure"
        return result


class Placement:
    """Places orders: for each group one call of the customer service, one of the product service, and one commit."""

    def __init__(
        self,
        units: UnitsOfWork,
        orders: OrderStore,
        customers: CustomerPeer,
        stock: StockPeer,
        unused_holds: UnusedHolds,
        *,
        payment_deadline: timedelta,
        hold_margin: timedelta,
    ) -> None:
        self._units = units
        self._orders = orders
        self._customers = customers
        self._stock = stock
        self._unused_holds = unused_holds
        self._deadline = payment_deadline
        self._hold_margin = hold_margin
        self.group = KeyedGroupCommit[Placing, Order]("order placement", self._place, database=units.database)

    async def place(self, change: Change[Order], request: OrderRequest) -> Reply[Order]:
        """Place an order: its stock is held when this returns, and its payment is under way.

        Raises the errors of the customer service about the payment method and of the product service about the stock;
        InvalidArgument (CURRENCY_MISMATCH; staff must name the customer), CustomerNotFound, PriceChanged,
        CurrencyNotSupported, HoldLost; Replay.
        """
        owner = owner_of(change.caller, request.customer_id)
        return await self.group.submit(Placing(change, owner, request))

    async def place_draft(
        self, change: Change[Order], order_id: UUID, request: OrderRequest, *, etag: str
    ) -> Reply[Order]:
        """Place a draft at the current prices. It keeps its id.

        From then on the draft cannot be edited, because the hold has its items. A refusal ends that, and so does any
        failure before the hold, unless another placing of the draft is open. When the outcome is not known, it stays
        so until the draft is placed again, or cancelled.

        Raises OrderNotFound, EtagMismatch, OrderState unless it is a draft, OrderEmpty, and the errors of `place`.
        """
        try:
            draft = await self._begin_placing(change, order_id, etag)
        except MeshError:
            # An earlier call with this key may have placed it.
            if change.key and (stored := (await find(self._units.database, [change.key])).get(change.key)):
                raise stored from None
            raise
        placing = Placing(change, draft.customer_id, draft.complete(request), draft)
        try:
            return await self.group.submit(placing)
        except MeshError as failure:
            if not placing.is_asked or (isinstance(failure, _REFUSALS) and not placing.may_hold):
                await self._refuse_placing(draft.id)
            raise

    async def _begin_placing(self, change: Change[Order], order_id: UUID, etag: str) -> Order:
        """The draft, with one more placing under way."""
        async with self._units.begin(pessimistic=True) as work:
            order = (await self._orders.load(work, [order_id]))[order_id]
            change.caller.own(order.customer_id, OrderNotFound(order_id))
            placing = order.begin_placing(etag, self._units.now())
            self._orders.save_placings(work, order, placing)
        return placing

    async def _refuse_placing(self, order_id: UUID) -> None:
        """Let a draft be edited again, unless another placing of it is open."""
        async with self._units.begin(pessimistic=True) as work:
            order = (await self._orders.load(work, [order_id]))[order_id]
            self._orders.save_placings(work, order, order.refuse_placing(self._units.now()))

    async def _place(self, batch: Sequence[Placing]) -> list[Reply[Order] | Exception]:
        attempts = [_Attempt(placing) for placing in batch]
        await self._select(attempts)
        await self._hold(_open(attempts))
        await self._commit(_open(attempts))
        self._unused_holds.release(each.hold.order_id for each in attempts if each.failure and each.hold)
        return [each.result for each in attempts]

    async def _select(self, attempts: Sequence[_Attempt]) -> None:
        """The payment method and the address of each. Who has no payment method may order what costs nothing."""
        selections = await _answer_for_each(
            self._customers.select(
                [(each.placing.customer_id, each.placing.request) for each in attempts],
                [each.change.call for each in attempts],
            ),
            len(attempts),
        )
        for each, selection in zip(attempts, selections, strict=True):
            expected = each.placing.request.expected_total
            if isinstance(selection, MeshError):
                each.failure = selection
            elif expected and expected.amount and not selection.payment_method:
                each.failure = PaymentMethodMissing(each.placing.customer_id)
            elif (refusal := _currency_refusal(selection, each.likely_currency)) is not None:
                each.failure = refusal
            else:
                each.selection = selection

    async def _hold(self, attempts: Sequence[_Attempt]) -> None:
        """Hold the stock of each order, all lines or none."""
        if not attempts:
            return
        requests = [
            HoldRequest(p.order_id, p.hold_key, p.customer_id, p.request.quantities, each.expected_total)
            for each in attempts
            for p in [each.placing]
        ]
        expire_time = self._units.now() + self._deadline + self._hold_margin
        calls = [each.change.call for each in attempts]
        for each in attempts:
            each.placing.is_asked = True
        holds = await _answer_for_each(self._stock.reserve(requests, expire_time, calls), len(attempts))
        for each, hold in zip(attempts, holds, strict=True):
            # The key of a draft that was used for other items has a hold.
            each.placing.may_hold |= not isinstance(hold, MeshError) or isinstance(hold, AlreadyExists)
            if not isinstance(hold, MeshError):
                each.hold = hold
            elif each.expected_total is FREE and hold.reason in _NOT_FREE:
                each.failure = PaymentMethodMissing(each.placing.customer_id)
            else:
                each.failure = hold

    async def _commit(self, attempts: Sequence[_Attempt]) -> None:
        """Commit the orders with their replies and events, all in one statement."""
        now = self._units.now()
        for each in attempts:
            try:
                each.reply = each.change.reply(self._order(each, now))
            except MeshError as refusal:
                each.failure = refusal
        _fail_duplicate_drafts(attempts)
        while pending := _open(attempts):
            try:
                await self._write(pending)
            except (KeyTaken, HoldLost):
                # Another attempt was faster. Its stored reply is the result here as well.
                stored = await self.group.stored([each.placing for each in pending])
                if not stored:
                    raise
                for each in pending:
                    each.failure = stored.get(each.change.key) if each.change.key else None
            except StaleWrite as stale:
                _fail_drafts(pending, stale)
            else:
                return

    def _order(self, attempt: _Attempt, now: datetime) -> Order:
        hold, selection, draft = attempt.hold, attempt.selection, attempt.placing.draft
        assert hold is not None, "only what is held is ordered"
        assert selection is not None, "only what can be paid is held"
        if draft is None:
            item_ids = [new_id() for _ in hold.lines]
        else:
            known = {item.product_id: item.id for item in draft.items}
            item_ids = [known[line.product_id] for line in hold.lines]
        order = placed(
            attempt.placing.customer_id,
            attempt.placing.request,
            hold,
            item_ids,
            selection,
            now=now,
            deadline=self._deadline,
        )
        return order if draft is None else draft.placed_as(order, attempt.placing.request)

    async def _write(self, attempts: Sequence[_Attempt]) -> None:
        replies = [(each, each.reply) for each in attempts if each.reply is not None]
        async with self._units.begin() as work:
            work.store_replies((each.change.key, reply.wire) for each, reply in replies)
            self._orders.add(work, [reply.value for each, reply in replies if each.placing.draft is None])
            self._orders.place_drafts(
                work, [(each.placing.draft, reply.value) for each, reply in replies if each.placing.draft is not None]
            )
            for each, (order, _) in replies:
                fact = OrderPlaced(order, each.provider if order.payment_method_id else "")
                work.publish(fact, each.change.trace, subject=order.id, actor=each.change.caller)


def _currency_refusal(selection: Selection, currency: str) -> CurrencyNotSupported | None:
    """Why an order in this currency cannot be paid. Refused here, it never holds stock, and a draft stays open."""
    if currency and selection.payment_method:
        try:
            selection.payment_method.require_currency(currency)
        except CurrencyNotSupported as refusal:
            return refusal
    return None


def _open(attempts: Sequence[_Attempt]) -> list[_Attempt]:
    """The attempts that have not failed."""
    return [each for each in attempts if each.failure is None]


def _of_drafts(attempts: Sequence[_Attempt]) -> list[_Attempt]:
    """The attempts to place drafts."""
    return [each for each in attempts if each.placing.draft is not None]


def _fail_drafts(attempts: Sequence[_Attempt], stale: StaleWrite) -> None:
    """Fail the placings of drafts: one of these was cancelled, or placed by another call.

    Only drafts have an earlier version. Raises `stale` if there are none.
    """
    if not (drafts := _of_drafts(attempts)):
        raise stale
    for each in drafts:
        each.failure = stale


def _fail_duplicate_drafts(attempts: Sequence[_Attempt]) -> None:
    """Let only the first of several attempts place the same draft."""
    first: set[UUID] = set()
    for each in _of_drafts(attempts):
        if each.placing.order_id in first:
            each.failure = StaleWrite()
        first.add(each.placing.order_id)


async def _answer_for_each(question: Awaitable[list[T | MeshError]], count: int) -> list[T | MeshError]:
    """The answer of another service about each of `count` placings.

    If the whole call fails and the failure is transient, or there is one placing only, it is the answer for each. Any
    other failure is raised, and the batch is halved to find the placing that is at fault.
    """
    try:
        return await question
    except MeshError as failure:
        if count > 1 and not isinstance(failure, TRANSIENT):
            raise
        return [failure] * count
