"""What the customer service can do. Transactions begin and end here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID
from weakref import WeakValueDictionary

from customer_svc import store, wire
from customer_svc.domain import (
    Credentials,
    CredentialsInvalid,
    Customer,
    CustomerNotFound,
    NewCustomer,
    PaymentMethod,
    PaymentMethodQuery,
    PaymentMethodSecret,
    Session,
    same_email,
)
from customer_svc.providers import card_of
from mesh.db import idempotency
from mesh.db.paging import Pages
from mesh.errors import MeshError
from mesh.ids import new_id, parse_id

if TYPE_CHECKING:
    from customer_svc.access_tokens import AccessTokens
    from customer_svc.passwords import Passwords
    from customer_svc.session_store import SessionStore
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call, Caller
    from mesh.rpc.replies import Change, Reply


def _whose(caller: Caller, named: UUID | None) -> UUID:
    """The customer whom a request is about: the one it names, or else the caller.

    Raises CustomerNotFound when that is somebody the caller may not see, or when the caller is no customer.
    """
    customer_id = named or caller.customer_id
    if customer_id is None:
        raise CustomerNotFound(None)
    caller.own(customer_id, CustomerNotFound(customer_id))
    return customer_id


class Customers:
    """Who the customers are."""

    def __init__(self, units: UnitsOfWork, passwords: Passwords, sessions: SessionStore) -> None:
        self._units = units
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
            await store.add_customer(work.transaction, customer, password_hash)
            work.publish(wire.customer_created(customer), change.trace)
            return work.reply(customer)

    async def get_customer(self, caller: Caller, named: UUID | None) -> Customer:
        """One customer; the caller when none is named. Raises CustomerNotFound."""
        customer_id = _whose(caller, named)
        async with self._units.database.reading() as reading:
            customer = await store.get_customer(reading, customer_id)
        if customer is None:
            raise CustomerNotFound(customer_id)
        return customer


class PaymentMethods:
    """How the customers pay."""

    def __init__(self, units: UnitsOfWork, pages: Pages) -> None:
        self._units = units
        self._pages = pages

    async def add_payment_method(
        self, change: Change[PaymentMethod], named: UUID | None, token: str, *, make_default: bool
    ) -> Reply[PaymentMethod]:
        """Keep a payment method; a customer's first one becomes the default anyway.

        Raises CustomerNotFound or ProviderTokenUnknown.
        """
        customer_id = _whose(change.caller, named)
        now = self._units.now()
        card = card_of(token, now)
        async with self._units.once(change) as work:
            customer = await store.lock_customer(work.transaction, customer_id)
            if customer is None:
                raise CustomerNotFound(customer_id)
            if make_default:
                await store.clear_default(work.transaction, customer_id)
            is_default = make_default or not await store.has_default(work.transaction, customer_id)
            method = PaymentMethod(new_id(), customer_id, card, is_default, now)
            await store.add_payment_method(work.transaction, method, token)
            changed = customer.changed(now)
            await store.write_customer(work.transaction, changed)
            work.publish(wire.customer_updated(changed), change.trace)
            return work.reply(method)

    async def list_payment_methods(
        self, caller: Caller, named: UUID | None, *, page_size: int, page_token: str
    ) -> tuple[list[PaymentMethod], str]:
        """A page of a customer's payment methods, newest first, and the token of the next. Raises CustomerNotFound."""
        customer_id = _whose(caller, named)
        scope = f"payment methods\0{customer_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        before = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            if await store.get_customer(reading, customer_id) is None:
                raise CustomerNotFound(customer_id)
            found = await store.list_payment_methods(reading, customer_id, before=before, most=size + 1)
        if len(found) <= size:
            return found, ""
        return found[:size], self._pages.token(scope, [str(found[size - 1].id)])

    async def resolve(self, queries: Sequence[PaymentMethodQuery]) -> list[PaymentMethodSecret | MeshError]:
        """How the customers of the queries pay, one result each, with one statement for all.

        Results may be CustomerNotFound, PaymentMethodNotFound or PaymentMethodMissing.
        """
        async with self._units.database.reading() as reading:
            wallets = await store.get_wallets(reading, queries)
        results: list[PaymentMethodSecret | MeshError] = []
        for query in queries:
            try:
                if query.customer_id not in wallets:
                    raise CustomerNotFound(query.customer_id)
                results.append(wallets[query.customer_id].pick(query.payment_method_id))
            except MeshError as refusal:
                results.append(refusal)
        return results


class Sessions:
    """Signing in. Its replies are secrets: nothing here is stored under an idempotency key."""

    def __init__(self, units: UnitsOfWork, passwords: Passwords, sessions: SessionStore, tokens: AccessTokens) -> None:
        self._units = units
        self._passwords = passwords
        self._sessions = sessions
        self._tokens = tokens
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create_session(self, call: Call, email: str, password: str) -> Session:
        """Sign a customer in.

        Raises CredentialsInvalid, alike in words and in time for an unknown email address and a wrong password;
        SignInLimited after too many of those; ClientLimited; Unavailable while sessions cannot be kept;
        ResourceExhausted when too many passwords wait to be hashed.
        """
        account, client = same_email(email), call.client_network
        await self._sessions.admit_sign_in(client)
        # One at a time for a client in this process: an attempt under way counts as failed until it has succeeded, and
        # many good ones side by side should not look like an attack.
        turn = self._turns.setdefault((account, client), asyncio.Lock())
        async with turn, self._sessions.attempt(account, client):
            credentials = await self._verified(email, password, client)
        if self._passwords.is_outdated(credentials.password_hash):
            await self._rehash(credentials, password, client)
        now = self._units.now()
        refresh_token = await self._sessions.open(credentials.customer_id, now)
        access_token, expire_time = self._tokens.issue(credentials.customer_id, now)
        return Session(credentials.customer_id, expire_time, access_token, refresh_token)

    async def _verified(self, email: str, password: str, client: str) -> Credentials:
        async with self._units.database.reading() as reading:
            credentials = await store.get_credentials(reading, email)
        password_hash = credentials.password_hash if credentials else None
        matches = await self._passwords.matches(password, password_hash, client=client)
        if credentials is None or not matches:
            raise CredentialsInvalid
        return credentials

    async def _rehash(self, credentials: Credentials, password: str, client: str) -> None:
        """Bring the hash up to the parameters of now; only at a sign-in is the password there to do it."""
        new_hash = await self._passwords.hash(password, client=client)
        async with self._units.database.transaction() as transaction:
            await store.replace_hash(transaction, credentials, new_hash)
