"""Error reasons as responses: which errors a method returns, with their HTTP status and an example of each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import EnumDescriptor
from google.rpc import code_pb2

from commerce.access.v1 import access_pb2
from gateway.contracts import Method
from gateway.errors import DOMAIN
from gateway.openapi.comments import Comments, first_sentence
from gateway.openapi.rules import Schema
from mesh.rpc.reflection import load_contracts

HTTP_STATUS: Mapping[str, int] = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""The HTTP status of each gRPC code, as the transcoder translates it."""

_TITLES = {
    400: "The request is invalid, or the state of the resource does not allow it",
    401: "The access token is missing or invalid, or the credentials are",
    403: "The caller may not do this",
    404: "The resource does not exist or belongs to another customer",
    409: "The request conflicts with another one or with the current state",
    413: "The request is too large",
    429: "There are too many requests",
    431: "The headers of the request are too large or too many",
    500: "A fault of the mesh",
    501: "The method is not implemented yet",
    503: "A part of the mesh is not available",
    504: "The call took too long",
}
_RETRY_AFTER = {429, 503}
_CODE = re.compile(r"^`([A-Z_]+)`(?:, [^:]*)?: (.*)", re.DOTALL)
_TYPES = "type.googleapis.com/google.rpc"
_TOO_LARGE = "REQUEST_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class Reason:
    """An error reason that the contracts declare."""

    name: str
    code: str
    """The gRPC code, `NOT_FOUND`."""
    meaning: str

    @property
    def http(self) -> int:
        """The HTTP status."""
        return HTTP_STATUS[self.code]

    def example(self) -> Schema:
        """An Example Object with a `Status` that has this reason."""
        info = {
            "@type": f"{_TYPES}.ErrorInfo",
            "reason": self.name,
            "domain": DOMAIN,
            "metadata": {},
        }
        details: list[Schema] = [info]
        if self.name == "VALIDATION_FAILED":
            violation = {"field": "items[0].quantity", "description": "must be at least 1"}
            details.append({"@type": f"{_TYPES}.BadRequest", "fieldViolations": [violation]})
        if self.http in _RETRY_AFTER:
            details.append({"@type": f"{_TYPES}.RetryInfo", "retryDelay": "1s"})
        message = first_sentence(self.meaning).rstrip(".")
        return {
            "summary": self.name,
            "description": self.meaning,
            "value": {"code": code_pb2.Code.Value(self.code), "message": message, "details": details},
        }


