"""Addresses: where the orders of customers can be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from customer_svc.domain import MAX_ADDRESSES, Address, AddressLimitReached, PostalAddress
from customer_svc.usecases.customers import record, whose
from mesh.ids import new_id, parse_id

if TYPE_CHECKING:
    from customer_svc.store import CustomerStore
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Caller
    from mesh.rpc.replies import Change, Reply


class Addresses:
    """The postal addresses of customers."""

    def __init__(self, units: UnitsOfWork, customers: CustomerStore, pages: Pages) -> None:
        self._units = units
        self._customers = customers
        self._pages = pages

    async def add_address(
        self, change: Change[Address], named: UUID | None, postal_address: PostalAddress
    ) -> Reply[Address]:
        """Add an address. Raises CustomerNotFound or AddressLimitReached."""
        customer_id = whose(change.caller, named)
        now = self._units.now()
        async with self._units.once(change) as work:
            customer = await self._customers.load(work, customer_id)
            if await self._customers.count_addresses(work, customer_id) >= MAX_ADDRESSES:
                raise AddressLimitReached(customer_id)
            address = Address(new_id(), customer_id, postal_address, now)
            self._customers.add_address(work, address)
            record(work, self._customers, customer, customer.changed(now), change)
            return work.reply(address)

    async def list_addresses(
        self, caller: Caller, named: UUID | None, *, page_size: int, page_token: str
    ) -> tuple[list[Address], str]:
        """A page of a customer's addresses, newest first, and the token of the next page. Raises CustomerNotFound."""
        customer_id = whose(caller, named)
        scope = f"addresses\0{customer_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        before = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            await self._customers.read(reading, customer_id)
            found = await self._customers.list_addresses(reading, customer_id, before=before, most=size + 1)
        return self._pages.page(scope, found, size, lambda address: [str(address.id)])

    async def delete_address(self, change: Change[None], named: UUID | None, address_id: UUID) -> Reply[None]:
        """Delete an address. Raises CustomerNotFound or AddressNotFound."""
        customer_id = whose(change.caller, named)
        async with self._units.once(change) as work:
            customer = await self._customers.load(work, customer_id)
            await self._customers.delete_address(work, customer_id, address_id)
            record(work, self._customers, customer, customer.changed(self._units.now()), change)
            return work.reply(None)
