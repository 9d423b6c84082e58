"""The orders of a load, as the order service has them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from ops.audit import Scope
from ops.bench.driver import Tally
from ops.running_mesh import RunningMesh

_ORDERS = "SELECT id, status, order_date, update_time FROM orders WHERE id >= $1 AND customer_id = ANY($2::uuid[])"


@dataclass(frozen=True, slots=True)
class Order:
    """An order at the end of a load."""

    status: str
    placed: datetime
    updated: datetime


async def orders_of(mesh: RunningMesh, scope: Scope) -> dict[UUID, Order]:
    """The orders in a scope that names customers and a first id."""
    connection = await mesh.connect("orders")
    try:
        rows = await connection.fetch(_ORDERS, scope.since, scope.customers)
    finally:
        await connection.close()
    return {row["id"]: Order(row["status"], row["order_date"], row["update_time"]) for row in rows}


def accepted_and_there(tally: Tally, orders: Mapping[UUID, Order]) -> list[str]:
    """Every accepted order exists, and no other order does; violations."""
    accepted = {UUID(each.decode()) for each in tally.orders}
    placed = sum(len(answers.times) for kind, answers in tally.answers.items() if kind == "place")
    lost, more = accepted - orders.keys(), orders.keys() - accepted
    violations = []
    if len(accepted) != placed:
        violations.append(f"{placed} orders were accepted under {len(accepted)} ids")
    if lost:
        violations.append(f"{len(lost)} accepted orders do not exist, such as {min(lost)}")
    # An order whose reply was lost may exist.
    if len(more) > tally.unknown:
        violations.append(f"{len(more)} orders exist that no reply has named, such as {min(more)}")
    return violations


def first_id(now: float) -> UUID:
    """The least UUIDv7 of this moment: ids that are made later are greater."""
    return UUID(int=int(now * 1000) << 80 | 0x7 << 76 | 0x8 << 60)


def moment(monotonic: float) -> datetime:
    """The time of day of a `time.monotonic`."""
    return datetime.fromtimestamp(time.time() - time.monotonic() + monotonic, UTC)
