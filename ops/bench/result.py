"""What a run of the bench has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ops.bench.calibration import Calibration
from ops.bench.database import DatabaseCost
from ops.bench.latency import Latency
from ops.bench.processes import Memory
from ops.bench.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a load was."""

    scenario: Scenario
    loop: str
    """`closed` or `open`."""
    concurrency: int
    seconds: float
    """The length of the window over which rates are taken; a warm-up comes before it."""
    think: float = 0.0
    rate: float | None = None
    """Open loop: requests a second."""
    lines: int
    """Of an order."""
    customers: int
    products: int
    stock: int | None = None
    """Of the hot product."""
    rate_limit: int
    """Requests a second that the edge took from one customer; 0 is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One kind of request: good answers a second within the window, and how long they took."""

    per_second: float
    latency: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Driven:
    """What the driver cost itself."""

    workers: int
    requests: int
    cpu_microseconds_per_request: float
    """Of a mesh that is busy. When requests are few and far between, most of it is the price of waking up for each."""
    cpu_share: float
    """Of one core, during the load, what watches it included."""
    lateness: Latency | None
    """Open loop: from the due time until a request was sent. Latencies hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one confirmed order cost, from the first request of the load until the last order was decided."""

    cpu_ms: Mapping[str, float]
    """By process; seconds per 1,000 orders are the same number."""
    cpu_ms_total: float
    """The sum of it: everything but the driver."""
    statements: float
    commits: float
    log_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """What became of the orders of a load."""

    placed: int
    confirmed: int
    accepted_per_second: float
    settled_per_second: float
    """Confirmed within the window, by the time at which the order service wrote so. Of the hot product: all that was
    sold, over the time until the last of it was confirmed."""
    settling: Latency | None
    """From placed to confirmed."""
    drain_seconds: float
    """From the end of the load until the last order was decided."""
    cost: Cost | None
    """None when something else was asked for as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run."""

    terms: Terms
    machine: Mapping[str, object]
    requests: Mapping[str, Asked]
    failures: Mapping[str, int]
    """By kind, status and reason."""
    calibration: Calibration | None = None
    sold_out_refusals: int = 0
    orders: Ordered | None = None
    cpu_seconds: Mapping[str, float]
    """By process, from the first request until everything was at rest."""
    memory: Mapping[str, Memory]
    """At the end of the load."""
    resident: Mapping[str, list[int]]
    """The resident bytes of each process alone, at even distances from the begin of the load to its end."""
    database: DatabaseCost
    outbox_lag_seconds: Mapping[str, float]
    """The greatest age at which an event was seen unpublished, by database."""
    driver: Driven
    others_cores: float
    """How many cores the rest of the machine was busy with meanwhile: of a good measurement, next to none."""
    breaches: list[str] = field(default_factory=list)

    @property
    def settled_of_transactions(self) -> float | None:
        """Settled orders a second as a ratio to R; None without orders or yardsticks."""
        if self.orders is None or self.calibration is None:
            return None
        return self.orders.settled_per_second / self.calibration.transactions

    def as_json(self) -> dict[str, Any]:
        """For programs: plain values, with four digits that mean something."""
        content: dict[str, Any] = rounded(asdict(self) | {"settled_of_transactions": self.settled_of_transactions})
        return content


def rounded(value: Any) -> Any:
    """The same with numbers as people want to read them."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 1000 else round(value, 1)
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value
