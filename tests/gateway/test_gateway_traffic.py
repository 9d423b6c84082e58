"""How the edge deals with many calls, many processes, and processes that fail."""

from __future__ import annotations

import asyncio
import json
import sysconfig
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from commerce.order.v1 import order_pb2
from gateway.config import EdgeConfig, Limits
from stack import pki
from tests.gateway.clients import Failure, failure, grpc_call
from tests.gateway.contract import A_UUID, BY_NAME, path
from tests.gateway.envoy import Envoy, running
from tests.gateway.upstreams import Context, Upstream, never
from tests.services import TEST_TIMEOUT_S

pytestmark = pytest.mark.usefixtures("upstreams")


@pytest.fixture
async def second_order(credentials: Mapping[str, pki.Credentials]) -> AsyncIterator[Upstream]:
    """Another process of the order service."""
    upstream = Upstream(credentials["order"])
    await upstream.start()
    yield upstream
    await upstream.stop()


def with_orders(config: EdgeConfig, *orders: Upstream) -> EdgeConfig:
    return replace(config, upstreams={**config.upstreams, "order": [order.address for order in orders]})


async def test_a_thousand_calls_at_a_time_are_served(edge: Envoy, token: str, upstreams: dict[str, Upstream]) -> None:
    most = waiting = 0
    everyone = asyncio.Event()

    async def together(_request: Message, _context: Context) -> Message:
        nonlocal most, waiting
        waiting += 1
        most = max(most, waiting)
        if waiting == 1000:
            everyone.set()
        await everyone.wait()
        return order_pb2.GetOrderResponse()

    async def a_hundred_calls() -> None:
        """As many as a connection may have."""
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(edge.target, options=own) as channel:
            get = channel.unary_unary(
                "/commerce.order.v1.OrderService/GetOrder",
                request_serializer=order_pb2.GetOrderRequest.SerializeToString,
                response_deserializer=order_pb2.GetOrderResponse.FromString,
            )
            metadata = (("authorization", f"Bearer {token}"),)
            request = order_pb2.GetOrderRequest(order_id=str(A_UUID))
            await asyncio.gather(*(get(request, metadata=metadata) for _ in range(100)))

    upstreams["order"].answers["GetOrder"] = together
    await asyncio.gather(*(a_hundred_calls() for _ in range(10)))
    assert most == 1000


async def test_calls_go_round_all_processes(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream], second_order: Upstream
) -> None:
    both = (upstreams["order"], second_order)
    async with running(with_orders(config, *both), short_folder) as edge:
        await edge.until("cluster.order.membership_healthy", 2)
        for _ in range(10):
            await grpc_call(edge.target, BY_NAME["GetOrder"], token=token)
    assert [len(each.received) for each in both] == [5, 5]


async def test_a_process_that_says_it_does_not_serve_is_left_alone(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream], second_order: Upstream
) -> None:
    async with running(with_orders(config, upstreams["order"], second_order), short_folder) as edge:
        await second_order.say(serving=False)
        await edge.until("cluster.order.membership_healthy", 1)
        for _ in range(10):
            await grpc_call(edge.target, BY_NAME["CreateOrder"], token=token)
    assert (len(upstreams["order"].received), len(second_order.received)) == (10, 0)


async def test_no_call_is_sent_to_the_only_process_while_it_says_that_it_does_not_serve(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream], second_order: Upstream
) -> None:
    del upstreams  # as new
    async with running(with_orders(config, second_order), short_folder) as edge:
        await second_order.say(serving=False)
        await edge.until("cluster.order.membership_healthy", 0)
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=TEST_TIMEOUT_S) as client:
            answer = await client.post("/v1/orders", json={})
            assert (answer.status_code, failure(answer).reason) == (503, "DEPENDENCY_UNAVAILABLE")
            assert second_order.received == []
            await second_order.say(serving=True)
            await edge.until("cluster.order.membership_healthy", 1)
            assert (await client.post("/v1/orders", json={})).status_code == 200


async def test_a_process_with_the_certificate_of_another_service_is_not_trusted(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream]
) -> None:
    async with running(with_orders(config, upstreams["payment"]), short_folder) as edge:
        seen = await grpc_call(edge.target, BY_NAME["GetOrder"], token=token)
    assert isinstance(seen, Failure)
    assert seen.reason == "DEPENDENCY_UNAVAILABLE"
    assert upstreams["payment"].received == []


