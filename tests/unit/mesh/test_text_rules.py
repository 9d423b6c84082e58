"""Texts in requests: no NUL anywhere, names of one visible line, and rules that Python and protovalidate read alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, cast

import protovalidate
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2
from commerce.customer.v1 import customer_pb2
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import inventory_pb2, product_pb2
from commerce.validation.v1 import validation_pb2
from mesh.rpc import validation
from mesh.rpc.reflection import load_contracts
from mesh.rpc.validation import compiled

Fields = tuple[FieldDescriptor, ...]
"""The path from a request to one of its fields, at any depth."""
ID = "0190f0a0-0000-7000-8000-000000000001"
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CONTROLS = [chr(number) for number in (*range(0x20), *range(0x7F, 0xA0))]
BLANK = [
    "",
    " ",
    "   ",
    "\u00a0",
    "\u2003\u3000",
    "\u200b",
    "\ufeff",
    "\u2060",
    "\u00ad",
    "\u3164",
    "\u2800",
    "\u200d ",
]
NAMES = [
    "Ada",
    " Ada Lovelace ",
    "Zoë",
    "李小龍",
    "\u0639\u0628\u062f \u0627\u0644\u0644\u0647",
    "דוד",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "👩\u200d🚀",
    "O'Neil-Smith, Jr.",
    "x",
]


def texts_of(message_type: Descriptor, above: Fields = ()) -> Iterator[Fields]:
    """All texts in a message type. `Any` may contain any message, and no request has one."""
    for field in message_type.fields:
        if field.message_type is None:
            if field.type == field.TYPE_STRING:
                yield (*above, field)
        elif field.message_type.full_name != "google.protobuf.Any":
            yield from texts_of(field.message_type, (*above, field))


def texts() -> list[Fields]:
    """All texts in the requests of all services."""
    pool = descriptor_pool.Default()
    services = (service for name in load_contracts() for service in pool.FindFileByName(name).services_by_name.values())
    return [fields for service in services for method in service.methods for fields in texts_of(method.input_type)]


def name_of(fields: Fields) -> str:
    """The name of a test case."""
    return f"{type_of(fields).name}.{'.'.join(field.name for field in fields)}"


def type_of(fields: Fields) -> Descriptor:
    """The type of request that a text belongs to."""
    assert fields[0].containing_type is not None
    return fields[0].containing_type


def request_with(fields: Fields, text: str) -> Message:
    """A request with this text in this field and nothing else."""
    request: Any = message_factory.GetMessageClass(type_of(fields))()
    place = request
    for field in fields[:-1]:
        place = getattr(place, field.name)
        if field.is_repeated:
            place = place.add()
    if fields[-1].is_repeated:
        getattr(place, fields[-1].name).append(text)
    else:
        setattr(place, fields[-1].name, text)
    return cast("Message", request)


def refused_fields(request: Message) -> set[str]:
    """The fields of the violations."""
    return {each.field for each in validation.violations_of(cast("Descriptor", request.DESCRIPTOR))(request)}


@pytest.mark.parametrize("fields", texts(), ids=name_of)
def test_nul_in_any_text_of_any_request_is_refused_with_its_field(fields: Fields) -> None:
    path = ".".join(f"{field.name}[0]" if field.is_repeated else field.name for field in fields)
    for text in ("\0", "a\0b", f"{ID}\0", f"\0{ID}"):
        named = refused_fields(request_with(fields, text))
        # A rule of a type from another project, such as a postal address, names the field of that type.
        assert [name for name in named if path == name or path.startswith((f"{name}.", f"{name}["))] != []


def names(text: str) -> list[tuple[Message, str]]:
    """Requests with this text as a name, with the name of its field."""
    return [
        (customer_pb2.CreateCustomerRequest(email="a@b.co", name=text, password="correct horse"), "name"),
        (customer_pb2.UpdateCustomerRequest(customer=customer_pb2.Customer(id="me", name=text)), "customer.name"),
        (product_pb2.CreateProductRequest(sku="TEA", name=text, price={"currency_code": "EUR"}), "name"),
        (product_pb2.UpdateProductRequest(product=product_pb2.Product(id=ID, name=text)), "product.name"),
        (order_pb2.ShipOrderRequest(order_id=ID, carrier=text, tracking_number="1"), "carrier"),
    ]


def proses(text: str) -> list[tuple[Message, str]]:
    """Requests with this text in a field of several lines, with the name of the field."""
    price = {"currency_code": "EUR"}
    return [
        (product_pb2.CreateProductRequest(sku="TEA", name="Tea", description=text, price=price), "description"),
        (product_pb2.UpdateProductRequest(product=product_pb2.Product(id=ID, description=text)), "product.description"),
        (order_pb2.CancelOrderRequest(order_id=ID, reason=text), "reason"),
        (payment_pb2.RefundPaymentRequest(payment_id=ID, reason=text), "reason"),
        (
            inventory_pb2.UpdateStockRequest(
                product_id=ID, set=1, reason=inventory_pb2.STOCK_MOVEMENT_REASON_RECEIPT, note=text
            ),
            "note",
        ),
    ]


def address(line: str) -> Message:
    """A request with this line in an address."""
    return customer_pb2.AddAddressRequest(
        customer_id="me", postal_address={"region_code": "DE", "address_lines": [line], "recipients": ["Ada"]}
    )


@pytest.mark.parametrize("text", NAMES)
def test_names_of_every_script_are_accepted(text: str) -> None:
    assert [refused_fields(request) for request, _ in names(text)] == [set()] * 5
    assert refused_fields(address(text)) == set()


@pytest.mark.parametrize("text", [*BIDIRECTIONAL, *CONTROLS, "\u2028", "\u2029"], ids=lambda text: f"U+{ord(text):04X}")
def test_name_contains_no_control_and_no_directional_characters(text: str) -> None:
    for request, field in names(f"Ada {text}Lovelace"):
        assert refused_fields(request) == {field}
    assert refused_fields(address(f"Main Street {text}1")) == {"postal_address"}


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_blank_name_is_refused(text: str) -> None:
    for request, field in names(text):
        # In an update, an empty name is left unchanged.
        assert refused_fields(request) == (set() if not text and "." in field else {field})
    assert refused_fields(address(text)) == {"postal_address"}


def test_sku_may_only_have_spaces_around_it() -> None:
    def sku(text: str) -> set[str]:
        return refused_fields(product_pb2.CreateProductRequest(sku=text, name="Tea", price={"currency_code": "EUR"}))

    assert [text for text in ("TEA", " TEA ", "  T-1._x", "x" * 64, f" {'x' * 64} ") if sku(text)] == []
    bad = [
        "",
        " ",
        "T EA",
        "x" * 65,
        "-T",
        "TEA\n",
        "\tTEA",
        "TEA\u202e",
        "\u00a0TEA",
        "TÉA",
        *(f"TEA{c}" for c in CONTROLS),
    ]
    assert [text for text in bad if sku(text) != {"sku"}] == []


def test_prose_has_lines_and_no_other_controls() -> None:
    written = "Zwei Zeilen,\r\n\tmit Tabulator.\n\n\u0647\u0630\u0627 \u2067\u0646\u0635\u2069 עברית"
    assert [refused_fields(request) for request, _ in proses(written)] == [set()] * 5
    for text in [*(control for control in CONTROLS if control not in "\t\n\r"), "\u202d", "\u202e"]:
        assert [refused_fields(request) for request, _ in proses(f"a{text}b")] == [{field} for _, field in proses("")]


def test_trimmed_text_is_never_blank() -> None:
    searched = re.compile(compiled_class(validation_pb2.not_blank)).search
    spaces = [chr(number) for number in range(0x110000) if chr(number).isspace()]
    assert [space for space in spaces if searched(space)] == []
    unseen = [
        chr(number) for number in range(0x110000) if unicodedata.category(chr(number)) in {"Zs", "Zl", "Zp", "Cc"}
    ]
    assert [each for each in unseen if searched(each)] == []


RULES = [validation_pb2.no_nul, validation_pb2.not_blank, validation_pb2.single_line, validation_pb2.multi_line]


def compiled_class(rule: Any) -> str:
    """The set of characters of a rule, in Python's notation."""
    [cel] = rule.GetOptions().Extensions[validate_pb2.predefined].cel
    shape = compiled.CHARACTERS.fullmatch(cel.expression)
    assert shape is not None
    return compiled.CODE_POINT.sub(lambda point: re.escape(chr(int(point[1], 16))), shape[2])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_python_and_protovalidate_read_the_sets_of_characters_alike(rule: Any, checked_by: Callable[..., Any]) -> None:
    made = checked_by(rule)
    check = compiled.check_of(made.DESCRIPTOR)
    assert check is not None
    edges = set()
    for point in re.finditer(r"[^\\[\]^-]", compiled_class(rule)):
        edges |= {ord(point[0]) - 1, ord(point[0]), ord(point[0]) + 1}
    points = [*range(0x3000), *edges, *range(0xFE00, 0x10000), 0x1F680, 0xE0001, 0x10FFFF]
    for point in points:
        if point >= 0 and not 0xD800 <= point < 0xE000:
            for text in (chr(point), f"a{chr(point)}b"):
                message = made(value=text)
                assert bool(check(message)) == (protovalidate.collect_violations(message) == []), hex(point)


