"""A service as a real process: its health follows its database, and its stop interrupts no call."""

from __future__ import annotations

import asyncio
from pathlib import Path
from signal import SIGKILL, SIGTERM
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.type.money_pb2 import Money
from grpc_health.v1 import health_pb2

from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc, product_pb2, product_pb2_grpc
from mesh.db import migrations
from product_svc.app import Settings, build
from stack.ports import free_ports
from stack.servers import Servers
from tests.processes import environment, says, spawned
from tests.services import NOWHERE, TEST_TIMEOUT_S, Client, Keys, eventually, new_key, running, settings_for, signal


async def test_sigterm_finishes_the_call_in_progress_refuses_new_ones_and_exits_with_0(
    servers: Servers, keys: Keys
) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    lock = await asyncpg.connect(servers.postgres.url_for("product_svc"))
    async with spawned("product", environment("product", servers, keys, port)) as process:
        client = Client(address, "product", keys, token=keys.token("staff", uuid4()))
        await eventually(lambda: says(client, health_pb2.HealthCheckResponse.SERVING))
        products = product_pb2_grpc.ProductServiceStub(client.channel)
        made = await client(
            products.CreateProduct,
            product_pb2.CreateProductRequest(
                sku=f"SKU-{uuid4()}", name="Tea", price=Money(currency_code="EUR", units=1), initial_stock=5
            ),
            key=new_key(),
        )
        # The row is locked here, so the call stays in progress until the test releases it.
        locked = lock.transaction()
        await locked.start()
        await lock.execute("SELECT FROM stocks WHERE product_id = $1 FOR UPDATE", made.product.id)
        inventory = inventory_pb2_grpc.InventoryServiceStub(client.channel)
        change = inventory_pb2.UpdateStockRequest(
            product_id=made.product.id, delta=1, reason=inventory_pb2.STOCK_MOVEMENT_REASON_RECEIPT
        )
        in_flight = asyncio.create_task(client(inventory.UpdateStock, change, key=new_key()))

        async def waits() -> bool:
            query = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND pid = ANY($1))"
            pids = "SELECT array_agg(pid) FROM pg_locks WHERE NOT granted"
            return bool(await lock.fetchval(query, await lock.fetchval(pids) or []))

        await eventually(waits)
        process.send_signal(SIGTERM)

        async def refuses() -> bool:
            late = Client(address, "product", keys)
            try:
                request = product_pb2.GetProductRequest(product_id=made.product.id)
                await product_pb2_grpc.ProductServiceStub(late.channel).GetProduct(request, timeout=1)
            except grpc.aio.AioRpcError as failure:
                return failure.code() is grpc.StatusCode.UNAVAILABLE
            finally:
                await late.close()
            return False

        await eventually(refuses)
        assert not in_flight.done()
        await locked.rollback()
        assert (await in_flight).stock.on_hand == 6
        async with asyncio.timeout(TEST_TIMEOUT_S):
            _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        assert b'"drained"' in said
        await client.close()
    await lock.close()


async def test_invalid_settings_exit_with_code_2_and_name_every_fault(servers: Servers, keys: Keys) -> None:
    variables = environment("product", servers, keys, MESH_LOG_LEVEL="loud", MESH_MAX_IN_FLIGHT="0")
    async with spawned("product", variables) as process, asyncio.timeout(TEST_TIMEOUT_S):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert b"MESH_LOG_LEVEL" in said
    assert b"MESH_MAX_IN_FLIGHT" in said
    assert b"Traceback" not in said


@pytest.mark.parametrize("what", ["database", "port"])
async def test_service_that_cannot_start_reports_the_reason_and_exits_with_1(
    servers: Servers, keys: Keys, what: str
) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    more = {"MESH_DATABASE_URL": "postgresql://nobody@/nowhere?host=/no/such/folder"} if what == "database" else {}
    variables = environment("product", servers, keys, port, **more)
    async with taken, spawned("product", variables) as process, asyncio.timeout(TEST_TIMEOUT_S):
        _, said = await process.communicate()
    assert process.returncode == 1
    assert b"product cannot start: " in said
    assert b"Traceback" not in said


async def test_health_follows_the_database(keys: Keys, servers: Servers, tmp_path: Path) -> None:
    async with Servers.started(tmp_path, only={"postgres"}, is_durable=True) as mortal:
        await asyncio.to_thread(migrations.upgrade, "product_svc", mortal.postgres.url_for("product_svc"))
        mixed = Servers(postgres=mortal.postgres, nats=servers.nats, redis=servers.redis, supervisor=mortal.supervisor)
        settings = settings_for(Settings, "product", mixed, keys, order_target=NOWHERE)
        async with running(build(settings)) as address:
            client = Client(address, "product", keys)
            serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            assert await says(client, serving)
            # The server refuses connections, as during a shutdown. Then it is down, and starts again.
            superuser = await asyncpg.connect(mortal.postgres.superuser_url)
            await superuser.execute("ALTER DATABASE product CONNECTION LIMIT 0")
            await superuser.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'product'"
            )
            await eventually(lambda: says(client, not_serving))
            await superuser.execute("ALTER DATABASE product CONNECTION LIMIT -1")
            await superuser.close()
            await eventually(lambda: says(client, serving))
            signal(mortal, "postgres", SIGKILL)
            await eventually(lambda: says(client, serving))
            reply = product_pb2_grpc.ProductServiceStub(client.channel).ListProducts

            async def lists() -> bool:
                try:
                    await reply(product_pb2.ListProductsRequest(), timeout=2)
                except grpc.aio.AioRpcError:
                    return False
                return True

            await eventually(lists)
            await client.close()