async def test_a_read_that_failed_is_tried_again_and_a_change_is_not(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    async def unavailable(_request: Message, context: Context) -> Message:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    order = upstreams["order"]
    order.answers.update({"GetOrder": unavailable, "CreateOrder": unavailable})
    assert (await staff.get(f"/v1/orders/{A_UUID}")).status_code == 503
    assert (await staff.post("/v1/orders", json={})).status_code == 503
    assert Counter(call.method.rpartition(".")[2] for call in order.received) == {"GetOrder": 3, "CreateOrder": 1}


async def test_a_call_moves_on_from_a_process_that_is_gone(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream], second_order: Upstream
) -> None:
    async with running(with_orders(config, upstreams["order"], second_order), short_folder) as edge:
        await second_order.stop()
        for _ in range(10):
            assert isinstance(await grpc_call(edge.target, BY_NAME["CreateOrder"], token=token), Message)
    assert len(upstreams["order"].received) == 10


async def test_a_service_learns_how_long_it_has(staff: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    left = []

    async def note(_request: Message, context: Context) -> Message:
        left.append(context.time_remaining())
        return order_pb2.CreateOrderResponse()

    upstreams["order"].answers["CreateOrder"] = note
    await staff.post("/v1/orders", json={})
    await staff.post("/v1/orders", json={}, headers={"grpc-timeout": "2S"})
    default, shorter = left
    assert default is not None
    assert shorter is not None
    assert 2 < default <= 5.25
    assert 0 < shorter <= 2


async def test_a_watch_sends_a_line_of_json_for_each_message_as_it_comes(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    go_on = asyncio.Event()

    async def states(_request: Message, _context: Context) -> AsyncIterator[Message]:
        yield order_pb2.WatchOrderResponse(order=order_pb2.Order(status=order_pb2.ORDER_STATUS_PENDING))
        await go_on.wait()
        yield order_pb2.WatchOrderResponse(order=order_pb2.Order(status=order_pb2.ORDER_STATUS_CONFIRMED))

    upstreams["order"].answers["WatchOrder"] = states
    seen = []
    async with staff.stream("GET", f"/v1/orders/{A_UUID}:watch") as answer:
        async for line in answer.aiter_lines():
            seen.append(json.loads(line)["order"]["status"])
            go_on.set()
    assert seen == ["ORDER_STATUS_PENDING", "ORDER_STATUS_CONFIRMED"]


async def test_zeros_and_names_of_enums_are_shown(staff: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    async def order(_request: Message, _context: Context) -> Message:
        answer = order_pb2.GetOrderResponse()
        answer.order.total_amount.currency_code = "EUR"
        answer.order.total_amount.units = 12
        return answer

    upstreams["order"].answers["GetOrder"] = order
    body = (await staff.get(f"/v1/orders/{A_UUID}")).json()
    assert body["status"] == "ORDER_STATUS_UNSPECIFIED"
    assert body["items"] == []
    assert body["paymentId"] == ""
    assert body["totalAmount"] == {"currencyCode": "EUR", "units": "12", "nanos": 0}


async def test_a_client_that_comes_too_often_is_refused_and_others_are_not(
    config: EdgeConfig, short_folder: Path, signing_key: pki.SigningKey
) -> None:
    def bearer(subject: str) -> dict[str, str]:
        return {"authorization": f"Bearer {pki.access_token(signing_key.private, role='customer', subject=subject)}"}

    ada, bob = bearer("ada"), bearer("bob")
    limited = replace(config, limits=Limits(requests_per_second=1))
    async with (
        running(limited, short_folder) as edge,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client,
    ):

        async def burst(headers: dict[str, str]) -> list[httpx.Response]:
            return await asyncio.gather(*(client.get("/v1/products", headers=headers) for _ in range(20)))

        def served(answers: list[httpx.Response]) -> int:
            return sum(answer.status_code == 200 for answer in answers)

        answers = await burst(ada)
        assert 1 <= served(answers) < 10
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert failure(refused) == Failure(
            "RESOURCE_EXHAUSTED", "RATE_LIMITED", 1, "too many requests from this client"
        )
        assert 1 <= served(await burst(bob)) < 10, "each customer has a bucket of their own"
        assert 1 <= served(await burst({})) < 10, "and so has an address that sends no token"
        assert served(await burst({"x-mesh-subject": "forged"})) < 5, "whatever it says of itself"
        assert served(await burst({"authorization": "Basic YWRhOmFkYQ=="})) < 5
        health = await asyncio.gather(*(client.get("/healthz") for _ in range(20)))
        assert served(health) == 20


async def test_a_service_with_all_hands_full_is_overloaded(
    config: EdgeConfig, short_folder: Path, token: str, upstreams: dict[str, Upstream]
) -> None:
    upstreams["order"].answers["CreateOrder"] = never
    small = replace(config, limits=Limits(requests_per_second=0, upstream_requests=1))
    headers = {"authorization": f"Bearer {token}"}
    async with (
        running(small, short_folder) as edge,
        httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=TEST_TIMEOUT_S) as client,
    ):
        first = asyncio.create_task(client.post("/v1/orders", json={}))
        await edge.until("cluster.order.upstream_rq_active", 1)
        answer = await client.post("/v1/orders", json={})
        assert answer.status_code == 429
        assert failure(answer) == Failure(
            "RESOURCE_EXHAUSTED", "OVERLOADED", 1, "the mesh has as much work as it accepts"
        )
        first.cancel()


async def test_connections_beyond_the_limit_are_closed(config: EdgeConfig, short_folder: Path) -> None:
    few = replace(config, limits=Limits(requests_per_second=0, connections=2))
    async with (
        running(few, short_folder) as edge,
        httpx.AsyncClient(base_url=edge.url, timeout=TEST_TIMEOUT_S) as client,
    ):
        answers = await asyncio.gather(*(client.get("/healthz") for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(answer, httpx.Response) for answer in answers) >= 2
        assert await edge.statistic("listener.127.0.0.1_0.downstream_global_cx_overflow") >= 1


async def test_what_curl_sends_by_default_is_read_as_json(
    staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await staff.post("/v1/orders", content=b'{"draft": true}', headers=headers)
    assert answer.status_code == 200
    assert upstreams["order"].received[0].request == order_pb2.CreateOrderRequest(draft=True)


async def test_reflection_shows_the_services_that_people_may_call(edge: Envoy, token: str) -> None:
    async def grpcurl(*arguments: str) -> str:
        program = Path(sysconfig.get_path("scripts"), "grpcurl")
        process = await asyncio.create_subprocess_exec(
            program, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    assert "commerce.order.v1.OrderService" in (await grpcurl(edge.target, "list")).splitlines()
    assert "rpc CreateOrder" in await grpcurl(edge.target, "describe", "commerce.order.v1.OrderService")
    answer = await grpcurl(
        "-H", f"authorization: Bearer {token}", "-d", "{}", edge.target, "commerce.order.v1.OrderService/ListOrders"
    )
    assert json.loads(answer) == {}


async def test_every_call_is_logged_as_json_without_its_query(
    staff: httpx.AsyncClient, edge: Envoy, upstreams: dict[str, Upstream]
) -> None:
    trace = "00-5bf7651916cd43dd8448eb211c80319d-c7ad6b7169203332-01"
    await staff.get("/v1/products", params={"query": "a secret text"}, headers={"traceparent": trace})
    line = await edge.logged(trace)
    assert (line["verb"], line["path"], line["status"], line["service"]) == ("GET", "/v1/products", 200, "product")
    assert line["rpc"] == "/commerce.product.v1.ProductService/ListProducts"
    assert "secret" not in json.dumps(line)
    assert line["grpc_status"] == "0"

    async def refuse(_request: Message, context: Context) -> Message:
        await context.abort(grpc.StatusCode.NOT_FOUND, "not there")

    upstreams["product"].answers["GetProduct"] = refuse
    get = path(BY_NAME["GetProduct"])
    frame, kind = b"\0\0\0\0\0", {"content-type": "application/grpc", "te": "trailers"}
    trace = trace.replace("5bf7", "6bf7")
    async with httpx.AsyncClient(base_url=edge.url, http1=False, http2=True, timeout=TEST_TIMEOUT_S) as client:
        await client.post(get, content=frame, headers={**kind, "traceparent": trace})
    assert (await edge.logged(trace))["grpc_status"] == "5"
