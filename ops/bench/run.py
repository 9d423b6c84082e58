"""One run against a running mesh: open a shop, drive the load, wait for its end, check the sums.

What the machine can do is measured before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import UUID

from ops.audit import Activity, Audit, Scope
from ops.bench import machine, processes
from ops.bench.calibration import SECONDS, Calibration, calibrate
from ops.bench.database import Counters, DatabaseCost
from ops.bench.driver import Action, Driver, Plan, Tally
from ops.bench.latency import Latency
from ops.bench.orders import Order, accepted_and_there, first_id, moment, orders_of
from ops.bench.result import Asked, Cost, Driven, Ordered, Result, Terms
from ops.bench.scenario import Scenario
from ops.bench.shop import LINES, PRODUCTS, Shop
from ops.running_mesh import RunningMesh
from stack.errors import StackError

WARM_UP_S = 2.0
"""Before the window: connections, caches and prepared statements are made. It is not measured, but is checked."""
THINK_S = 1.0
"""Of the users of `mixed`."""
SOLD_OUT = "STOCK_INSUFFICIENT"
HOT_ENDS_WITHIN = 6.0
"""The hot load goes on until the stock is sold out, at most for so many times the seconds it was reckoned for."""
_CONCURRENCY = {Scenario.ORDERS: 64, Scenario.HOT: 256, Scenario.READS: 64, Scenario.MIXED: 1000}
MEMORY_SAMPLES = 40
_OPEN_CONNECTIONS = 256
_LEAST_CUSTOMERS = 32
"""The edge counts the requests of each."""
_LOOK_EVERY_S = 0.25


class Watcher(Protocol):
    """Whoever wants to know how far a run is."""

    def tell(self, text: str) -> None:
        """What is being done now."""

    def show(self, *, elapsed: float, seconds: float, answered: int, failed: int, lag: float) -> None:
        """How the load goes: answers so far, and the age in seconds of the oldest unpublished event."""

    def found(self, name: str, result: Result) -> None:
        """One of several runs is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person wants to have measured."""

    scenario: Scenario
    concurrency: int | None = None
    seconds: float = 20.0
    rate: float | None = None
    driver_workers: int = 1
    stock: int | None = None
    """`hot`: how much of the one product there is; by default about as much as is sold in the time."""
    products: int = PRODUCTS
    """How many different ones are bought and read."""
    calibrated: bool = True
    """Whether the yardsticks are measured, before the load and after it."""

    @property
    def connections(self) -> int:
        """Users of the load; in an open loop the most requests that are under way."""
        return self.concurrency or (_OPEN_CONNECTIONS if self.rate else _CONCURRENCY[self.scenario])


async def run(target: RunningMesh, wish: Wish, watcher: Watcher) -> Result:
    """Carry out a run. Raises StackError when it cannot be; breaches are in the result."""
    async with _Instruments.open(target, wish.driver_workers) as instruments:

        async def measure() -> Calibration | None:
            if not wish.calibrated:
                return None
            watcher.tell("measuring what the machine can do")
            return await calibrate(target, instruments.driver, wish.connections, min(SECONDS, wish.seconds))

        before = await measure()
        stock = None
        if wish.scenario is Scenario.HOT:
            # About as much as is sold in the time, by the figure to reach or a guess at it.
            expected = 0.3 * before.transactions if before else 300.0
            stock = wish.stock or int(expected * wish.seconds)
        shop = await Shop.open(
            target,
            customers=max(wish.connections, _LEAST_CUSTOMERS),
            products=wish.products,
            hot_stock=stock or 0,
            tell=watcher.tell,
        )
        terms = Terms(
            scenario=wish.scenario,
            loop="open" if wish.rate else "closed",
            concurrency=wish.connections,
            seconds=wish.seconds,
            think=THINK_S if wish.scenario is Scenario.MIXED else 0.0,
            rate=wish.rate,
            lines=LINES,
            customers=len(shop.customers),
            products=wish.products,
            stock=stock,
            rate_limit=target.rate_limit,
        )
        result = await _Run(terms, target, shop, instruments, watcher).run_optimistically()
        after = await measure()
        return replace(result, calibration=before.mean(after)) if before and after else result


@dataclass(frozen=True, slots=True)
class _Instruments:
    """What a run measures with."""

    driver: Driver
    activity: Activity

    @classmethod
    @asynccontextmanager
    async def open(cls, target: RunningMesh, workers: int) -> AsyncIterator[_Instruments]:
        """All of them, for as long as they are needed."""
        async with contextlib.AsyncExitStack() as stack:
            driver = stack.enter_context(Driver(workers))
            yield cls(driver, await stack.enter_async_context(Activity.of(target)))


def _actions(terms: Terms, shop: Shop) -> Sequence[Action]:
    match terms.scenario:
        case Scenario.ORDERS:
            return [shop.orders()]
        case Scenario.HOT:
            return [shop.orders(hot=True)]
        case Scenario.READS:
            return [shop.product_reads()]
        case Scenario.MIXED:
            return [shop.product_reads(weight=0.7), shop.own_order_reads(weight=0.2), shop.orders(weight=0.1)]
        case Scenario.EVENTS:
            raise ValueError("nobody asks for events")


class _Run:
    """A run under way."""

    def __init__(
        self,
        terms: Terms,
        target: RunningMesh,
        shop: Shop,
        instruments: _Instruments,
        watcher: Watcher,
    ) -> None:
        self._terms = terms
        self._target = target
        self._shop = shop
        self._driver = instruments.driver
        self._activity = instruments.activity
        self._outbox_lag: dict[str, float] = {}
        """The greatest that was seen, by database."""
        self._watcher = watcher
        self._pids = target.pids
        self._begin = 0.0
        self._resident: dict[str, list[int]] = {name: [] for name in self._pids}

    async def run_optimistically(self) -> Result:
        """Drive, settle, check."""
        postgres = await self._target.connect("postgres")
        try:
            described = await machine.described(postgres)
            if waiting := await self._activity.wait():
                raise StackError(f"The mesh is not at rest before the load: {'; '.join(waiting)}.")
            scope = Scope(self._shop.customers, first_id(time.time()), list(self._shop.stock))
            dead_letters = await self._activity.dead_letters()
            counters = await Counters.read(postgres)
            cpu, busy, since = processes.cpu_seconds(self._pids), processes.busy_seconds(), time.monotonic()
            watching = time.process_time()
            tally = await self._drive()
            watching = time.process_time() - watching
            ended = time.monotonic()
            if died := self._target.died():
                raise StackError(f"{', '.join(died)} died during the load; `mesh logs` may say why.")
            memory = processes.memory(self._pids)
            self._watcher.tell("waiting until every order is decided")
            breaches = await self._activity.wait()
            used = _difference(processes.cpu_seconds(self._pids), cpu)
            ours = sum(used.values()) + tally.cpu_seconds + watching
            others = (processes.busy_seconds() - busy - ours) / (time.monotonic() - since)
            cost = DatabaseCost.between(counters, await Counters.read(postgres))
        finally:
            await postgres.close()
        self._watcher.tell("checking the sums")
        orders = await orders_of(self._target, scope)
        breaches += [*accepted_and_there(tally, orders), *await Audit(self._target, scope).violations()]
        if dead_letters := await self._activity.dead_letters() - dead_letters:
            breaches.append(f"{dead_letters} events became dead letters")
        breaches += [f"{name} died after the load" for name in self._target.died()]
        refusals = sum(count for (_, what), count in tally.failures.items() if SOLD_OUT in what)
        if self._terms.scenario is Scenario.HOT:
            breaches += await self._sold_out(refusals)
        begin, end = self._window(tally)
        return Result(
            terms=self._terms,
            machine=described,
            requests={
                kind: Asked(
                    per_second=answers.between(begin, end) / (end - begin),
                    latency=Latency.of(answers.latencies_of_requests(begin, end)),
                )
                for kind, answers in tally.answers.items()
            },
            failures={
                f"{kind}: {what}": count for (kind, what), count in tally.failures.items() if SOLD_OUT not in what
            },
            sold_out_refusals=refusals,
            orders=self._ordered(tally, orders, used, cost) if orders else None,
            cpu_seconds=used,
            memory=memory,
            resident=self._resident,
            database=cost,
            outbox_lag_seconds=self._outbox_lag,
            driver=Driven(
                workers=self._driver.workers,
                requests=tally.requests,
                cpu_microseconds_per_request=1e6 * tally.cpu_seconds / max(1, tally.requests),
                cpu_share=(tally.cpu_seconds + watching) / (ended - self._begin),
                lateness=Latency.of(tally.lateness),
            ),
            others_cores=max(0.0, others),
            breaches=breaches,
        )

    async def _drive(self) -> Tally:
        """The load, watched."""
        hot = self._terms.scenario is Scenario.HOT
        seconds = self._terms.seconds * HOT_ENDS_WITHIN if hot else WARM_UP_S + self._terms.seconds
        plan = Plan(
            host=self._target.host,
            port=self._target.port,
            users=self._shop.authorizations,
            actions=_actions(self._terms, self._shop),
            connections=self._terms.concurrency,
            seconds=seconds,
            think=self._terms.think,
            rate=self._terms.rate,
            last_reason=SOLD_OUT if hot else "",
            mark=f"bench-{secrets.token_hex(6)}",
        )
        watching = asyncio.create_task(self._watch(self._terms.seconds if hot else seconds))
        try:
            return await self._driver.drive(plan, self._begun)
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            if not watching.cancelled():
                watching.result()

    def _begun(self, begin: float) -> None:
        self._begin = begin

    async def _watch(self, seconds: float) -> None:
        while True:
            lags = await self._activity.outbox_lag()
            self._outbox_lag = {name: max(lag, self._outbox_lag.get(name, 0.0)) for name, lag in lags.items()}
            elapsed = max(0.0, time.monotonic() - self._begin) if self._begin else 0.0
            if elapsed >= seconds * len(self._resident["mesh"]) / MEMORY_SAMPLES:
                for name, now in processes.resident(self._pids).items():
                    self._resident[name].append(now)
            self._watcher.show(
                elapsed=elapsed,
                seconds=seconds,
                answered=self._driver.answered,
                failed=self._driver.failed,
                lag=max(lags.values()),
            )
            await asyncio.sleep(_LOOK_EVERY_S)

    def _window(self, tally: Tally) -> tuple[float, float]:
        """From when to when rates are taken: once warm; of the hot product, until the first was told that it is out."""
        if self._terms.scenario is Scenario.HOT:
            end = tally.first_last_reason or self._begin + self._terms.seconds * HOT_ENDS_WITHIN
            return self._begin, end
        return self._begin + WARM_UP_S, self._begin + WARM_UP_S + self._terms.seconds

    def _ordered(self, tally: Tally, orders: dict[UUID, Order], cpu: dict[str, float], cost: DatabaseCost) -> Ordered:
        begin, end = self._window(tally)
        first, last = moment(begin), moment(end)
        confirmed = [order for order in orders.values() if order.status == "CONFIRMED"]
        settled = sum(first <= order.updated < last for order in confirmed) / (end - begin)
        if self._terms.scenario is Scenario.HOT and confirmed:
            settled = len(confirmed) / (max(order.updated for order in confirmed) - first).total_seconds()
        count = max(1, len(confirmed))
        per_order = {name: 1e3 * seconds / count for name, seconds in cpu.items()}
        ended = self._begin + WARM_UP_S + self._terms.seconds
        if self._terms.scenario is Scenario.HOT:
            ended = end
        return Ordered(
            placed=len(orders),
            confirmed=len(confirmed),
            accepted_per_second=tally.answers["place"].between(begin, end) / (end - begin),
            settled_per_second=settled,
            settling=Latency.of((order.updated - order.placed).total_seconds() for order in confirmed),
            drain_seconds=max(0.0, (max(order.updated for order in orders.values()) - moment(ended)).total_seconds()),
            cost=Cost(
                cpu_ms=per_order,
                cpu_ms_total=sum(per_order.values()),
                statements=cost.statements / count,
                commits=cost.commits / count,
                log_bytes=cost.log_bytes / count,
            )
            if tally.answers.keys() == {"place"}
            else None,
        )

    async def _sold_out(self, refusals: int) -> list[str]:
        """Whether exactly the hot product's stock was sold: there was demand for more, and nothing is left."""
        product = await self._target.connect("product")
        try:
            left = await product.fetchval(
                "SELECT on_hand FROM stocks WHERE product_id = $1", next(iter(self._shop.stock))
            )
        finally:
            await product.close()
        if not refusals:
            return [f"the hot product was not sold out: {left} of {self._terms.stock} are left; give it less --stock"]
        return [f"{left} of the hot product are left, though {refusals} buyers were refused"] if left else []


def _difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: seconds - before[name] for name, seconds in after.items()}
