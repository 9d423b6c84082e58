"""A process on a machine whose clock is 16 minutes ahead or behind: its sweeps and deadlines follow the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc, session_pb2, session_pb2_grpc
from customer_svc import app as customer_app
from mesh.db.database import Database
from mesh.errors import MeshError
from mesh.rpc.call import Call
from order_svc.domain import Hold, HoldRequest
from product_svc.domain import HoldDecision
from stack.servers import Servers
from tests.clocks import machine_clock_ahead
from tests.order import process as order_process
from tests.order.process import process_of
from tests.payment import process as payments
from tests.product.process import Warehouse, held, reservation, warehouse
from tests.runtime.process import Scratch, process, scratch_database
from tests.services import Client, Keys, eventually, migrated, running, settings_for

MINUTE = timedelta(minutes=1)
OFF = [pytest.param(16 * MINUTE, id="ahead"), pytest.param(-16 * MINUTE, id="behind")]


class Moments:
    """Compares moments with the clock of a database."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def is_about(self, moment: datetime | None, after: timedelta = timedelta(0)) -> bool:
        """Whether `moment` is within a minute of `after` from now."""
        now = await self._connection.fetchval("SELECT clock_timestamp()")
        return moment is not None and abs(moment - now - after) < MINUTE


@pytest.fixture(scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    """Servers that no service runs on."""
    async with Servers.started(tmp_path_factory.mktemp("clocks")) as servers:
        await migrated(servers)
        yield servers


@pytest.fixture
async def orders(alone: Servers) -> AsyncIterator[Database]:
    database = Database(alone.postgres.url_for("order_svc"), max_connections=4)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
async def order_rows(orders: Database) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(orders.url)
    yield connection
    await connection.close()


@pytest.fixture
async def customer_rows(alone: Servers) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(alone.postgres.url_for("customer_svc"))
    yield connection
    await connection.close()


@pytest.fixture
async def products(alone: Servers) -> AsyncIterator[Warehouse]:
    async with warehouse(alone) as opened:
        yield opened


@pytest.fixture
async def house(alone: Servers) -> AsyncIterator[payments.House]:
    url = alone.postgres.url_for("payment_svc")
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        sandbox_database = Database(url, max_connections=4)
        await sandbox_database.start()
        stack.push_async_callback(sandbox_database.stop)
        yield payments.House(url, connection, stack, sandbox_database)


class Stock(order_process.Stock):
    """Records until when stock is held."""

    def __init__(self) -> None:
        super().__init__()
        self.until: datetime | None = None

    async def reserve(
        self,
        wanted: Sequence[HoldRequest],
        expire_time: datetime,
        calls: Sequence[Call],
    ) -> list[Hold | MeshError]:
        self.until = expire_time
        return await super().reserve(wanted, expire_time, calls)


@pytest.mark.parametrize("off", OFF)
async def test_new_order_gets_its_times_and_deadlines_from_the_database_clock(
    orders: Database, order_rows: asyncpg.Connection, off: timedelta
) -> None:
    stock, moments = Stock(), Moments(order_rows)
    with machine_clock_ahead(off):
        order_id = (await process_of(orders, stock).place_one()).id
    row = await order_rows.fetchrow("SELECT * FROM orders WHERE id = $1", order_id)
    assert row is not None
    assert await moments.is_about(row["order_date"])
    assert await moments.is_about(row["update_time"])
    assert await moments.is_about(row["payment_deadline"], 15 * MINUTE)
    assert await moments.is_about(stock.until, 20 * MINUTE)


@pytest.mark.parametrize("off", OFF)
async def test_deadline_sweep_compares_with_the_database_clock(
    orders: Database, order_rows: asyncpg.Connection, off: timedelta
) -> None:
    process = process_of(orders)
    young, overdue = [(await process.place_one()).id for _ in range(2)]
    await order_rows.execute("UPDATE orders SET payment_deadline = now() - interval '1 second' WHERE id = $1", overdue)
    with machine_clock_ahead(off):
        await process.cancellation.cancel_overdue()
    rows = await order_rows.fetch("SELECT * FROM orders WHERE id = ANY($1)", [young, overdue])
    assert {row["id"]: row["status"] for row in rows} == {young: "PENDING", overdue: "CANCELLING"}
    assert all([await Moments(order_rows).is_about(row["update_time"]) for row in rows])


@pytest.mark.parametrize("off", OFF)
async def test_cancellation_sweep_compares_with_the_database_clock(
    orders: Database, order_rows: asyncpg.Connection, off: timedelta
) -> None:
    process = process_of(orders)
    young, stuck = [(await process.place_one()).id for _ in range(2)]
    for order_id, age in ((young, 4 * MINUTE), (stuck, 6 * MINUTE)):
        await order_rows.execute(
            "UPDATE orders SET status = 'CANCELLING', update_time = now() - $2::interval WHERE id = $1", order_id, age
        )
    with machine_clock_ahead(off):
        await process.cancellation.cancel_again(5 * MINUTE)
    rows = await order_rows.fetch("SELECT id, version FROM orders WHERE id = ANY($1)", [young, stuck])
    assert {row["id"]: row["version"] for row in rows} == {young: 1, stuck: 2}


@pytest.mark.parametrize("off", OFF)
async def test_hold_sweep_compares_and_postpones_by_the_database_clock(products: Warehouse, off: timedelta) -> None:
    product = await products.product(10)
    await products.admin.execute("UPDATE holds SET expire_time = now() + interval '1 day' WHERE state = 'HELD'")
    young, expired = (
        held(result).order_id
        for result in await products.reserve(*(reservation({product: 1}, expires_in=seconds) for seconds in (300, -1)))
    )
    products.orders.asked.clear()
    products.orders.decisions = dict.fromkeys((young, expired), HoldDecision.KEEP)
    with machine_clock_ahead(off):
        await products.use.sweep.run()
        await products.use.sweep.run()
    assert products.orders.asked == [[expired]], "once, because the sweep postpones it"
    until = await products.admin.fetchval("SELECT expire_time FROM holds WHERE order_id = $1", expired)
    assert await Moments(products.admin).is_about(until, MINUTE)


@pytest.mark.parametrize("off", OFF)
async def test_product_and_stock_rows_get_their_times_from_the_database_clock(
    products: Warehouse, off: timedelta
) -> None:
    moments = Moments(products.admin)
    with machine_clock_ahead(off):
        product = await products.product(10)
        made = await products.admin.fetchval("SELECT update_time FROM stocks WHERE product_id = $1", product)
        await products.reserve(reservation({product: 1}))
        await products.reserve(reservation({product: 1}))
        sold, unsold = [
            held(result).order_id
            for result in await products.reserve(reservation({product: 1}), reservation({product: 1}))
        ]
        await products.commit(sold)
        await products.release(unsold)
        await products.move(product, delta=1)
    rows = await products.admin.fetch(
        "SELECT create_time AS time FROM products WHERE id = $1 UNION ALL "
        "SELECT update_time FROM products WHERE id = $1 UNION ALL "
        "SELECT update_time FROM stocks WHERE product_id = $1 UNION ALL "
        "SELECT create_time FROM stock_movements WHERE product_id = $1",
        product,
    )
    assert len(rows) == 6
    assert all([await moments.is_about(moment) for moment in (made, *(row["time"] for row in rows))])


@pytest.mark.parametrize("off", OFF)
async def test_payment_sweep_compares_and_leases_by_the_database_clock(house: payments.House, off: timedelta) -> None:
    # A process that dies leaves two payments. The lease of one has minutes left.
    dead, late = await house.process(payments.Deaf), await house.process(payments.Late, timeout=60)
    kept, due = payments.order("tok_slow"), payments.order("tok_slow")
    await dead.placed(kept, due)
    await dead.kill()
    for placed, left in ((kept, 5 * MINUTE), (due, -timedelta(seconds=1))):
        await house.connection.execute(
            "UPDATE payments SET next_attempt_time = now() + $2::interval WHERE order_id = $1",
            UUID(placed.order.id),
            left,
        )
    before = await house.row(kept)
    with machine_clock_ahead(off):
        await late.payments.sweep()
    assert await house.row(kept) == before, "another process has the lease"
    assert await Moments(house.connection).is_about((await house.row(due))["next_attempt_time"])
    await house.reached(due)
    payments.tell(late)
    await late.idle()
    assert (await house.status(kept), await house.status(due)) == ("PENDING", "CAPTURED")


@pytest.mark.parametrize("off", OFF)
async def test_payments_get_their_times_leases_and_backoff_from_the_database_clock(
    house: payments.House, off: timedelta
) -> None:
    moments, process = Moments(house.connection), await house.process(payments.Late, timeout=60)
    unknown, under_way, called_off = payments.order(provider="none"), payments.order("tok_slow"), payments.order()
    with machine_clock_ahead(off):
        await process.placed(unknown, under_way)
        await process.cancelling(called_off)
        assert await moments.is_about((await house.row(under_way))["next_attempt_time"])
        payments.tell(process)
        await process.idle()
    for placed in (unknown, under_way, called_off):
        row = await house.row(placed)
        assert await moments.is_about(row["create_time"])
        assert await moments.is_about(row["process_time"])
    entries = await house.connection.fetch("SELECT create_time FROM payment_entries ORDER BY id DESC LIMIT 1")
    assert await moments.is_about(entries[0]["create_time"])

    process, postponed = await house.process(payments.Deaf, timeout=0.01), payments.order()
    with machine_clock_ahead(off):
        await process.placed(postponed)
        await process.idle()
    row = await house.row(postponed)
    assert (row["status"], row["attempts"]) == ("PENDING", 1)
    assert await moments.is_about(row["next_attempt_time"])


@pytest.mark.parametrize("off", OFF)
async def test_access_token_expires_by_the_database_clock(
    alone: Servers, keys: Keys, customer_rows: asyncpg.Connection, off: timedelta
) -> None:
    settings = settings_for(
        customer_app.Settings,
        "customer",
        alone,
        keys,
        redis_url=alone.redis.url,
        signing_key=keys.signing.private,
    )
    email, password = f"{uuid4()}@example.com", "correct horse battery"
    with machine_clock_ahead(off):
        async with running(customer_app.build(settings)) as address:
            client = Client(address, "customer", keys)
            await client(
                customer_pb2_grpc.CustomerServiceStub(client.channel).CreateCustomer,
                customer_pb2.CreateCustomerRequest(email=email, name="Ada", password=password),
            )
            reply = await client(
                session_pb2_grpc.SessionServiceStub(client.channel).CreateSession,
                session_pb2.CreateSessionRequest(email=email, password=password),
            )
            await client.close()
    moments = Moments(customer_rows)
    assert await moments.is_about(reply.session.expire_time.ToDatetime(UTC), 15 * MINUTE)
    assert await moments.is_about(
        await customer_rows.fetchval("SELECT create_time FROM customers WHERE email = $1", email)
    )


@pytest.mark.parametrize("days", [10, -10])
async def test_relay_maintains_partitions_by_the_database_clock(alone: Servers, days: int) -> None:
    async with scratch_database(alone) as scratch:
        connection = scratch.admin

        async def days_around() -> list[str]:
            """Yesterday, today and two more."""
            ages = "SELECT to_char((now() AT TIME ZONE 'UTC')::date + age, 'YYYYMMDD') FROM generate_series(-1, 2) age"
            return [row[0] for row in await connection.fetch(ages)]

        wanted = await days_around()
        await connection.execute(
            f"CREATE TABLE mesh.outbox_{wanted[0]} PARTITION OF mesh.outbox FOR VALUES FROM "
            f"('{wanted[0]}T00:00Z') TO ('{wanted[1]}T00:00Z')"
        )
        with machine_clock_ahead(timedelta(days=days)):
            async with process(scratch, alone, relaying=True):
                made = await eventually(lambda: _partitions(scratch, len(wanted)))
        # The day may have ended meanwhile.
        assert made in [[f"outbox_{day}" for day in (wanted[0], *each[1:])] for each in (wanted, await days_around())]


async def _partitions(scratch: Scratch, count: int) -> list[str] | None:
    rows = await scratch.admin.fetch("SELECT relname FROM pg_class WHERE relname ~ '^outbox_[0-9]{8}$' ORDER BY 1")
    return [row["relname"] for row in rows] if len(rows) >= count else None
