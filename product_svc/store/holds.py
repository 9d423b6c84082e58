"""Holds and their lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from mesh.db.database import BulkInsert, Row, Statement, Transaction, stale_write, unless_stale
from mesh.errors import StaleWrite
from product_svc.domain import Hold, HoldLine, HoldState
from product_svc.store.tables import IS_HELD, hold_lines, holds


class HoldKeyTaken(StaleWrite):
    """A hold is under one of these keys: an earlier attempt has made it, or one that was quicker."""


_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))

ADD_HOLDS = BulkInsert(
    *(column for column in holds.c if column.name != "create_time"), refusals={"holds_live_key": HoldKeyTaken}
)
ADD_HOLD_LINES = BulkInsert(*hold_lines.c)
HOLDS = Statement(sa.select(holds).where(holds.c.order_id == sa.any_(_ids)))
LIVE_HOLDS = Statement(
    sa.select(holds).where(
        holds.c.key == sa.any_(sa.bindparam("keys", type_=sa.ARRAY(sa.LargeBinary))),
        IS_HELD,
    ),
    name="read live holds",
)
HOLD_LINES = Statement(sa.select(hold_lines).where(hold_lines.c.order_id == sa.any_(_ids)))
EXPIRED_HOLDS = Statement(
    sa.select(holds.c.order_id)
    .where(IS_HELD, holds.c.expire_time < sa.func.now())
    .order_by(holds.c.expire_time)
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="read expired holds",
)
WRITE_HOLDS = Statement(
    sa.update(holds)
    .where(holds.c.order_id == sa.any_(_ids))
    .values(
        state=unless_stale(
            holds.c.state, sa.bindparam("known_state", type_=sa.String), sa.bindparam("new_state", type_=sa.String)
        )
    ),
    refusals=stale_write(holds.c.state),
)

# A hold that somebody has locked is being settled: it is passed over, so this waits for nobody.
_still_held = (
    sa.select(holds.c.order_id)
    .where(holds.c.order_id == sa.any_(_ids), IS_HELD)
    .with_for_update(skip_locked=True)
    .cte("still_held")
)
POSTPONE_HOLDS = Statement(
    sa.update(holds)
    .where(holds.c.order_id == _still_held.c.order_id)
    .values(expire_time=sa.func.now() + sa.bindparam("pause", type_=sa.Interval)),
    name="postpone holds",
)


async def live_holds(reading: Transaction, keys: Sequence[bytes]) -> dict[bytes, Hold]:
    """The holds that stand under these keys; to ask for none costs nothing."""
    if not keys:
        return {}
    rows = await reading.fetch(LIVE_HOLDS, keys=list(keys))
    return {hold.key: hold for hold in await _with_lines(reading, rows)}


async def get_holds(reading: Transaction, order_ids: Iterable[UUID]) -> dict[UUID, Hold]:
    """The holds of orders as they are now, by order; those that exist."""
    rows = await reading.fetch(HOLDS, ids=list(order_ids))
    return {hold.order_id: hold for hold in await _with_lines(reading, rows)}


def add_holds(transaction: Transaction, news: Sequence[Hold]) -> None:
    """Write new holds with their lines. The transaction fails with HoldKeyTaken when one of the keys holds by now."""
    transaction.add(
        ADD_HOLDS,
        ((hold.order_id, hold.key, hold.customer_id, hold.state, hold.expire_time) for hold in news),
    )
    transaction.add(
        ADD_HOLD_LINES,
        (
            (hold.order_id, line.product_id, line.quantity, line.sku, line.name, line.unit_price, line.currency)
            for hold in news
            for line in hold.lines
        ),
    )


def write_hold_states(transaction: Transaction, moves: Iterable[tuple[UUID, HoldState, HoldState]]) -> None:
    """Write what became of holds, of each (order, the state that is known, the new one).

    The transaction fails with StaleWrite when one of them is not in the state that is known. Whoever moves a hold has
    locked the stock of all its lines before, and so waits for nobody here.
    """
    by_step: dict[tuple[HoldState, HoldState], list[UUID]] = {}
    for order_id, known, new in moves:
        by_step.setdefault((known, new), []).append(order_id)
    for (known, new), ids in sorted(by_step.items()):
        transaction.write(WRITE_HOLDS, ids=sorted(ids), known_state=known, new_state=new)


async def expired_holds(reading: Transaction, most: int) -> list[UUID]:
    """Orders whose holds should have been settled by now."""
    return [row["order_id"] for row in await reading.fetch(EXPIRED_HOLDS, most=most)]


async def postpone_holds(transaction: Transaction, order_ids: Sequence[UUID], pause: timedelta) -> None:
    """Ask about these holds again, but not before `pause` has passed."""
    await transaction.execute(POSTPONE_HOLDS, ids=list(order_ids), pause=pause)


async def _with_lines(reading: Transaction, rows: Sequence[Row]) -> list[Hold]:
    if not rows:
        return []
    lines: dict[UUID, list[HoldLine]] = {row["order_id"]: [] for row in rows}
    for line in await reading.fetch(HOLD_LINES, ids=list(lines)):
        lines[line["order_id"]].append(
            HoldLine(
                line["product_id"], line["quantity"], line["sku"], line["name"], line["unit_price"], line["currency"]
            )
        )
    return [
        Hold(
            row["order_id"],
            row["key"],
            row["customer_id"],
            row["expire_time"],
            HoldState(row["state"]),
            tuple(lines[row["order_id"]]),
        )
        for row in rows
    ]
