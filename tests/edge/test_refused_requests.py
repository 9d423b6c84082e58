"""Requests that break rules in many places, sent through the edge."""

from __future__ import annotations

import grpc
import pytest

from commerce.product.v1 import product_pb2, product_pb2_grpc
from mesh.rpc import status
from mesh.rpc.validation import MAX_VIOLATIONS
from tests.running import RunningMesh, reason_of

WRONG = [f"x{number}" for number in range(100)]
FIRST = [f"product_ids[{number}]" for number in range(MAX_VIOLATIONS)]


async def test_json_clients_get_the_first_fifty_violations(mesh: RunningMesh) -> None:
    answer = await mesh.http.get("/v1/products:batchGet", params={"productIds": WRONG})
    assert (answer.status_code, reason_of(answer)) == (400, "VALIDATION_FAILED")
    [bad] = [detail for detail in answer.json()["details"] if "fieldViolations" in detail]
    assert [violation["field"] for violation in bad["fieldViolations"]] == FIRST


@pytest.mark.parametrize(
    ("ids", "fields"), [(WRONG, FIRST), ([""] * 30_000, ["product_ids"])], ids=["many faults", "too many ids"]
)
async def test_grpc_clients_get_at_most_fifty_violations(mesh: RunningMesh, ids: list[str], fields: list[str]) -> None:
    async with grpc.aio.insecure_channel(mesh.edge.removeprefix("http://")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await product_pb2_grpc.ProductServiceStub(channel).BatchGetProducts(
                product_pb2.BatchGetProductsRequest(product_ids=ids)
            )
    error = status.from_rpc_error(raised.value, "product")
    assert [violation.field for violation in error.violations] == fields
    assert all(violation.description for violation in error.violations)
