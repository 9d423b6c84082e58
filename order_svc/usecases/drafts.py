"""Drafts: orders that their customers are still editing. They hold nothing and cost nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from mesh.errors import MeshError
from mesh.ids import new_id
from order_svc.domain import MAX_ITEMS, Order, OrderNotFound, draft
from order_svc.usecases.owner import owner_of

if TYPE_CHECKING:
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.replies import Change, Reply
    from order_svc.domain import Offer, OrderRequest, Selection
    from order_svc.peers import CustomerPeer, ProductPeer
    from order_svc.store import OrderStore

T = TypeVar("T")


class Drafts:
    """Creates and edits drafts, with the names and prices that the product service has now.

    The other services are asked before the transaction, and what they refuse is raised within it. So a retry gets its
    stored reply, whatever has become of the product meanwhile, and a stranger learns nothing but that there is no such
    order.
    """

    def __init__(self, units: UnitsOfWork, orders: OrderStore, customers: CustomerPeer, products: ProductPeer) -> None:
        self._units = units
        self._orders = orders
        self._customers = customers
        self._products = products

    async def create_draft(self, change: Change[Order], request: OrderRequest) -> Reply[Order]:
        """Create a draft of the requested products, none or many.

        Raises the errors of the customer service about the customer, the payment method and the address, and of the
        product service about the products; CustomerNotFound, ProductArchived, CurrencyMismatch, PriceChanged,
        InvalidArgument.
        """
        owner = owner_of(change.caller, request.customer_id)
        offers, selection = await asyncio.gather(
            self._offers(change, request.quantities), self._selection(change, owner, request)
        )
        async with self._units.once(change) as work:
            address = _unless_error(selection).shipping_address
            made = draft(new_id(), owner, request, address, _unless_error(offers), new_id, self._units.now())
            self._orders.add_draft(work, made)
            return work.reply(made)

    async def add_item(
        self, change: Change[Order], order_id: UUID, *, product_id: UUID, quantity: int, etag: str
    ) -> Reply[Order]:
        """Add a product to a draft, or more of it to its item.

        Raises OrderNotFound, EtagMismatch, OrderState unless it is a draft, PRODUCT_NOT_FOUND of the product service,
        ProductArchived, CurrencyMismatch, InvalidArgument.
        """

        def add(order: Order, offers: Mapping[UUID, Offer], now: datetime) -> Order:
            return order.add_item(new_id(), product_id, quantity, offers, now)

        return await self._edit(change, order_id, etag, add, product_id)

    async def change_quantity(
        self, change: Change[Order], order_id: UUID, *, item_id: UUID, quantity: int, etag: str
    ) -> Reply[Order]:
        """Change the quantity of an item of a draft.

        Raises OrderNotFound, EtagMismatch, OrderState, ItemNotFound, InvalidArgument.
        """
        return await self._edit(
            change, order_id, etag, lambda order, offers, now: order.change_quantity(item_id, quantity, offers, now)
        )

    async def remove_item(self, change: Change[Order], order_id: UUID, *, item_id: UUID, etag: str) -> Reply[Order]:
        """Remove an item from a draft. Raises as `change_quantity`."""
        return await self._edit(
            change, order_id, etag, lambda order, offers, now: order.remove_item(item_id, offers, now)
        )

    async def _edit(
        self,
        change: Change[Order],
        order_id: UUID,
        etag: str,
        edit: Callable[[Order, Mapping[UUID, Offer], datetime], Order],
        *added: UUID,
    ) -> Reply[Order]:
        """Edit a draft, and show the prices of now. An item that is added meanwhile by another call keeps its price."""
        async with self._units.database.reading() as reading:
            known = (await self._orders.read(reading, [order_id])).values()
        product_ids = dict.fromkeys([*added, *(item.product_id for order in known for item in order.items)])
        # With more, the edit is refused.
        offers = await self._offers(change, list(product_ids)[:MAX_ITEMS])
        async with self._units.once(change) as work:
            order = (await self._orders.load(work, [order_id]))[order_id]
            change.caller.own(order.customer_id, OrderNotFound(order_id))
            order.require_etag(etag)
            edited = edit(order, _unless_error(offers), self._units.now())
            self._orders.save_draft(work, order, edited)
            return work.reply(edited)

    async def _offers(self, change: Change[Order], product_ids: Iterable[UUID]) -> dict[UUID, Offer] | MeshError:
        try:
            return await self._products.offers(list(product_ids), change.call)
        except MeshError as error:
            return error

    async def _selection(
        self, change: Change[Order], customer_id: UUID, request: OrderRequest
    ) -> Selection | MeshError:
        try:
            (selection,) = await self._customers.select([(customer_id, request)], [change.call])
        except MeshError as error:
            return error
        return selection


def _unless_error(answer: T | MeshError) -> T:
    if isinstance(answer, MeshError):
        raise answer
    return answer