@pytest.fixture
def checked_by() -> Callable[..., Any]:
    """Creates message types with one text field that has one rule."""
    from google.protobuf import descriptor_pb2

    def make(rule: Any) -> Any:
        kinds = descriptor_pb2.FieldDescriptorProto
        file = descriptor_pb2.FileDescriptorProto(
            name=f"tests/text/{rule.name}.proto",
            package="tests.text",
            syntax="proto3",
            dependency=["buf/validate/validate.proto", "commerce/validation/v1/validation.proto"],
        )
        message = file.message_type.add(name=rule.name)
        field = message.field.add(name="value", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
        field.options.Extensions[validate_pb2.field].string.Extensions[rule] = True
        descriptor_pool.Default().Add(file)
        return message_factory.GetMessageClass(
            descriptor_pool.Default().FindMessageTypeByName(f"tests.text.{rule.name}")
        )

    return make


def test_address_has_the_same_character_sets_as_the_rules() -> None:
    """Fields cannot share a rule of a message type, so this test compares the copies."""
    field = customer_pb2.AddAddressRequest.DESCRIPTOR.fields_by_name["postal_address"]
    cels = {rule.id: rule.expression for rule in field.GetOptions().Extensions[validate_pb2.field].cel}
    for rule, ids in (
        (validation_pb2.not_blank, ["postal_address.address_lines", "postal_address.recipients"]),
        (validation_pb2.single_line, ["postal_address.single_line"]),
    ):
        [cel] = rule.GetOptions().Extensions[validate_pb2.predefined].cel
        of_the_rule = cel.expression[cel.expression.index("r'") :]
        assert [each for each in ids if of_the_rule.rstrip(")") not in cels[each]] == []
