"""Access rules: every kind of caller against every rule."""

from __future__ import annotations

from uuid import uuid4

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from commerce.access.v1 import access_pb2
from commerce.customer.v1 import customer_pb2
from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.errors import MeshError, NotFound
from mesh.rpc.access import AccessUndeclared, peers_of, require, rule_of
from mesh.rpc.call import ANYBODY, Caller, Kind

PUBLIC, CUSTOMER, STAFF, SERVICE = (
    access_pb2.ACCESS_PUBLIC,
    access_pb2.ACCESS_CUSTOMER,
    access_pb2.ACCESS_STAFF,
    access_pb2.ACCESS_SERVICE,
)
IN = ""
MISSING, ROLE = "TOKEN_MISSING", "ROLE_REQUIRED"


@pytest.mark.parametrize(
    ("peer", "kind", "expected"),
    [
        ("gateway", Kind.ANONYMOUS, {PUBLIC: IN, CUSTOMER: MISSING, STAFF: MISSING, SERVICE: ROLE}),
        ("gateway", Kind.CUSTOMER, {PUBLIC: IN, CUSTOMER: IN, STAFF: ROLE, SERVICE: ROLE}),
        ("gateway", Kind.STAFF, {PUBLIC: IN, CUSTOMER: IN, STAFF: IN, SERVICE: ROLE}),
        ("operator", Kind.STAFF, {PUBLIC: IN, CUSTOMER: IN, STAFF: IN, SERVICE: ROLE}),
        ("", Kind.STAFF, {PUBLIC: IN, CUSTOMER: IN, STAFF: IN, SERVICE: ROLE}),
        ("order", Kind.SERVICE, {PUBLIC: IN, CUSTOMER: MISSING, STAFF: MISSING, SERVICE: IN}),
        ("order", Kind.CUSTOMER, {PUBLIC: IN, CUSTOMER: IN, STAFF: ROLE, SERVICE: IN}),
        ("order", Kind.STAFF, {PUBLIC: IN, CUSTOMER: IN, STAFF: IN, SERVICE: IN}),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_access_rule_accepts_only_the_callers_it_names(peer: str, kind: Kind, expected: dict[int, str]) -> None:
    caller = ANYBODY if kind is Kind.ANONYMOUS else Caller(kind, str(uuid4()))
    got = {}
    for rule in (PUBLIC, CUSTOMER, STAFF, SERVICE):
        try:
            require(rule, peer=peer, caller=caller)
            got[rule] = IN
        except MeshError as refusal:
            got[rule] = refusal.reason
    assert got == expected


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.CUSTOMER, Kind.STAFF])
def test_method_for_some_services_refuses_other_services(kind: Kind) -> None:
    caller = Caller(kind, str(uuid4()))
    got = {}
    for peer in ("", "gateway", "operator", "customer", "order", "payment", "product"):
        try:
            require(SERVICE, peer=peer, caller=caller, peers=frozenset({"payment", "product"}))
            got[peer] = IN
        except MeshError as refusal:
            got[peer] = refusal.reason
    outside = dict.fromkeys(("", "gateway", "operator", "customer", "order"), ROLE)
    assert got == outside | {"payment": IN, "product": IN}


def test_peers_of_a_method_are_those_of_its_contract() -> None:
    customers = customer_pb2.DESCRIPTOR.services_by_name["CustomerService"]
    inventory = inventory_pb2.DESCRIPTOR.services_by_name["InventoryService"]
    assert peers_of(customers.methods_by_name["ResolvePaymentMethods"]) == {"payment"}
    assert peers_of(inventory.methods_by_name["ReserveStock"]) == set()


def test_rule_of_a_method_is_that_of_its_contract() -> None:
    products = product_pb2.DESCRIPTOR.services_by_name["ProductService"]
    inventory = inventory_pb2.DESCRIPTOR.services_by_name["InventoryService"]
    assert rule_of(products.methods_by_name["GetProduct"]) == PUBLIC
    assert rule_of(inventory.methods_by_name["ReserveStock"]) == SERVICE


def test_method_without_a_rule_is_a_fault() -> None:
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="hole.proto", package="hole", syntax="proto3")
    file.message_type.add(name="Empty")
    file.service.add(name="Hole").method.add(name="Fall", input_type=".hole.Empty", output_type=".hole.Empty")
    pool.Add(file)  # type: ignore[no-untyped-call, unused-ignore]
    method = pool.FindServiceByName("hole.Hole").methods_by_name["Fall"]
    with pytest.raises(AccessUndeclared, match=r"hole\.Hole\.Fall"):
        rule_of(method)


def test_resource_of_another_customer_is_not_found_except_by_staff() -> None:
    ada, refusal = uuid4(), NotFound("there is no such thing")
    Caller(Kind.CUSTOMER, str(ada)).own(ada, refusal)
    Caller(Kind.STAFF, str(uuid4())).own(ada, refusal)
    for stranger in (Caller(Kind.CUSTOMER, str(uuid4())), ANYBODY, Caller(Kind.SERVICE, "order")):
        with pytest.raises(NotFound):
            stranger.own(ada, refusal)
