"""The work to refuse a request: proportional to its size, even if it is hostile."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from buf.validate import validate_pb2
from commerce.product.v1 import inventory_pb2, product_pb2
from mesh.errors import Violation
from mesh.rpc import validation
from mesh.rpc.reflection import load_contracts
from mesh.rpc.validation import MAX_VIOLATIONS, Unbounded, compiled

MEGABYTE = 1_000_000
ID = "0190f0a0-0000-7000-8000-000000000001"
WORK_PER_VALUE = 5
"""The maximum number of steps for each value of a request."""
WORK_OF_VIOLATIONS = 2_000
"""The number of steps for the reported violations, at most `MAX_VIOLATIONS`."""

Fields = tuple[FieldDescriptor, ...]
"""The path from a request to one of its fields, at any depth."""


def requests() -> Iterator[Descriptor]:
    """The types of all requests of all services."""
    pool = descriptor_pool.Default()
    for name in load_contracts():
        for service in pool.FindFileByName(name).services_by_name.values():
            for method in service.methods:
                yield method.input_type


def fields_of(message_type: Descriptor, above: Fields = ()) -> Iterator[Fields]:
    """All fields of a message type, and of the messages in it."""
    for field in message_type.fields:
        yield (*above, field)
        if field.message_type is not None:
            yield from fields_of(field.message_type, (*above, field))


REQUESTS = list(requests())
FIELDS = [fields for request in REQUESTS for fields in fields_of(request)]
LISTS = [fields for fields in FIELDS if fields[-1].is_repeated]
TEXTS = [fields for fields in FIELDS if fields[-1].type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)]


def name_of(fields: Fields) -> str:
    """The name of a test case."""
    return f"{type_of(fields).name}.{'.'.join(field.name for field in fields)}"


def type_of(fields: Fields) -> Descriptor:
    """The type of request that a field belongs to."""
    assert fields[0].containing_type is not None
    return fields[0].containing_type


def parsed(fields: Fields, data: bytes, times: int = 1) -> Message:
    """A request with this value in one of its fields, `times` times, and nothing else."""
    record = _tagged(fields[-1], data) * times
    for field in reversed(fields[:-1]):
        record = _tagged(field, record)
    return message_factory.GetMessageClass(type_of(fields)).FromString(record)


def _tagged(field: FieldDescriptor, data: bytes) -> bytes:
    return _varint(field.number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


class Work:
    """Counts the work of validation: its own steps, and the values that it passes to protovalidate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.judged = 0
        self._folder = str(Path(validation.__file__).parent)
        really, pattern = protovalidate.collect_violations, compiled.UUID_TEXT

        def collect_violations(message: Message) -> Sequence[protovalidate.Violation]:
            self.judged += values_in(message)
            return really(message)

        class Counted:
            """The pattern of ids, whose matches are steps as well."""

            def fullmatch(_, text: str) -> re.Match[str] | None:  # noqa: N805
                self.steps += 1
                return pattern.fullmatch(text)

        monkeypatch.setattr(protovalidate, "collect_violations", collect_violations)
        monkeypatch.setattr(compiled, "UUID_TEXT", Counted())

    def of(self, check: Callable[[Message], Sequence[Violation]], message: Message) -> Sequence[Violation]:
        """The result of `check` for the message. Its work is counted."""
        self.steps = self.judged = 0
        sys.setprofile(self._note)
        try:
            return check(message)
        finally:
            sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        self.steps += event == "call" and frame.f_code.co_filename.startswith(self._folder)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Starts to count. Create the checks after it."""
    return Work(monkeypatch)


def values_in(message: Any) -> int:
    """The number of parsed values."""
    count = 0
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        count += len(values)
        if field.message_type is not None:
            count += sum(map(values_in, values))
    return count


def brimful(message_type: Descriptor) -> Message:
    """A request with the maximum number of items in each list and only invalid values."""
    message = message_factory.GetMessageClass(message_type)()
    for field in message_type.fields:
        if field.is_repeated:
            most = field.GetOptions().Extensions[validate_pb2.field].repeated.max_items
            _fill(getattr(message, field.name), field, most)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(brimful(field.message_type))
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, "x")
        elif field.type == field.TYPE_BYTES:
            setattr(message, field.name, b"x")
    return message


def _fill(items: Any, field: FieldDescriptor, most: int) -> None:
    if field.message_type is None:
        items.extend(["x"] * most)
    else:
        items.extend([brimful(field.message_type)] * most)


def names(violation: Violation, fields: Fields) -> bool:
    """Whether a violation is about this field of the first items of lists, or about a list that must be empty."""
    path = ".".join(field.name for field in fields)
    return path.startswith(violation.field.replace("[0]", ""))


@pytest.mark.parametrize("fields", LISTS, ids=name_of)
def test_list_that_is_too_long_is_refused_by_its_length_alone(fields: Fields, work: Work) -> None:
    check = validation.violations_of(type_of(fields))
    for item in (b"", b"x" * 36):
        times = MEGABYTE // (len(item) + 2)
        request = parsed(fields, item, times)
        [violation] = work.of(check, request)
        assert names(violation, fields)
        assert violation.description.startswith("must contain no more than ")
        assert (work.judged, work.steps < 100) == (0, True)


@pytest.mark.parametrize("fields", TEXTS, ids=name_of)
def test_text_that_is_too_long_is_refused_by_its_length_alone(fields: Fields, work: Work) -> None:
    check = validation.violations_of(type_of(fields))
    [violation] = work.of(check, parsed(fields, b"x" * MEGABYTE))
    assert names(violation, fields)
    assert (work.judged, work.steps < 100) == (0, True)


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda request_type: request_type.name)
def test_largest_request_with_only_invalid_values_takes_bounded_work(request_type: Descriptor, work: Work) -> None:
    request = brimful(request_type)
    violations = work.of(validation.violations_of(request_type), request)
    assert len(violations) <= MAX_VIOLATIONS
    assert work.steps + work.judged <= WORK_PER_VALUE * values_in(request) + WORK_OF_VIOLATIONS


def test_one_fault_at_the_end_of_many_sound_items_takes_bounded_work(work: Work) -> None:
    request = inventory_pb2.CommitStockRequest(order_ids=[*(f"{ID[:-4]}{number:04}" for number in range(999)), "x"])
    violations = work.of(validation.violations_of(inventory_pb2.CommitStockRequest.DESCRIPTOR), request)
    assert [violation.field for violation in violations] == ["order_ids[999]"]
    assert work.judged == 2, "the faulty item, and one because the sample must not be empty"
    assert work.steps <= WORK_PER_VALUE * 1000


def test_two_items_that_are_alike_are_found_among_many(work: Work) -> None:
    ids = [f"{ID[:-4]}{number:04}" for number in range(999)]
    request = inventory_pb2.CommitStockRequest(order_ids=[*ids, ids[500]])
    [violation] = work.of(validation.violations_of(inventory_pb2.CommitStockRequest.DESCRIPTOR), request)
    assert violation == Violation("order_ids", "repeated value must contain unique items")
    assert work.judged == 3, "the two equal items, and one because the sample must not be empty"


def test_first_fifty_violations_have_their_paths_in_the_request() -> None:
    lines = [
        inventory_pb2.ReservationLine(product_id=f"{ID[:-4]}{number:04}" if number % 3 else f"x{number}", quantity=1)
        for number in range(100)
    ]
    hold = inventory_pb2.Reservation(
        order_id=ID, hold_key=bytes(32), customer_id=ID, lines=lines, expire_time=Timestamp(seconds=1)
    )
    sound = inventory_pb2.Reservation(
        order_id=ID, hold_key=bytes(32), customer_id=ID, lines=lines[1:2], expire_time=Timestamp(seconds=1)
    )
    request = inventory_pb2.ReserveStockRequest(reservations=[sound, hold, sound, hold])
    told = validation.violations_of(inventory_pb2.ReserveStockRequest.DESCRIPTOR)(request)
    wrong = [f"reservations[{at}].lines[{line}].product_id" for at in (1, 3) for line in range(0, 100, 3)]
    assert [violation.field for violation in told] == wrong[:MAX_VIOLATIONS]


OWN = [fields for fields in (*LISTS, *TEXTS) if fields[-1].full_name.startswith("commerce.")]


@pytest.mark.parametrize("fields", OWN, ids=name_of)
def test_size_violations_have_the_texts_of_protovalidate(fields: Fields) -> None:
    request = parsed(fields, b"", 1001) if fields[-1].is_repeated else parsed(fields, b"x" * 6000)
    [told] = validation.violations_of(type_of(fields))(request)
    assert told.description in {each.proto.message for each in protovalidate.collect_violations(request)}


def test_message_without_size_limits_is_not_served() -> None:
    with pytest.raises(Unbounded, match=r"ListProductsResponse\.products has no max_items"):
        validation.violations_of(product_pb2.ListProductsResponse.DESCRIPTOR)
