"""The contracts hold what they promise: access, routes, rules, and code that is generated from them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor

from buf.validate import validate_pb2
from commerce.access.v1 import access_pb2
from commerce.customer.v1 import customer_pb2, session_pb2
from commerce.customer.v1 import errors_pb2 as customer_errors
from commerce.customer.v1 import events_pb2 as customer_events
from commerce.errors.v1 import errors_pb2
from commerce.events.v1 import event_pb2
from commerce.order.v1 import errors_pb2 as order_errors
from commerce.order.v1 import events_pb2 as order_events
from commerce.order.v1 import order_pb2
from commerce.payment.v1 import errors_pb2 as payment_errors
from commerce.payment.v1 import events_pb2 as payment_events
from commerce.payment.v1 import payment_pb2
from commerce.product.v1 import errors_pb2 as product_errors
from commerce.product.v1 import events_pb2 as product_events
from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.events.cloudevents import stream_of_area
from ops import contracts, event_reference

EVENT_FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (customer_events, product_events, order_events, payment_events)
]
ERROR_FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (errors_pb2, customer_errors, product_errors, order_errors, payment_errors)
]
SERVICE_FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (customer_pb2, session_pb2, product_pb2, inventory_pb2, order_pb2, payment_pb2)
]
FILES = [*SERVICE_FILES, *EVENT_FILES, *ERROR_FILES, access_pb2.DESCRIPTOR, event_pb2.DESCRIPTOR]

METHODS: list[MethodDescriptor] = [
    method for file in SERVICE_FILES for service in file.services_by_name.values() for method in service.methods
]
MESSAGES: list[Descriptor] = [message for file in FILES for message in file.message_types_by_name.values()]

# What a client is promised, in one place: buf compares messages and methods, but not routes or access.
ROUTES = """
CreateCustomer         PUBLIC    POST /v1/customers
GetCustomer            CUSTOMER  GET /v1/customers/{customer_id}
ListCustomers          STAFF     GET /v1/customers
UpdateCustomer         CUSTOMER  PATCH /v1/customers/{customer.id}
DeleteCustomer         CUSTOMER  DELETE /v1/customers/{customer_id}
ExportCustomer         CUSTOMER  GET /v1/customers/{customer_id}:export
ListCustomerOrders     CUSTOMER  GET /v1/customers/{customer_id}/orders
AddPaymentMethod       CUSTOMER  POST /v1/customers/{customer_id}/paymentMethods
ListPaymentMethods     CUSTOMER  GET /v1/customers/{customer_id}/paymentMethods
DeletePaymentMethod    CUSTOMER  DELETE /v1/customers/{customer_id}/paymentMethods/{payment_method_id}
SetDefaultPaymentMethod CUSTOMER POST /v1/customers/{customer_id}/paymentMethods/{payment_method_id}:makeDefault
AddAddress             CUSTOMER  POST /v1/customers/{customer_id}/addresses
ListAddresses          CUSTOMER  GET /v1/customers/{customer_id}/addresses
DeleteAddress          CUSTOMER  DELETE /v1/customers/{customer_id}/addresses/{address_id}
SelectPaymentMethods   SERVICE
ResolvePaymentMethods  SERVICE
CreateSession          PUBLIC    POST /v1/sessions
RefreshSession         PUBLIC    POST /v1/sessions:refresh
DeleteSession          PUBLIC    POST /v1/sessions:signOut
CreateProduct          STAFF     POST /v1/products
GetProduct             PUBLIC    GET /v1/products/{product_id}
BatchGetProducts       PUBLIC    GET /v1/products:batchGet
ListProducts           PUBLIC    GET /v1/products
UpdateProduct          STAFF     PATCH /v1/products/{product.id}
ArchiveProduct         STAFF     POST /v1/products/{product_id}:archive
UnarchiveProduct       STAFF     POST /v1/products/{product_id}:unarchive
ListPriceChanges       STAFF     GET /v1/products/{product_id}/priceChanges
GetStock               STAFF     GET /v1/products/{product_id}/stock
UpdateStock            STAFF     POST /v1/products/{product_id}/stock:update
ListStockMovements     STAFF     GET /v1/products/{product_id}/stockMovements
WatchStock             STAFF     GET /v1/products/{product_id}/stock:watch
ReserveStock           SERVICE
CommitStock            SERVICE
ReleaseStock           SERVICE
GetHoldTimeline        SERVICE
CreateOrder            CUSTOMER  POST /v1/orders
GetOrder               CUSTOMER  GET /v1/orders/{order_id}
ListOrders             CUSTOMER  GET /v1/orders
AddOrderItem           CUSTOMER  POST /v1/orders/{order_id}/items
UpdateOrderItem        CUSTOMER  PATCH /v1/orders/{order_id}/items/{item.id}
RemoveOrderItem        CUSTOMER  DELETE /v1/orders/{order_id}/items/{item_id}
PlaceOrder             CUSTOMER  POST /v1/orders/{order_id}:place
CancelOrder            CUSTOMER  POST /v1/orders/{order_id}:cancel
ShipOrder              STAFF     POST /v1/orders/{order_id}:ship
DeliverOrder           STAFF     POST /v1/orders/{order_id}:deliver
WatchOrder             CUSTOMER  GET /v1/orders/{order_id}:watch
GetOrderTimeline       CUSTOMER  GET /v1/orders/{order_id}/timeline
EraseCustomerOrders    SERVICE
ResolveHolds           SERVICE
ProcessPayment         SERVICE
GetPayment             CUSTOMER  GET /v1/payments/{payment_id}
GetOrderPayment        CUSTOMER  GET /v1/orders/{order_id}/payment
BatchGetOrderPayments  SERVICE
ListPayments           STAFF     GET /v1/payments
RefundPayment          STAFF     POST /v1/payments/{payment_id}:refund
ListRefunds            CUSTOMER  GET /v1/payments/{payment_id}/refunds
ListPaymentEntries     STAFF     GET /v1/payments/{payment_id}/entries
ReceiveWebhook         PUBLIC    POST /v1/paymentWebhooks/{provider}
GetPaymentTimeline     SERVICE
"""

EVENT_TYPES = """
commerce.customer.created commerce.customer.updated commerce.customer.erased
commerce.product.created commerce.product.updated commerce.product.archived
commerce.product.stock_changed commerce.product.stock_low
commerce.order.placed commerce.order.confirmed commerce.order.shipped
commerce.order.delivered commerce.order.cancelling commerce.order.cancelled
commerce.payment.action_required commerce.payment.captured commerce.payment.declined commerce.payment.voided
commerce.payment.refunded
commerce.payment.disputed commerce.payment.difference_found
"""


def route(method: MethodDescriptor) -> str:
    """The verb and path of a method, or nothing."""
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return f"{verb.upper()} {getattr(rule, verb)}" if verb else ""


def access(method: MethodDescriptor) -> str:
    rule = method.GetOptions().Extensions[access_pb2.access]
    return access_pb2.Access.Name(rule).removeprefix("ACCESS_")


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def test_every_method_has_the_access_and_the_route_that_clients_are_promised() -> None:
    declared = [" ".join([method.name, access(method), route(method)]).rstrip() for method in METHODS]
    assert declared == [" ".join(line.split()) for line in ROUTES.strip().splitlines()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_service_only_method_has_no_route_and_every_other_has_one(method: MethodDescriptor) -> None:
    assert (access(method) == "SERVICE") == (route(method) == "")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_has_no_side_effects_is_what_can_be_read(method: MethodDescriptor) -> None:
    level = method.GetOptions().idempotency_level
    between_services = {
        "SelectPaymentMethods",
        "ResolvePaymentMethods",
        "BatchGetOrderPayments",
        "GetHoldTimeline",
        "GetPaymentTimeline",
    }
    reads = route(method).startswith("GET ") or method.name in between_services
    assert (level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS) == reads


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_public_method_that_changes_something_scopes_the_keys_of_strangers(method: MethodDescriptor) -> None:
    level = method.GetOptions().idempotency_level
    is_public_change = access(method) == "PUBLIC" and level != descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    scope = method.GetOptions().Extensions[access_pb2.anonymous_key_scope]
    assert bool(scope) == is_public_change
    assert set(scope) <= {field.name for field in method.input_type.fields}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_json_clients_get_the_bare_resource_and_lists_get_pages(method: MethodDescriptor) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    answer = method.output_type.fields
    if access(method) == "SERVICE" or method.server_streaming:
        assert rule.response_body == ""
    elif method.name.startswith("List"):
        assert [field.name for field in answer[1:]] == ["next_page_token"]
        assert rule.response_body == ""
        asked = method.input_type.fields_by_name
        assert rules(asked["page_size"]).int32.lte == 500
        assert rules(asked["page_token"]).string.max_len > 0
    else:
        bare = len(answer) == 1 and not answer[0].is_repeated
        assert rule.response_body == (answer[0].name if bare else "")


def test_every_message_of_an_event_file_declares_its_event() -> None:
    types = []
    for file in EVENT_FILES:
        area = file.package.split(".")[1]
        for message in file.message_types_by_name.values():
            assert message.GetOptions().HasExtension(event_pb2.event), message.full_name
            event = message.GetOptions().Extensions[event_pb2.event]
            assert re.fullmatch(rf"commerce\.{area}\.[a-z]+(_[a-z]+)*", event.type), message.full_name
            words = re.sub(r"(?<!^)(?=[A-Z])", "_", message.name).lower()
            assert event.type.split(".")[2] == words.removeprefix(f"{area}_")
            assert event.stream == stream_of_area(area), message.full_name
            require_id(message, event.aggregate)
            types.append(event.type)
    assert types == EVENT_TYPES.split()
    assert len(set(types)) == len(types)


def require_id(message: Descriptor, path: str) -> None:
    """Fail unless the path leads to a single string field."""
    field: FieldDescriptor | None = None
    within: Descriptor | None = message
    for name in path.split("."):
        assert within is not None, path
        field = within.fields_by_name[name]
        within = field.message_type
        assert not field.is_repeated, path
    assert field is not None
    assert (field.type, field.name == "id" or field.name.endswith("_id")) == (FieldDescriptor.TYPE_STRING, True), path


def test_only_messages_of_the_event_files_declare_events(commented: list[descriptor_pb2.FileDescriptorProto]) -> None:
    declared = event_reference.events(descriptor_pb2.FileDescriptorSet(file=commented))
    assert {event.payload for event in declared} == {
        message.full_name for file in EVENT_FILES for message in file.message_types_by_name.values()
    }
    for event in declared:
        assert event.comment.startswith(f"{event.payload.rpartition('.')[2]} is published when "), event.payload


def test_a_reason_belongs_to_one_area() -> None:
    reasons = [
        value.name.removeprefix(re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_")
        for file in ERROR_FILES
        for enum in file.enum_types_by_name.values()
        for value in enum.values
        if value.number
    ]
    assert len(reasons) == len(set(reasons))
    assert {"VALIDATION_FAILED", "EMAIL_TAKEN", "STOCK_INSUFFICIENT", "ORDER_STATE", "PAYMENT_STATE"} <= set(reasons)


DECLARED = {
    value.name.split("_REASON_", 1)[1]
    for file in ERROR_FILES
    for enum in file.enum_types_by_name.values()
    for value in enum.values
}
"""All reasons."""


def test_every_reason_in_the_code_is_declared() -> None:
    told: dict[str, str] = {}
    for package in ("mesh", "customer_svc", "order_svc", "payment_svc", "product_svc"):
        for path in (contracts.ROOT / package).rglob("*.py"):
            for reason in re.findall(r"\breason(?:: str)? ?= ?\"(\w+)\"", path.read_text("utf-8")):
                told[reason] = str(path)
    assert {"VALIDATION_FAILED", "IDEMPOTENCY_KEY_INVALID", "CURRENCY_MISMATCH", "HOLD_LOST"} <= told.keys()
    assert {reason: path for reason, path in told.items() if reason not in DECLARED} == {}


def test_every_reason_that_a_comment_names_is_declared() -> None:
    codes = {"NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAUTHENTICATED"}
    codes |= {"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "ABORTED"}
    for path in (contracts.ROOT / "proto").rglob("*.proto"):
        for errors in re.findall(r"// Errors: .*?(?=\n *rpc )", path.read_text("utf-8"), re.DOTALL):
            named = set(re.findall(r"`([A-Z_]+)`", errors))
            assert named <= DECLARED | codes, path


@pytest.fixture(scope="module")
def commented(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The project's own files, with their comments."""
    path = contracts.image(contracts.ROOT / "proto", tmp_path_factory.mktemp("image") / "image.binpb")
    image = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    return [file for file in image.file if file.package.startswith("commerce.")]


