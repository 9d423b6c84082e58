"""Stock, and the ledger of its movements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import UUID

import sqlalchemy as sa

from mesh.db.columns import TIME
from mesh.db.database import Statement, stale_write, unless_stale, unnested
from mesh.db.rows import Rows
from mesh.ids import LAST_ID
from product_svc.domain import Movement, Stock, Stockroom
from product_svc.store.tables import movements, stocks

if TYPE_CHECKING:
    from mesh.db.database import Transaction
    from mesh.db.unit_of_work import UnitOfWork

_stocks = Rows(Stock, stocks)
_movements = Rows(Movement, movements)

ADD_STOCKS = _stocks.insertion()
STOCKS = _stocks.by(stocks.c.product_id)
LOCK_STOCKS = _stocks.by(stocks.c.product_id, locked=True)

# Holds made in between change `reserved`, so the statement adds to what is there; the check on the table decides
# whether that is possible. Other movements change `version`, which makes the write stale.
_changes = unnested(
    {
        "ids": ("id", sa.Uuid),
        "on_hands": ("on_hand", sa.BigInteger),
        "reserveds": ("reserved", sa.BigInteger),
        "known_versions": ("known_version", sa.BigInteger),
        "versions": ("version", sa.BigInteger),
    }
)
CHANGE_STOCKS = Statement(
    sa.update(stocks)
    .where(stocks.c.product_id == _changes.c.id)
    .values(
        on_hand=stocks.c.on_hand + _changes.c.on_hand,
        reserved=stocks.c.reserved + _changes.c.reserved,
        version=unless_stale(stocks.c.version, _changes.c.known_version, _changes.c.version),
        update_time=sa.bindparam("now", type_=TIME),
    ),
    refusals=stale_write(stocks.c.version),
)

ADD_MOVEMENTS = _movements.insertion()
LIST_MOVEMENTS = Statement(
    sa.select(*_movements.columns)
    .where(
        movements.c.product_id == sa.bindparam("product", type_=sa.Uuid),
        movements.c.id < sa.bindparam("before", type_=sa.Uuid),
    )
    .order_by(movements.c.id.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)


class StockStore:
    """The stock of products, and the ledger.

    An optimistic unit of work reads stock without a lock; its write is stale if `on_hand` has changed since (ADR-0022).
    """

    async def get(self, reading: Transaction, product_id: UUID) -> Stock | None:
        """The stock of a product, for those who do not change it."""
        row = await reading.fetch_one(STOCKS, keys=[product_id])
        return _stocks.read(row) if row else None

    async def get_each(self, reading: Transaction, product_ids: Iterable[UUID]) -> dict[UUID, Stock]:
        """The stock of the products that exist, by product, for those who do not change it."""
        stocks = map(_stocks.read, await reading.fetch(STOCKS, keys=sorted(set(product_ids))))
        return {stock.product_id: stock for stock in stocks}

    def add(self, work: UnitOfWork, stock: Stock, movements: Iterable[Movement]) -> None:
        """Add the stock of a new product, with the movements that led to it."""
        work.transaction.add(ADD_STOCKS, [_stocks.values(stock)])
        work.transaction.add(ADD_MOVEMENTS, map(_movements.values, movements))

    async def load(self, work: UnitOfWork, product_ids: Iterable[UUID]) -> list[Stock]:
        """The stock of the products that exist, to be changed."""
        keys = sorted(set(product_ids))
        if work.pessimistic:
            rows = await work.transaction.fetch(LOCK_STOCKS, keys=keys)
        else:
            rows = await work.transaction.read_now(STOCKS, keys=keys)
        return [_stocks.read(row) for row in rows]

    def save(self, work: UnitOfWork, stockroom: Stockroom) -> None:
        """Write the changes of loaded stock, and the movements. The unit of work fails with StaleWrite if it is old."""
        if changes := stockroom.changes:
            work.transaction.write(
                CHANGE_STOCKS,
                ids=[new.product_id for _, new in changes],
                on_hands=[new.on_hand - known.on_hand for known, new in changes],
                reserveds=[new.reserved - known.reserved for known, new in changes],
                known_versions=[known.version for known, _ in changes],
                versions=[new.version for _, new in changes],
                now=stockroom.now,
            )
        work.transaction.add(ADD_MOVEMENTS, map(_movements.values, stockroom.movements))

    async def movements(
        self, reading: Transaction, product_id: UUID, *, before: UUID | None, most: int
    ) -> list[Movement]:
        """The movements of a product, newest first; only those older than the movement `before`, if it is given."""
        rows = await reading.fetch(LIST_MOVEMENTS, product=product_id, before=before or LAST_ID, most=most)
        return [_movements.read(row) for row in rows]
