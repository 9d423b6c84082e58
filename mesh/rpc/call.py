"""One call: who asks, until when, under which trace and key. Every use case that changes something takes one."""

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
    """What sort of caller it is."""

    ANONYMOUS = "anonymous"
    CUSTOMER = "customer"
    STAFF = "staff"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `id` is the token's subject for people, the name in the certificate for services, else empty."""

    kind: Kind = Kind.ANONYMOUS
    id: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}" if self.id else self.kind.value

    @property
    def is_staff(self) -> bool:
        """Whether staff's wider rights hold."""
        return self.kind is Kind.STAFF

    @property
    def customer_id(self) -> UUID | None:
        """The customer who asks; none for anybody else."""
        return parse_id(self.id) if self.kind is Kind.CUSTOMER else None

    def may_see(self, owner: UUID) -> bool:
        """Whether a resource of customer `owner` is this caller's to see: their own, or anyone's for staff."""
        return self.is_staff or self.customer_id == owner

    def own(self, owner: UUID, refusal: NotFound) -> None:
        """Raise `refusal` unless the caller may see what belongs to `owner`: what is not yours does not exist."""
        if not self.may_see(owner):
            raise refusal


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class Call:
    """A call under way, as the chain of `mesh.rpc.chain` has built it."""

    method: str
    """The full name, `/commerce.order.v1.OrderService/CreateOrder`."""
    trace: Trace = field(default_factory=Trace.new)
    deadline: float | None = None
    """When the caller stops waiting, in the event loop's time; none for work that nobody waits for."""
    peer: str = ""
    """The mesh name in the peer's certificate (`gateway`, `product`, …); empty when there is none."""
    caller: Caller = ANYBODY
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What came with it: the text headers, by lower-case name."""
    key: IdempotencyKey | None = None
    """The idempotency key of a change, when the caller sent one."""

    @property
    def client_address(self) -> str:
        """The IP address of the client, as the edge has seen it; empty for a call that came another way."""
        return self.metadata.get(CLIENT_ADDRESS, "") if self.peer == GATEWAY else ""

    @property
    def client_network(self) -> str:
        """The client for limits: its IPv4 address, or the 64 bits of its IPv6 address that its owner does not choose.

        Empty when the address is unknown.
        """
        address = self.client_address
        if ":" not in address:
            return address
        parsed = IPv6Address(address)
        return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False).network_address)

    @property
    def authorization(self) -> str:
        """The header as it came, to be passed on when another service is asked in the caller's name."""
        return self.metadata.get("authorization", "")

    def remaining(self) -> float | None:
        """Seconds until the deadline, never below zero; none without a deadline."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())
