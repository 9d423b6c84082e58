"""Every error has the one form, also those that Envoy makes itself, in the language of the client."""

from __future__ import annotations

import asyncio

import grpc
import httpx
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from commerce.order.v1 import order_pb2
from gateway.errors import EDGE_ERRORS
from tests.gateway.clients import Failure, failure, grpc_call, web_failure
from tests.gateway.contract import A_UUID, BY_NAME, path
from tests.gateway.envoy import Envoy
from tests.gateway.upstreams import Context, Upstream, never

WEB = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
CREATE_ORDER = BY_NAME["CreateOrder"]


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "end of string"),
        (b'{"items": 3}', "items"),
        (b'{"items": [{"quantity": "many"}]}', "quantity"),
        (b"{} {}", "end of input"),
        (b"\xff", "UTF-8"),
    ],
)
async def test_broken_json_is_malformed_and_the_place_is_named(
    body: bytes, place: str, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await staff.post("/v1/orders", content=body)
    assert answer.status_code == 400
    seen = failure(answer)
    assert (seen.code, seen.reason) == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")
    assert place in seen.message
    assert upstreams["order"].received == []


@pytest.mark.parametrize("where", ["/v1/products/a%2Fb", "/v1/products/%00"])
async def test_a_path_with_hidden_separators_is_malformed(where: str, anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get(where)
    assert answer.status_code == 400
    assert failure(answer).reason == "REQUEST_MALFORMED"
    assert failure(answer).message


async def test_a_body_that_contradicts_the_path_is_malformed(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await staff.patch(f"/v1/products/{A_UUID}", json={"id": "another", "name": "Tea"})
    assert failure(answer).reason == "REQUEST_MALFORMED"
    assert upstreams["product"].received == []
    answer = await staff.patch(f"/v1/products/{A_UUID}?updateMask=name", json={"id": str(A_UUID), "name": "Tea"})
    assert answer.status_code == 200
    [call] = upstreams["product"].received
    assert list(call.request.update_mask.paths) == ["name"]  # type: ignore[attr-defined]


async def test_an_error_of_a_service_keeps_all_its_details(
    staff: httpx.AsyncClient, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> None:
    async def refuse(_request: Message, context: Context) -> Message:
        packed = AnyMessage()
        packed.Pack(
            error_details_pb2.ErrorInfo(
                reason="STOCK_INSUFFICIENT", domain="commerce", metadata={"requested": "3", "available": "1"}
            )
        )
        status = status_pb2.Status(code=9, message="too few", details=[packed])
        trailers = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "too few", trailers)

    upstreams["order"].answers["CreateOrder"] = refuse
    answer = await staff.post("/v1/orders", json={})
    assert answer.status_code == 400
    assert answer.json() == {
        "code": 9,
        "message": "too few",
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "STOCK_INSUFFICIENT",
                "domain": "commerce",
                "metadata": {"requested": "3", "available": "1"},
            }
        ],
    }
    expected = Failure("FAILED_PRECONDITION", "STOCK_INSUFFICIENT", None, "too few")
    assert await grpc_call(edge.target, CREATE_ORDER, token=token) == expected
    assert web_failure(await staff.post(path(CREATE_ORDER), content=b"\0\0\0\0\0", headers=WEB)) == expected


async def test_a_service_that_does_not_answer_is_given_up(
    staff: httpx.AsyncClient, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> None:
    upstreams["order"].answers["CreateOrder"] = never
    origin = "https://shop.example"
    answer, seen, web = await asyncio.gather(
        staff.post("/v1/orders", json={}, headers={"origin": origin}),
        grpc_call(edge.target, CREATE_ORDER, token=token),
        staff.post(path(CREATE_ORDER), content=b"\0\0\0\0\0", headers=WEB),
    )
    assert answer.status_code == 504
    assert answer.headers["access-control-allow-origin"] == origin, "scripts can read it as well"
    assert (
        failure(answer)
        == seen
        == web_failure(web)
        == Failure("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", None, "the call took too long")
    )


async def test_a_service_that_is_down_is_unavailable(
    staff: httpx.AsyncClient, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> None:
    await upstreams["payment"].stop()
    try:
        answer = await staff.get("/v1/payments")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        expected = Failure("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE", 1, "the service cannot be reached")
        assert failure(answer) == expected
        assert await grpc_call(edge.target, BY_NAME["ListPayments"], token=token) == expected
        web = await staff.post(path(BY_NAME["ListPayments"]), content=b"\0\0\0\0\0", headers=WEB)
        assert web_failure(web) == expected
    finally:
        await upstreams["payment"].start()
        await edge.until("cluster.payment.membership_healthy", 1)
    assert (await staff.get("/v1/payments")).status_code == 200


async def test_a_body_beyond_the_limit_is_too_large(
    staff: httpx.AsyncClient, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> None:
    answer = await staff.post("/v1/orders", content=b'{"x":"' + b" " * 1024 * 1024 + b'"}')
    assert answer.status_code == 413
    expected = Failure("INVALID_ARGUMENT", "REQUEST_TOO_LARGE", None, "the request is too large")
    assert failure(answer) == expected
    large = order_pb2.CreateOrderRequest(payment_method_id="x" * 1024 * 1024)
    assert await grpc_call(edge.target, CREATE_ORDER, large, token=token) == expected
    assert upstreams["order"].received == []


def test_every_error_of_the_edge_has_another_name_or_another_cause() -> None:
    causes = [(error.when, client) for error in EDGE_ERRORS for client in error.clients]
    assert len(causes) == len(set(causes))
    assert all(error.status().details for error in EDGE_ERRORS)
