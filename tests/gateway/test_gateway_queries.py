"""Query parameters: an unknown name or a value of the wrong type is refused, and the parameter is named."""

from __future__ import annotations

import httpx
import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from gateway.contracts import Method, methods
from tests.gateway.clients import failure, violations
from tests.gateway.contract import OPEN, verb_and_path
from tests.gateway.envoy import Envoy
from tests.gateway.upstreams import Upstream

PARAMETERS: dict[str, Method] = {method.name: method for method in methods() if method.is_open}
GOOD = {
    "text": "name",
    "true or false": "true",
    "a 32-bit integer": "-7",
    "a 64-bit integer": "9223372036854775807",
    "a value of OrderStatus": "ORDER_STATUS_PENDING",
    "a value of PaymentStatus": "PAYMENT_STATUS_CAPTURED",
}
"""A valid value of each type."""
BAD = dict.fromkeys(GOOD, "many") | {"text": "%ff"}
"""An invalid value of each type."""

by_method = pytest.mark.parametrize("method", OPEN, ids=lambda method: method.name)


async def ask(client: httpx.AsyncClient, method: MethodDescriptor, query: str) -> httpx.Response:
    verb, path = verb_and_path(method)
    return await client.request(verb, f"{path}?{query}", json={} if verb in ("POST", "PATCH") else None)


@by_method
async def test_an_unknown_parameter_is_refused_by_name(
    method: MethodDescriptor, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await ask(staff, method, "nope=1")
    assert answer.status_code == 400
    seen = failure(answer)
    assert (seen.code, seen.reason) == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")
    assert violations(answer) == {"nope": "is not a query parameter of this method"}
    assert [call for upstream in upstreams.values() for call in upstream.received] == []


@by_method
async def test_every_field_outside_of_path_and_body_is_a_parameter_by_both_of_its_names(
    method: MethodDescriptor, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    template = getattr(rule, rule.WhichOneof("pattern"))
    expected = {
        name
        for field in method.input_type.fields
        if rule.body not in ("*", field.name) and f"{{{field.name}}}" not in template
        for name in (field.name, field.json_name)
    }
    known = PARAMETERS[method.name].parameters
    assert set(known) == expected
    for name, parameter in known.items():
        answer = await ask(staff, method, f"{name}={GOOD[parameter['type']]}")
        assert answer.status_code == 200, answer.text
        [call] = upstreams[method.full_name.split(".")[1]].received
        field = next(field for field in method.input_type.fields if name in (field.name, field.json_name))
        assert field in [set_field for set_field, _ in call.request.ListFields()]
        upstreams[method.full_name.split(".")[1]].forget()


@by_method
async def test_a_value_of_the_wrong_type_is_refused_by_name(
    method: MethodDescriptor, staff: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    for name, parameter in PARAMETERS[method.name].parameters.items():
        answer = await ask(staff, method, f"{name}={BAD[parameter['type']]}")
        assert answer.status_code == 400, name
        assert failure(answer).reason == "REQUEST_MALFORMED"
        assert violations(answer) == {name: f"must be {parameter['type']}"}
    assert [call for upstream in upstreams.values() for call in upstream.received] == []


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0", 0),
        ("7", 7),
        ("-1", -1),
        ("007", 7),
        ("%31%30", 10),
        ("2147483647", 2**31 - 1),
        ("-2147483648", -(2**31)),
        ("2147483648", None),
        ("-2147483649", None),
        ("99999999999999999999", None),
        ("", None),
        ("%20", None),
        ("1.0", None),
        ("1e2", None),
        ("0x10", None),
        ("1;orderBy=name", None),
        ("-", None),
    ],
)
async def test_the_values_of_an_integer(
    value: str, number: int | None, anyone: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await anyone.get(f"/v1/products?pageSize={value}")
    if number is None:
        assert answer.status_code == 400
        assert violations(answer) == {"pageSize": "must be a 32-bit integer"}
    else:
        assert answer.status_code == 200, answer.text
        [call] = upstreams["product"].received
        assert call.request.page_size == number  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("tea", "tea"),
        ("green+tea", "green tea"),
        ("green%20tea%2B", "green tea+"),
        ("a=b", "a=b"),
        ("%e2%82%ac%f0%9f%8d%b5%c3%a9", "€🍵é"),
        ("%zz", "%zz"),
        ("%c3", None),
        ("%c0%80", None),
        ("%ed%a0%80", None),
        ("%f4%90%80%80", None),
        ("%e2%82", None),
        ("ok%80", None),
    ],
)
async def test_the_values_of_a_text(
    value: str, text: str | None, anyone: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await anyone.get(f"/v1/products?query={value}")
    if text is None:
        assert answer.status_code == 400
        assert violations(answer) == {"query": "must be text"}
    else:
        assert answer.status_code == 200, answer.text
        [call] = upstreams["product"].received
        assert call.request.query == text  # type: ignore[attr-defined]


async def test_an_enum_is_given_by_name_or_number(staff: httpx.AsyncClient, upstreams: dict[str, Upstream]) -> None:
    for value in ("ORDER_STATUS_CONFIRMED", "3"):
        assert (await staff.get(f"/v1/orders?status={value}")).status_code == 200
    assert len({call.request.status for call in upstreams["order"].received}) == 1  # type: ignore[attr-defined]
    for value in ("CONFIRMED", "99", "", "order_status_confirmed"):
        answer = await staff.get(f"/v1/orders?status={value}")
        assert violations(answer) == {"status": "must be a value of OrderStatus"}


async def test_a_parameter_may_be_given_more_than_once(
    anyone: httpx.AsyncClient, upstreams: dict[str, Upstream]
) -> None:
    answer = await anyone.get("/v1/products:batchGet?productIds=a&productIds=b&&product_ids=c&")
    assert answer.status_code == 200
    [call] = upstreams["product"].received
    assert list(call.request.product_ids) == ["a", "b", "c"]  # type: ignore[attr-defined]


async def test_all_faults_of_a_query_are_named_up_to_twenty(anyone: httpx.AsyncClient) -> None:
    answer = await anyone.get('/v1/products?pageSize=x&a"b=1&%ff=2&query=tea&pageSize')
    assert list(violations(answer).items()) == [
        ("pageSize", "must be a 32-bit integer"),
        ('a"b', "is not a query parameter of this method"),
        ("?", "is not a query parameter of this method"),
    ]
    answer = await anyone.get("/v1/products?" + "&".join(f"p{number}=1" for number in range(100)))
    assert len(violations(answer)) == 20


async def test_no_script_of_the_edge_fails(edge: Envoy) -> None:
    assert await edge.statistic("http.edge.lua.errors") == 0


def test_every_type_of_a_parameter_has_a_value_here() -> None:
    types = {parameter["type"] for method in PARAMETERS.values() for parameter in method.parameters.values()}
    assert types <= GOOD.keys()
