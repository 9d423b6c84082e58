"""Whether all went right: what a load has left in the databases and streams, and the sums that must hold over it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import asyncpg
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from mesh.events.bus import DEAD_LETTERS
from ops.bench.database import Outboxes
from ops.bench.driver import Tally
from ops.bench.shop import Shop
from ops.bench.target import Target

PATIENCE_S = 60.0
"""How long nothing may move before it is given up."""
_LOOK_EVERY_S = 0.1
_UNDECIDED = {"PENDING", "CANCELLING"}

_ORDERS = """
SELECT id, status, total, order_date, update_time FROM orders WHERE id >= $1 AND customer_id = ANY($2::uuid[])
"""
_STATUSES = "SELECT status, count(*) FROM orders WHERE id >= $1 AND customer_id = ANY($2::uuid[]) GROUP BY 1"
_SOLD = """
SELECT i.product_id, sum(i.quantity)::bigint AS sold FROM order_items i JOIN orders o ON o.id = i.order_id
WHERE o.id >= $1 AND o.customer_id = ANY($2::uuid[]) AND o.status = 'CONFIRMED' GROUP BY 1
"""
_CHARGES = """
SELECT c.order_id, c.amount FROM sandbox.charges c JOIN payments p ON p.order_id = c.order_id
WHERE c.status = 'APPROVED' AND c.order_id >= $1 AND p.customer_id = ANY($2::uuid[])
"""


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it ended."""

    status: str
    total: Decimal
    placed: datetime
    updated: datetime


class Streams:
    """The streams of the mesh and those who consume them."""

    def __init__(self, client: Client, context: JetStreamContext) -> None:
        self._client = client
        self._context = context

    @classmethod
    async def open(cls, target: Target) -> Streams:
        """Connect."""
        client = await nats.connect(target.nats_url, name="mesh bench")
        return cls(client, client.jetstream())

    async def close(self) -> None:
        """Disconnect."""
        await self._client.close()

    async def messages(self) -> dict[str, int]:
        """The number of the last message of each stream."""
        return {each.config.name or "": each.state.last_seq for each in await self._context.streams_info()}

    async def behind(self) -> dict[str, int]:
        """How many events each consumer has not applied, of those that have not applied all."""
        behind = {}
        for stream in await self.messages():
            for consumer in await self._context.consumers_info(stream):
                if left := (consumer.num_pending or 0) + (consumer.num_ack_pending or 0):
                    behind[consumer.name] = left
        return behind


class Books:
    """What one load leaves behind: begin before it, then wait for its end, then check."""

    def __init__(self, target: Target, shop: Shop, streams: Streams, outboxes: Outboxes) -> None:
        self._target = target
        self._shop = shop
        self._streams = streams
        self._outboxes = outboxes
        self._first = _first_id(time.time())
        self._parked = 0

    async def begin(self) -> None:
        """From here on every order of the shop's customers is the load's."""
        self._first = _first_id(time.time())
        self._parked = (await self._streams.messages()).get(DEAD_LETTERS, 0)

    @property
    def _which(self) -> tuple[UUID, list[UUID]]:
        return self._first, list(self._shop.customers)

    async def settled(self) -> list[str]:
        """Wait until every order has come to rest and every event was applied; what never did, as breaches."""
        orders = await self._target.connect("orders")
        try:
            seen: object = None
            since = time.monotonic()
            while True:
                statuses = {row["status"]: row["count"] for row in await orders.fetch(_STATUSES, *self._which)}
                undecided = sum(statuses.get(each, 0) for each in _UNDECIDED)
                if not undecided:
                    return []
                if statuses != seen:
                    seen, since = statuses, time.monotonic()
                elif time.monotonic() - since > PATIENCE_S:
                    return [f"{undecided} orders are undecided, and nothing moves any more: {statuses}"]
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            await orders.close()

    async def quiet(self) -> list[str]:
        """Wait until nothing is under way anywhere; what stays under way, as breaches."""
        seen: object = None
        since = time.monotonic()
        while True:
            # In this order: had anything moved in between, it would show in the second look at the streams.
            before, behind = await self._streams.messages(), await self._streams.behind()
            unpublished = {name: count for name, count in (await self._outboxes.unpublished()).items() if count}
            after, behind_after = await self._streams.messages(), await self._streams.behind()
            if before == after and not (behind or unpublished or behind_after):
                return []
            if (after, behind_after, unpublished) != seen:
                seen, since = (after, behind_after, unpublished), time.monotonic()
            elif time.monotonic() - since > PATIENCE_S:
                return [
                    *(f"{count} events of {name} are not published" for name, count in unpublished.items()),
                    *(f"consumer {name} has {count} events to apply" for name, count in behind_after.items()),
                ]
            await asyncio.sleep(_LOOK_EVERY_S)

    async def orders(self) -> dict[UUID, Order]:
        """All orders of the load, as they are now."""
        return {
            row["id"]: Order(row["status"], row["total"], row["order_date"], row["update_time"])
            for row in await self._fetch("orders", _ORDERS)
        }

    async def breaches(self, tally: Tally, orders: Mapping[UUID, Order]) -> list[str]:
        """Everything that is not as it must be."""
        parked = (await self._streams.messages()).get(DEAD_LETTERS, 0) - self._parked
        return [
            *accepted_and_there(tally, orders),
            *await self._stock(),
            *one_charge_each(
                {order_id: order.total for order_id, order in orders.items() if order.status == "CONFIRMED"},
                [(row["order_id"], row["amount"]) for row in await self._fetch("payment", _CHARGES)],
            ),
            *([f"{parked} events were parked as dead letters"] if parked else []),
            *(f"{name} has died during the load" for name in self._target.died()),
        ]

    async def _stock(self) -> list[str]:
        sold = {row["product_id"]: row["sold"] for row in await self._fetch("orders", _SOLD)}
        product = await self._target.connect("product")
        try:
            rows = await product.fetch(
                "SELECT product_id, on_hand, reserved FROM stocks WHERE product_id = ANY($1::uuid[])",
                list(self._shop.stock),
            )
            held = await product.fetchval(
                "SELECT count(*) FROM holds WHERE order_id >= $1 AND customer_id = ANY($2::uuid[]) AND state = 'HELD'",
                *self._which,
            )
        finally:
            await product.close()
        found = {row["product_id"]: (row["on_hand"], row["reserved"]) for row in rows}
        return [
            *stock_down_by_what_was_sold(self._shop.stock, sold, found),
            *([f"{held} holds are neither sold nor given back"] if held else []),
        ]

    async def _fetch(self, database: str, query: str) -> list[asyncpg.Record]:
        connection = await self._target.connect(database)
        try:
            return await connection.fetch(query, *self._which)
        finally:
            await connection.close()


