"""kill -9 of the payment service at random moments in captures and refunds: no money is lost, and none moves twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from google.type.money_pb2 import Money
from grpc_health.v1 import health_pb2

from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2, payment_pb2_grpc
from mesh.errors import Code, MeshError
from ops.audit import Activity, Audit
from stack.servers import Servers
from tests.faults.killed import KilledService, killed_service
from tests.mesh.house import Buyer, House, house
from tests.processes import environment, says
from tests.services import Client, Keys, eventually, migrated, new_key

T = TypeVar("T")

TOKENS = ("tok_visa", "tok_slow", "tok_flaky", "tok_3ds")
SHOPPERS = 6
"""Orders that are placed, paid and refunded at a time."""
LIFE_S = 0.3
"""A process lives at most so long after it serves, or after money has moved."""
RECONNECT = [(f"grpc.{kind}_reconnect_backoff_ms", 100) for kind in ("initial", "max")]
SETTINGS = {
    "MESH_PROVIDER_TIMEOUT": "1",
    "MESH_PAYMENT_LEASE": "1",
    "MESH_SANDBOX_SLOW_SECONDS": "0.1",
    "MESH_SANDBOX_ACTION_SECONDS": "0.1",
    # A process that dies fails the events that it has in hand.
    "MESH_EVENT_ATTEMPTS": "10000",
}
DUE = """
SELECT (SELECT count(*) FROM payments WHERE next_attempt_time IS NOT NULL) AS captures,
    (SELECT count(*) FROM refunds WHERE next_attempt_time IS NOT NULL) AS refunds
"""


@dataclass
class Shop:
    """Customers and staff who use a mesh without a pause, until it closes."""

    mesh: House
    buyer: Buyer
    product: str
    staff: Client
    chance: random.Random
    is_open: bool = True

    async def serve(self) -> None:
        """Sell one thing after the other; refund each in parts, or cancel its order at some moment."""
        while self.is_open:
            method = self.buyer.methods[self.chance.choice(TOKENS)]
            order = await self.mesh.order(self.buyer, {self.product: 1}, method=method)
            cancelled_early = self.chance.random() < 0.3
            if not cancelled_early:
                paid = await self.mesh.decided(self.buyer, order.id)
                assert paid.status == order_pb2.ORDER_STATUS_CONFIRMED
                amounts = [self.chance.randint(1, 9) for _ in range(9)] + self.chance.choice([[], [None]])
                await asyncio.gather(*(self.refund(paid.payment_id, amount) for amount in amounts))
            if cancelled_early or self.chance.random() < 0.3:
                await asyncio.sleep(self.chance.uniform(0, LIFE_S))
                await self.mesh.cancel(self.buyer, order.id)

    async def money_moves(self) -> None:
        """Until the ledger has grown."""

        async def entries() -> int:
            return int((await self.mesh.sql("payment_svc", "SELECT count(*) FROM payment_entries"))[0][0])

        before = await entries()

        async def grown() -> bool:
            return await entries() > before

        await eventually(grown)

    async def refund(self, payment_id: str, amount: int | None) -> None:
        """Refund an amount, or all that is left, under one key until the service answers."""
        stub, key = payment_pb2_grpc.PaymentServiceStub(self.staff.channel), new_key()
        money = None if amount is None else Money(currency_code="EUR", units=amount)
        request = payment_pb2.RefundPaymentRequest(payment_id=payment_id, amount=money, reason="damaged")
        try:
            await insist(lambda: self.staff(stub.RefundPayment, request, key=key, timeout=2))
        except MeshError as error:
            assert error.reason == "REFUND_EXCEEDS_PAYMENT", error  # noqa: PT017  # any other error would be a fault


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """The reply of a service that dies again and again."""

    async def replied() -> tuple[T] | None:
        try:
            return (await call(),)
        except MeshError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                return None
            raise

    return (await eventually(replied))[0]


async def kill_often(shop: Shop, service: KilledService, kills: int) -> None:
    """Kill the service until that has interrupted captures or refunds `kills` times, and each of them once.

    Every other process gets so far that money has moved, or no call would ever end on a slow machine.
    """
    interrupted, times = set[str](), 0
    while times < kills or len(interrupted) < 2:
        await eventually(lambda: says(shop.staff, health_pb2.HealthCheckResponse.SERVING))
        if shop.chance.random() < 0.5:
            await shop.money_moves()
        await asyncio.sleep(shop.chance.uniform(0, LIFE_S))
        await service.kill()
        [due] = await shop.mesh.sql("payment_svc", DUE)
        interrupted |= {what for what, count in due.items() if count}
        times += any(due.values())
        await service.start()


@pytest.fixture
async def servers(folder: Path) -> AsyncIterator[Servers]:
    """Servers of each test alone, so that all that the audit finds is of this test."""
    async with Servers.started(folder) as started:
        await migrated(started)
        yield started


@pytest.mark.parametrize(
    "kills", [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["short", "long"]
)
async def test_money_adds_up_however_often_the_payment_service_is_killed(
    servers: Servers, keys: Keys, kills: int
) -> None:
    async with house(servers, keys) as mesh:
        buyer, product = await mesh.buyer(*TOKENS), await mesh.product(1_000_000, units=100)
        await mesh.services["payment"].stop()
        address = mesh.addresses["payment"]
        variables = environment("payment", servers, keys, int(address.rpartition(":")[2]), **SETTINGS)
        variables["MESH_CUSTOMER_TARGET"] = mesh.addresses["customer"]
        staff = Client(address, "payment", keys, token=mesh.staff["payment"].token, options=RECONNECT)
        shop = Shop(mesh, buyer, product, staff, random.Random(kills))
        async with killed_service(variables) as service:
            await service.start()
            async with asyncio.TaskGroup() as group:
                for _ in range(SHOPPERS):
                    group.create_task(shop.serve())
                await kill_often(shop, service, kills)
                shop.is_open = False
            async with Activity.of(mesh) as activity:
                assert await activity.wait() == []
        await staff.close()
        report = await Audit(mesh, margin=timedelta()).run()
        assert report.violations == []
        assert report["amounts"].checked > 0
