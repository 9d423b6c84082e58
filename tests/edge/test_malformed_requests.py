"""Requests that no service can read, sent through the edge: refused by name, and never with the words of a library."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.running import RunningMesh, reason_of


@pytest.mark.parametrize(
    "path",
    [
        "/v1/products?query=%ff",
        "/v1/products?pageToken=%c3%28",
        "/v1/products?orderBy=name%ff",
        "/v1/products:batchGet?productIds=%ff",
        "/v1/products/%ff",
    ],
)
async def test_text_that_is_no_utf8_in_a_url_is_a_malformed_request(mesh: RunningMesh, path: str) -> None:
    answer = await mesh.http.get(path)
    assert (answer.status_code, reason_of(answer)) == (400, "REQUEST_MALFORMED")
    assert answer.json()["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [word for word in ("Exception", "class", "Decode", "commerce.product") if word in answer.text] == []


@pytest.mark.parametrize(
    "method",
    [
        "/commerce.product.v1.ProductService/ListProducts",
        "/commerce.customer.v1.SessionService/CreateSession",
    ],
)
async def test_garbage_over_grpc_is_a_malformed_request(mesh: RunningMesh, method: str) -> None:
    async with grpc.aio.insecure_channel(mesh.edge.removeprefix("http://")) as channel:
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"\xff\xff\xff")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(raised.value.trailing_metadata())
    [detail] = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert info.reason == "REQUEST_MALFORMED"
    assert [word for word in ("Exception", "class", "Decode") if word in (raised.value.details() or "")] == []
