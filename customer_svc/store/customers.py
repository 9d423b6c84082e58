"""Customers and what belongs to them: their tables, and how they are read, locked and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from customer_svc.domain import (
    Address,
    AddressNotFound,
    Credentials,
    Customer,
    CustomerNotFound,
    EmailTaken,
    PaymentMethod,
    PaymentMethodNotFound,
    PaymentMethodQuery,
    PaymentMethodSecret,
    PostalAddress,
    Wallet,
    same_email,
)
from mesh.cache.versioned import VersionedCache
from mesh.db.columns import TIME
from mesh.db.database import BulkInsert, Database, Row, Statement, Transaction
from mesh.db.rows import Rows, Values, Versions
from mesh.db.unit_of_work import UnitOfWork
from mesh.ids import LAST_ID, parse_id

metadata = sa.MetaData()

customers = sa.Table(
    "customers",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("email", sa.String, nullable=False, comment="as its owner spells it"),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("phone", sa.String, nullable=False),
    sa.Column("password_hash", sa.String, nullable=False, comment="argon2id, with salt and parameters"),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("update_time", TIME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("erase_time", TIME, comment="when their erasure began; null for all others"),
)
sa.Index("customers_erasing", customers.c.erase_time, postgresql_where=customers.c.erase_time.is_not(None))
# In "C", whose lower case is that of ASCII whatever the database's locale: the same as `same_email`.
_same_email = sa.func.lower(customers.c.email.collate("C"))
sa.Index("customers_email", _same_email, unique=True)

payment_methods = sa.Table(
    "payment_methods",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey(customers.c.id), nullable=False),
    sa.Column("provider", sa.String, nullable=False),
    sa.Column("token", sa.String, nullable=False, comment="a secret: what the provider charges"),
    sa.Column("brand", sa.String, nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("expire_month", sa.Integer, nullable=False),
    sa.Column("expire_year", sa.Integer, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    sa.Column("create_time", TIME, nullable=False),
)
sa.Index("payment_methods_customer", payment_methods.c.customer_id, payment_methods.c.id)
# The last word on the default: whatever the code does, a customer has no two.
sa.Index(
    "payment_methods_default",
    payment_methods.c.customer_id,
    unique=True,
    postgresql_where=payment_methods.c.is_default,
)

addresses = sa.Table(
    "addresses",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey(customers.c.id), nullable=False),
    sa.Column("region_code", sa.String, nullable=False),
    sa.Column("language_code", sa.String, nullable=False),
    sa.Column("postal_code", sa.String, nullable=False),
    sa.Column("sorting_code", sa.String, nullable=False),
    sa.Column("administrative_area", sa.String, nullable=False),
    sa.Column("locality", sa.String, nullable=False),
    sa.Column("sublocality", sa.String, nullable=False),
    sa.Column("address_lines", sa.ARRAY(sa.String), nullable=False),
    sa.Column("recipients", sa.ARRAY(sa.String), nullable=False),
    sa.Column("organization", sa.String, nullable=False),
    sa.Column("create_time", TIME, nullable=False),
)
sa.Index("addresses_customer", addresses.c.customer_id, addresses.c.id)

CUSTOMERS = Rows(Customer, customers, apart=["password_hash", "erase_time"])
PAYMENT_METHODS = Rows(PaymentMethod, payment_methods, apart=["token"])
_POSTAL = tuple(each.name for each in fields(PostalAddress))
ADDRESSES = Rows(Address, addresses, elsewhere=["postal_address"], apart=_POSTAL)
POSTAL_ADDRESSES = Values(PostalAddress)
# From the moment in which an erasure begins, the customer is gone for everything but the erasure.
_is_present = customers.c.erase_time.is_(None)
_customer = sa.select(*CUSTOMERS.columns).where(_is_present)
_customer_id = sa.bindparam("customer", type_=sa.Uuid)

# A taken email address is no error for PostgreSQL, which would write the address to its log.
ADD_CUSTOMER = BulkInsert(*CUSTOMERS.columns, customers.c.password_hash, returning=[customers.c.id], skip_existing=True)
CUSTOMER = Statement(_customer.where(customers.c.id == _customer_id))
LIST_CUSTOMERS = Statement(
    _customer.where(customers.c.id < sa.bindparam("before", type_=sa.Uuid))
    .order_by(customers.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="list customers",
)
_email = sa.bindparam("email", type_=sa.String)
CUSTOMER_WITH_EMAIL = Statement(_customer.where(_same_email == _email), name="read customer by email")
OWNER_OF_EMAIL = Statement(sa.select(customers.c.id).where(_same_email == _email), name="read owner of email")
# Until the end of the transaction, no other transaction gives this email address to a customer. An UPDATE cannot skip a
# value that is taken, and PostgreSQL would write the address to its log.
LOCK_EMAIL = Statement(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(_email, 0))), name="lock email")
LOCK_CUSTOMER = Statement(_customer.where(customers.c.id == _customer_id).with_for_update())
NEW_VERSIONS = Versions(CUSTOMERS, ["email", "name", "phone", "update_time"])
CREDENTIALS = Statement(
    sa.select(customers.c.id, customers.c.password_hash).where(_same_email == _email, _is_present),
    name="read credentials",
)
# Only in the place of the hash that was checked: the password may have been changed since.
REPLACE_HASH = Statement(
    sa.update(customers)
    .where(customers.c.id == _customer_id, customers.c.password_hash == sa.bindparam("old_hash", type_=sa.String))
    .values(password_hash=sa.bindparam("new_hash", type_=sa.String)),
    name="replace password hash",
)
ADD_PAYMENT_METHOD = BulkInsert(*PAYMENT_METHODS.columns, payment_methods.c.token)
_default = payment_methods.c.is_default
HAS_DEFAULT = Statement(
    sa.select(payment_methods.c.id).where(payment_methods.c.customer_id == _customer_id, _default),
    name="read default payment method",
)
CLEAR_DEFAULT = Statement(
    sa.update(payment_methods).where(payment_methods.c.customer_id == _customer_id, _default).values(is_default=False)
)
_method_id = sa.bindparam("method", type_=sa.Uuid)
_named = (payment_methods.c.id == _method_id) & (payment_methods.c.customer_id == _customer_id)
PAYMENT_METHOD = Statement(sa.select(*PAYMENT_METHODS.columns).where(_named), name="read payment method")
DELETE_PAYMENT_METHOD = Statement(sa.delete(payment_methods).where(_named).returning(*PAYMENT_METHODS.columns))
MAKE_DEFAULT = Statement(
    sa.update(payment_methods).where(_named).values(is_default=True), name="make payment method default"
)
_customer_ids = sa.any_(sa.bindparam("customer_ids", type_=sa.ARRAY(sa.Uuid)))
_method_ids = sa.any_(sa.bindparam("method_ids", type_=sa.ARRAY(sa.Uuid)))
LIST_PAYMENT_METHODS = Statement(
    sa.select(*PAYMENT_METHODS.columns)
    .where(
        payment_methods.c.customer_id == _customer_id,
        payment_methods.c.id < sa.bindparam("before", type_=sa.Uuid),
    )
    .order_by(payment_methods.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_wallets = (
    sa.select(
        customers.c.id.label("owner_id"),
        payment_methods.c.id,
        payment_methods.c.provider,
        payment_methods.c.token,
        payment_methods.c.is_default,
    )
    .outerjoin(
        payment_methods,
        (payment_methods.c.customer_id == customers.c.id)
        # Says nothing new, but lets the planner find them by index, whatever it knows of the tables.
        & (payment_methods.c.customer_id == _customer_ids)
        & (_default | (payment_methods.c.id == _method_ids)),
    )
    .where(customers.c.id == _customer_ids)
)
_others = addresses.alias("others")
# Two are enough to see that a customer has several.
_two = (
    sa.select(_others.c.id)
    .where(_others.c.customer_id == customers.c.id)
    .order_by(_others.c.id)
    .limit(2)
    .correlate(customers)
)
_parts = chain(*((sa.literal_column(f"'{name}'"), addresses.c[name]) for name in _POSTAL))
_addresses = (
    sa.select(
        sa.func.jsonb_object_agg(
            addresses.c.id,
            sa.func.jsonb_build_object(
                *chain(*((sa.literal_column(f"'{name}'"), addresses.c[name]) for name in _POSTAL))
            ),
        )
    )
    .where(
        addresses.c.customer_id == customers.c.id,
        (addresses.c.id == sa.any_(sa.bindparam("address_ids", type_=sa.ARRAY(sa.Uuid)))) | addresses.c.id.in_(_two),
    )
    .correlate(customers)
    .scalar_subquery()
)
WALLETS = Statement(_wallets, name="read wallets")
WALLETS_WITH_ADDRESSES = Statement(
    # For new orders only: an order that was placed before an erasure begins is still paid with `WALLETS`.
    _wallets.where(_is_present).add_columns(_addresses.label("addresses")),
    name="read wallets with addresses",
)
# Not a BulkInsert: its parameters are arrays of a column, and PostgreSQL flattens an array of arrays.
ADD_ADDRESS = Statement(sa.insert(addresses))
COUNT_ADDRESSES = Statement(
    sa.select(sa.func.count()).select_from(addresses).where(addresses.c.customer_id == _customer_id),
    name="count addresses",
)
LIST_ADDRESSES = Statement(
    sa.select(addresses)
    .where(addresses.c.customer_id == _customer_id, addresses.c.id < sa.bindparam("before", type_=sa.Uuid))
    .order_by(addresses.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)
DELETE_ADDRESS = Statement(
    sa.delete(addresses).where(
        addresses.c.id == sa.bindparam("address", type_=sa.Uuid), addresses.c.customer_id == _customer_id
    )
)


class CustomerStore:
    """Customers, their credentials, their payment methods and their addresses."""

    def __init__(self, cache: VersionedCache[Customer] | None = None) -> None:
        """`cache` is for `find`; without one, every read goes to the database."""
        self._cache = cache

    async def add(self, work: UnitOfWork, customer: Customer, password_hash: str) -> None:
        """Write a new customer. Raises EmailTaken."""
        await self._lock_email(work, customer.email)
        if not await work.transaction.insert(ADD_CUSTOMER, [(*CUSTOMERS.values(customer), password_hash)]):
            raise EmailTaken

    async def read(self, reading: Transaction, customer_id: UUID) -> Customer:
        """A customer as they are now. Raises CustomerNotFound."""
        return _found(await reading.fetch_one(CUSTOMER, customer=customer_id), customer_id)

    async def find(self, database: Database, customer_id: UUID) -> Customer:
        """A customer, with all changes that were committed before the call. Raises CustomerNotFound."""

        async def load(ids: Iterable[UUID]) -> dict[UUID, Customer]:
            async with database.reading() as reading:
                rows = [await reading.fetch_one(CUSTOMER, customer=each) for each in ids]
            return {row["id"]: CUSTOMERS.read(row) for row in rows if row is not None}

        found = await (self._cache.read([customer_id], load) if self._cache else load([customer_id]))
        if customer_id not in found:
            raise CustomerNotFound(customer_id)
        return found[customer_id]

    async def load(self, work: UnitOfWork, customer_id: UUID) -> Customer:
        """Lock a customer, and with them all that belongs to them. Raises CustomerNotFound."""
        return _found(await work.transaction.fetch_one(LOCK_CUSTOMER, customer=customer_id), customer_id)

    def save(self, work: UnitOfWork, loaded: Customer, changed: Customer) -> None:
        """Write the new version of a loaded customer."""
        NEW_VERSIONS.write(work.transaction, [(loaded, changed)])
        if self._cache:
            work.after_commit(
                partial(self._cache.put, [changed]), on_failure=partial(self._cache.forget_soon, [changed.id])
            )

    async def require_free_email(self, work: UnitOfWork, email: str, customer_id: UUID) -> None:
        """Keep an email address for a loaded customer until the end of the transaction.

        Raises EmailTaken when another customer has it.
        """
        await self._lock_email(work, email)
        row = await work.transaction.fetch_one(OWNER_OF_EMAIL, email=same_email(email))
        if row is not None and row["id"] != customer_id:
            raise EmailTaken

    async def list_customers(self, reading: Transaction, *, before: UUID | None, most: int) -> list[Customer]:
        """All customers, newest first."""
        rows = await reading.fetch(LIST_CUSTOMERS, before=before or LAST_ID, most=most)
        return [CUSTOMERS.read(row) for row in rows]

    async def list_by_email(self, reading: Transaction, email: str) -> list[Customer]:
        """The customer with this email address, in whatever case it is written, or none."""
        rows = await reading.fetch(CUSTOMER_WITH_EMAIL, email=same_email(email))
        return [CUSTOMERS.read(row) for row in rows]

    async def _lock_email(self, work: UnitOfWork, email: str) -> None:
        await work.transaction.fetch(LOCK_EMAIL, email=same_email(email))

    async def read_credentials(self, reading: Transaction, email: str) -> Credentials | None:
        """The credentials of the customer with this email address, in whatever case it is written."""
        row = await reading.fetch_one(CREDENTIALS, email=same_email(email))
        return Credentials(row["id"], row["password_hash"]) if row else None

    async def replace_hash(self, transaction: Transaction, old: Credentials, new_hash: str) -> None:
        """Replace the old hash of a password by a new one, unless the password has changed meanwhile."""
        await transaction.execute(REPLACE_HASH, customer=old.customer_id, old_hash=old.password_hash, new_hash=new_hash)

    async def has_default(self, work: UnitOfWork, customer_id: UUID) -> bool:
        """Whether a loaded customer has a default payment method."""
        return await work.transaction.fetch_one(HAS_DEFAULT, customer=customer_id) is not None

    async def clear_default(self, work: UnitOfWork, customer_id: UUID) -> None:
        """Leave a loaded customer without a default payment method."""
        await work.transaction.execute(CLEAR_DEFAULT, customer=customer_id)

    async def add_payment_method(self, work: UnitOfWork, method: PaymentMethod, token: str) -> None:
        """Write a new payment method with its token."""
        await work.transaction.insert(ADD_PAYMENT_METHOD, [(*PAYMENT_METHODS.values(method), token)])

    async def read_payment_method(self, work: UnitOfWork, customer_id: UUID, method_id: UUID) -> PaymentMethod:
        """A payment method of a loaded customer. Raises PaymentMethodNotFound."""
        row = await work.transaction.fetch_one(PAYMENT_METHOD, customer=customer_id, method=method_id)
        return _found_method(row, method_id)

    async def delete_payment_method(self, work: UnitOfWork, customer_id: UUID, method_id: UUID) -> PaymentMethod:
        """Delete a payment method of a loaded customer, and its token; what it was. Raises PaymentMethodNotFound."""
        row = await work.transaction.fetch_one(DELETE_PAYMENT_METHOD, customer=customer_id, method=method_id)
        return _found_method(row, method_id)

    async def make_default(self, work: UnitOfWork, method: PaymentMethod) -> None:
        """Make a payment method of a loaded customer, who has no default one, the default."""
        await work.transaction.execute(MAKE_DEFAULT, customer=method.customer_id, method=method.id)

    async def list_payment_methods(
        self, reading: Transaction, customer_id: UUID, *, before: UUID | None, most: int
    ) -> list[PaymentMethod]:
        """A customer's payment methods, newest first."""
        rows = await reading.fetch(LIST_PAYMENT_METHODS, customer=customer_id, before=before or LAST_ID, most=most)
        return [PAYMENT_METHODS.read(row) for row in rows]

    async def read_wallets(
        self, reading: Transaction, queries: Sequence[PaymentMethodQuery], *, with_addresses: bool = False
    ) -> dict[UUID, Wallet]:
        """The wallets of those customers of the queries that exist, in one statement for all."""
        values = {
            "customer_ids": list({query.customer_id for query in queries}),
            "method_ids": list({query.payment_method_id for query in queries if query.payment_method_id}),
        }
        if with_addresses:
            values["address_ids"] = list({query.address_id for query in queries if query.address_id})
        rows = await reading.fetch(WALLETS_WITH_ADDRESSES if with_addresses else WALLETS, **values)
        by_owner: dict[UUID, list[Row]] = {}
        for row in rows:
            by_owner.setdefault(row["owner_id"], []).append(row)
        return {owner_id: _as_wallet(owner_id, found) for owner_id, found in by_owner.items()}

    async def count_addresses(self, work: UnitOfWork, customer_id: UUID) -> int:
        """How many addresses a loaded customer has."""
        (row,) = await work.transaction.fetch(COUNT_ADDRESSES, customer=customer_id)
        return int(row[0])

    def add_address(self, work: UnitOfWork, address: Address) -> None:
        """Write a new address."""
        row = dict(zip((column.name for column in ADDRESSES.columns), ADDRESSES.values(address), strict=True))
        work.transaction.write(ADD_ADDRESS, **row, **{name: getattr(address.postal_address, name) for name in _POSTAL})

    async def list_addresses(
        self, reading: Transaction, customer_id: UUID, *, before: UUID | None, most: int
    ) -> list[Address]:
        """A customer's addresses, newest first."""
        rows = await reading.fetch(LIST_ADDRESSES, customer=customer_id, before=before or LAST_ID, most=most)
        return [ADDRESSES.read(row, postal_address=POSTAL_ADDRESSES.read(row)) for row in rows]

    async def delete_address(self, work: UnitOfWork, customer_id: UUID, address_id: UUID) -> None:
        """Delete an address of a loaded customer. Raises AddressNotFound."""
        if not await work.transaction.execute(DELETE_ADDRESS, customer=customer_id, address=address_id):
            raise AddressNotFound(address_id)


def _found(row: Row | None, customer_id: UUID) -> Customer:
    if row is None:
        raise CustomerNotFound(customer_id)
    return CUSTOMERS.read(row)


def _found_method(row: Row | None, method_id: UUID) -> PaymentMethod:
    if row is None:
        raise PaymentMethodNotFound(method_id)
    return PAYMENT_METHODS.read(row)


def _as_wallet(owner_id: UUID, rows: Sequence[Row]) -> Wallet:
    # A customer without a payment method has one row without it.
    methods = [row for row in rows if row["id"]]
    found = rows[0].get("addresses")
    addresses: dict[str, dict[str, Any]] = json.loads(found) if found else {}
    return Wallet(
        owner_id,
        [PaymentMethodSecret(row["id"], owner_id, row["provider"], row["token"]) for row in methods],
        default_id=next((row["id"] for row in methods if row["is_default"]), None),
        addresses={parse_id(address_id): PostalAddress(**parts) for address_id, parts in addresses.items()},
    )
