"""Messages and enums as schemas: what the edge sends, and what it accepts.

The two differ. The edge prints every number, text, list and enum, also zeros, so a response always has them. Of a
request, a field is required if the service refuses a request without it. A message that is sent both ways has two
schemas; that of requests has the suffix `Input`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import protovalidate
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from buf.validate import validate_pb2
from commerce.validation.v1 import validation_pb2
from gateway.openapi.comments import Comments, first_sentence
from gateway.openapi.rules import Schema, inner_keywords, item_keywords, keywords, message_of, rules_of

MONEY = "google.type.Money"
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
_INT64 = {"format": "int64", "pattern": "^-?[0-9]+$"}
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string"},
}
_DESCRIPTIONS = {
    MONEY: "An amount in a currency. EUR 9.50 is `units` 9 and `nanos` 500000000.",
    f"{MONEY}.currency_code": "The ISO 4217 code of the currency.",
    f"{MONEY}.units": "The whole units of the amount, as text, with at most 15 digits.",
    f"{MONEY}.nanos": "The rest of the amount in billionths (10⁻⁹) of a unit. It has the same sign as `units`, and no"
    " more decimals than the minor unit of the currency.",
    "google.type.PostalAddress": "An address for postal delivery.",
}
"""Descriptions of types of other projects, whose comments say more than a client needs."""


_SNAKE = re.compile(r"\b[a-z]+(?:[_.][a-z]+)+\b")
"""The name of a field in the text of a rule."""
_SAID = (("card number", "card number"), ("ne line", "single line"))
"""Words of comments, and of rules that say the same."""


class Way(Enum):
    """The direction in which a message is sent."""

    IN = "Input"
    OUT = ""


class Schemas:
    """The schemas of the document. It contains those that something refers to."""

    def __init__(self, comments: Comments, responses: Iterable[Descriptor]) -> None:
        """`responses` are the messages that the edge sends; those inside them count as well."""
        self._comments = comments
        self._sent: set[str] = set()
        for message in responses:
            self._note_sent(message)
        self._made: dict[str, Schema] = {}
        self._makers: dict[str, str] = {}

    def components(self) -> dict[str, Schema]:
        """The schemas that were referred to, by name."""
        return dict(sorted(self._made.items()))

    def message(self, message: Descriptor, way: Way) -> Schema:
        """A reference to the schema of a message."""
        name = message.name + (way.value if message.full_name in self._sent else "")
        if self._is_new(name, message.full_name):
            self._made[name] = {}
            self._made[name] = self.object(message, way)
        return _reference(name)

    def body(self, request: Descriptor, message: Descriptor, *, without: frozenset[str], description: str) -> Schema:
        """A reference to the schema of a request body: `message` without the fields of the path."""
        if self._is_new(request.name, request.full_name):
            told = [description, *_rules_in_words(request)]
            schema = {
                **self.object(message, Way.IN, without=without),
                "description": self._comments.in_json(" ".join(told)),
            }
            self._made[request.name] = schema
        return _reference(request.name)

    def object(self, message: Descriptor, way: Way, *, without: frozenset[str] = frozenset()) -> Schema:
        """The schema of a message itself."""
        fields = [field for field in message.fields if field.name not in without]
        if way is Way.IN:
            fields = [field for field in fields if field_behavior_pb2.OUTPUT_ONLY not in _behavior(field)]
            needed = refused_without(message)
            required = [field.json_name for field in fields if field.name in needed]
        else:
            required = [field.json_name for field in fields if not field.has_presence]
        schema: Schema = {"type": "object"}
        if description := self._description(message.full_name):
            schema["description"] = description
        if required:
            schema["required"] = required
        schema["properties"] = {
            field.json_name: self.field(field, way, is_required=field.json_name in required) for field in fields
        }
        if way is Way.IN:
            schema |= _alternatives(message)
        return schema

    def field(self, field: FieldDescriptor, way: Way, *, is_required: bool) -> Schema:
        """The schema of a field with its comment."""
        schema, told = self._list(field, way) if field.is_repeated else self._single(field, way)
        if is_required and way is Way.IN and schema.get("type") == "string" and not {"format", "enum"} & schema.keys():
            schema.setdefault("minLength", 1)
        comment = self._description(field.full_name)
        words = [comment, *(_sentence(text) for text in told if not _is_said(text, comment))]
        if field.GetOptions().deprecated:
            schema["deprecated"] = True
        if description := " ".join(filter(None, words)):
            schema["description"] = self._comments.in_json(description)
        return schema

    def _list(self, field: FieldDescriptor, way: Way) -> tuple[Schema, list[str]]:
        found, told = keywords(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return {
                "type": "object",
                "additionalProperties": self._value(message_of(field).fields_by_name["value"], way),
            }, told
        bounds, more = item_keywords(field)
        return {"type": "array", **found, "items": {**self._value(field, way), **bounds}}, [*told, *more]

    def _single(self, field: FieldDescriptor, way: Way) -> tuple[Schema, list[str]]:
        found, told = keywords(field)
        if way is Way.OUT:
            # What is sent back may be empty, whatever a request has to hold.
            found.pop("minLength", None)
            if not _is_always_set(field):
                found.pop("format", None)
        return {**self._value(field, way), **found}, told

    def _value(self, field: FieldDescriptor, way: Way) -> Schema:
        """The schema of a single value of the field, without the rules of the field."""
        if field.enum_type is not None:
            return self._enum(field, field.enum_type)
        if (message := field.message_type) is not None:
            if message.full_name in _WELL_KNOWN:
                return dict(_WELL_KNOWN[message.full_name])
            if message.full_name == MONEY and field.GetOptions().Extensions[validation_pb2.zero_without_currency]:
                return {**self.object(message, way), "required": []}
            return {**self.message(message, way), **_inner(field, message)}
        if field.type == FieldDescriptor.TYPE_INT64:
            return {"type": ["string", "integer"] if way is Way.IN else "string", **_INT64}
        if field.type not in _SCALARS:
            raise ValueError(f"no schema is known for the type of {field.full_name}")
        return dict(_SCALARS[field.type])

    def _enum(self, field: FieldDescriptor, enum: EnumDescriptor) -> Schema:
        if allowed := list(getattr(rules_of(field).enum, "in")):
            return {"type": "string", "enum": [enum.values_by_number[number].name for number in allowed]}
        if self._is_new(enum.name, enum.full_name):
            values = [
                f"- `{value.name}`: {self._comments.of(f'{enum.full_name}.{value.name}')}" for value in enum.values
            ]
            self._made[enum.name] = {
                "type": "string",
                "description": "\n".join([self._comments.of(enum.full_name), "", *values]),
                "enum": [value.name for value in enum.values],
            }
        return _reference(enum.name)

    def _description(self, full_name: str) -> str:
        if full_name in _DESCRIPTIONS:
            return _DESCRIPTIONS[full_name]
        comment = self._comments.of_field(full_name)
        return comment if full_name.startswith("commerce.") else first_sentence(comment)

    def _is_new(self, name: str, maker: str) -> bool:
        """Whether nothing has this name yet. Raises ValueError if something else has it."""
        if self._makers.setdefault(name, maker) != maker:
            raise ValueError(f"{self._makers[name]} and {maker} have the same name in the OpenAPI document: {name}")
        return name not in self._made

    def _note_sent(self, message: Descriptor) -> None:
        if message.full_name not in self._sent:
            self._sent.add(message.full_name)
            for inner in _messages_in(message):
                self._note_sent(inner)


def refused_without(message: Descriptor) -> frozenset[str]:
    """The fields of a message without which the service refuses it."""
    if message.full_name == MONEY:
        return frozenset({"currency_code"})
    # Whatever is refused of an empty message is a field that is missing.
    found = protovalidate.collect_violations(GetMessageClass(message)())
    return frozenset(each.proto.field.elements[0].field_name for each in found if each.proto.field)


def _rules_in_words(message: Descriptor) -> Iterator[str]:
    """The rules of a whole message."""
    for rule in message.GetOptions().Extensions[validate_pb2.message].cel:
        yield _sentence(rule.message)


def _sentence(rule: str) -> str:
    """The text of a rule as a sentence that quotes the names of fields."""
    quoted = re.sub(_SNAKE, lambda match: f"`{match[0]}`", rule)
    return f"It {quoted}." if quoted.startswith("must") else f"{quoted[:1].upper()}{quoted[1:]}."


def _is_said(rule: str, comment: str) -> bool:
    """Whether the comment of a field says what one of its rules says."""
    return any(said in comment and meant in rule for said, meant in _SAID)


def _inner(field: FieldDescriptor, message: Descriptor) -> Schema:
    """The keywords that a field declares for the fields of its message."""
    found = {message.fields_by_name[name].json_name: inner for name, inner in inner_keywords(field).items()}
    needed = [name for name, inner in found.items() if "pattern" in inner and not re.search(inner["pattern"], "")]
    return {**({"required": needed} if needed else {}), **({"properties": found} if found else {})}


def _alternatives(message: Descriptor) -> Schema:
    """The keywords for its oneofs that must be set."""
    groups = [
        [{"required": [field.json_name]} for field in group.fields]
        for group in message.oneofs
        if group.GetOptions().Extensions[validate_pb2.oneof].required
    ]
    match groups:
        case []:
            return {}
        case [only]:
            return {"oneOf": only}
        case _:
            return {"allOf": [{"oneOf": group} for group in groups]}


def _messages_in(message: Descriptor) -> Iterator[Descriptor]:
    for field in message.fields:
        if field.message_type is not None and field.message_type.full_name not in _WELL_KNOWN:
            yield field.message_type


def _is_always_set(field: FieldDescriptor) -> bool:
    return rules_of(field).ignore != validate_pb2.IGNORE_IF_ZERO_VALUE or field_behavior_pb2.REQUIRED in _behavior(
        field
    )


def _behavior(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
