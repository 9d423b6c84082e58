"""Sessions: signing in, staying signed in, and signing out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from customer_svc.domain import (
    Credentials,
    CredentialsInvalid,
    CustomerNotFound,
    Session,
    SessionRevoked,
    same_email,
)

if TYPE_CHECKING:
    from customer_svc.access_tokens import AccessTokens
    from customer_svc.passwords import Passwords
    from customer_svc.session_store import OpenSession, SessionStore
    from customer_svc.store import CustomerStore
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call


class Sessions:
    """Signing in and out. Its replies are secrets: nothing here is stored under an idempotency key."""

    def __init__(
        self,
        units: UnitsOfWork,
        customers: CustomerStore,
        passwords: Passwords,
        sessions: SessionStore,
        tokens: AccessTokens,
    ) -> None:
        self._units = units
        self._customers = customers
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
        opened = await self._sessions.open(credentials.customer_id, self._units.now())
        return await self._session(opened, CredentialsInvalid())

    async def refresh_session(self, refresh_token: str) -> Session:
        """Replace a session by its successor. Raises SessionRevoked; Unavailable while sessions cannot be kept."""
        return await self._session(await self._sessions.refresh(refresh_token), SessionRevoked())

    async def delete_session(self, refresh_token: str) -> None:
        """Sign a customer out; an unknown token changes nothing. Raises Unavailable while sessions cannot be kept."""
        await self._sessions.close(refresh_token)

    async def _session(self, opened: OpenSession, refusal: Exception) -> Session:
        """The session with a new access token. Ends it and raises `refusal` if the customer is gone.

        The customer is read after the session was written: either an erasure in the meantime has ended the session, or
        this read no longer finds the customer.
        """
        try:
            async with self._units.database.reading() as reading:
                await self._customers.read(reading, opened.customer_id)
        except CustomerNotFound:
            await self._sessions.close(opened.refresh_token)
            raise refusal from None
        access_token, expire_time = self._tokens.issue(opened.customer_id, opened.id, self._units.now())
        return Session(opened.customer_id, expire_time, access_token, opened.refresh_token)

    async def _verified(self, email: str, password: str, client: str) -> Credentials:
        async with self._units.database.reading() as reading:
            credentials = await self._customers.read_credentials(reading, email)
        password_hash = credentials.password_hash if credentials else None
        matches = await self._passwords.matches(password, password_hash, client=client)
        if credentials is None or not matches:
            raise CredentialsInvalid
        return credentials

    async def _rehash(self, credentials: Credentials, password: str, client: str) -> None:
        """Bring the hash up to the parameters of now; only at a sign-in is the password there to do it."""
        new_hash = await self._passwords.hash(password, client=client)
        async with self._units.database.transaction() as transaction:
            await self._customers.replace_hash(transaction, credentials, new_hash)
