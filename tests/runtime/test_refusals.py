"""The error of a refused request over a real connection: few violations, in headers that every client accepts."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from commerce.product.v1 import inventory_pb2, inventory_pb2_grpc, product_pb2, product_pb2_grpc
from mesh.errors import InvalidArgument, Violation
from mesh.rpc.call import Call
from mesh.rpc.server import Server
from mesh.rpc.validation import MAX_VIOLATIONS
from tests.runtime.served import GET, client_of, found, serving, settings
from tests.services import Keys, refused

ID = GET.product_id


async def test_half_a_million_empty_ids_are_refused_with_one_violation(keys: Keys) -> None:
    request = product_pb2.BatchGetProductsRequest(product_ids=[""] * 500_000)
    async with serving(keys, found) as server, client_of(server, keys) as client:
        error = await refused(client(product_pb2_grpc.ProductServiceStub(client.channel).BatchGetProducts, request))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert error.violations == (Violation("product_ids", "must contain no more than 100 item(s)"),)


async def test_fifty_violations_with_the_longest_paths_reach_the_client(keys: Keys) -> None:
    class Inventory:
        """A service without implementations, because validation rejects every request."""

    line = inventory_pb2.ReservationLine(product_id=ID, quantity=1)
    hold = inventory_pb2.Reservation(
        order_id=ID, hold_key=bytes(16), customer_id=ID, lines=[line], expire_time=Timestamp(seconds=1)
    )
    wrong = inventory_pb2.Reservation()
    wrong.CopyFrom(hold)
    del wrong.lines[:]
    wrong.lines.extend(
        inventory_pb2.ReservationLine(product_id=f"{ID[:-2]}{number:02}" if number < 99 else "", quantity=1)
        for number in range(100)
    )
    request = inventory_pb2.ReserveStockRequest(reservations=[hold] * 930 + [wrong] * 60)
    server = Server(settings(keys), {"commerce.product.v1.InventoryService": Inventory()}, checks=())
    await server.start()
    try:
        async with client_of(server, keys, peer="order") as client:
            stub = inventory_pb2_grpc.InventoryServiceStub(client.channel)
            error = await refused(client(stub.ReserveStock, request))
    finally:
        await server.stop()
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert [violation.field for violation in error.violations] == [
        f"reservations[{number}].lines[99].product_id" for number in range(930, 930 + MAX_VIOLATIONS)
    ]


async def test_error_that_is_too_large_reaches_the_client_without_the_excess(keys: Keys) -> None:
    async def refuse(_: object, __: Call) -> None:
        raise InvalidArgument(
            "x" * 10_000, violations=[Violation(f"items[{number}].name", "no " * 50) for number in range(1_000)]
        )

    async with serving(keys, refuse) as server, client_of(server, keys) as client:
        error = await refused(client(product_pb2_grpc.ProductServiceStub(client.channel).GetProduct, GET))
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "VALIDATION_FAILED")
    assert error.violations[0] == Violation("items[0].name", "no " * 50)
    assert len(error.violations) > 20
