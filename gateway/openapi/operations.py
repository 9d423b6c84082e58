"""Methods as paths of the OpenAPI document, and the document itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from commerce.access.v1 import access_pb2
from gateway.contracts import PATH_VARIABLE, Method, methods
from gateway.openapi.comments import Comments, first_sentence, json_name
from gateway.openapi.overview import (
    DESCRIPTION,
    HEADERS,
    IDEMPOTENCY_KEY,
    OWN_PATHS,
    SECURITY_SCHEMES,
    TAG_OF_THE_EDGE,
)
from gateway.openapi.reasons import Reasons, status_schemas
from gateway.openapi.rules import Schema, message_of, owner_of
from gateway.openapi.samples import request_sample, response_sample
from gateway.openapi.schemas import Schemas, Way, refused_without
from gateway.query import fields
from mesh.rpc.reflection import load_contracts

_ACCESS = {
    access_pb2.ACCESS_PUBLIC: "Anyone may call this method.",
    access_pb2.ACCESS_CUSTOMER: "Customers may call this method for their own resources, and staff for those of any"
    " customer.",
    access_pb2.ACCESS_STAFF: "Only staff may call this method.",
}
_SECURITY: Mapping[int, list[dict[str, list[str]]]] = {
    # A token is optional, but must be valid.
    access_pb2.ACCESS_PUBLIC: [{}, {"accessToken": []}],
    access_pb2.ACCESS_CUSTOMER: [{"accessToken": []}],
    access_pb2.ACCESS_STAFF: [{"accessToken": ["staff"]}],
}


def document(descriptors: FileDescriptorSet) -> Schema:
    """The OpenAPI document of all methods that the edge serves to JSON clients.

    `descriptors` are the contracts with their comments. Everything else is read from the generated code.

    Raises:
        ValueError: the document cannot express something in the contracts, or an example is missing.
    """
    load_contracts()
    return _Document(Comments(descriptors)).made()


class _Document:
    def __init__(self, comments: Comments) -> None:
        pool = descriptor_pool.Default()
        self._comments = comments
        self._methods = [
            (method, pool.FindMethodByName(f"{method.service}.{method.name}"))
            for method in sorted(methods(), key=attrgetter("service"))
            if method.is_open
        ]
        self._schemas = Schemas(comments, [_response(method, described) for method, described in self._methods])
        self._reasons = Reasons(comments)

    def made(self) -> Schema:
        paths = self._paths()
        return {
            "openapi": "3.1.1",
            "info": {"title": "Commerce Mesh", "version": "v1", "description": DESCRIPTION},
            "servers": [{"url": "/", "description": "The edge that serves this document"}],
            "tags": [*self._tags(), TAG_OF_THE_EDGE],
            "paths": {**paths, **OWN_PATHS},
            "components": {
                "securitySchemes": SECURITY_SCHEMES,
                "parameters": {"Idempotency-Key": IDEMPOTENCY_KEY},
                "headers": HEADERS,
                **self._reasons.components(),
                "schemas": {**self._schemas.components(), **status_schemas()},
            },
        }

    def _tags(self) -> Iterator[Schema]:
        for service in dict.fromkeys(method.service for method, _ in self._methods):
            yield {"name": _tag(service), "description": self._comments.of(service)}

    def _paths(self) -> dict[str, Schema]:
        paths: dict[str, Schema] = {}
        shapes: dict[str, str] = {}
        names: set[str] = set()
        for method, described in self._methods:
            path = PATH_VARIABLE.sub(lambda match: f"{{{json_name(match[1])}}}", method.template)
            shape = PATH_VARIABLE.sub("{}", method.template)
            if shapes.setdefault(shape, path) != path:
                raise ValueError(f"OpenAPI cannot tell {path} of {method.name} from {shapes[shape]}")
            if method.name in names:
                raise ValueError(f"two methods have the name {method.name}")
            names.add(method.name)
            paths.setdefault(path, {})[method.verb.lower()] = self._operation(method, described)
        return paths

    def _operation(self, method: Method, described: MethodDescriptor) -> Schema:
        comment = self._comments.of(described.full_name)
        errors = next((part for part in comment.split("\n\n") if part.startswith("Errors: ")), "")
        summary = first_sentence(comment)
        more = comment.removeprefix(summary).strip()
        example = request_sample(described.input_type, PATH_VARIABLE.findall(method.template))
        operation: Schema = {
            "operationId": method.name,
            "tags": [_tag(method.service)],
            "summary": summary.removesuffix("."),
            "description": "\n\n".join(filter(None, [more, _ACCESS[method.access], f"gRPC: `{method.path[1:]}`"])),
            "security": _SECURITY[method.access],
            "parameters": [*self._parameters(method, described.input_type, example)],
        }
        if method.is_raw:
            operation["requestBody"] = {"required": True, "content": {"*/*": {}}}
        elif method.body:
            operation["requestBody"] = self._body(method, described, example)
        operation["responses"] = {"200": self._success(method, described), **self._reasons.responses(method, errors)}
        return operation

    def _parameters(self, method: Method, request: Descriptor, example: Message) -> Iterator[Schema]:
        in_path = PATH_VARIABLE.findall(method.template)
        for variable in in_path:
            yield self._parameter("path", json_name(variable), _fields(request, variable), example)
        for path in fields(request, method.body, frozenset(in_path)):
            yield self._parameter("query", ".".join(field.json_name for field in path), path, example)
        if not method.is_read:
            yield {"$ref": "#/components/parameters/Idempotency-Key"}

    def _parameter(self, place: str, name: str, path: Sequence[FieldDescriptor], example: Message) -> Schema:
        field = path[-1]
        is_required = place == "path" or (len(path) == 1 and field.name in refused_without(owner_of(field)))
        schema = self._schemas.field(field, Way.IN, is_required=is_required)
        parameter = {"name": name, "in": place, "required": is_required}
        if description := schema.pop("description", ""):
            parameter["description"] = description
        if schema.pop("deprecated", False):
            parameter["deprecated"] = True
        parameter["schema"] = schema
        if is_required:
            # Pages that show the document send the examples of all parameters, and optional ones filter.
            parameter["example"] = _printed(example, path)
        return parameter

    def _body(self, method: Method, described: MethodDescriptor, example: Message) -> Schema:
        request = described.input_type
        in_path = [_fields(request, variable) for variable in PATH_VARIABLE.findall(method.template)]
        if method.body == "*":
            message, without = request, {path[0].name for path in in_path}
            printed = MessageToDict(example)
        else:
            field = request.fields_by_name[method.body]
            message, without = message_of(field), {path[1].name for path in in_path if path[0].name == method.body}
            printed = MessageToDict(getattr(example, method.body))
        schema = self._schemas.body(
            request,
            message,
            without=frozenset(without),
            description=f"The body of `{method.name}`.",
        )
        left_out = {message.fields_by_name[name].json_name for name in without}
        return {
            "required": bool(refused_without(message) - without),
            "content": {
                "application/json": {
                    "schema": schema,
                    "example": {name: value for name, value in printed.items() if name not in left_out},
                }
            },
        }

    def _success(self, method: Method, described: MethodDescriptor) -> Schema:
        message = _response(method, described)
        response: Schema = {"description": self._returned(method, described)}
        if method.is_stream:
            response["description"] = (
                "A stream: a line of JSON for each message, as it comes. The schema is that of a line. A response that"
                " ends normally is complete; after an error the edge aborts the response."
            )
            response["x-stream"] = "json-lines"
        if not method.is_read:
            response["headers"] = {"Idempotency-Replayed": {"$ref": "#/components/headers/Idempotency-Replayed"}}
        schema = self._schemas.message(message, Way.OUT)
        response["content"] = {"application/json": {"schema": schema, "example": response_sample(message)}}
        return response

    def _returned(self, method: Method, described: MethodDescriptor) -> str:
        fields = described.output_type.fields
        if "next_page_token" in described.output_type.fields_by_name:
            return "A page of the list."
        if len(fields) == 1 and method.response_body:
            return self._comments.of(fields[0].full_name)
        return "The response." if fields else "It is done."


def _response(method: Method, described: MethodDescriptor) -> Descriptor:
    """The message that JSON clients get."""
    response = described.output_type
    bare = next((field for field in response.fields if field.json_name == method.response_body), None)
    return response if bare is None else message_of(bare)


def _fields(request: Descriptor, path: str) -> tuple[FieldDescriptor, ...]:
    """The fields on a path such as `customer.id`."""
    first, *others = path.split(".")
    found = [request.fields_by_name[first]]
    for name in others:
        found.append(message_of(found[-1]).fields_by_name[name])
    return tuple(found)


def _printed(message: Message, path: Sequence[FieldDescriptor]) -> Any:
    """The value of a field in JSON."""
    value: Any = MessageToDict(message)
    for field in path:
        value = value[field.json_name]
    return value


def _tag(service: str) -> str:
    return service.rpartition(".")[2]
