"""Orders of customers, which the order service keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar
from uuid import UUID

from customer_svc.usecases.customers import whose

if TYPE_CHECKING:
    from customer_svc.store import CustomerStore
    from mesh.db.unit_of_work import UnitsOfWork
    from mesh.rpc.call import Call

Order_co = TypeVar("Order_co", covariant=True)
"""An order as the order service describes it. The customer service passes it on and reads nothing of it."""


class Source(Protocol[Order_co]):
    """Where the orders are."""

    async def list_orders(
        self, call: Call, customer_id: UUID, *, page_size: int, page_token: str
    ) -> tuple[Sequence[Order_co], str]:
        """A page of the orders of a customer, newest first, and the token of the next page."""
        ...


class Orders(Generic[Order_co]):
    """The orders of customers."""

    def __init__(self, units: UnitsOfWork, customers: CustomerStore, source: Source[Order_co]) -> None:
        self._units = units
        self._customers = customers
        self._source = source

    async def list_customer_orders(
        self, call: Call, named: UUID | None, *, page_size: int, page_token: str
    ) -> tuple[Sequence[Order_co], str]:
        """A page of a customer's orders, newest first, and the token of the next page.

        Raises CustomerNotFound; InvalidArgument / PAGE_TOKEN_INVALID; Unavailable without the order service.
        """
        customer_id = whose(call.caller, named)
        async with self._units.database.reading() as reading:
            await self._customers.read(reading, customer_id)
        return await self._source.list_orders(call, customer_id, page_size=page_size, page_token=page_token)
