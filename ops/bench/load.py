"""One load on a running mesh: prepare a shop, drive the load, wait until the mesh is at rest, audit it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import asyncpg

from ops.audit import Activity, Audit
from ops.audit.reading import first_id
from ops.bench import calibration, machine, processes
from ops.bench.database import Counters, DatabaseCost
from ops.bench.driver import Action, Driver, Plan, Tally
from ops.bench.latency import Latency
from ops.bench.result import Answered, Cost, Driven, Ordered, Result
from ops.bench.scenario import Scenario, Terms
from ops.bench.shop import Shop
from ops.running_mesh import RunningMesh
from stack.errors import StackError

WARM_UP_S = 2.0
"""Before the measured time: connections, caches and prepared statements are made."""
SOLD_OUT = "STOCK_INSUFFICIENT"
HOT_ENDS_WITHIN = 6.0
"""A hot load ends when its stock is sold out, at the latest after this multiple of its seconds."""
_LEAST_CUSTOMERS = 32
"""The edge limits the requests of each customer."""
_WATCH_EVERY_S = 0.25

_ORDERS = "SELECT id, status, order_date, update_time FROM orders WHERE id >= $1 AND customer_id = ANY($2::uuid[])"


class Watcher(Protocol):
    """Shows the progress of a load."""

    def tell(self, text: str) -> None:
        """The step that begins now."""

    def show(self, *, elapsed: float, seconds: float, answered: int, failed: int, lag: float) -> None:
        """The load so far; `lag` is the age in seconds of the oldest unpublished event."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order of a load, as the order service has it in the end."""

    status: str
    placed: datetime
    updated: datetime


async def run(mesh: RunningMesh, terms: Terms, watcher: Watcher) -> Result:
    """Measure one load. Violations are in the result. Raises StackError when it cannot be measured."""
    before = await _transactions(mesh, terms, watcher)
    stock = 0
    if terms.scenario is Scenario.HOT:
        # About as much as is sold in the time.
        stock = terms.stock or int(0.3 * (before or 1000.0) * terms.seconds)
    customers = max(terms.connections, _LEAST_CUSTOMERS)
    shop = await Shop.open(mesh, customers=customers, hot_stock=stock, tell=watcher.tell)
    postgres = await mesh.connect("postgres")
    try:
        async with Activity.of(mesh) as activity:
            with Driver() as driver:
                result = await _Load(mesh, replace(terms, stock=stock or None), shop, watcher).measure(
                    driver, activity, postgres
                )
    finally:
        await postgres.close()
    after = await _transactions(mesh, terms, watcher)
    return replace(result, transactions=(before + after) / 2) if before and after else result


async def _transactions(mesh: RunningMesh, terms: Terms, watcher: Watcher) -> float | None:
    if not terms.calibrated:
        return None
    watcher.tell("measuring R")
    return await calibration.measured(mesh, min(calibration.SECONDS, terms.seconds))


