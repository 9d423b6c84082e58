"""The result of a load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ops.bench.database import DatabaseCost
from ops.bench.latency import Latency
from ops.bench.scenario import Terms


@dataclass(frozen=True, slots=True)
class Answered:
    """The good answers to one kind of request in the measured time."""

    per_second: float
    latency: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """The cost of the driver itself."""

    requests: int
    cpu_microseconds_per_request: float
    cpu_share: float
    """Of one core."""
    lateness: Latency | None
    """Open loop: from the due time of a request until it was sent. The latencies contain it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of one confirmed order, from the first request of the load until the mesh was at rest."""

    cpu_ms: Mapping[str, float]
    """By process, without the driver."""
    cpu_ms_total: float
    statements: float
    commits: float
    log_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """The orders of a load."""

    placed: int
    confirmed: int
    accepted_per_second: float
    confirmed_per_second: float
    """Confirmed in the measured time. Of a hot product: all orders, over the time until the last was confirmed."""
    to_confirmed: Latency | None
    """From placed to confirmed."""
    drain_seconds: float
    """From the end of the load until the last order was decided."""
    cost: Cost | None
    """None if the load did not only place orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one load."""

    terms: Terms
    machine: Mapping[str, object]
    rate_limits: Mapping[str, int]
    """Requests a second that the edge accepted of each customer and from each address; 0 is no limit."""
    customers: int
    transactions: float | None = None
    """R, the mean of before and after the load; None if it was not measured."""
    requests: Mapping[str, Answered]
    failures: Mapping[str, int]
    """Requests that failed, by kind, status and reason."""
    sold_out_refusals: int = 0
    orders: Ordered | None = None
    cpu_seconds: Mapping[str, float]
    """By process, from the first request until the mesh was at rest."""
    memory: Mapping[str, int]
    """Bytes, by process, at the end of the load."""
    database: DatabaseCost
    outbox_lag_seconds: Mapping[str, float]
    """The greatest age of an unpublished event that was seen, by database."""
    driver: Driven
    others_cores: float
    """How many cores other programs have used meanwhile: next to none in a good measurement."""
    violations: list[str] = field(default_factory=list)

    @property
    def confirmed_of_transactions(self) -> float | None:
        """Confirmed orders a second as a ratio to R."""
        return self.orders.confirmed_per_second / self.transactions if self.orders and self.transactions else None

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to four digits."""
        content: dict[str, Any] = rounded(asdict(self) | {"confirmed_of_transactions": self.confirmed_of_transactions})
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """How a consumer has applied a backlog of events."""

    machine: Mapping[str, object]
    events: int
    seconds: float
    """From the start of the consumer until it had applied the last event."""
    events_per_second: float
    mean_batch: float
    cpu_microseconds_per_event: float
    """Of the consumer."""
    cpu_seconds: Mapping[str, float]
    """Of PostgreSQL and NATS meanwhile."""
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values, rounded to four digits."""
        content: dict[str, Any] = rounded(asdict(self))
        return content


def rounded(value: Any) -> Any:
    """The same value with numbers of four digits."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 1000 else round(value, 1)
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
