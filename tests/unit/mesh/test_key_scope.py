"""The scope of the idempotency keys of anonymous callers, from the contract."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from buf.validate import validate_pb2
from commerce.access.v1 import access_pb2
from commerce.customer.v1 import customer_pb2
from commerce.payment.v1 import payment_pb2
from mesh.rpc.chain import InFlight, Policy, chain
from mesh.rpc.identity import Tokens
from mesh.rpc.key_scope import KeyScopeUndeclared, key_scope_of
from mesh.rpc.streams import Streams
from stack.pki import make_signing_key

SIGN_UP = customer_pb2.DESCRIPTOR.services_by_name["CustomerService"].methods_by_name["CreateCustomer"]
WEBHOOK = payment_pb2.DESCRIPTOR.services_by_name["PaymentService"].methods_by_name["ReceiveWebhook"]


def declared(
    *scope: str, access: access_pb2.Access.ValueType = access_pb2.ACCESS_PUBLIC, is_read: bool = False
) -> MethodDescriptor:
    """A method of a new contract that declares this scope."""
    name = f"t{uuid4().hex}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{name}.proto", package=name, syntax="proto3", dependency=["buf/validate/validate.proto"]
    )
    message = file.message_type.add(name="Request")
    text, number = descriptor_pb2.FieldDescriptorProto.TYPE_STRING, descriptor_pb2.FieldDescriptorProto.TYPE_INT32
    one, many = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL, descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    email = message.field.add(name="email", number=1, type=text, label=one)
    message.field.add(name="age", number=2, type=number, label=one)
    names = message.field.add(name="names", number=3, type=text, label=many)
    email.options.Extensions[validate_pb2.field].string.max_len = 100
    many_names = names.options.Extensions[validate_pb2.field].repeated
    many_names.max_items = 100
    many_names.items.string.max_len = 100
    method = file.service.add(name="Service").method.add(
        name="Do", input_type=f".{name}.Request", output_type=f".{name}.Request"
    )
    method.options.Extensions[access_pb2.access] = access
    method.options.Extensions[access_pb2.anonymous_key_scope].extend(scope)
    if is_read:
        method.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"{name}.Service").methods_by_name["Do"]


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(Tokens(make_signing_key(tmp_path).jwks))


def test_sign_ups_have_one_scope_when_the_email_address_is_the_same_in_any_case() -> None:
    scope = key_scope_of(SIGN_UP)
    ada = scope(customer_pb2.CreateCustomerRequest(email="Ada@example.com", name="Ada"))
    assert ada == scope(customer_pb2.CreateCustomerRequest(email="ada@Example.com", name="Bob", password="x"))
    assert ada != scope(customer_pb2.CreateCustomerRequest(email="bob@example.com", name="Ada"))
    assert len(ada) == 32


def test_of_several_fields_all_belong_to_the_scope() -> None:
    def notice(provider: str, data: bytes) -> payment_pb2.ReceiveWebhookRequest:
        request = payment_pb2.ReceiveWebhookRequest(provider=provider)
        request.payload.data = data
        return request

    scope = key_scope_of(WEBHOOK)
    assert scope(notice("sandbox", b"paid")) == scope(notice("sandbox", b"paid"))
    assert scope(notice("sandbox", b"paid")) != scope(notice("sandbox", b"PAID"))
    assert scope(notice("sandbox", b"paid")) != scope(notice("other", b"paid"))


def test_public_change_without_a_scope_prevents_the_start_of_the_server(policy: Policy) -> None:
    with pytest.raises(KeyScopeUndeclared, match=r"Service\.Do declares no \(commerce\.access\.v1\.anonymous_key"):
        chain(declared(), None, policy, InFlight(1), Streams(1, 1))
    chain(declared("email"), None, policy, InFlight(1), Streams(1, 1))


def test_method_without_anonymous_callers_needs_no_scope(policy: Policy) -> None:
    chain(declared(is_read=True), None, policy, InFlight(1), Streams(1, 1))
    chain(declared(access=access_pb2.ACCESS_CUSTOMER), None, policy, InFlight(1), Streams(1, 1))


@pytest.mark.parametrize("name", ["no_such_field", "age", "names"])
def test_scope_is_a_single_text_or_message_of_the_request(name: str) -> None:
    with pytest.raises(KeyScopeUndeclared, match=f"no single text or message '{name}'"):
        key_scope_of(declared("email", name))
