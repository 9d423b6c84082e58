"""The comments of the contracts, as Markdown for JSON clients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

_BEHAVIOR = re.compile(r"^(Required|Optional|Output only|Immutable)\. ")
_QUOTED = re.compile(r"`([a-z][a-z0-9]*(?:[._][a-z0-9]+)*)`")


class Comments:
    """The comment of each element by its full name, with fields named as in JSON."""

    def __init__(self, descriptors: FileDescriptorSet) -> None:
        """`descriptors` must have source code info, else all comments are empty."""
        self._raw = {name: text for file in descriptors.file for name, text in _of_file(file)}
        self._fields = {
            field.name: field.json_name
            for file in descriptors.file
            if file.package.startswith(("commerce.", "google.type"))
            for message in file.message_type
            for field in message.field
        }

    def of(self, full_name: str) -> str:
        """The comment with its paragraphs; each is one line."""
        paragraphs = self._raw.get(full_name, "").strip().split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        return self.in_json(text)

    def of_field(self, full_name: str) -> str:
        """The comment of a field without the word for its behaviour, which the schema expresses."""
        return _BEHAVIOR.sub("", self.of(full_name))

    def in_json(self, text: str) -> str:
        """The text with the JSON names of fields that it quotes."""
        return _QUOTED.sub(lambda match: f"`{self._json_path(match[1])}`", text)

    def _json_path(self, path: str) -> str:
        parts = path.split(".")
        return ".".join(self._fields.get(part, part) for part in parts)


def first_sentence(text: str) -> str:
    """The first sentence of a comment."""
    match = re.match(r".*?\.(?=\s|$)", text, re.DOTALL)
    return match[0] if match else text


def json_name(path: str) -> str:
    """The name of a variable of a path in the document: `customer.id` and `customer_id` are both `customerId`."""
    first, *others = re.split(r"[._]", path)
    return first + "".join(word.capitalize() for word in others)


def _of_file(file: FileDescriptorProto) -> Iterator[tuple[str, str]]:
    comments = {tuple(each.path): each.leading_comments for each in file.source_code_info.location}
    for number, message in enumerate(file.message_type):
        yield from _of_message(comments, (file.MESSAGE_TYPE_FIELD_NUMBER, number), file.package, message)
    for number, enum in enumerate(file.enum_type):
        yield from _of_enum(comments, (file.ENUM_TYPE_FIELD_NUMBER, number), file.package, enum)
    for number, service in enumerate(file.service):
        yield from _of_service(comments, (file.SERVICE_FIELD_NUMBER, number), file.package, service)


_Found = Mapping[tuple[int, ...], str]
_Path = Sequence[int]


def _of_message(comments: _Found, path: _Path, within: str, message: DescriptorProto) -> Iterator[tuple[str, str]]:
    name = f"{within}.{message.name}"
    yield name, comments.get(tuple(path), "")
    for number, field in enumerate(message.field):
        yield f"{name}.{field.name}", comments.get((*path, message.FIELD_FIELD_NUMBER, number), "")
    for number, nested in enumerate(message.nested_type):
        yield from _of_message(comments, (*path, message.NESTED_TYPE_FIELD_NUMBER, number), name, nested)
    for number, enum in enumerate(message.enum_type):
        yield from _of_enum(comments, (*path, message.ENUM_TYPE_FIELD_NUMBER, number), name, enum)


def _of_enum(comments: _Found, path: _Path, within: str, enum: EnumDescriptorProto) -> Iterator[tuple[str, str]]:
    name = f"{within}.{enum.name}"
    yield name, comments.get(tuple(path), "")
    for number, value in enumerate(enum.value):
        yield f"{name}.{value.name}", comments.get((*path, enum.VALUE_FIELD_NUMBER, number), "")


def _of_service(
    comments: _Found, path: _Path, within: str, service: ServiceDescriptorProto
) -> Iterator[tuple[str, str]]:
    name = f"{within}.{service.name}"
    yield name, comments.get(tuple(path), "")
    for number, method in enumerate(service.method):
        yield f"{name}.{method.name}", comments.get((*path, service.METHOD_FIELD_NUMBER, number), "")
