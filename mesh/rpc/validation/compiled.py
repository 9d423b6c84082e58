"""Simple rules of a contract (lengths, bounds, UUIDs), compiled into Python closures once per type (ADR 20).

A check either accepts a message or makes no statement about it. It stops at the first violation, and compares the size
of a list or a text before it reads the content. A type with an unsupported rule has no check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from buf.validate import validate_pb2
from mesh.rpc.validation import money

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.message import Message

Check = Callable[[Any], object]
"""Of a message or a value: what counts as true when it keeps its rules."""

UUID_TEXT = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UNIQUE_BY = re.compile(r"this\.map\((\w+), \1\.(\w+)\)\.unique\(\)")
_FLAG_OR_SIZE = re.compile(r"this\.(\w+) \|\| this\.(\w+)\.size\(\) >= (\d+)")
CHARACTERS = re.compile(r"!rule \|\| (!?)this\.matches\(r'(\[\^?(?:\\x\{[0-9A-F]+\}-?)*\])'\)")
CODE_POINT = re.compile(r"\\x\{([0-9A-F]+)\}")
_COUNTS = {"int32", "int64", "uint32", "uint64"}


class _NotUnderstood(Exception):
    """A rule that only protovalidate knows."""


@dataclass(frozen=True, slots=True)
class Items:
    """The rules of a repeated field for its items."""

    valid: Check | None
    """The check of one item; None if every item is valid."""
    keys: tuple[Callable[[Any], object], ...]
    """Each returns a value of an item that must be unique in the list."""
    min_items: int
    """The smallest number of items."""
    max_items: int
    """The greatest number of items."""


def check_of(message_type: Descriptor) -> Check | None:
    """A check that is true for no unsound message of this type; None when some of its rules are not understood."""
    try:
        return _all(_of_message(message_type, ()))
    except _NotUnderstood:
        return None


def items_of(field: FieldDescriptor) -> Items:
    """The rules of a repeated field of a type that has a check."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    if rules.ignore == validate_pb2.IGNORE_ALWAYS:
        return Items(None, (), 0, rules.repeated.max_items)
    min_items = max(rules.repeated.min_items, int(rules.required))
    if holder := field.containing_type:
        shapes = [_FLAG_OR_SIZE.fullmatch(rule.expression) for rule in _rules_of(holder).cel]
        min_items = max([min_items, *(int(shape[3]) for shape in shapes if shape and shape[2] == field.name)])
    valid, keys = _rules_of_items(field, rules, ())
    return Items(valid, keys, min_items, rules.repeated.max_items)


def _of_message(message_type: Descriptor, above: tuple[Descriptor, ...]) -> list[Check]:
    if message_type in above:
        raise _NotUnderstood(f"{message_type.full_name} holds itself")
    rules = _rules_of(message_type)
    _only(rules, {"cel"})
    if any(oneof.GetOptions().HasExtension(validate_pb2.oneof) for oneof in message_type.oneofs):
        raise _NotUnderstood(f"{message_type.full_name} has rules for a oneof")
    checks = [_cel_of_message(rule.expression, message_type) for rule in rules.cel]
    for field in message_type.fields:
        checks += _of_field(field, (*above, message_type))
    return checks


def _of_messages(field: FieldDescriptor, message_type: Descriptor, above: tuple[Descriptor, ...]) -> list[Check]:
    """The checks of a message in this field."""
    return [money.check_of(field)] if message_type.full_name == money.TYPE else _of_message(message_type, above)


def _of_field(field: FieldDescriptor, above: tuple[Descriptor, ...]) -> list[Check]:
    """The checks of a message that come of one of its fields; none when any value of it will do."""
    rules = field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    if rules.ignore == validate_pb2.IGNORE_ALWAYS:
        return []
    if field.is_repeated:
        checks = _of_items(field, rules, above)
    elif field.message_type is not None:
        _only(rules, {"required", "ignore"})
        checks = _of_messages(field, field.message_type, above)
    else:
        _only(rules, {"required", "ignore", kind})
        checks = _of_value(field, kind, getattr(rules, kind)) if kind else []
    return [_where_set(field, rules, _all(checks))] if checks or rules.required else []


def _where_set(field: FieldDescriptor, rules: validate_pb2.FieldRules, valid: Check) -> Check:
    """The check of a message for a field of it: what is not set need not be valid, unless it must be set."""
    read, name = attrgetter(field.name), field.name
    if field.has_presence:
        if rules.required:
            return lambda message: message.HasField(name) and valid(read(message))
        return lambda message: not message.HasField(name) or valid(read(message))
    if rules.required:
        return lambda message: (value := read(message)) and valid(value)
    if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        return lambda message: not (value := read(message)) or valid(value)
    return lambda message: valid(read(message))


def _of_items(field: FieldDescriptor, rules: validate_pb2.FieldRules, above: tuple[Descriptor, ...]) -> list[Check]:
    checks = _lengths(rules.repeated, "min_items", "max_items")
    valid, keys = _rules_of_items(field, rules, above)
    if valid is not None:
        checks.append(lambda values: all(map(valid, values)))
    return checks + [_unique(key) for key in keys]


def _unique(key: Callable[[Any], object]) -> Check:
    if key is _itself:
        return lambda values: len(set(values)) == len(values)
    return lambda values: len(set(map(key, values))) == len(values)


