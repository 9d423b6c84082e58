"""What the tests of the payment service share: its database, over which a test starts processes, and an empty bus."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID

import asyncpg
import pytest

import customer_svc.app
from mesh.db.database import Database
from mesh.events.bus import Bus
from payment_svc.app import Settings, build
from stack.servers import Servers
from tests.payment.process import WEBHOOK_SECRET, House
from tests.payment.served import CUSTOMER, METHODS, Wire
from tests.services import Client, Keys, empty_bus, running, settings_for


@pytest.fixture(scope="module", autouse=True)
async def _empty_bus(servers: Servers) -> None:
    await empty_bus(servers)


@pytest.fixture
async def house(servers: Servers) -> AsyncIterator[House]:
    """The payment service's database, over which a test starts processes."""
    url = servers.postgres.url_for("payment_svc")
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(url)
        stack.push_async_callback(connection.close)
        sandbox_database = Database(url, max_connections=4)
        await sandbox_database.start()
        stack.push_async_callback(sandbox_database.stop)
        yield House(url, connection, stack, sandbox_database)


@pytest.fixture(scope="module")
async def customers(servers: Servers, keys: Keys) -> AsyncIterator[str]:
    """The address of the customer service, where one customer has a payment method for each token."""
    connection = await asyncpg.connect(servers.postgres.url_for("customer_svc"))
    await connection.execute(
        "INSERT INTO customers (id, email, name, phone, password_hash, create_time, update_time, version) "
        "VALUES ($1, $2, 'Ada', '', '', now(), now(), 1) ON CONFLICT DO NOTHING",
        UUID(CUSTOMER),
        f"{CUSTOMER}@example.com",
    )
    await connection.executemany(
        "INSERT INTO payment_methods (id, customer_id, provider, token, brand, last4, expire_month, expire_year, "
        "is_default, create_time) VALUES ($1, $2, 'sandbox', $3, 'visa', '4242', 1, 2040, false, now()) "
        "ON CONFLICT DO NOTHING",
        [(UUID(method), UUID(CUSTOMER), token) for token, method in METHODS.items()],
    )
    await connection.close()
    redis = {"redis_url": servers.redis.url, "signing_key": keys.signing.private}
    settings = settings_for(customer_svc.app.Settings, "customer", servers, keys, **redis)
    async with running(customer_svc.app.build(settings)) as address:
        yield address


@pytest.fixture(scope="module")
async def wire(servers: Servers, keys: Keys, customers: str) -> AsyncIterator[Wire]:
    """The payment service, with its clients."""
    more = {
        "customer_target": (customers,),
        "provider_timeout": 2.0,
        "sandbox_slow_seconds": 1.6,
        "sandbox_action_seconds": 3600.0,
        "sandbox_webhook_secret": WEBHOOK_SECRET,
    }
    settings = settings_for(Settings, "payment", servers, keys, **more)
    bus = Bus(servers.nats.url, name="order")
    await bus.start()
    await bus.connected()
    await bus.ensure_stream_of("order")
    async with running(build(settings)) as address:
        gateway = Client(address, "payment", keys)
        peer = Client(address, "payment", keys, peer="order")
        yield Wire(gateway, peer, keys, bus, servers.nats.url)
        await gateway.close()
        await peer.close()
    await bus.stop()
