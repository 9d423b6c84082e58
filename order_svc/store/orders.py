"""Orders: their statements, and how they are read, locked and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache, partial
from operator import attrgetter
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from mesh.cache.versioned import VersionedCache
from mesh.db.columns import TIME
from mesh.db.database import BulkInsert, Database, Row, Statement, Transaction, unnested
from mesh.db.history import STEPS, Step, append_to, read_from
from mesh.db.recent import Recent
from mesh.db.rows import UUIDS, Rows, Versions
from mesh.db.unit_of_work import UnitOfWork
from order_svc.domain import HoldLost, Item, Order, OrderNotFound, PostalAddress, Shipment, Status
from order_svc.store.tables import items, order_history, orders, shipments, shipping_addresses

NOBODY = UUID(int=0)
"""The customer recorded on rows of abandoned orders."""

ORDERS = Rows(Order, orders, elsewhere=["items", "shipment", "shipping_address"])
SHIPMENTS = Rows(Shipment, shipments, apart=["order_id"])
ITEMS = Rows(Item, items, apart=["order_id"])
ITEMS_MUTABLE = ("sku", "name", "quantity", "unit_price")
_columns = (
    *ORDERS.columns,
    sa.select(shipping_addresses.c.postal_address)
    .where(shipping_addresses.c.order_id == orders.c.id)
    .scalar_subquery()
    .label("shipping_address"),
)
_ids = sa.bindparam("ids", type_=sa.ARRAY(sa.Uuid))
_most = sa.bindparam("most", type_=sa.Integer)
_SHIPPED = {Status.SHIPPED.value, Status.DELIVERED.value}
_placed = orders.c.status != Status.ABANDONED.value

ADD_ORDERS = ORDERS.insertion(refusals={"orders_pkey": HoldLost})
ADD_ITEMS = BulkInsert(items.c.order_id, *ITEMS.columns)
ABANDON = ORDERS.insertion(skip_existing=True, name="abandon orders")
_addressed = unnested({"order_ids": ("order_id", sa.Uuid), "postal_addresses": ("postal_address", postgresql.JSONB)})
_new_addresses = postgresql.insert(shipping_addresses).from_select(
    ["order_id", "postal_address"], sa.select(_addressed)
)
# The placing of a draft may replace its address.
WRITE_ADDRESSES = Statement(
    _new_addresses.on_conflict_do_update(
        index_elements=["order_id"], set_={"postal_address": _new_addresses.excluded.postal_address}
    ),
    name="write shipping addresses",
)
ADD_SHIPMENTS = BulkInsert(shipments.c.order_id, *SHIPMENTS.columns)
_changed = unnested(
    {"order_ids": ("order_id", sa.Uuid), "item_ids": ("id", sa.Uuid)}
    | {f"new_{name}": (name, items.c[name].type) for name in ITEMS_MUTABLE}
)
CHANGE_ITEMS = Statement(
    sa.update(items)
    .where(items.c.order_id == _changed.c.order_id, items.c.id == _changed.c.id)
    .values({name: _changed.c[name] for name in ITEMS_MUTABLE}),
    name="change items",
)
REMOVE_ITEMS = Statement(
    sa.delete(items).where(
        items.c.order_id == sa.bindparam("order", type_=sa.Uuid),
        items.c.id == sa.any_(sa.bindparam("item_ids", type_=UUIDS)),
    ),
    name="remove items",
)
DELIVER = Statement(
    sa.update(shipments)
    .where(shipments.c.order_id == sa.bindparam("id", type_=sa.Uuid))
    .values(deliver_time=sa.bindparam("time", type_=TIME)),
    name="deliver a shipment",
)
READ_SHIPMENTS = Statement(sa.select(*shipments.c).where(shipments.c.order_id == sa.any_(_ids)), name="read shipments")
READ = Statement(sa.select(*_columns).where(orders.c.id == sa.any_(_ids), _placed))
LOCK = Statement(
    sa.select(*_columns).where(orders.c.id == sa.any_(_ids), _placed).order_by(orders.c.id).with_for_update()
)
LOCK_OVERDUE = Statement(
    sa.select(*_columns)
    .where(orders.c.status == sa.literal_column("'PENDING'"), orders.c.payment_deadline < sa.func.now())
    .order_by(orders.c.payment_deadline)
    .limit(_most)
    .with_for_update(skip_locked=True),
    name="lock overdue orders",
)
LOCK_CANCELLING = Statement(
    sa.select(*_columns)
    .where(
        orders.c.status == sa.literal_column("'CANCELLING'"),
        orders.c.update_time < sa.func.now() - sa.bindparam("timeout", type_=sa.Interval),
    )
    .order_by(orders.c.update_time)
    .limit(_most)
    .with_for_update(skip_locked=True),
    name="lock cancelling orders",
)
LOCK_EXPIRED_DRAFTS = Statement(
    sa.select(*_columns)
    .where(
        orders.c.status == sa.literal_column("'DRAFT'"),
        orders.c.update_time < sa.func.now() - sa.bindparam("lifetime", type_=sa.Interval),
    )
    .order_by(orders.c.update_time)
    .limit(_most)
    .with_for_update(skip_locked=True),
    name="lock expired drafts",
)
LOCK_UNFINISHED = Statement(
    sa.select(*_columns)
    .where(
        orders.c.status == sa.literal_column("'PLACING'"),
        orders.c.update_time < sa.func.now() - sa.bindparam("timeout", type_=sa.Interval),
    )
    .order_by(orders.c.update_time)
    .limit(_most)
    .with_for_update(skip_locked=True),
    name="lock unfinished placings",
)
READ_STATUSES = Statement(
    sa.select(orders.c.id, orders.c.status).where(orders.c.id == sa.any_(_ids)), name="read order statuses"
)
READ_ITEMS = Statement(sa.select(items).where(items.c.order_id == sa.any_(_ids)).order_by(items.c.order_id, items.c.id))
# In the order of a list, so that its limit ends the scan of the index.
READ_NEWEST_ITEMS = Statement(
    sa.select(items)
    .where(items.c.order_id == sa.any_(_ids))
    .order_by(items.c.order_id.desc(), items.c.id.desc())
    .limit(_most),
    name="read newest items",
)
NEW_VERSIONS = Versions(ORDERS, ["status", "payment_id", "cancel_reason", "cancel_note", "update_time"])
OPEN_PLACINGS = Versions(ORDERS, ["status", "open_placings", "update_time"], name="write open placings")
PLACE_DRAFTS = Versions(
    ORDERS,
    [
        "status",
        "total",
        "currency",
        "payment_method_id",
        "order_date",
        "payment_deadline",
        "open_placings",
        "update_time",
    ],
    name="place drafts",
)
NEW_DRAFTS = Versions(ORDERS, ["total", "currency", "update_time"], name="write drafts")

APPEND_HISTORY = append_to(order_history)
READ_HISTORY = read_from(order_history)


@cache
def _list(filters: frozenset[str]) -> Statement:
    """The statement of a list with these filters."""
    conditions = {
        "customer_id": orders.c.customer_id == sa.bindparam("customer_id", type_=sa.Uuid),
        "status": orders.c.status == sa.bindparam("status", type_=sa.String),
        "draft": orders.c.status.in_([sa.literal_column("'DRAFT'"), sa.literal_column("'PLACING'")]),
        "before": orders.c.id < sa.bindparam("before", type_=sa.Uuid),
    }
    return Statement(
        sa.select(*_columns)
        .where(_placed, *(conditions[name] for name in sorted(filters)))
        .order_by(orders.c.id.desc())
        .limit(_most),
        name="list orders",
    )


class OrderStore:
    """The orders. It remembers those that this process has placed, so that their next version needs no read."""

    def __init__(self, cache: VersionedCache[Order] | None = None) -> None:
        """`cache` is for `find`; without one, every read goes to the database."""
        self._cache = cache
        self._recent: Recent[UUID, Order] = Recent(most=16_384, weight=lambda order: len(order.items))

    def add(self, work: UnitOfWork, placed: Sequence[Order]) -> None:
        """Write new orders with their items. The transaction fails with HoldLost if an id is abandoned."""
        # In primary-key order, as everywhere: an id of these may be abandoned at the same time.
        in_order = sorted(placed, key=attrgetter("id"))
        work.transaction.add(ADD_ORDERS, map(ORDERS.values, in_order))
        work.transaction.add(ADD_ITEMS, ((order.id, *ITEMS.values(item)) for order in placed for item in order.items))
        _write_addresses(work, placed)
        work.transaction.on_commit(lambda: self._recent.put({order.id: order for order in placed}))

    async def load(self, work: UnitOfWork, order_ids: Iterable[UUID]) -> dict[UUID, Order]:
        """Orders that are to change, by id. Raises OrderNotFound if one does not exist.

        Remembered orders are given as they were when this process placed them, unless `work` is pessimistic. All others
        are locked, in primary-key order. `save` fails if a remembered order has changed since.
        """
        wanted = set(order_ids)
        remembered = self._recent.take(wanted)
        found = {} if work.pessimistic else remembered
        if unknown := wanted - found.keys():
            rows = await work.transaction.fetch(LOCK, ids=sorted(unknown))
            found |= {order.id: order for order in await _with_items(work.transaction, rows)}
        for order_id in wanted - found.keys():
            raise OrderNotFound(order_id)
        return found

    async def forget_remembered(self) -> None:
        """Forget the remembered orders: those that another process moves on would stay, with addresses erased since."""
        self._recent.clear()

    async def load_overdue(self, work: UnitOfWork, most: int) -> list[Order]:
        """Lock orders whose payment deadline has passed, except those that another process has locked."""
        return await _with_items(work.transaction, await work.transaction.fetch(LOCK_OVERDUE, most=most))

    async def load_cancelling(self, work: UnitOfWork, timeout: timedelta, most: int) -> list[Order]:
        """Lock orders that are cancelling and unchanged for `timeout`, except those locked by another process."""
        rows = await work.transaction.fetch(LOCK_CANCELLING, timeout=timeout, most=most)
        return await _with_items(work.transaction, rows)

    async def load_expired_drafts(self, work: UnitOfWork, lifetime: timedelta, most: int) -> list[Order]:
        """Lock drafts that are unchanged for `lifetime`, except those locked by another process."""
        rows = await work.transaction.fetch(LOCK_EXPIRED_DRAFTS, lifetime=lifetime, most=most)
        return await _with_items(work.transaction, rows)

    async def load_unfinished(self, work: UnitOfWork, timeout: timedelta, most: int) -> list[Order]:
        """Lock drafts whose placing began before `timeout`, except those locked by another process."""
        rows = await work.transaction.fetch(LOCK_UNFINISHED, timeout=timeout, most=most)
        return await _with_items(work.transaction, rows)

    def save(self, work: UnitOfWork, changes: Iterable[tuple[Order, Order]]) -> None:
        """Write new versions of orders, of each (as it was loaded, as it is now).

        The transaction fails with StaleWrite if an order has another version than the loaded one.
        """
        versions = list(changes)
        NEW_VERSIONS.write(work.transaction, versions)
        # Only versions at rest may be in the cache; an order that is placed and paid never waits for it.
        if self._cache and (replaced := [new for known, new in versions if known.is_at_rest()]):
            forget = partial(self._cache.forget_soon, [order.id for order in replaced])
            work.after_commit(partial(self._cache.put, replaced), on_failure=forget)
        for known, new in versions:
            if new.shipment is not known.shipment and new.shipment is not None:
                if known.shipment is None:
                    work.transaction.add(ADD_SHIPMENTS, [(new.id, *SHIPMENTS.values(new.shipment))])
                else:
                    work.transaction.write(DELIVER, id=new.id, time=new.shipment.deliver_time)

    def add_draft(self, work: UnitOfWork, draft: Order) -> None:
        """Write a new draft with its items."""
        work.transaction.add(ADD_ORDERS, [ORDERS.values(draft)])
        work.transaction.add(ADD_ITEMS, ((draft.id, *ITEMS.values(item)) for item in draft.items))
        _write_addresses(work, [draft])

    def save_draft(self, work: UnitOfWork, known: Order, new: Order) -> None:
        """Write a new version of a draft, and the items in which it differs.

        The transaction fails with StaleWrite as that of `save`.
        """
        NEW_DRAFTS.write(work.transaction, [(known, new)])
        _write_items(work, [(known, new)])

    def save_placings(self, work: UnitOfWork, known: Order, new: Order) -> None:
        """Write how many placings of a locked draft are open, and whether it can be edited."""
        OPEN_PLACINGS.write(work.transaction, [(known, new)])

    def place_drafts(self, work: UnitOfWork, drafts: Sequence[tuple[Order, Order]]) -> None:
        """Write drafts that are placed, of each (as it was, as it is now); no two of the same.

        The transaction fails with StaleWrite as that of `save`.
        """
        if drafts:
            PLACE_DRAFTS.write(work.transaction, drafts)
            _write_items(work, drafts)
            _write_addresses(work, [new for _, new in drafts])
            work.transaction.on_commit(lambda: self._recent.put({new.id: new for _, new in drafts}))

    async def abandon_unknown(self, work: UnitOfWork, ids: Sequence[UUID], now: datetime) -> dict[UUID, Status]:
        """The statuses of orders. An id without an order becomes ABANDONED, and no order will ever have it.

        The primary key decides between this and a placing at the same time: the first to write the id has it.
        """
        work.transaction.add(ABANDON, (ORDERS.values(_abandoned(order_id, now)) for order_id in sorted(ids)))
        rows = await work.transaction.fetch(READ_STATUSES, ids=list(ids))
        return {row["id"]: Status(row["status"]) for row in rows}

    async def read(self, reading: Transaction, ids: Iterable[UUID]) -> dict[UUID, Order]:
        """Orders as they are now, by id; those that exist."""
        return {order.id: order for order in await _with_items(reading, await reading.fetch(READ, ids=list(ids)))}

    async def history(self, reading: Transaction, order_id: UUID) -> list[Step]:
        """The events of an order, oldest first."""
        return [STEPS.read(row) for row in await reading.fetch(READ_HISTORY, subject=order_id)]

    async def find(self, database: Database, ids: Iterable[UUID]) -> dict[UUID, Order]:
        """Orders by id, with all changes that were committed before the call; those that exist."""

        async def load(missing: Iterable[UUID]) -> dict[UUID, Order]:
            async with database.reading() as reading:
                return await self.read(reading, missing)

        return await (self._cache.read(set(ids), load) if self._cache else load(ids))

    def forget(self, work: UnitOfWork, ids: Sequence[UUID]) -> None:
        """Delete orders from the cache after the commit, because their rows change without a new version."""
        if self._cache:
            work.after_commit(partial(self._cache.forget, ids), on_failure=partial(self._cache.forget_soon, ids))

    async def list_orders(
        self,
        reading: Transaction,
        *,
        customer_id: UUID | None,
        status: Status | None,
        before: UUID | None,
        most: int,
        most_items: int,
    ) -> tuple[list[Order], bool]:
        """Orders, newest first, of one customer or of all, in one status or in any; and whether there are more.

        At most `most` orders, with `most_items` items together. A single order never has more items than that.
        """
        filters = {
            name: value
            for name, value in (("customer_id", customer_id), ("status", status), ("before", before))
            if value is not None
        }
        names = frozenset(filters)
        if status is Status.DRAFT:
            del filters["status"]
            names = frozenset({*filters, "draft"})
        rows = await reading.fetch(_list(names), most=most + 1, **filters)
        page = rows[:most]
        lines: Sequence[Row] = []
        if page:
            ids = [row["id"] for row in page]
            lines = await reading.fetch(READ_NEWEST_ITEMS, ids=ids, most=most_items + 1)
        if len(lines) > most_items:
            # The items of the last order are too many, or not all of them are here.
            last = lines[-1]["order_id"]
            page = [row for row in page if row["id"] > last]
            lines = [line for line in lines if line["order_id"] > last]
        return await _assembled(reading, page, reversed(lines)), len(page) < len(rows)


def _write_items(work: UnitOfWork, versions: Iterable[tuple[Order, Order]]) -> None:
    """Write the items in which two versions of each order differ."""
    changed: list[tuple[UUID, Item]] = []
    for known, new in versions:
        before, after = ({item.id: item for item in order.items} for order in (known, new))
        changed += [(new.id, item) for item in new.items if item.id in before and item != before[item.id]]
        if removed := sorted(before.keys() - after.keys()):
            work.transaction.write(REMOVE_ITEMS, order=new.id, item_ids=removed)
        added = [item for item in new.items if item.id not in before]
        work.transaction.add(ADD_ITEMS, ((new.id, *ITEMS.values(item)) for item in added))
    if changed:
        work.transaction.write(
            CHANGE_ITEMS,
            order_ids=[order_id for order_id, _ in changed],
            item_ids=[item.id for _, item in changed],
            **{f"new_{name}": [getattr(item, name) for _, item in changed] for name in ITEMS_MUTABLE},
        )


def _write_addresses(work: UnitOfWork, orders: Iterable[Order]) -> None:
    """Write the shipping addresses of new orders, of those that have one."""
    addressed = [(order.id, order.shipping_address) for order in orders if order.shipping_address]
    if addressed:
        work.transaction.write(
            WRITE_ADDRESSES,
            order_ids=[order_id for order_id, _ in addressed],
            postal_addresses=[json.dumps(address._asdict()) for _, address in addressed],
        )


def _abandoned(order_id: UUID, now: datetime) -> Order:
    """What is written under an id that no order shall have."""
    return Order(
        id=order_id,
        customer_id=NOBODY,
        status=Status.ABANDONED,
        items=(),
        total=Decimal(0),
        currency="XXX",
        payment_method_id=None,
        payment_id=None,
        order_date=now,
        payment_deadline=now,
        cancel_reason=None,
        cancel_note="",
        update_time=now,
        version=1,
    )


async def _with_items(reading: Transaction, rows: Sequence[Row]) -> list[Order]:
    if not rows:
        return []
    return await _assembled(reading, rows, await reading.fetch(READ_ITEMS, ids=[row["id"] for row in rows]))


async def _assembled(reading: Transaction, rows: Sequence[Row], lines: Iterable[Row]) -> list[Order]:
    """Orders of these rows, each with its items in the order of these lines, with its shipment and its address."""
    by_order: dict[UUID, list[Item]] = {row["id"]: [] for row in rows}
    for line in lines:
        by_order[line["order_id"]].append(ITEMS.read(line))
    shipped: dict[UUID, Shipment] = {}
    if ids := [row["id"] for row in rows if row["status"] in _SHIPPED]:
        shipped = {row["order_id"]: SHIPMENTS.read(row) for row in await reading.fetch(READ_SHIPMENTS, ids=ids)}
    return [
        ORDERS.read(
            row,
            items=tuple(by_order[row["id"]]),
            shipment=shipped.get(row["id"]),
            shipping_address=_address(row["shipping_address"]),
        )
        for row in rows
    ]


def _address(document: str | None) -> PostalAddress | None:
    if document is None:
        return None
    parts: dict[str, Any] = json.loads(document)
    lists = {name: tuple(part) for name, part in parts.items() if isinstance(part, list)}
    return PostalAddress(**(parts | lists))
