"""Whom an order is for."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from mesh.errors import InvalidArgument, Violation
from order_svc.domain import CustomerNotFound

if TYPE_CHECKING:
    from mesh.rpc.call import Caller


def owner_of(caller: Caller, customer_id: UUID | None) -> UUID:
    """The customer that is named, or the caller.

    Raises InvalidArgument when staff name none, and CustomerNotFound when a customer names another one.
    """
    owner = customer_id or caller.customer_id
    if owner is None:
        raise InvalidArgument(
            "the request is not valid", violations=[Violation("customer_id", "staff must name the customer")]
        )
    caller.own(owner, CustomerNotFound(owner))
    return owner