def _actions(scenario: Scenario, shop: Shop) -> Sequence[Action]:
    match scenario:
        case Scenario.ORDERS:
            return [shop.orders()]
        case Scenario.HOT:
            return [shop.orders(hot=True)]
        case Scenario.READS:
            return [shop.product_reads()]
        case Scenario.MIXED:
            return [shop.product_reads(weight=0.7), shop.own_order_reads(weight=0.2), shop.orders(weight=0.1)]
        case Scenario.EVENTS:
            raise ValueError("events have no requests")


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is counted before a load and after it."""

    time: float
    counters: Counters
    cpu: Mapping[str, float]
    busy: float

    @classmethod
    async def now(cls, mesh: RunningMesh, postgres: asyncpg.Connection) -> _Moment:
        counters = await Counters.read(postgres)
        return cls(time.monotonic(), counters, processes.cpu_seconds(mesh.pids), processes.busy_seconds())


class _Load:
    """A load in progress."""

    def __init__(self, mesh: RunningMesh, terms: Terms, shop: Shop, watcher: Watcher) -> None:
        self._mesh = mesh
        self._terms = terms
        self._shop = shop
        self._watcher = watcher
        self._is_hot = terms.scenario is Scenario.HOT
        self._begin = 0.0
        self._outbox_lag: dict[str, float] = {}
        """The greatest that was seen, by database."""
        self._watching = 0.0
        """Seconds of processor time that this process used during the load."""

    async def measure(self, driver: Driver, activity: Activity, postgres: asyncpg.Connection) -> Result:
        """Drive the load, wait until the mesh is at rest, and audit it."""
        described = await machine.described(postgres)
        if under_way := await activity.wait():
            raise StackError(f"The mesh is not at rest before the load: {'; '.join(under_way)}.")
        since = datetime.now(UTC)
        before = await _Moment.now(self._mesh, postgres)
        tally = await self._drive(driver, activity)
        ended = time.monotonic()
        if died := self._mesh.died():
            raise StackError(f"{', '.join(died)} died during the load; `mesh logs` may show why.")
        memory = processes.memory(self._mesh.pids)
        self._watcher.tell("waiting until every order is decided")
        violations = await activity.wait()
        after = await _Moment.now(self._mesh, postgres)
        self._watcher.tell("auditing")
        orders = await self._orders(since)
        audited = await Audit(self._mesh, since=since, margin=timedelta()).run()
        violations += [*accepted_and_there(tally, orders.keys()), *audited.violations]
        refusals = sum(count for (_, what), count in tally.failures.items() if SOLD_OUT in what)
        if self._is_hot:
            violations += await self._sold_out(refusals)
        cpu = {name: seconds - before.cpu[name] for name, seconds in after.cpu.items()}
        cost = DatabaseCost.between(before.counters, after.counters)
        used = sum(cpu.values()) + tally.cpu_seconds + self._watching
        begin, end = self._measured_time(tally)
        return Result(
            terms=self._terms,
            machine=described,
            rate_limits=self._mesh.rate_limits,
            customers=len(self._shop.customers),
            requests={
                kind: Answered(
                    answers.between(begin, end) / (end - begin), Latency.of(answers.latencies_of_requests(begin, end))
                )
                for kind, answers in tally.answers.items()
            },
            failures={
                f"{kind}: {what}": count for (kind, what), count in tally.failures.items() if SOLD_OUT not in what
            },
            sold_out_refusals=refusals,
            orders=self._ordered(tally, orders, cpu, cost) if orders else None,
            cpu_seconds=cpu,
            memory=memory,
            database=cost,
            outbox_lag_seconds=self._outbox_lag,
            driver=Driven(
                requests=tally.requests,
                cpu_microseconds_per_request=1e6 * tally.cpu_seconds / max(1, tally.requests),
                cpu_share=(tally.cpu_seconds + self._watching) / (ended - self._begin),
                lateness=Latency.of(tally.lateness),
            ),
            others_cores=max(0.0, (after.busy - before.busy - used) / (after.time - before.time)),
            violations=violations,
        )

    async def _drive(self, driver: Driver, activity: Activity) -> Tally:
        terms = self._terms
        seconds = terms.seconds * HOT_ENDS_WITHIN if self._is_hot else WARM_UP_S + terms.seconds
        plan = Plan(
            host=self._mesh.host,
            port=self._mesh.port,
            users=self._shop.authorizations,
            actions=_actions(terms.scenario, self._shop),
            connections=terms.connections,
            seconds=seconds,
            think=terms.think_s,
            rate=terms.rate,
            last_reason=SOLD_OUT if self._is_hot else "",
            mark=f"bench-{secrets.token_hex(6)}",
        )
        cpu = time.process_time()
        watching = asyncio.create_task(self._watch(driver, activity, terms.seconds if self._is_hot else seconds))
        try:
            return await driver.drive(plan, self._begun)
        finally:
            self._watching = time.process_time() - cpu
            watching.cancel()
            await asyncio.wait([watching])
            if not watching.cancelled():
                watching.result()

    def _begun(self, begin: float) -> None:
        self._begin = begin

    async def _watch(self, driver: Driver, activity: Activity, seconds: float) -> None:
        while True:
            lags = await activity.outbox_lag()
            self._outbox_lag = {name: max(lag, self._outbox_lag.get(name, 0.0)) for name, lag in lags.items()}
            self._watcher.show(
                elapsed=max(0.0, time.monotonic() - self._begin) if self._begin else 0.0,
                seconds=seconds,
                answered=driver.answered,
                failed=driver.failed,
                lag=max(lags.values()),
            )
            await asyncio.sleep(_WATCH_EVERY_S)

    def _measured_time(self, tally: Tally) -> tuple[float, float]:
        """From when to when rates are taken: after the warm-up; of a hot product, until the first buyer is refused."""
        if self._is_hot:
            return self._begin, tally.first_last_reason or self._begin + self._terms.seconds * HOT_ENDS_WITHIN
        return self._begin + WARM_UP_S, self._begin + WARM_UP_S + self._terms.seconds

    async def _orders(self, since: datetime) -> dict[UUID, Order]:
        connection = await self._mesh.connect("orders")
        try:
            rows = await connection.fetch(_ORDERS, first_id(since), self._shop.customers)
        finally:
            await connection.close()
        return {row["id"]: Order(row["status"], row["order_date"], row["update_time"]) for row in rows}

    def _ordered(
        self, tally: Tally, orders: Mapping[UUID, Order], cpu: Mapping[str, float], cost: DatabaseCost
    ) -> Ordered:
        begin, end = self._measured_time(tally)
        first, last = _time_of_day(begin), _time_of_day(end)
        confirmed = [order for order in orders.values() if order.status == "CONFIRMED"]
        per_second = sum(first <= order.updated < last for order in confirmed) / (end - begin)
        if self._is_hot and confirmed:
            per_second = len(confirmed) / (max(order.updated for order in confirmed) - first).total_seconds()
        count = max(1, len(confirmed))
        cpu_ms = {name: 1e3 * seconds / count for name, seconds in cpu.items()}
        return Ordered(
            placed=len(orders),
            confirmed=len(confirmed),
            accepted_per_second=tally.answers["place"].between(begin, end) / (end - begin),
            confirmed_per_second=per_second,
            to_confirmed=Latency.of((order.updated - order.placed).total_seconds() for order in confirmed),
            drain_seconds=max(0.0, (max(order.updated for order in orders.values()) - last).total_seconds()),
            cost=Cost(
                cpu_ms=cpu_ms,
                cpu_ms_total=sum(cpu_ms.values()),
                statements=cost.statements / count,
                commits=cost.commits / count,
                log_bytes=cost.log_bytes / count,
            )
            if tally.answers.keys() == {"place"}
            else None,
        )

    async def _sold_out(self, refusals: int) -> list[str]:
        """Violations of: the stock of the hot product was sold to the last piece, and there was demand for more."""
        product = await self._mesh.connect("product")
        try:
            left = await product.fetchval(
                "SELECT on_hand FROM stocks WHERE product_id = $1", next(iter(self._shop.stock))
            )
        finally:
            await product.close()
        if not refusals:
            return [f"{left} of {self._terms.stock} pieces were not sold in the time: give it less --stock"]
        return [f"{left} pieces are left, although {refusals} buyers were refused"] if left else []


def accepted_and_there(tally: Tally, orders: Collection[UUID]) -> list[str]:
    """Violations of: every accepted order exists, and no other order does."""
    accepted = {UUID(each.decode()) for each in tally.orders}
    placed = sum(len(answers.times) for kind, answers in tally.answers.items() if kind == "place")
    lost, more = accepted.difference(orders), set(orders) - accepted
    violations = []
    if len(accepted) != placed:
        violations.append(f"{placed} orders were accepted under {len(accepted)} ids")
    if lost:
        violations.append(f"{len(lost)} accepted orders do not exist, such as {min(lost)}")
    # An order whose reply was lost may exist.
    if len(more) > tally.unknown:
        violations.append(f"{len(more)} orders exist that no reply has named, such as {min(more)}")
    return violations


def _time_of_day(monotonic: float) -> datetime:
    return datetime.fromtimestamp(time.time() - time.monotonic() + monotonic, UTC)
