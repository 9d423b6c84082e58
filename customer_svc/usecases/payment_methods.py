"""Payment methods: how customers pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from customer_svc.domain import (
    CustomerNotFound,
    PaymentMethod,
    PaymentMethodMissing,
    PaymentMethodQuery,
    PaymentMethodSecret,
    ProviderNotFound,
    Selection,
    Selections,
    Wallet,
)
from customer_svc.usecases.customers import record, whose
from mesh.errors import MeshError
from mesh.ids import new_id, parse_id

if TYPE_CHECKING:
    from customer_svc.providers import Bounded
    from customer_svc.store import CustomerStore
    from mesh.db.paging import Pages
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Caller
    from mesh.rpc.replies import Change, Reply


class PaymentMethods:
    """The payment methods of customers. A method is of the first of `providers` unless another one is named."""

    def __init__(
        self, units: UnitsOfWork, customers: CustomerStore, pages: Pages, providers: Mapping[str, Bounded]
    ) -> None:
        self._units = units
        self._customers = customers
        self._pages = pages
        self._providers = providers
        self._limited = {name: each.currencies for name, each in providers.items() if each.currencies}

    async def add_payment_method(
        self, change: Change[PaymentMethod], named: UUID | None, provider: str, token: str, *, make_default: bool
    ) -> Reply[PaymentMethod]:
        """Keep a payment method; a customer's first one becomes the default anyway.

        Raises CustomerNotFound, ProviderNotFound, ProviderTokenUnknown or ProviderUnavailable.
        """
        customer_id = whose(change.caller, named)
        now = self._units.now()
        card = await self._provider(provider).describe(token, customer_id, now)
        async with self._units.once(change) as work:
            customer = await self._customers.load(work, customer_id)
            if make_default:
                await self._customers.clear_default(work, customer_id)
            is_default = make_default or not await self._customers.has_default(work, customer_id)
            method = PaymentMethod.of(card, new_id(), customer_id, is_default=is_default, now=now)
            await self._customers.add_payment_method(work, method, card.token)
            record(work, self._customers, customer, customer.changed(self._units.now()), change)
            return work.reply(method)

    async def delete_payment_method(
        self, change: Change[None], named: UUID | None, payment_method_id: UUID
    ) -> Reply[None]:
        """Delete a payment method; when it was the default one, the newest that is left takes its place.

        Raises CustomerNotFound or PaymentMethodNotFound.
        """
        customer_id = whose(change.caller, named)
        async with self._units.once(change) as work:
            customer = await self._customers.load(work, customer_id)
            deleted = await self._customers.delete_payment_method(work, customer_id, payment_method_id)
            if deleted.is_default:
                newest = await self._customers.list_payment_methods(work.transaction, customer_id, before=None, most=1)
                for method in newest:
                    await self._customers.make_default(work, method)
            record(work, self._customers, customer, customer.changed(self._units.now()), change)
            return work.reply(None)

    async def set_default_payment_method(
        self, change: Change[PaymentMethod], named: UUID | None, payment_method_id: UUID
    ) -> Reply[PaymentMethod]:
        """Make a payment method the default one. Raises CustomerNotFound or PaymentMethodNotFound."""
        customer_id = whose(change.caller, named)
        async with self._units.once(change) as work:
            customer = await self._customers.load(work, customer_id)
            method = await self._customers.read_payment_method(work, customer_id, payment_method_id)
            if not method.is_default:
                await self._customers.clear_default(work, customer_id)
                await self._customers.make_default(work, method)
                record(work, self._customers, customer, customer.changed(self._units.now()), change)
            return work.reply(replace(method, is_default=True))

    async def list_payment_methods(
        self, caller: Caller, named: UUID | None, *, page_size: int, page_token: str
    ) -> tuple[list[PaymentMethod], str]:
        """A page of a customer's payment methods, newest first, and the token of the next. Raises CustomerNotFound."""
        customer_id = whose(caller, named)
        scope = f"payment methods\0{customer_id}"
        size = self._pages.size(page_size)
        position = self._pages.position(scope, page_token)
        before = parse_id(position[0]) if position else None
        async with self._units.database.reading() as reading:
            await self._customers.read(reading, customer_id)
            found = await self._customers.list_payment_methods(reading, customer_id, before=before, most=size + 1)
        return self._pages.page(scope, found, size, lambda method: [str(method.id)])

    async def select(self, queries: Sequence[PaymentMethodQuery]) -> Selections:
        """The payment method and the address of each query, with one statement for all.

        Instead of a payment method there may be CustomerNotFound, PaymentMethodNotFound, AddressNotFound or, beside an
        address, PaymentMethodMissing.
        """
        async with self._units.database.reading() as reading:
            wallets = await self._customers.read_wallets(reading, queries, with_addresses=True)
        return Selections([_selection(wallets.get(query.customer_id), query) for query in queries], self._limited)

    async def resolve(self, queries: Sequence[PaymentMethodQuery]) -> list[PaymentMethodSecret | MeshError]:
        """The payment method of each query, one result each, with one statement for all.

        Results may be CustomerNotFound, PaymentMethodNotFound or PaymentMethodMissing.
        """
        async with self._units.database.reading() as reading:
            wallets = await self._customers.read_wallets(reading, queries)
        results: list[PaymentMethodSecret | MeshError] = []
        for query in queries:
            try:
                if query.customer_id not in wallets:
                    raise CustomerNotFound(query.customer_id)
                results.append(wallets[query.customer_id].pick(query.payment_method_id))
            except MeshError as refusal:
                results.append(refusal)
        return results

    def _provider(self, name: str) -> Bounded:
        if not name:
            return next(iter(self._providers.values()))
        try:
            return self._providers[name]
        except KeyError:
            raise ProviderNotFound(name) from None


def _selection(wallet: Wallet | None, query: PaymentMethodQuery) -> Selection:
    try:
        if wallet is None:
            raise CustomerNotFound(query.customer_id)
        address = wallet.address(query.address_id)
        try:
            return Selection(wallet.pick(query.payment_method_id), address)
        except PaymentMethodMissing as missing:
            return Selection(missing, address)
    except MeshError as refusal:
        return Selection(refusal, None)
