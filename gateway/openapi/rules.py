"""Validation rules of a field as keywords of JSON Schema.

A schema never refuses what the service accepts. Rules that JSON Schema cannot express become text of the description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from buf.validate import validate_pb2
from commerce.validation.v1 import validation_pb2

Schema = dict[str, Any]

_MATCHES = re.compile(r"(?:!rule \|\| )?this\.matches\((?P<raw>r?)'(?P<pattern>[^']*)'\)")
"""An expression that only matches a pattern."""
_INNER_MATCHES = re.compile(r"this\.(?P<field>\w+)\.matches\('(?P<pattern>[^']*)'\)")
"""The same for a field of a message."""
_NOT_PORTABLE = re.compile(r"\\[xpP]")
"""Syntax of RE2 that regular expressions of JSON Schema do not have."""
_TOLD_ONCE = {"no_nul"}
"""Rules of all texts, which the description of the document contains."""
_BOUNDS = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    """The declared rules of a field."""
    return field.GetOptions().Extensions[validate_pb2.field]


def message_of(field: FieldDescriptor) -> Descriptor:
    """The message type of a field that has one."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} is no message")
    return field.message_type


def owner_of(field: FieldDescriptor) -> Descriptor:
    """The message that has the field."""
    if field.containing_type is None:
        raise TypeError(f"{field.full_name} is no field of a message")
    return field.containing_type


def keywords(field: FieldDescriptor) -> tuple[Schema, list[str]]:
    """The keywords of a field, or of the list of a repeated field, and its other rules in words."""
    rules = rules_of(field)
    found, told = _of_type(rules)
    for rule in rules.cel:
        _add(found, told, rule.expression, rule.message)
    if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE and "pattern" in found:
        # An empty text means that the field is not set.
        found["pattern"] = f"^$|{found['pattern']}"
    return found, told


def item_keywords(field: FieldDescriptor) -> tuple[Schema, list[str]]:
    """The same for each item of a repeated field."""
    return _of_type(rules_of(field).repeated.items)


def inner_keywords(field: FieldDescriptor) -> Mapping[str, Schema]:
    """The keywords that this field declares for the fields of its message, which another project defines, by name."""
    bounds: dict[str, Schema] = {}
    for limit in field.GetOptions().Extensions[validation_pb2.limits]:
        text = {"maxLength": limit.max_len} if limit.HasField("max_len") else {}
        listed = {"maxItems": limit.max_items, "items": text} if limit.HasField("max_items") else text
        bounds[limit.field] = listed
    for rule in rules_of(field).cel:
        if match := _INNER_MATCHES.fullmatch(rule.expression):
            bounds.setdefault(match["field"], {})["pattern"] = match["pattern"]
    return bounds


def _of_type(rules: validate_pb2.FieldRules) -> tuple[Schema, list[str]]:
    match rules.WhichOneof("type"):
        case "string":
            return _text(rules.string)
        case "bytes":
            # Base64 has four characters for three bytes.
            return {"maxLength": (rules.bytes.max_len + 2) // 3 * 4} if rules.bytes.HasField("max_len") else {}, []
        case "int32" | "int64" | "uint32" | "uint64" as kind:
            return _number(getattr(rules, kind), is_text=kind.endswith("64")), []
        case "repeated":
            return _list(rules.repeated), []
        case _:
            return {}, []


def _text(rules: validate_pb2.StringRules) -> tuple[Schema, list[str]]:
    found: Schema = {}
    told: list[str] = []
    if rules.HasField("min_len"):
        found["minLength"] = rules.min_len
    if rules.HasField("max_len"):
        found["maxLength"] = rules.max_len
    if rules.pattern:
        _pattern(found, told, rules.pattern, f"must match `{rules.pattern}`")
    if rules.uuid:
        found["format"] = "uuid"
    if rules.email:
        found["format"] = "email"
    if values := list(getattr(rules, "in")):
        found["enum"] = values
    for extension, value in rules.ListFields():
        if extension.is_extension and value and extension.name not in _TOLD_ONCE:
            for rule in extension.GetOptions().Extensions[validate_pb2.predefined].cel:
                # A rule without a message makes one for each case; its comment in the contracts says which.
                _add(found, told, rule.expression, rule.message)
    return found, told


def _add(found: Schema, told: list[str], expression: str, message: str) -> None:
    if _INNER_MATCHES.fullmatch(expression):
        return
    if match := _MATCHES.fullmatch(expression):
        pattern = match["pattern"] if match["raw"] else match["pattern"].replace("\\\\", "\\")
        _pattern(found, told, pattern, message)
    elif message:
        told.append(message)


def _pattern(found: Schema, told: list[str], pattern: str, message: str) -> None:
    if "pattern" not in found and not _NOT_PORTABLE.search(pattern):
        found["pattern"] = pattern
    elif message:
        told.append(message)


def _number(rules: Any, *, is_text: bool) -> Schema:
    if is_text:
        return {}
    found: Schema = {keyword: getattr(rules, name) for name, keyword in _BOUNDS.items() if rules.HasField(name)}
    if refused := list(rules.not_in):
        found["not"] = {"enum": refused}
    return found


def _list(rules: validate_pb2.RepeatedRules) -> Schema:
    found: Schema = {}
    if rules.HasField("min_items"):
        found["minItems"] = rules.min_items
    if rules.HasField("max_items"):
        found["maxItems"] = rules.max_items
    if rules.unique:
        found["uniqueItems"] = True
    return found
