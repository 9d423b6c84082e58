"""Holds and their lines: made by addition to the reserved stock, and resolved by their last known state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import sqlalchemy as sa

from mesh.db.columns import TIME
from mesh.db.database import BulkInsert, Statement, stale_write, unless_stale, unnested
from mesh.db.history import STEPS, Step, append_to, read_from
from mesh.db.recent import Recent
from mesh.db.rows import Rows, Values
from mesh.errors import StaleWrite
from product_svc.domain import Hold, HoldLine, HoldResolved, HoldState, Offer, Reservation, Shelf
from product_svc.store.tables import IS_HELD, hold_history, hold_lines, holds, products, stocks

if TYPE_CHECKING:
    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitOfWork


class HoldKeyTaken(StaleWrite):
    """One of the keys has a hold: of an earlier attempt, or of a concurrent one."""


class StockShort(StaleWrite):
    """There is less stock than the reservations request, so an optimistic write would fail."""


_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_holds = Rows(Hold, holds, elsewhere=("lines",), apart=("create_time",))
_lines = Rows(HoldLine, hold_lines, apart=("order_id",))
_offers = Values(Offer)

ADD_HOLDS = _holds.insertion(refusals={"holds_live_key": HoldKeyTaken, "holds_pkey": HoldResolved})
ADD_HOLD_LINES = BulkInsert(hold_lines.c.order_id, *_lines.columns, refusals={"hold_lines_pkey": HoldResolved})
HOLDS = _holds.by(holds.c.order_id)
LIVE_HOLDS = Statement(
    sa.select(*_holds.columns).where(
        sa.or_(
            holds.c.key == sa.any_(sa.bindparam("keys", type_=sa.ARRAY(sa.LargeBinary))),
            holds.c.order_id == sa.any_(_ids),
        ),
        IS_HELD,
    ),
    name="read live holds",
)
HOLD_LINES = Statement(sa.select(hold_lines).where(hold_lines.c.order_id == sa.any_(_ids)))

_offer = sa.select(
    products.c.id.label("product_id"),
    *(products.c[name] for name in ("sku", "name", "price", "currency", "state", "version")),
    (stocks.c.on_hand - stocks.c.reserved).label("available"),
).select_from(stocks.join(products, products.c.id == stocks.c.product_id))
OFFERS = Statement(_offer.where(stocks.c.product_id == sa.any_(_ids)), name="read offers")
# In primary-key order, as everywhere. The products too: otherwise frequent price changes would make each attempt stale.
LOCK_OFFERS = Statement(
    _offer.where(stocks.c.product_id == sa.any_(_ids))
    .order_by(stocks.c.product_id)
    .with_for_update(of=[stocks, products]),
    name="lock offers",
)

# This needs no quantity that was read before: the check on the table decides whether there is enough (ADR-0021).
_reserved = unnested(
    {
        "ids": ("id", sa.Uuid),
        "quantities": ("quantity", sa.BigInteger),
        "offer_versions": ("offer_version", sa.BigInteger),
    }
)
_version_now = sa.select(products.c.version).where(products.c.id == _reserved.c.id).scalar_subquery()
RESERVE_STOCKS = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == _reserved.c.id)
    .values(
        reserved=unless_stale(_version_now, _reserved.c.offer_version, stocks.c.reserved + _reserved.c.quantity),
        update_time=sa.bindparam("now", type_=TIME),
    ),
    refusals=stale_write(stocks.c.reserved),
    name="reserve stocks",
)

# The stock of a hold is locked before the hold is changed, so holds that are read under this lock do not change.
LOCK_STOCKS_OF_HOLDS = Statement(
    sa.select(stocks.c.product_id)
    .where(
        stocks.c.product_id.in_(
            sa.select(hold_lines.c.product_id).where(hold_lines.c.order_id == sa.any_(_ids)).distinct()
        )
    )
    .order_by(stocks.c.product_id)
    .with_for_update(),
    name="lock stocks of holds",
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
_renewed = unnested(
    {
        "order_ids": ("order_id", sa.Uuid),
        "keys": ("key", sa.LargeBinary),
        "expire_times": ("expire_time", TIME),
    }
)
RENEW_HOLDS = Statement(
    sa.update(holds)
    .where(holds.c.order_id == _renewed.c.order_id)
    .values(key=_renewed.c.key, expire_time=_renewed.c.expire_time),
    name="renew holds",
)
_repriced = unnested(
    {"order_ids": ("order_id", sa.Uuid)}
    | {f"new_{column.name}": (column.name, column.type) for column in _lines.columns}
)
REPRICE_LINES = Statement(
    sa.update(hold_lines)
    .where(hold_lines.c.order_id == _repriced.c.order_id, hold_lines.c.product_id == _repriced.c.product_id)
    .values({name: _repriced.c[name] for name in ("sku", "name", "unit_price", "currency")}),
    name="reprice hold lines",
)

EXPIRED_HOLDS = Statement(
    sa.select(holds.c.order_id)
    .where(IS_HELD, holds.c.expire_time < sa.func.now())
    .order_by(holds.c.expire_time)
    .limit(sa.bindparam("most", type_=sa.Integer)),
    name="read expired holds",
)
# Another process is resolving a hold that is locked, so it is skipped. This statement waits for no lock.
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

HOLD_MADE = Statement(
    sa.select(holds.c.create_time).where(holds.c.order_id == sa.bindparam("order", type_=sa.Uuid)), name="read hold"
)
APPEND_HISTORY = append_to(hold_history)
READ_HISTORY = read_from(hold_history)


class HoldStore:
    """The holds, and the offers at which they are made.

    It remembers holds that this process made, since most of them are resolved soon, and offers that were valid a
    moment ago. An optimistic unit of work uses them without a read; its write is stale when they are outdated
    (ADR-0019, ADR-0021). What is remembered is forgotten when it is used, so the next attempt reads it.
    """

    def __init__(self) -> None:
        self._recent_holds: Recent[UUID, Hold] = Recent(most=16_384, weight=lambda hold: len(hold.lines))
        self._recent_offers: Recent[UUID, Offer] = Recent(most=10_000)

    async def shelf_for(self, work: UnitOfWork, reservations: Sequence[Reservation]) -> Shelf:
        """The offers, the stock and the existing holds by which these reservations are decided.

        An optimistic unit of work gets no stock and no holds: `add` fails when it has assumed wrong.
        """
        wanted: Counter[UUID] = Counter()
        for reservation in reservations:
            wanted.update(reservation.quantities)
        if not work.pessimistic:
            return Shelf(await self._offers_of(work, wanted))
        rows = await work.transaction.fetch(LOCK_OFFERS, ids=sorted(wanted))
        # After the lock: a hold whose release has just been waited for does not exist any more.
        keys, order_ids = [each.key for each in reservations], [each.order_id for each in reservations]
        existing = await _read(work.transaction, LIVE_HOLDS, keys=keys, ids=order_ids)
        return Shelf(
            [_offers.read(row) for row in rows],
            available={row["product_id"]: row["available"] for row in rows},
            holds=existing,
        )

    async def _offers_of(self, work: UnitOfWork, wanted: Mapping[UUID, int]) -> list[Offer]:
        """The offers of products, remembered or read. Raises StockShort if one that is read has less than `wanted`."""
        found = self._recent_offers.take(wanted)
        offers = list(found.values())
        if missing := [product_id for product_id in wanted if product_id not in found]:
            rows = await work.transaction.read_now(OFFERS, ids=missing)
            if any(wanted[row["product_id"]] > row["available"] for row in rows):
                raise StockShort
            offers += [_offers.read(row) for row in rows]
        return offers

    def add(self, work: UnitOfWork, shelf: Shelf, now: datetime) -> None:
        """Write the new holds of a shelf and reserve their stock; and the renewed ones, whose stock is locked.

        The unit of work fails with HoldKeyTaken when one of the keys has a hold, with StaleWrite when an offer is
        outdated, and by the check on the table when there is not enough stock.
        """
        if shelf.renewed:
            self._renew(work, shelf.renewed)
        if not shelf.holds:
            return
        work.transaction.add(ADD_HOLDS, map(_holds.values, shelf.holds))
        work.transaction.add(
            ADD_HOLD_LINES, ((hold.order_id, *_lines.values(line)) for hold in shelf.holds for line in hold.lines)
        )
        # PostgreSQL begins with the last statement. So stock is locked before the holds on it, as in `save`.
        reserved = shelf.reserved
        work.transaction.write(
            RESERVE_STOCKS,
            ids=[offer.product_id for offer, _ in reserved],
            quantities=[quantity for _, quantity in reserved],
            offer_versions=[offer.version for offer, _ in reserved],
            now=now,
        )
        # After a pessimistic attempt the next one reads the offers, and with them the available quantity.
        offers = [] if work.pessimistic else [offer for offer, _ in reserved]
        work.transaction.on_commit(partial(self._remember, shelf.holds, offers))

    def _renew(self, work: UnitOfWork, renewed: Sequence[Hold]) -> None:
        # In primary-key order, as everywhere.
        in_order = sorted(renewed, key=attrgetter("order_id"))
        lines = [(hold.order_id, line) for hold in in_order for line in sorted(hold.lines)]
        work.transaction.write(
            RENEW_HOLDS,
            order_ids=[hold.order_id for hold in in_order],
            keys=[hold.key for hold in in_order],
            expire_times=[hold.expire_time for hold in in_order],
        )
        work.transaction.write(
            REPRICE_LINES,
            order_ids=[order_id for order_id, _ in lines],
            **{f"new_{name}": [getattr(line, name) for _, line in lines] for name in HoldLine._fields},
        )
        work.transaction.on_commit(partial(self._remember, renewed, []))

    def _remember(self, made: Sequence[Hold], offers: Sequence[Offer]) -> None:
        self._recent_holds.put({hold.order_id: hold for hold in made})
        self._recent_offers.put({offer.product_id: offer for offer in offers})

    async def load(self, work: UnitOfWork, order_ids: Collection[UUID]) -> dict[UUID, Hold]:
        """The holds of orders, to be resolved; those that exist, by order."""
        found = self._recent_holds.take(order_ids)
        if work.pessimistic:
            found = {}
            await work.transaction.fetch(LOCK_STOCKS_OF_HOLDS, ids=list(order_ids))
        if others := [order_id for order_id in order_ids if order_id not in found]:
            found |= {hold.order_id: hold for hold in await _read(work.transaction, HOLDS, keys=others)}
        return found

    def save(self, work: UnitOfWork, known: Mapping[UUID, Hold], new: Mapping[UUID, Hold]) -> None:
        """Write the new states of loaded holds. The unit of work fails with StaleWrite if the known ones are outdated.

        Call this before the stock of the holds is saved: PostgreSQL begins with the last statement, so stock is locked
        first, and for a short time (ADR-0022). Then this waits for no lock.
        """
        by_transition: dict[tuple[HoldState, HoldState], list[UUID]] = {}
        for order_id, hold in new.items():
            if hold is not known[order_id]:
                by_transition.setdefault((known[order_id].state, hold.state), []).append(order_id)
        for (known_state, new_state), order_ids in sorted(by_transition.items()):
            work.transaction.write(WRITE_HOLDS, ids=sorted(order_ids), known_state=known_state, new_state=new_state)

    async def history(self, reading: Transaction, order_id: UUID) -> list[Step]:
        """What became of the hold of an order, oldest first.

        That the hold was made is read from its row: a row of history for it would cost every order. Its trace is that
        of the placing, which the order service knows.
        """
        made = [
            Step(UUID(int=order_id.int ^ 1), "hold.reserved", row["create_time"], "", "service:order")
            for row in await reading.fetch(HOLD_MADE, order=order_id)
        ]
        return made + [STEPS.read(row) for row in await reading.fetch(READ_HISTORY, subject=order_id)]

    async def expired(self, reading: Transaction, most: int) -> list[UUID]:
        """Orders whose holds have expired, those that expired first."""
        return [row["order_id"] for row in await reading.fetch(EXPIRED_HOLDS, most=most)]

    async def postpone(self, work: UnitOfWork, order_ids: Sequence[UUID], pause: timedelta) -> None:
        """Let these holds expire again after `pause`."""
        await work.transaction.execute(POSTPONE_HOLDS, ids=list(order_ids), pause=pause)


async def _read(transaction: Transaction, statement: Statement, **values: Any) -> list[Hold]:
    """The holds that a statement finds, with their lines."""
    rows = await transaction.fetch(statement, **values)
    if not rows:
        return []
    lines: dict[UUID, list[HoldLine]] = {row["order_id"]: [] for row in rows}
    for row in await transaction.fetch(HOLD_LINES, ids=list(lines)):
        lines[row["order_id"]].append(_lines.read(row))
    return [_holds.read(row, lines=tuple(lines[row["order_id"]])) for row in rows]
