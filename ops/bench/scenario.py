"""The scenarios, and the terms of a load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scenario(StrEnum):
    """What the users of a load do."""

    ORDERS = "orders"
    """Each places orders of three of many products."""
    HOT = "hot"
    """The same, with one product in every order, until its stock is sold out."""
    READS = "reads"
    """Each reads products."""
    MIXED = "mixed"
    """They think for a second between 70 % reads of products, 20 % reads of own orders and 10 % orders."""
    EVENTS = "events"
    """Nobody: a consumer that was away finds a backlog of events."""


_CONCURRENCY = {Scenario.ORDERS: 64, Scenario.HOT: 256, Scenario.READS: 64, Scenario.MIXED: 1000, Scenario.EVENTS: 0}
_OPEN_CONNECTIONS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a load."""

    scenario: Scenario
    concurrency: int | None = None
    """Users at a time; the default depends on the scenario."""
    seconds: float = 20.0
    """How long is measured, after a warm-up."""
    rate: float | None = None
    """Open loop: requests a second, whether or not earlier ones were answered. None is a closed loop."""
    stock: int | None = None
    """`hot`: the stock of the one product; the default is about as much as is sold in the time."""
    calibrated: bool = True
    """Measure R before and after the load."""

    @property
    def connections(self) -> int:
        """The users of the load; in an open loop the most requests that are in flight."""
        return self.concurrency or (_OPEN_CONNECTIONS if self.rate else _CONCURRENCY[self.scenario])

    @property
    def think_s(self) -> float:
        """Seconds between an answer and the next request of a user."""
        return 1.0 if self.scenario is Scenario.MIXED else 0.0
