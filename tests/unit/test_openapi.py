"""The OpenAPI document says what the contracts say: its routes, schemas, errors and examples."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.contracts import methods
from mesh.rpc.validation import violations_of
from tests.gateway.contract import BY_NAME, SERVICE_ONLY
from tests.openapi import DOCUMENT, OPERATIONS, Json, follow, validator

OF_METHODS = sorted(OPERATIONS.keys() & BY_NAME.keys())
WITH_BODY = [
    name for name in OF_METHODS if "application/json" in OPERATIONS[name][2].get("requestBody", {}).get("content", {})
]


def request_of(method: MethodDescriptor, body: Json) -> Message:
    """The request of a gRPC client with this body, and the example of each parameter of the path."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    own = copy.deepcopy(body)
    whole = own if rule.body == "*" else {method.input_type.fields_by_name[rule.body].json_name: own}
    template = getattr(rule, rule.WhichOneof("pattern"))
    _, _, operation = OPERATIONS[method.name]
    examples = [each["example"] for each in operation["parameters"] if each.get("in") == "path"]
    for variable, value in zip(re.findall(r"{([\w.]+)}", template), examples, strict=True):
        *outer, name = variable.split(".")
        holder = whole
        for each in outer:
            holder = holder[each]
        holder[name] = value
    request: Message = ParseDict(whole, GetMessageClass(method.input_type)())
    return request


def test_the_document_is_valid_openapi() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_each_route_of_the_edge_is_in_the_document_and_no_other() -> None:
    def shape(path: str) -> str:
        return re.sub(r"{[^}]+}", "{}", path)

    served = {(method.name, method.verb, shape(method.template)) for method in methods() if method.is_open}
    told = {(name, verb, shape(path)) for name, (verb, path, _) in OPERATIONS.items()}
    own = {("GetEdgeHealth", "GET", "/healthz"), ("GetKeys", "GET", "/.well-known/jwks.json")}
    assert told == served | own
    for rule in (BY_NAME[name].GetOptions().Extensions[annotations_pb2.http] for name in OF_METHODS):
        assert not rule.additional_bindings, "the edge serves no additional bindings"


def test_nothing_of_the_inside_is_in_the_document() -> None:
    text = json.dumps(DOCUMENT)
    for method in SERVICE_ONLY:
        assert f'"{method.name}"' not in text
        assert method.input_type.name not in DOCUMENT["components"]["schemas"]
    assert "PaymentMethodSecret" not in text


@pytest.mark.parametrize("name", OF_METHODS)
def test_an_operation_has_the_errors_of_its_comment_and_of_every_method(name: str) -> None:
    _, _, operation = OPERATIONS[name]
    comment = operation["description"].partition("Errors: ")[2].partition("\n\n")[0]
    told = {
        (status, reason)
        for status, response in operation["responses"].items()
        for reason in follow(response).get("x-error-reasons", ())
    }
    reasons = {reason for _, reason in told}
    codes = {"NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED"}
    codes |= {"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED"}
    assert set(re.findall(r"`([A-Z_]+)`", comment)) - codes <= reasons
    assert {("400", "VALIDATION_FAILED"), ("401", "TOKEN_INVALID"), ("429", "RATE_LIMITED")} <= told
    access = operation["security"]
    assert ("401", "TOKEN_MISSING") in told or {} in access
    assert (("403", "ROLE_REQUIRED") in told) == (access == [{"accessToken": ["staff"]}])
    keyed = {"$ref": "#/components/parameters/Idempotency-Key"} in operation["parameters"]
    assert keyed == (("409", "IDEMPOTENCY_KEY_REUSED") in told) == (OPERATIONS[name][0] != "GET")


def test_each_reason_has_the_status_of_its_code_and_an_example_that_fits_the_schema() -> None:
    status = validator({"$ref": "#/components/schemas/Status"})
    for name, example in DOCUMENT["components"]["examples"].items():
        status.validate(example["value"])
        assert example["value"]["details"][0]["reason"] == name
        assert example["summary"] == name
        assert example["description"]


@pytest.mark.parametrize("name", OF_METHODS)
def test_the_example_of_a_response_fits_its_schema(name: str) -> None:
    content = OPERATIONS[name][2]["responses"]["200"]["content"]["application/json"]
    validator(content["schema"]).validate(content["example"])


@pytest.mark.parametrize("name", WITH_BODY)
def test_schema_and_service_agree_on_which_fields_of_a_body_are_required(name: str) -> None:
    content = OPERATIONS[name][2]["requestBody"]["content"]["application/json"]
    example, schema = content["example"], validator(content["schema"])
    valid = violations_of(BY_NAME[name].input_type)
    schema.validate(example)
    assert list(valid(request_of(BY_NAME[name], example))) == []
    for field in example:
        rest = {other: value for other, value in example.items() if other != field}
        refused = list(valid(request_of(BY_NAME[name], rest)))
        if schema.is_valid(rest) and refused:
            # JSON Schema cannot express a rule of the whole message: the description contains it.
            assert refused[0].description.lower() in follow(content["schema"])["description"].lower()
        else:
            assert schema.is_valid(rest) == (not refused), (field, refused)