def _rules_of_items(
    field: FieldDescriptor, rules: validate_pb2.FieldRules, above: tuple[Descriptor, ...]
) -> tuple[Check | None, tuple[Callable[[Any], object], ...]]:
    """The check of one item, and the functions whose values must be unique in the list."""
    _only(rules, {"cel", "required", "ignore", "repeated"})
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        raise _NotUnderstood(f"{field.full_name} is a map")
    few = rules.repeated
    _only(few, {"min_items", "max_items", "unique", "items"})
    keys = [_unique_by(rule.expression, field) for rule in rules.cel]
    if field.message_type is None:
        kind = few.items.WhichOneof("type")
        _only(few.items, {kind})
        each = _of_value(field, kind, getattr(few.items, kind)) if kind else []
        if few.unique:
            keys.append(_itself)
    else:
        if few.unique or few.HasField("items"):
            raise _NotUnderstood(f"{field.full_name} has rules for its messages")
        each = _of_messages(field, field.message_type, above)
    return _all(each) if each else None, tuple(keys)


def _itself(value: object) -> object:
    return value


def _of_value(field: FieldDescriptor, kind: str, rules: Message) -> list[Check]:
    """The checks of a value that is no message."""
    if kind == "string":
        predefined = [(rule, value) for rule, value in rules.ListFields() if rule.is_extension]
        _only(rules, {"uuid", "min_len", "max_len", *(rule.full_name for rule, _ in predefined)})
        # As in Python, a string is as long as it has characters.
        checks = _lengths(rules, "min_len", "max_len")
        if _set(rules, "uuid"):
            checks.append(UUID_TEXT.fullmatch)
        return checks + [_characters(rule, value) for rule, value in predefined]
    if kind == "bytes":
        _only(rules, {"min_len", "max_len"})
        return _lengths(rules, "min_len", "max_len")
    if isinstance(rules, validate_pb2.EnumRules) and field.enum_type is not None:
        _only(rules, {"defined_only", "not_in"})
        known, wrong = set(field.enum_type.values_by_number), set(rules.not_in)
        if not rules.defined_only:
            return [lambda number: number not in wrong]
        return [(known - wrong).__contains__]
    if kind in _COUNTS:
        _only(rules, {"gte", "lte"})
        least, most = _bounds(rules, "gte", "lte")
        return [lambda number: least <= number <= most]
    raise _NotUnderstood(f"{field.full_name} has rules for {kind}")


def _characters(rule: FieldDescriptor, value: object) -> Check:
    """A predefined rule whose expression says that a text contains, or does not contain, a character of a set."""
    expressions = [each.expression for each in rule.GetOptions().Extensions[validate_pb2.predefined].cel]
    shape = CHARACTERS.fullmatch(expressions[0]) if value is True and len(expressions) == 1 else None
    if shape is None:
        raise _NotUnderstood(rule.full_name)
    search = re.compile(CODE_POINT.sub(lambda point: re.escape(chr(int(point[1], 16))), shape[2])).search
    return (lambda text: search(text) is None) if shape[1] else search


def _lengths(rules: Message, lower: str, upper: str) -> list[Check]:
    least, most = _bounds(rules, lower, upper)
    return [lambda value: least <= len(value) <= most] if (least, most) != (-inf, inf) else []


def _bounds(rules: Message, lower: str, upper: str) -> tuple[float, float]:
    least, most = _set(rules, lower), _set(rules, upper)
    least, most = -inf if least is None else least, inf if most is None else most
    if least > most:
        raise _NotUnderstood("bounds the wrong way round leave out what is between them")
    return least, most


def _cel_of_message(expression: str, message_type: Descriptor) -> Check:
    """Some shapes of expressions, each in Python."""
    if shape := _FLAG_OR_SIZE.fullmatch(expression):
        flag, sized, least = attrgetter(shape[1]), attrgetter(shape[2]), int(shape[3])
        if message_type.fields_by_name[shape[2]].is_repeated:
            return lambda message: flag(message) or len(sized(message)) >= least
    raise _NotUnderstood(expression)


def _unique_by(expression: str, field: FieldDescriptor) -> Callable[[Any], object]:
    """The field whose value must be unique among the messages of a list."""
    if field.message_type is not None and (shape := _UNIQUE_BY.fullmatch(expression)):
        by = field.message_type.fields_by_name[shape[2]]
        if by.type == by.TYPE_STRING and not by.is_repeated:
            return attrgetter(shape[2])
    raise _NotUnderstood(expression)


def _rules_of(message_type: Descriptor) -> validate_pb2.MessageRules:
    return message_type.GetOptions().Extensions[validate_pb2.message]


def _only(rules: Message, understood: Iterable[str | None]) -> None:
    """Raises _NotUnderstood when other rules are set than these. An extension goes by its full name."""
    set_rules = [(rule.full_name if rule.is_extension else rule.name) for rule, _ in rules.ListFields()]
    if other := [name for name in set_rules if name not in understood]:
        raise _NotUnderstood(", ".join(other))


def _set(rules: Message, name: str) -> Any:
    """The value of a rule, None when it is not set."""
    return getattr(rules, name) if rules.HasField(name) else None


def _all(checks: Sequence[Check]) -> Check:
    if not checks:
        return lambda _: True
    if len(checks) == 1:
        return checks[0]

    def every(value: Any) -> bool:
        for check in checks:  # noqa: SIM110 - a generator takes twice as long
            if not check(value):
                return False
        return True

    return every
