"""The compiled checks of the contracts' rules, compared with protovalidate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import protovalidate
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from hypothesis import given
from hypothesis import strategies as st

from buf.validate import validate_pb2
from commerce.customer.v1 import customer_pb2
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.rpc import validation
from mesh.rpc.validation import compiled, sizes

Field = descriptor_pb2.FieldDescriptorProto
Rules = validate_pb2.FieldRules

ID = "0190f0a0-0000-7000-8000-000000000001"
SOUND_AND_HOT: list[Message] = [
    order_pb2.CreateOrderRequest(items=[order_pb2.OrderLine(product_id=ID, quantity=2)]),
    customer_pb2.SelectPaymentMethodsRequest(queries=[customer_pb2.PaymentMethodQuery(customer_id=ID)]),
    customer_pb2.ResolvePaymentMethodsRequest(queries=[customer_pb2.PaymentMethodQuery(customer_id=ID)]),
    inventory_pb2.ReserveStockRequest(
        reservations=[
            inventory_pb2.Reservation(
                order_id=ID,
                hold_key=bytes(32),
                customer_id=ID,
                lines=[inventory_pb2.ReservationLine(product_id=ID, quantity=2)],
                expire_time=Timestamp(seconds=1),
            )
        ]
    ),
    product_pb2.GetProductRequest(product_id=ID),
    order_pb2.GetOrderRequest(order_id=ID),
    order_pb2.ListOrdersRequest(page_size=10),
]

REQUESTS = [
    method.input_type
    for contract in (customer_pb2, order_pb2, payment_pb2, product_pb2, inventory_pb2)
    for service in contract.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
UNDERSTOOD = [request for request in REQUESTS if compiled.check_of(request)]

TEXTS = [
    "",
    "me",
    "x",
    "\0",
    "a\0b",
    ID,
    ID.upper(),
    ID + "\n",
    ID[:-1],
    "٣" * 8 + ID[8:],
    "é" * 16,
    "\N{GRINNING FACE}" * 64,
]
NUMBERS = [-(2**31), -1, 0, 1, 2, 10, 500, 501, 10_000, 10_001, 2**31 - 1]


@pytest.mark.parametrize("message", SOUND_AND_HOT, ids=lambda message: message.DESCRIPTOR.name)
def test_frequent_requests_need_no_protovalidate(message: Message) -> None:
    check = compiled.check_of(type_of(message))
    assert check is not None
    assert check(message)
    assert protovalidate.collect_violations(message) == []


def test_compiled_checks_agree_with_protovalidate() -> None:
    assert len(UNDERSTOOD) >= 20

    @given(st.sampled_from(UNDERSTOOD).flatmap(messages))
    def agree(message: Message) -> None:
        assert_agreed(message)

    agree()


@given(st.lists(st.sampled_from([ID, "x", ""]), max_size=3), st.lists(st.integers(0, 2), max_size=3), st.booleans())
def test_orders_are_checked_as_protovalidate_does(products: list[str], quantities: list[int], draft: bool) -> None:
    lines = [
        order_pb2.OrderLine(product_id=product, quantity=quantity)
        for product, quantity in zip(products, quantities, strict=False)
    ]
    assert_agreed(order_pb2.CreateOrderRequest(items=lines, draft=draft))


@given(st.lists(st.uuids() | st.just(UUID(ID)), max_size=4), st.sampled_from([15, 16, 64, 65]), st.booleans())
def test_holds_are_checked_as_protovalidate_does(products: list[UUID], key: int, expires: bool) -> None:
    hold = inventory_pb2.Reservation(
        order_id=ID,
        hold_key=bytes(key),
        customer_id=ID,
        lines=[inventory_pb2.ReservationLine(product_id=str(product), quantity=1) for product in products],
        expire_time=Timestamp() if expires else None,
    )
    assert_agreed(inventory_pb2.ReserveStockRequest(reservations=[hold]))


def test_violations_are_those_of_protovalidate() -> None:
    tellers = {request: validation.violations_of(request) for request in UNDERSTOOD}
    measures = {request: sizes.Sizes(request) for request in UNDERSTOOD}

    @given(st.sampled_from(UNDERSTOOD).flatmap(messages))
    def agree(message: Message) -> None:
        said = {(path_of(each.proto), each.proto.message) for each in protovalidate.collect_violations(message)}
        told = {(each.field, each.description) for each in tellers[type_of(message)](message)}
        if next(measures[type_of(message)].exceeded(message), None) is None:
            assert told == said
        else:
            assert told <= said
            assert told

    agree()


def path_of(violation: Any) -> str:
    """The field of a violation of protovalidate."""
    if not violation.field:
        return str(violation.rule_id.rpartition(".")[0])
    return ".".join(
        element.field_name + (f"[{element.subscript.value}]" if element.subscript is not None else "")
        for element in violation.field.elements
    )


SCALARS = {
    "string": Field.TYPE_STRING,
    "bytes": Field.TYPE_BYTES,
    "bool": Field.TYPE_BOOL,
    "int32": Field.TYPE_INT32,
    "uint64": Field.TYPE_UINT64,
    "sint32": Field.TYPE_SINT32,
    "double": Field.TYPE_DOUBLE,
    "enum": Field.TYPE_ENUM,
}
KNOWN = {
    ("string", "uuid"), ("string", "min_len"), ("string", "max_len"), ("bytes", "min_len"), ("bytes", "max_len"),
    ("int32", "gte"), ("int32", "lte"), ("uint64", "gte"), ("uint64", "lte"),
    ("enum", "defined_only"), ("enum", "not_in"),
}  # fmt: skip


def rules_of_scalars() -> Iterator[Any]:
    """Every rule of protovalidate for values other than messages."""
    for kind in SCALARS:
        own = Rules.DESCRIPTOR.fields_by_name[kind].message_type
        assert own is not None
        for rule in own.fields:
            yield pytest.param(kind, rule.name, id=f"{kind}.{rule.name}")


@pytest.mark.parametrize(("kind", "rule"), list(rules_of_scalars()))
def test_no_rule_is_ignored(kind: str, rule: str) -> None:
    rules = Rules()
    own = getattr(rules, kind)
    field = own.DESCRIPTOR.fields_by_name[rule]
    value = {field.CPPTYPE_STRING: "x", field.CPPTYPE_BOOL: True}.get(field.cpp_type, 1)
    if field.type == field.TYPE_BYTES:
        value = b"x"
    if field.message_type:
        getattr(own, rule).SetInParent()
    elif field.is_repeated:
        getattr(own, rule).append(value)
    else:
        setattr(own, rule, value)
    made = message_with(rules, SCALARS[kind])
    assert (compiled.check_of(type_of(made)) is not None) == ((kind, rule) in KNOWN)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(cel=[validate_pb2.Rule(id="odd", expression="this.size() % 2 == 1")]),
        Rules(cel_expression=["this != ''"]),
        Rules(string=validate_pb2.StringRules(min_len=3, max_len=2)),
    ],
    ids=["cel", "cel_expression", "bounds the wrong way round"],
)
def test_unknown_rules_are_left_to_protovalidate(rules: validate_pb2.FieldRules) -> None:
    made = message_with(rules, Field.TYPE_STRING)
    assert compiled.check_of(type_of(made)) is None


def test_custom_rules_are_left_to_protovalidate() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/validation/own.proto",
        package="tests.validation",
        syntax="proto2",
        dependency=["buf/validate/validate.proto"],
    )
    file.extension.add(
        name="uuid",
        number=50_000,
        extendee=".buf.validate.StringRules",
        type=Field.TYPE_BOOL,
        label=Field.LABEL_OPTIONAL,
    )
    descriptor_pool.Default().Add(file)
    own: Any = descriptor_pool.Default().FindExtensionByName("tests.validation.uuid")
    rules = Rules()
    rules.string.Extensions[own] = True
    assert compiled.check_of(type_of(message_with(rules, Field.TYPE_STRING))) is None


PRESENCE = list(
    itertools.product(
        [Rules(string=validate_pb2.StringRules(uuid=True)), Rules()],
        [validate_pb2.IGNORE_UNSPECIFIED, validate_pb2.IGNORE_IF_ZERO_VALUE, validate_pb2.IGNORE_ALWAYS],
        [False, True],
        [False, True],
    )
)


@pytest.mark.parametrize(("rules", "ignore", "required", "optional"), PRESENCE)
def test_unset_fields_are_checked_like_by_protovalidate(
    rules: validate_pb2.FieldRules, ignore: Any, required: bool, optional: bool
) -> None:
    asked = Rules()
    asked.CopyFrom(rules)
    asked.ignore, asked.required = ignore, required
    made = message_with(asked, Field.TYPE_STRING, optional=optional)
    for message in (made(), *(made(value=text) for text in TEXTS)):
        assert_agreed(message)


@pytest.mark.parametrize("defined_only", [False, True])
@pytest.mark.parametrize("not_in", [[], [0], [0, 7]])
def test_enums_are_judged_as_protovalidate_does(defined_only: bool, not_in: list[int]) -> None:
    rules = validate_pb2.EnumRules(not_in=not_in)
    if defined_only:
        rules.defined_only = True
    made = message_with(Rules(enum=rules), Field.TYPE_ENUM)
    for number in (0, 1, 7, -1):
        assert_agreed(made(value=number))


def test_rule_for_a_oneof_is_left_to_protovalidate() -> None:
    for required in (False, True):
        made = message_with(Rules(), Field.TYPE_STRING, optional=True, oneof_required=required)
        assert (compiled.check_of(type_of(made)) is None) == required


def test_message_that_contains_itself_is_left_to_protovalidate() -> None:
    made = message_with(Rules(required=True), Field.TYPE_MESSAGE)
    assert compiled.check_of(type_of(made)) is None


def assert_agreed(message: Message) -> None:
    """Assert that the check agrees with protovalidate about the message."""
    check = compiled.check_of(type_of(message))
    assert check is not None
    assert bool(check(message)) == (protovalidate.collect_violations(message) == [])


def type_of(message: Message | type[Message]) -> Descriptor:
    """The descriptor of a message. The stubs have two classes for it."""
    return cast("Descriptor", message.DESCRIPTOR)


_numbers = itertools.count()


def message_with(
    rules: validate_pb2.FieldRules, kind: Any, *, optional: bool = False, oneof_required: bool = False
) -> type[Message]:
    """A message with one field, `value`, with these rules. A field of the kind message contains its own type."""
    name = f"M{next(_numbers)}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"tests/validation/{name}.proto",
        package="tests.validation",
        syntax="proto3",
        dependency=["buf/validate/validate.proto"],
    )
    message = file.message_type.add(name=name)
    field = message.field.add(name="value", number=1, type=kind, label=Field.LABEL_OPTIONAL)
    if kind == Field.TYPE_MESSAGE:
        field.type_name = f".tests.validation.{name}"
    if kind == Field.TYPE_ENUM:
        message.enum_type.add(name="E").value.add(name=f"{name}_ZERO", number=0)
        field.type_name = f".tests.validation.{name}.E"
    if optional:
        field.proto3_optional = True
        field.oneof_index = 0
        oneof = message.oneof_decl.add(name="_value")
        if oneof_required:
            oneof.options.Extensions[validate_pb2.oneof].required = True
    field.options.Extensions[validate_pb2.field].CopyFrom(rules)
    descriptor_pool.Default().Add(file)
    found = descriptor_pool.Default().FindMessageTypeByName(f"tests.validation.{name}")
    return message_factory.GetMessageClass(found)


def messages(message_type: Descriptor) -> st.SearchStrategy[Any]:
    """Messages of a type, with valid and invalid values. Amounts are valid: protovalidate has no rules for them."""
    if message_type.full_name == "google.type.Money":
        return st.sampled_from([Money(currency_code="EUR", units=1), Money(currency_code="JPY")])
    fields = {field.name: values(field) for field in message_type.fields}
    made = message_factory.GetMessageClass(message_type)
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: made(**chosen))


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Values of a field."""
    one: st.SearchStrategy[Any]
    if field.message_type:
        one = messages(field.message_type)
    elif field.enum_type:
        one = st.sampled_from([*field.enum_type.values_by_number, 99])
    elif field.type == field.TYPE_STRING:
        one = st.sampled_from(TEXTS)
    elif field.type == field.TYPE_BYTES:
        one = st.sampled_from([0, 1, 15, 16, 64, 65]).map(bytes)
    elif field.type == field.TYPE_BOOL:
        one = st.booleans()
    else:
        one = st.sampled_from([number for number in NUMBERS if number >= 0 or field.type == field.TYPE_INT32])
    return st.lists(one, max_size=3) if field.is_repeated else one
