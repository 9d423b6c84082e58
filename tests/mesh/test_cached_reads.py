"""Customers and orders are read from the cache, and changes are seen at once, whichever worker makes them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from commerce.customer.v1 import customer_pb2, customer_pb2_grpc
from commerce.order.v1 import order_pb2, order_pb2_grpc
from mesh.cache.versioned import LIFETIME_S, VersionedCache
from mesh.db.database import Database, Transaction
from mesh.errors import Unavailable
from mesh.lifecycle import Service
from tests.mesh.house import Buyer, House, another_order_worker
from tests.services import eventually, refused


def part_of(service: Service, kind: type[Any]) -> Any:
    return next(part for part in service.parts if isinstance(part, kind))


async def is_hit(cache: VersionedCache[Any], read: Any) -> bool:
    """Whether a read comes from the cache."""
    before = cache.hits
    await read()
    return cache.hits > before


async def test_a_customer_is_read_without_the_database_and_every_change_of_them_is_seen(mesh: House) -> None:
    buyer = await mesh.buyer()
    staff = mesh.staff["customer"]
    stub = customer_pb2_grpc.CustomerServiceStub(staff.channel)

    async def read() -> customer_pb2.Customer:
        request = customer_pb2.GetCustomerRequest(customer_id=buyer.id)
        customer: customer_pb2.Customer = (await staff(stub.GetCustomer, request)).customer
        return customer

    cache, database = (part_of(mesh.services["customer"], kind) for kind in (VersionedCache, Database))
    await eventually(lambda: is_hit(cache, read))

    async def needs_no_statement() -> bool:
        # The relay and the sweeps send statements too.
        statements = database.statements
        return await is_hit(cache, read) and database.statements == statements

    await eventually(needs_no_statement)
    for name in ("Grace", "Ada"):
        change = customer_pb2.UpdateCustomerRequest(customer=customer_pb2.Customer(id=buyer.id, name=name))
        changed = await staff(stub.UpdateCustomer, change)
        hits = cache.hits
        assert await read() == changed.customer
        assert cache.hits == hits + 1, "the write has put it there"


async def test_a_change_is_seen_although_the_reply_to_its_commit_was_lost(
    mesh: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer, staff = await mesh.buyer(), mesh.staff["customer"]
    stub = customer_pb2_grpc.CustomerServiceStub(staff.channel)
    commit, lost = Transaction.commit, list[Transaction]()

    async def name() -> str:
        request = customer_pb2.GetCustomerRequest(customer_id=buyer.id)
        return str((await staff(stub.GetCustomer, request)).customer.name)

    async def without_a_reply(transaction: Transaction) -> None:
        await commit(transaction)
        lost.append(transaction)
        raise Unavailable("the connection is lost")

    await eventually(lambda: is_hit(part_of(mesh.services["customer"], VersionedCache), name))
    monkeypatch.setattr(Transaction, "commit", without_a_reply)
    change = customer_pb2.UpdateCustomerRequest(customer=customer_pb2.Customer(id=buyer.id, name="Grace"))
    assert isinstance(await refused(staff(stub.UpdateCustomer, change)), Unavailable)
    monkeypatch.undo()
    assert lost

    async def is_new() -> bool:
        return await name() == "Grace"

    # Much sooner than values expire.
    await eventually(is_new, within=LIFETIME_S / 2)


async def test_an_order_is_cached_at_rest_and_its_moves_are_seen_by_every_worker(mesh: House) -> None:
    buyer, product = await mesh.buyer("tok_visa"), await mesh.product(5)
    cache = part_of(mesh.services["order"], VersionedCache)
    async with another_order_worker(mesh, buyer) as elsewhere:
        placed = await mesh.order(buyer, {product: 1})
        await mesh.decided(elsewhere, placed.id)
        await eventually(lambda: is_hit(cache, lambda: mesh.read(buyer, placed.id)))
        staff = mesh.staff["order"]
        stub = order_pb2_grpc.OrderServiceStub(staff.channel)
        ship = order_pb2.ShipOrderRequest(order_id=placed.id, carrier="Ship & Co", tracking_number="1")
        shipped = (await staff(stub.ShipOrder, ship)).order
        for worker in (buyer, elsewhere):
            assert await mesh.read(worker, placed.id) == shipped
        delivered = (await staff(stub.DeliverOrder, order_pb2.DeliverOrderRequest(order_id=placed.id))).order
        for worker in (buyer, elsewhere):
            assert await mesh.read(worker, placed.id) == delivered

        cancelled = await mesh.decided(buyer, (await mesh.order(buyer, {product: 1})).id)
        assert cancelled.status == order_pb2.ORDER_STATUS_CONFIRMED
        await mesh.read(elsewhere, cancelled.id)
        # An order that is cancelling moves on by itself.
        moving = await mesh.cancel(elsewhere, cancelled.id)
        assert int((await mesh.read(buyer, cancelled.id)).etag) >= int(moving.etag)
        await is_cancelled(mesh, buyer, cancelled.id)
        held = await mesh.sql("order_svc", "SELECT version FROM orders WHERE id = $1", UUID(cancelled.id))
        for worker in (buyer, elsewhere):
            assert (await mesh.read(worker, cancelled.id)).etag == str(held[0]["version"])


async def is_cancelled(mesh: House, buyer: Buyer, order_id: str) -> None:
    async def so() -> bool:
        return (await mesh.read(buyer, order_id)).status == order_pb2.ORDER_STATUS_CANCELLED

    await eventually(so)
