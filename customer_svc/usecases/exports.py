"""Exports: all that the mesh stores about a customer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from uuid import UUID

from customer_svc.usecases.customers import whose
from customer_svc.usecases.orders import Source

if TYPE_CHECKING:
    from customer_svc.domain import Address, Customer, PaymentMethod, SessionPeriod
    from customer_svc.session_store import SessionStore
    from customer_svc.store import CustomerStore
    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call

PORTION = 500
"""Orders, and payment methods, that are read at a time."""

Order = TypeVar("Order")
Payment = TypeVar("Payment")
Order_contra = TypeVar("Order_contra", contravariant=True)
Payment_co = TypeVar("Payment_co", covariant=True)


class PaymentSource(Protocol[Order_contra, Payment_co]):
    """Where the payments are."""

    async def payments_of(self, call: Call, orders: Sequence[Order_contra]) -> Sequence[Payment_co]:
        """The payments of these orders, at most `PORTION`; orders without one are left out."""
        ...


@dataclass(frozen=True, slots=True)
class CustomerExport(Generic[Order, Payment]):
    """All that is stored about a customer. Orders and payments are as their services describe them."""

    customer: Customer
    payment_methods: Sequence[PaymentMethod]
    addresses: Sequence[Address]
    sessions: Sequence[SessionPeriod]
    orders: Sequence[Order]
    payments: Sequence[Payment]
    export_time: datetime


class Exports(Generic[Order, Payment]):
    """Exports of customers. The other services are asked in portions, so none has to send everything at once."""

    def __init__(
        self,
        units: UnitsOfWork,
        customers: CustomerStore,
        sessions: SessionStore,
        orders: Source[Order],
        payments: PaymentSource[Order, Payment],
    ) -> None:
        self._units = units
        self._customers = customers
        self._sessions = sessions
        self._orders = orders
        self._payments = payments

    async def export_customer(self, call: Call, named: UUID | None) -> CustomerExport[Order, Payment]:
        """Everything, or an error: CustomerNotFound, or Unavailable if a part of it cannot be read."""
        customer_id = whose(call.caller, named)
        now = self._units.now()
        async with self._units.database.reading() as reading:
            customer = await self._customers.read(reading, customer_id)
            addresses = await self._customers.list_addresses(reading, customer_id, before=None, most=PORTION)
            methods = await self._payment_methods(reading, customer_id)
        sessions = await self._sessions.list_open(customer_id)
        orders: list[Order] = []
        payments: list[Payment] = []
        token = ""
        while True:
            portion, token = await self._orders.list_orders(call, customer_id, page_size=PORTION, page_token=token)
            orders += portion
            payments += await self._payments.payments_of(call, portion)
            if not token:
                return CustomerExport(customer, methods, addresses, sessions, orders, payments, now)

    async def _payment_methods(self, reading: Transaction, customer_id: UUID) -> list[PaymentMethod]:
        found: list[PaymentMethod] = []
        while True:
            before = found[-1].id if found else None
            portion = await self._customers.list_payment_methods(reading, customer_id, before=before, most=PORTION)
            found += portion
            if len(portion) < PORTION:
                return found
