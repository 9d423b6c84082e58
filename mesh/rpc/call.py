"""A call: its caller, deadline, trace and idempotency key. Every use case that changes something takes one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING
from uuid import UUID

from mesh.errors import NotFound
from mesh.ids import parse_id
from mesh.observe.trace import Trace

if TYPE_CHECKING:
    from mesh.db.idempotency import IdempotencyKey

CLIENT_ADDRESS = "x-mesh-client-address"
"""The header in which the edge names the address of the client. A client cannot send it: the edge drops it."""
GATEWAY = "gateway"
"""The name of the edge in its certificate."""


class Kind(StrEnum):
    """The role of a caller."""

    ANONYMOUS = "anonymous"
    CUSTOMER = "customer"
    STAFF = "staff"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a call. `id` is a person's subject in the token, a service's name in the certificate, or empty."""

    kind: Kind = Kind.ANONYMOUS
    id: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}" if self.id else self.kind.value

    @property
    def is_staff(self) -> bool:
        """Whether the caller is a staff member."""
        return self.kind is Kind.STAFF

    @property
    def customer_id(self) -> UUID | None:
        """The id of the customer; None for other callers."""
        return parse_id(self.id) if self.kind is Kind.CUSTOMER else None

    def may_see(self, owner: UUID) -> bool:
        """Whether the caller may see the resources of customer `owner`. Staff may see those of all customers."""
        return self.is_staff or self.customer_id == owner

    def own(self, owner: UUID, refusal: NotFound) -> None:
        """Raise `refusal` unless the caller may see the resources of `owner`. It hides that such a resource exists."""
        if not self.may_see(owner):
            raise refusal


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class Call:
    """A call in progress, created by `mesh.rpc.chain`."""

    method: str
    """The full name, `/commerce.order.v1.OrderService/CreateOrder`."""
    trace: Trace = field(default_factory=Trace.new)
    deadline: float | None = None
    """The time at which the caller stops waiting, in the event loop's time; None for background work."""
    peer: str = ""
    """The name in the peer's certificate (`gateway`, `product`, …); empty if there is none."""
    caller: Caller = ANYBODY
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The text headers of the call, by lower-case name."""
    key: IdempotencyKey | None = None
    """The idempotency key of a change; None if the caller sent none."""

    @property
    def client_address(self) -> str:
        """The IP address of the client, as seen by the edge; empty for a call that did not pass the edge."""
        return self.metadata.get(CLIENT_ADDRESS, "") if self.peer == GATEWAY else ""

    @property
    def client_network(self) -> str:
        """The network by which clients are limited: an IPv4 address, or the first 64 bits of an IPv6 address.

        The owner of an IPv6 network can choose the other bits. Empty if the address is unknown.
        """
        address = self.client_address
        if ":" not in address:
            return address
        parsed = IPv6Address(address)
        return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False).network_address)

    @property
    def authorization(self) -> str:
        """The header as received, for calls to other services on behalf of the caller."""
        return self.metadata.get("authorization", "")

    def remaining(self) -> float | None:
        """The seconds until the deadline, at least zero; None without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())