def test_every_comment_is_made_of_full_sentences(commented: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in commented:
        for location in file.source_code_info.location:
            if comment := location.leading_comments.strip():
                assert comment.endswith((".", ":")), f"{file.name}: {comment}"
                assert comment[0].isupper() or comment[0] == "`", f"{file.name}: {comment}"


def test_every_method_comment_names_its_errors(commented: list[descriptor_pb2.FileDescriptorProto]) -> None:
    for file in commented:
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for i, service in enumerate(file.service):
            for j, method in enumerate(service.method):
                assert re.search(r"^ Errors: ", comments[6, i, 2, j], re.MULTILINE), f"{service.name}.{method.name}"


def test_the_word_a_field_comment_begins_with_is_its_declared_behaviour(
    commented: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    words = {"Required": "REQUIRED", "Optional": "OPTIONAL", "Output only": "OUTPUT_ONLY", "Immutable": "IMMUTABLE"}
    seen = 0
    for file in commented:
        comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}
        for i, message in enumerate(file.message_type):
            for j, field in enumerate(message.field):
                behaviours = field.options.Extensions[field_behavior_pb2.field_behavior]
                declared = [field_behavior_pb2.FieldBehavior.Name(each) for each in behaviours]
                word = comments[4, i, 2, j].split(".")[0]
                assert declared == ([words[word]] if word in words else []), f"{message.name}.{field.name}"
                seen += bool(declared)
    assert seen > 100


def test_every_field_of_a_request_says_whether_it_is_required() -> None:
    for method in METHODS:
        for field in method.input_type.fields:
            if field.containing_oneof is None:
                assert field.GetOptions().Extensions[field_behavior_pb2.field_behavior], field.full_name


def test_every_enum_begins_with_unspecified() -> None:
    for file in FILES:
        for enum in file.enum_types_by_name.values():
            first = enum.values_by_number[0]
            assert first.name == re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_UNSPECIFIED"


def test_secrets_are_kept_out_of_debug_text() -> None:
    for message in MESSAGES:
        for field in message.fields:
            secret = any(word in field.name for word in ("password", "secret"))
            secret = secret or (field.name.endswith("token") and "page" not in field.name)
            assert field.GetOptions().debug_redact == secret, field.full_name


def test_no_event_has_a_secret_that_is_still_set() -> None:
    found = []
    for file in EVENT_FILES:
        left = list(file.message_types_by_name.values())
        seen = set[str]()
        while left:
            message = left.pop()
            if message.full_name not in seen:
                seen.add(message.full_name)
                left += [field.message_type for field in message.fields if field.message_type is not None]
                found += [field for field in message.fields if field.GetOptions().debug_redact]
    # tests/payment/test_actions.py shows that the events of payments never set `next_action`.
    assert {(field.full_name, field.GetOptions().deprecated) for field in found} == {
        ("commerce.order.v1.OrderPlaced.provider_token", True),
        ("commerce.payment.v1.NextAction.client_secret", False),
    }


def test_peers_are_named_only_where_services_are_let_in() -> None:
    for method in METHODS:
        peers = method.GetOptions().Extensions[access_pb2.peers]
        assert not peers or access(method) == "SERVICE", method.full_name
        assert set(peers) <= {"customer", "order", "payment", "product"}, method.full_name


def test_a_rule_of_a_whole_message_is_named_after_the_field_it_is_about() -> None:
    found = 0
    for message in MESSAGES:
        for rule in message.GetOptions().Extensions[validate_pb2.message].cel:
            within: Descriptor | None = message
            for name in rule.id.split(".")[:-1]:
                assert within is not None
                within = within.fields_by_name[name].message_type
                found += 1
    assert found


def test_money_is_checked_alike_wherever_it_is_sent() -> None:
    """A rule of a message type cannot be shared between fields, so that its copies are compared here."""
    prices, amounts = set[str](), set[str]()
    for priced in (product_pb2.Product, product_pb2.CreateProductRequest):
        prices.add(rules(priced.DESCRIPTOR.fields_by_name["price"]).cel[0].expression)
    for charged in (payment_pb2.ProcessPaymentRequest, payment_pb2.RefundPaymentRequest):
        amounts.add(rules(charged.DESCRIPTOR.fields_by_name["amount"]).cel[0].expression)
    assert (len(prices), len(amounts)) == (1, 1)


def test_generated_code_is_what_the_contracts_make() -> None:
    assert contracts.drift() == []


def test_the_contracts_pass_the_lint() -> None:
    assert contracts.lint() == []


def test_the_descriptor_set_holds_the_error_details() -> None:
    held = descriptor_pb2.FileDescriptorSet.FromString((contracts.ROOT / "gen" / contracts.DESCRIPTORS).read_bytes())
    assert {*contracts.ERROR_DETAILS, "buf/validate/validate.proto"} <= {file.name for file in held.file}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository that holds a copy of the contracts, committed on main."""
    shutil.copytree(contracts.ROOT / "proto", tmp_path / "proto")
    shutil.copy(contracts.ROOT / "buf.yaml", tmp_path)
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-qm", "Write the contracts"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def edit(root: Path, path: str, old: str, new: str) -> None:
    file = root / "proto" / "commerce" / path
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


def test_a_change_that_breaks_clients_is_found(copy: Path) -> None:
    assert contracts.breaking(copy) == []
    edit(copy, "payment/v1/payment.proto", "string failure_reason = 9;", "bytes failure_reason = 9;")
    [finding] = contracts.breaking(copy)
    assert "payment.proto" in finding
    assert "failure_reason" in finding


def test_an_addition_breaks_nobody(copy: Path) -> None:
    addition = "  string etag = 12;\n\n  // The country of the card.\n  string country = 100;\n"
    edit(copy, "payment/v1/payment.proto", "  string etag = 12;\n", addition)
    assert contracts.breaking(copy) == []


def test_an_uncommented_element_fails_the_lint(copy: Path) -> None:
    edit(copy, "payment/v1/payment.proto", "  // The version of the payment.\n", "")
    [finding] = contracts.lint(copy)
    assert "etag" in finding


def test_the_checks_leave_nothing_behind_where_there_is_no_home(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(copy.iterdir())
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert contracts.lint(copy) == []
    assert sorted(copy.iterdir()) == before


def test_generated_code_that_was_edited_or_left_behind_is_found(copy: Path) -> None:
    contracts.generate(copy)
    assert contracts.drift(copy) == []
    (copy / "gen" / "commerce" / "order" / "v1" / "order_pb2.py").write_text("", "utf-8")
    (copy / "gen" / "commerce" / "order" / "v1" / "basket_pb2.py").touch()
    assert [finding.split(":")[0] for finding in contracts.drift(copy)] == [
        "gen/commerce/order/v1/basket_pb2.py",
        "gen/commerce/order/v1/order_pb2.py",
    ]
    assert len(contracts.generate(copy)) == 2
    assert contracts.drift(copy) == []


def test_contracts_that_do_not_compile_are_refused_with_the_place(copy: Path) -> None:
    edit(copy, "payment/v1/payment.proto", "string etag = 12;", "string etag = 12")
    with pytest.raises(contracts.ContractsError, match=r"payment\.proto"):
        contracts.lint(copy)


def test_a_required_field_that_has_no_example_is_named(copy: Path) -> None:
    edit(copy, "order/v1/order.proto", 'pattern: "^[A-Za-z0-9][A-Za-z0-9 -]{0,63}$"', 'pattern: "^[0-9]{64}$"')
    with pytest.raises(contracts.ContractsError, match=r"example for commerce\.order\.v1\.ShipOrderRequest\.tracking_"):
        contracts.generate(copy)


def test_the_reference_of_events_follows_the_contracts(copy: Path) -> None:
    assert contracts.EVENTS in contracts.generate(copy)
    assert contracts.drift(copy) == []
    edit(copy, "order/v1/events.proto", "published when an order is paid.", "published when an order is\n// paid for.")
    [finding] = [finding for finding in contracts.drift(copy) if not finding.startswith("gen/")]
    assert finding == "docs/events.md: differs from what `mesh contracts generate` makes"
    contracts.generate(copy)
    assert "| An order is paid for. | `commerce.order.v1.OrderConfirmed` |" in (copy / contracts.EVENTS).read_text()
    (copy / contracts.EVENTS).unlink()
    assert contracts.drift(copy) == [finding]