REFUSED: list[tuple[str, Json]] = [
    ("CreateOrder", {"items": [{"productId": "tea", "quantity": 1}]}),
    ("CreateOrder", {"items": [{"productId": "019ac9b2-7c00-7000-8000-000000000002", "quantity": 0}]}),
    ("CreateOrder", {"items": [{"productId": "019ac9b2-7c00-7000-8000-000000000002", "quantity": 10_001}]}),
    ("CreateOrder", {"items": [{"productId": "019ac9b2-7c00-7000-8000-000000000002", "quantity": 1}] * 101}),
    ("CreateCustomer", {"email": "ada@example.com", "name": "x" * 201, "password": "correct horse"}),
    ("CreateCustomer", {"email": "nobody", "name": "Ada", "password": "correct horse"}),
    ("CreateCustomer", {"email": "ada@example.com", "name": "Ada", "password": "short"}),
    ("CreateCustomer", {"email": "ada@example.com", "name": "Ada", "password": "correct horse", "phone": "030"}),
    ("AddAddress", {"postalAddress": {"addressLines": ["Invalidenstraße 1"]}}),
    ("AddAddress", {"postalAddress": {"regionCode": "Germany", "addressLines": ["Invalidenstraße 1"]}}),
    ("CreateProduct", {"sku": "no spaces", "name": "Tea", "price": {"currencyCode": "EUR"}}),
    ("UpdateStock", {"delta": 0, "reason": "STOCK_MOVEMENT_REASON_RECEIPT"}),
    ("UpdateStock", {"delta": 1, "reason": "STOCK_MOVEMENT_REASON_SALE"}),
    ("UpdateStock", {"reason": "STOCK_MOVEMENT_REASON_RECEIPT"}),
]


@pytest.mark.parametrize(("name", "body"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_what_breaks_a_rule_is_refused_by_schema_and_service(name: str, body: Json) -> None:
    schema = OPERATIONS[name][2]["requestBody"]["content"]["application/json"]["schema"]
    assert not validator(schema).is_valid(body)
    assert violations_of(BY_NAME[name].input_type)(request_of(BY_NAME[name], body))


def test_parameters_have_the_rules_of_their_fields() -> None:
    def parameter(method: str, name: str) -> Json:
        found: Json
        [found] = [each for each in OPERATIONS[method][2]["parameters"] if each.get("name") == name]
        return found

    assert parameter("ListOrders", "pageSize")["schema"] == {
        "type": "integer",
        "format": "int32",
        "minimum": 0,
        "maximum": 500,
    }
    products = parameter("BatchGetProducts", "productIds")
    assert products["required"]
    assert products["schema"] == {
        "type": "array",
        "minItems": 1,
        "maxItems": 100,
        "uniqueItems": True,
        "items": {"type": "string", "format": "uuid"},
    }
    assert parameter("UpdateCustomer", "customerId")["in"] == "path"
    assert "`email`, `name`, `phone`" in parameter("UpdateCustomer", "updateMask")["description"]
    order_by = parameter("ListProducts", "orderBy")["schema"]
    assert re.search(order_by["pattern"], "price desc")
    assert not re.search(order_by["pattern"], "stock")


def test_values_are_described_as_they_are_printed() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Money"]["properties"]["units"]["type"] == "string"
    assert schemas["MoneyInput"]["properties"]["units"]["type"] == ["string", "integer"]
    assert schemas["Order"]["properties"]["orderDate"]["format"] == "date-time"
    assert "ORDER_STATUS_CANCELLING" in schemas["OrderStatus"]["enum"]
    assert {"id", "items", "status", "cancelNote"} <= set(schemas["Order"]["required"])
    assert "shipment" not in schemas["Order"]["required"]
    assert {"regionCode", "addressLines", "recipients"} <= schemas["PostalAddressInput"]["properties"].keys()
    watch = OPERATIONS["WatchOrder"][2]["responses"]["200"]
    assert watch["x-stream"] == "json-lines"


def described(value: Any, at: str = "") -> Iterator[tuple[str, Json]]:
    """Each property of a schema with its place."""
    if isinstance(value, dict):
        for name, inner in value.get("properties", {}).items():
            yield f"{at}.{name}", inner
            yield from described(inner, f"{at}.{name}")
        yield from described(value.get("items"), f"{at}[]")


def test_every_schema_and_every_field_is_described() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert schema["description"], name
        for place, inner in described(schema, name):
            if "fieldViolations" not in place and not place.endswith(("@type", "domain")):
                assert inner.get("description") or "maxLength" in inner or "maxItems" in inner, place