def accepted_and_there(tally: Tally, orders: Mapping[UUID, Order]) -> list[str]:
    """Every order that was accepted is there, and there is none that nobody placed."""
    accepted = {UUID(each.decode()) for each in tally.orders}
    placed = sum(len(answers.times) for kind, answers in tally.answers.items() if kind == "place")
    lost, more = accepted - orders.keys(), orders.keys() - accepted
    breaches = []
    if len(accepted) != placed:
        breaches.append(f"{placed} orders were accepted under {len(accepted)} ids")
    if lost:
        breaches.append(f"{len(lost)} accepted orders are not there, as {min(lost)}")
    # A placing that was cut off may or may not have been carried out.
    if len(more) > tally.unknown:
        breaches.append(f"{len(more)} orders are there that nobody was told of, as {min(more)}")
    return breaches


def stock_down_by_what_was_sold(
    before: Mapping[UUID, int], sold: Mapping[UUID, int], found: Mapping[UUID, tuple[int, int]]
) -> list[str]:
    """Of each product there is less by what confirmed orders hold, and nothing is reserved; `found` is both numbers."""
    breaches = [f"product {each} was sold, and is none of the load's" for each in sold.keys() - before.keys()]
    for product_id, stock in before.items():
        on_hand, reserved = found.get(product_id, (0, 0))
        expected = stock - sold.get(product_id, 0)
        if on_hand != expected:
            breaches.append(f"product {product_id} has {on_hand} on hand, not {expected}")
        if reserved:
            breaches.append(f"product {product_id} has {reserved} reserved")
    return breaches


def one_charge_each(confirmed: Mapping[UUID, Decimal], charges: list[tuple[UUID, Decimal]]) -> list[str]:
    """The provider has charged each confirmed order once and its total, and no other: none whose total is zero."""
    times = Counter(order_id for order_id, _ in charges)
    twice = [order_id for order_id, count in times.items() if count > 1]
    never = {order_id for order_id, total in confirmed.items() if total} - times.keys()
    others = times.keys() - confirmed.keys()
    wrong = [order_id for order_id, amount in charges if confirmed.get(order_id, amount) != amount]
    return [
        f"{len(found)} orders {what}, as {min(found)}"
        for found, what in (
            (twice, "were charged more than once"),
            (never, "are confirmed and were never charged"),
            (others, "were charged and are not confirmed"),
            (wrong, "were charged another amount than their total"),
        )
        if found
    ]


def _first_id(now: float) -> UUID:
    """The least UUIDv7 of this moment: the ids of what is made from now on are greater."""
    return UUID(int=int(now * 1000) << 80 | 0x7 << 76 | 0x8 << 60)


def moment(monotonic: float) -> datetime:
    """The time of day of a `time.monotonic`."""
    return datetime.fromtimestamp(time.time() - time.monotonic() + monotonic, UTC)