class Reasons:
    """All reasons of the contracts, and the responses made of them."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments
        pool = descriptor_pool.Default()
        enums = (enum for name in load_contracts() for enum in pool.FindFileByName(name).enum_types_by_name.values())
        self.declared = {
            reason.name: reason for enum in enums if enum.name.endswith("ErrorReason") for reason in self._of_enum(enum)
        }
        self._shared: dict[str, Schema] = {}
        self._named: set[str] = set()

    def responses(self, method: Method, errors: str) -> dict[str, Schema]:
        """The responses for the errors of a method. `errors` is the paragraph of its comment that names them."""
        found = defaultdict[int, list[str]](list)
        for name in dict.fromkeys([*self._told(method, errors), *_of_every_method(method)]):
            found[self.declared[name].http].append(name)
        if method.body:
            found[413].append(_TOO_LARGE)
        found[431].append(_TOO_LARGE)
        return {str(status): self._response(status, names) for status, names in sorted(found.items())}

    def components(self) -> Schema:
        """The shared responses, and an example for each reason that a response has."""
        examples = {name: self.declared[name].example() for name in sorted(self._named)}
        return {"responses": dict(sorted(self._shared.items())), "examples": examples}

    def _told(self, method: Method, errors: str) -> Iterator[str]:
        for name in re.findall(r"`([A-Z][A-Z_]+)`", errors):
            if name in self.declared:
                yield name
            elif name not in HTTP_STATUS:
                raise ValueError(f"the comment of {method.path} names the error {name}, which is no declared reason")

    def _response(self, status: int, names: Sequence[str]) -> Schema:
        self._named.update(names)
        response = self._object(status, names)
        if status in (400, 404, 409):
            return response
        name = f"{status}" if status != 401 else f"401.{'.'.join(names)}"
        if self._shared.setdefault(name, response) != response:
            return response
        return {"$ref": f"#/components/responses/{name}"}

    def _object(self, status: int, names: Sequence[str]) -> Schema:
        listed = [f"- `{name}`: {self.declared[name].meaning}" for name in names]
        response: Schema = {"description": "\n".join([f"{_TITLES[status]}.", "", *listed])}
        if status in _RETRY_AFTER:
            response["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
        examples = {name: {"$ref": f"#/components/examples/{name}"} for name in names}
        schema = {"$ref": "#/components/schemas/Status"}
        response["content"] = {"application/json": {"schema": schema, "examples": examples}}
        response["x-error-reasons"] = list(names)
        return response

    def _of_enum(self, enum: EnumDescriptor) -> Iterator[Reason]:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        for value in enum.values:
            if value.number:
                match = _CODE.match(self._comments.of(f"{enum.full_name}.{value.name}"))
                if match is None or match[1] not in HTTP_STATUS:
                    raise ValueError(f"the comment of {value.name} does not begin with the code of its status")
                meaning = match[2][:1].upper() + match[2][1:]
                yield Reason(value.name.removeprefix(prefix), match[1], meaning)


def _of_every_method(method: Method) -> Iterable[str]:
    """The reasons that a method returns whether its comment names them or not."""
    yield from ("VALIDATION_FAILED", "REQUEST_MALFORMED")
    if not method.is_read:
        yield from ("IDEMPOTENCY_KEY_INVALID", "IDEMPOTENCY_KEY_REUSED")
    if method.access != access_pb2.ACCESS_PUBLIC:
        yield "TOKEN_MISSING"
    yield "TOKEN_INVALID"
    if method.access == access_pb2.ACCESS_STAFF:
        yield "ROLE_REQUIRED"
    yield from ("RATE_LIMITED", "OVERLOADED", "INTERNAL", "DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED")


def status_schemas() -> dict[str, Any]:
    """The schemas of `google.rpc.Status` and of the details that errors of the mesh have."""
    kinds = {"ErrorInfo": _ERROR_INFO, "BadRequest": _BAD_REQUEST, "RetryInfo": _RETRY_INFO}
    references = [{"$ref": f"#/components/schemas/{name}"} for name in kinds]
    return {
        "Status": {
            "type": "object",
            "description": "The error of every method, `google.rpc.Status`. Clients decide by the `reason` of its"
            " `ErrorInfo`, never by its `message`.",
            "required": ["code", "message", "details"],
            "properties": {
                "code": {"type": "integer", "format": "int32", "description": "The gRPC status code."},
                "message": {"type": "string", "description": "A description for developers. It may change."},
                "details": {"type": "array", "description": "What is known of it.", "items": {"anyOf": references}},
            },
        },
        **kinds,
    }


def _detail(name: str, description: str, properties: Schema, *, optional: frozenset[str] = frozenset()) -> Schema:
    kind = {"const": f"{_TYPES}.{name}"}
    return {
        "type": "object",
        "description": description,
        "required": ["@type", *(name for name in properties if name not in optional)],
        "properties": {"@type": kind, **properties},
    }


_ERROR_INFO = _detail(
    "ErrorInfo",
    "The cause of the error. Every error has it.",
    {
        "reason": {"type": "string", "description": "The stable name of the cause, such as `STOCK_INSUFFICIENT`."},
        "domain": {"const": DOMAIN},
        "metadata": {
            "type": "object",
            "description": "Values that belong to the cause, such as `productId`.",
            "additionalProperties": {"type": "string"},
        },
    },
    optional=frozenset({"metadata"}),
)
_BAD_REQUEST = _detail(
    "BadRequest",
    "The rejected fields of the request.",
    {
        "fieldViolations": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "description"],
                "properties": {
                    "field": {"type": "string", "description": "The path of the field."},
                    "description": {"type": "string", "description": "What is wrong with it."},
                },
            },
        }
    },
)
_RETRY_INFO = _detail(
    "RetryInfo",
    "The delay before the next attempt.",
    {"retryDelay": {"type": "string", "description": "Seconds, such as `1s`.", "pattern": "^[0-9]+(\\.[0-9]+)?s$"}},
)
