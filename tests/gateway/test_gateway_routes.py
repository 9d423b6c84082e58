"""What the edge lets through, and to whom: every method of the contracts, in JSON, gRPC and gRPC-Web."""

from __future__ import annotations

import httpx
import pytest
from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from tests.gateway.clients import Failure, failure, grpc_call, web_failure
from tests.gateway.contract import (
    A_UUID,
    BY_NAME,
    METHODS,
    OPEN,
    PROTECTED,
    PUBLIC,
    SERVICE_ONLY,
    path,
    verb_and_path,
)
from tests.gateway.envoy import Envoy
from tests.gateway.upstreams import Context, Upstream

EMPTY_FRAME = b"\0\0\0\0\0"
"""A gRPC message without fields, as it goes over the wire."""


def by(methods: list[MethodDescriptor]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def received(upstreams: dict[str, Upstream]) -> list[tuple[str, str]]:
    return [(name, call.method) for name, upstream in upstreams.items() for call in upstream.received]


def test_the_contracts_have_methods_of_every_kind() -> None:
    assert len(METHODS) == len(OPEN) + len(SERVICE_ONLY)
    assert {
        "ReserveStock",
        "CommitStock",
        "ReleaseStock",
        "ResolveHolds",
        "SelectPaymentMethods",
        "ResolvePaymentMethods",
        "ProcessPayment",
        "BatchGetOrderPayments",
        "EraseCustomerOrders",
        "GetHoldTimeline",
        "GetPaymentTimeline",
    } == {method.name for method in SERVICE_ONLY}
    assert PUBLIC
    assert PROTECTED


@by(OPEN)
async def test_a_json_request_reaches_its_method_with_the_ids_of_its_path(
    method: MethodDescriptor, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    verb, where = verb_and_path(method)
    answer = await staff.request(verb, where, json={} if verb in ("POST", "PATCH") else None)
    assert answer.status_code == 200, answer.text
    service = method.full_name.split(".")[1]
    assert received(upstreams) == [(service, method.full_name)]
    assert str(upstreams[service].received[0].request).count(str(A_UUID)) == where.count(str(A_UUID))


@by(OPEN)
async def test_a_grpc_request_reaches_its_method(
    method: MethodDescriptor, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> None:
    async def one(_request: Message, _context: Context):  # type: ignore[no-untyped-def]  # an async generator or not
        yield message_factory.GetMessageClass(method.output_type)()

    service = method.full_name.split(".")[1]
    if method.server_streaming:
        upstreams[service].answers[method.name] = one
    answer = await grpc_call(edge.target, method, token=token)
    assert isinstance(answer, Message)
    assert received(upstreams) == [(service, method.full_name)]


@by([method for method in OPEN if method.GetOptions().Extensions[annotations_pb2.http].response_body])
async def test_a_json_client_gets_the_bare_resource(
    method: MethodDescriptor, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    [field] = method.output_type.fields

    async def resource(_request: Message, _context: Context) -> Message:
        answer = message_factory.GetMessageClass(method.output_type)()
        getattr(answer, field.name).SetInParent()
        return answer

    upstreams[method.full_name.split(".")[1]].answers[method.name] = resource
    verb, where = verb_and_path(method)
    answer = await staff.request(verb, where, json={} if verb in ("POST", "PATCH") else None)
    assert field.message_type is not None
    body = answer.json()
    assert field.json_name not in body
    assert body.keys() <= {each.json_name for each in field.message_type.fields}
    assert body
    assert int(answer.headers["content-length"]) == len(answer.content)


@by(PUBLIC)
async def test_a_public_method_needs_no_token(
    method: MethodDescriptor, anyone: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    verb, where = verb_and_path(method)
    answer = await anyone.request(verb, where, json={} if verb == "POST" else None)
    assert answer.status_code == 200
    assert len(received(upstreams)) == 1


@by(PROTECTED)
async def test_any_other_method_needs_a_token(
    method: MethodDescriptor, anyone: httpx.AsyncClient, edge: Envoy, upstreams: dict[str, Upstream]
) -> None:
    verb, where = verb_and_path(method)
    answer = await anyone.request(verb, where)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    seen = failure(answer)
    assert (seen.code, seen.reason) == ("UNAUTHENTICATED", "TOKEN_MISSING")
    assert await grpc_call(edge.target, method) == seen
    assert received(upstreams) == []


@by(OPEN)
async def test_no_method_takes_a_bad_token(
    method: MethodDescriptor, anyone: httpx.AsyncClient, edge: Envoy, upstreams: dict[str, Upstream]
) -> None:
    verb, where = verb_and_path(method)
    answer = await anyone.request(verb, where, headers={"authorization": "Bearer nonsense"})
    assert answer.status_code == 401
    seen = failure(answer)
    assert (seen.code, seen.reason) == ("UNAUTHENTICATED", "TOKEN_INVALID")
    assert await grpc_call(edge.target, method, token="nonsense") == seen
    assert received(upstreams) == []


@by(SERVICE_ONLY)
async def test_a_service_only_method_is_not_there_for_people(
    method: MethodDescriptor, staff: httpx.AsyncClient, edge: Envoy, token: str, upstreams: dict[str, Upstream]
) -> None:
    seen = await grpc_call(edge.target, method, token=token)
    assert isinstance(seen, Failure)
    assert (seen.code, seen.reason) == ("UNIMPLEMENTED", "METHOD_UNIMPLEMENTED")
    web = await staff.post(path(method), content=EMPTY_FRAME, headers={"content-type": "application/grpc-web+proto"})
    assert web_failure(web) == seen
    for verb in ("POST", "GET", "PUT"):
        for where in (path(method), f"/{path(method)}", f"{path(method)}/", f"/v1{path(method)}"):
            answer = await staff.request(verb, where, json={} if verb != "GET" else None)
            assert answer.status_code == 404
            assert failure(answer).reason == "ROUTE_NOT_FOUND"
    assert received(upstreams) == []


async def test_a_method_cannot_be_called_as_json_by_its_grpc_name(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await staff.post(path(BY_NAME["CreateOrder"]), json={})
    assert failure(answer).reason == "ROUTE_NOT_FOUND"
    assert received(upstreams) == []


async def test_grpc_web_gets_an_answer_with_its_trailers_in_the_body(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    answer = await staff.post(path(BY_NAME["GetOrder"]), content=EMPTY_FRAME, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    assert answer.content.startswith(EMPTY_FRAME)
    assert b"grpc-status:0" in answer.content
    assert received(upstreams) == [("order", BY_NAME["GetOrder"].full_name)]


async def test_a_script_of_another_origin_may_call(anyone: httpx.AsyncClient) -> None:
    origin = {"origin": "https://shop.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "idempotency-key"}
    preflight = await anyone.options("/v1/orders", headers={**origin, **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
    assert "idempotency-key" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    answer = await anyone.get("/v1/products", headers=origin)
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    refused = await anyone.get("/v1/orders", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://shop.example"


async def test_the_edge_answers_for_itself(anyone: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    health = await anyone.get("/healthz")
    assert (health.status_code, health.json()) == (200, {"status": "up"})
    keys = await anyone.get("/.well-known/jwks.json")
    assert keys.headers["content-type"] == "application/json"
    assert "max-age" in keys.headers["cache-control"]
    [key] = keys.json()["keys"]
    assert key["alg"] == "ES256"
    assert "d" not in key
    assert received(upstreams) == []
