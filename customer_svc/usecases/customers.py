"""Customers: sign-up, and what they read of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from customer_svc.domain import Customer, CustomerCreated, CustomerNotFound, CustomerUpdated, NewCustomer
from mesh.db import idempotency
from mesh.ids import new_id

if TYPE_CHECKING:
    from customer_svc.passwords import Passwords
    from customer_svc.session_store import SessionStore
    from customer_svc.store import CustomerStore
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
    """Customers as they sign up and read themselves."""

    def __init__(
        self, units: UnitsOfWork, customers: CustomerStore, passwords: Passwords, sessions: SessionStore
    ) -> None:
        self._units = units
        self._customers = customers
        self._passwords = passwords
        self._sessions = sessions

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

    async def get_customer(self, caller: Caller, named: UUID | None) -> Customer:
        """One customer; the caller when none is named. Raises CustomerNotFound."""
        customer_id = whose(caller, named)
        async with self._units.database.reading() as reading:
            return await self._customers.read(reading, customer_id)
