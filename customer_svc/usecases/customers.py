"""Customers: sign-up, reading and updating."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from customer_svc.domain import (
    Customer,
    CustomerCreated,
    CustomerNotFound,
    CustomerUpdate,
    CustomerUpdated,
    NewCustomer,
    same_email,
)
from mesh.db import idempotency
from mesh.ids import new_id, parse_id

if TYPE_CHECKING:
    from customer_svc.passwords import Passwords
    from customer_svc.session_store import SessionStore
    from customer_svc.store import CustomerStore
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitOfWork, UnitsOfWork
    from mesh.rpc.call import Caller
    from mesh.rpc.replies import Change, Reply


def whose(caller: Caller, named: UUID | None) -> UUID:
    """The customer whom a request is about: the one it names, or else the caller.

    Raises CustomerNotFound when that is somebody the caller may not see, or when the caller is no customer.
    """
    customer_id = named or caller.customer_id
    if customer_id is None:
        raise CustomerNotFound(None)
    caller.own(customer_id, CustomerNotFound(customer_id))
    return customer_id


def record(
    work: UnitOfWork, customers: CustomerStore, loaded: Customer, changed: Customer, change: Change[Any]
) -> None:
    """Write and publish the new version of a loaded customer."""
    customers.save(work, loaded, changed)
    work.publish(CustomerUpdated(changed), change.trace)


class Customers:
    """Customers as they sign up, and as they and staff read and update them."""

    def __init__(
        self, units: UnitsOfWork, customers: CustomerStore, passwords: Passwords, sessions: SessionStore, pages: Pages
    ) -> None:
        self._units = units
        self._customers = customers
        self._passwords = passwords
        self._sessions = sessions
        self._pages = pages

    async def create_customer(self, change: Change[Customer], new: NewCustomer) -> Reply[Customer]:
        """Sign a customer up.

        Raises EmailTaken; ClientLimited; ResourceExhausted when too many passwords wait to be hashed.
        """
        # A retry should not cost a hash, and no hash should be made while a transaction is open.
        for outcome in (await idempotency.find(self._units.database, [change.key])).values():
            raise outcome
        client = change.call.client_network
        await self._sessions.admit_sign_up(client)
        password_hash = await self._passwords.hash(new.password, client=client)
        now = self._units.now()
        customer = Customer(new_id(), new.email, new.name, new.phone, now, now, version=1)
        async with self._units.once(change) as work:
            await self._customers.add(work, customer, password_hash)
            work.publish(CustomerCreated(customer), change.trace)
            return work.reply(customer)

    async def update_customer(
        self, change: Change[Customer], named: UUID | None, update: CustomerUpdate, *, etag: str
    ) -> Reply[Customer]:
        """Give a customer new values; when none differs, nothing changes.

        Raises CustomerNotFound, EtagMismatch or EmailTaken.
        """
        customer_id = whose(change.caller, named)
        async with self._units.once(change) as work:
            customer = await self._customers.load(work, customer_id)
            customer.require_etag(etag)
            updated = customer.updated(update, self._units.now())
            if updated.email != customer.email:
                await self._customers.require_free_email(work, updated.email, customer_id)
            if updated is not customer:
                record(work, self._customers, customer, updated, change)
            return work.reply(updated)

    async def list_customers(self, *, email: str, page_size: int, page_token: str) -> tuple[list[Customer], str]:
        """A page of all customers, newest first, and the token of the next page; with `email`, the one who has it."""
        scope = f"customers\0{same_email(email)}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        before = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            if email:
                return await self._customers.list_by_email(reading, email), ""
            found = await self._customers.list_customers(reading, before=before, most=size + 1)
        return self._pages.page(scope, found, size, lambda customer: [str(customer.id)])

    async def get_customer(self, caller: Caller, named: UUID | None) -> Customer:
        """One customer; the caller when none is named. Raises CustomerNotFound."""
        customer_id = whose(caller, named)
        return await self._customers.find(self._units.database, customer_id)
