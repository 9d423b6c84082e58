"""The errors that Envoy makes itself, in the form of every error of the mesh.

Envoy asks its mappers, in order, what to make of an error of its own. Here each error has three of them,
one for each kind of client: JSON gets the status as its body, gRPC and gRPC-Web in headers.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.json_format import MessageToJson
from google.rpc import code_pb2, error_details_pb2, status_pb2

from commerce.errors.v1 import errors_pb2

DOMAIN = "commerce"
"""The `ErrorInfo.domain` of every reason."""

CLIENT = "mesh.client"
"""The dynamic metadata that hold the `content-type` the client sent: filters overwrite the header."""

_BAD_REQUEST = f"type.googleapis.com/{error_details_pb2.BadRequest.DESCRIPTOR.full_name}"

_NO_WORDS = "%REQ(x-mesh-none)%"
"""A header that nobody sends: Envoy takes no empty text for a body."""


class Client(Enum):
    """What a client speaks, by how the content type of its request reads; nothing reads as JSON."""

    GRPC = "{0}.matches('^application/grpc([+;]|$)')"
    GRPC_WEB = "{0}.startsWith('application/grpc-web')"
    JSON = "!{0}.startsWith('application/grpc')"


@dataclass(frozen=True, slots=True)
class EdgeError:
    """One error that Envoy makes, and how it reaches a client."""

    when: str
    """What tells it from others, in CEL over Envoy's attributes."""
    http: int
    """The HTTP status, for clients of JSON."""
    code: code_pb2.Code.ValueType
    reason: errors_pb2.ErrorReason.ValueType
    message: str
    retry_after: int | None = None
    """Seconds after which it is worth to try again."""
    violations: str = ""
    """For JSON clients: what Envoy replaces by the list of field violations."""
    clients: Collection[Client] = tuple(Client)

    def status(self) -> status_pb2.Status:
        """The error as every part of the mesh writes it."""
        reason = errors_pb2.ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")
        details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))]
        if self.retry_after is not None:
            delay = duration_pb2.Duration(seconds=self.retry_after)
            details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        return status_pb2.Status(code=self.code, message=self.message, details=details)


OPTIONS = "options"
"""The name of the routes that answer OPTIONS on a known path."""
WRONG_VERB = "wrong verb"
"""The name of the routes that refuse verbs which a known path does not have."""
HEADER_LIMIT = "headers"
"""The name of the policy that refuses headers."""
QUERY = "mesh.query"
"""The dynamic metadata with the `violations` of a query."""

_DETAILS = "response.code_details"

EDGE_ERRORS = (
    EdgeError(
        when=f"xds.route_name == '{WRONG_VERB}' && {_DETAILS} == 'cluster_not_found'",
        http=405,
        code=code_pb2.UNIMPLEMENTED,
        reason=errors_pb2.ERROR_REASON_METHOD_NOT_ALLOWED,
        message="this path does not have the verb of the request",
        clients=[Client.JSON],
    ),
    EdgeError(
        when=f"{_DETAILS} == 'lua_response'",
        http=400,
        code=code_pb2.INVALID_ARGUMENT,
        reason=errors_pb2.ERROR_REASON_REQUEST_MALFORMED,
        message="the query has unknown parameters or values of the wrong type",
        violations=f"%DYNAMIC_METADATA({QUERY}:violations)%",
        clients=[Client.JSON],
    ),
    EdgeError(
        when=f"{_DETAILS} == 'cluster_not_found'",
        http=404,
        code=code_pb2.NOT_FOUND,
        reason=errors_pb2.ERROR_REASON_ROUTE_NOT_FOUND,
        message="nothing is served at this path",
        clients=[Client.JSON],
    ),
    EdgeError(
        when=f"{_DETAILS} == 'cluster_not_found'",
        http=501,
        code=code_pb2.UNIMPLEMENTED,
        reason=errors_pb2.ERROR_REASON_METHOD_UNIMPLEMENTED,
        message="there is no such method",
        clients=[Client.GRPC, Client.GRPC_WEB],
    ),
    EdgeError(
        when=f"{_DETAILS} == 'jwt_authn_access_denied{{Jwt_is_missing}}'",
        http=401,
        code=code_pb2.UNAUTHENTICATED,
        reason=errors_pb2.ERROR_REASON_TOKEN_MISSING,
        message="an access token is needed, as a bearer token in the authorization header",
    ),
    EdgeError(
        when=f"{_DETAILS}.startsWith('jwt_authn_access_denied')",
        http=401,
        code=code_pb2.UNAUTHENTICATED,
        reason=errors_pb2.ERROR_REASON_TOKEN_INVALID,
        message="the access token is malformed, expired, or not from here",
    ),
    EdgeError(
        when=f"{_DETAILS} == 'local_rate_limited'",
        http=429,
        code=code_pb2.RESOURCE_EXHAUSTED,
        reason=errors_pb2.ERROR_REASON_RATE_LIMITED,
        message="too many requests from this client",
        retry_after=1,
    ),
    EdgeError(
        when="response.code == 413",
        http=413,
        code=code_pb2.INVALID_ARGUMENT,
        reason=errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        message="the request is too large",
    ),
    EdgeError(
        when=f"response.code == 431 || {_DETAILS}.startsWith('rbac_access_denied_matched_policy[{HEADER_LIMIT}]')",
        http=431,
        code=code_pb2.INVALID_ARGUMENT,
        reason=errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE,
        message="the headers of the request are too large, or too many",
    ),
    EdgeError(
        when=f"{_DETAILS}.startsWith('overload') || {_DETAILS}.contains('overflow')",
        http=429,
        code=code_pb2.RESOURCE_EXHAUSTED,
        reason=errors_pb2.ERROR_REASON_OVERLOADED,
        message="the mesh has as much work as it accepts",
        retry_after=1,
    ),
    EdgeError(
        when="response.code == 504 || response.code == 408",
        http=504,
        code=code_pb2.DEADLINE_EXCEEDED,
        reason=errors_pb2.ERROR_REASON_DEADLINE_EXCEEDED,
        message="the call took too long",
    ),
    EdgeError(
        when="response.code == 502 || response.code == 503",
        http=503,
        code=code_pb2.UNAVAILABLE,
        reason=errors_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
        message="the service cannot be reached",
        retry_after=1,
    ),
    EdgeError(
        when=f"{_DETAILS}.startsWith('grpc_json_transcode_failure') && response.code < 500",
        http=400,
        code=code_pb2.INVALID_ARGUMENT,
        reason=errors_pb2.ERROR_REASON_REQUEST_MALFORMED,
        # In Envoy's own words, for they name the place.
        message="%LOCAL_REPLY_BODY%",
        clients=[Client.JSON],
    ),
    EdgeError(
        when="response.code >= 400 && response.code < 500",
        http=400,
        code=code_pb2.INVALID_ARGUMENT,
        reason=errors_pb2.ERROR_REASON_REQUEST_MALFORMED,
        message="the request cannot be read",
    ),
    EdgeError(
        when="response.code >= 500",
        http=500,
        code=code_pb2.INTERNAL,
        reason=errors_pb2.ERROR_REASON_INTERNAL,
        message="an internal error",
    ),
)


def local_reply(allowed_origins: Sequence[str]) -> dict[str, Any]:
    """Envoy's `local_reply_config`: the first mapper whose filter matches makes the reply."""
    mappers = [_options(), *(_mapper(error, client) for error in EDGE_ERRORS for client in error.clients)]
    for mapper in mappers:
        # The CORS filter does not see requests that Envoy refuses before it runs the filters.
        mapper["headers_to_add"] = [*mapper.get("headers_to_add", []), *allow_origin(allowed_origins)]
    return {"mappers": mappers}


def allow_origin(origins: Sequence[str]) -> list[dict[str, Any]]:
    """The header with which a response allows the scripts of these origins to read it."""
    if not origins:
        return []
    value = "*"
    if value not in origins:
        origin = "request.headers['origin']"
        value = f"%CEL('origin' in request.headers && {origin} in {json.dumps(list(origins))} ? {origin} : '')%"
    return [{"header": {"key": "access-control-allow-origin", "value": value}, "append_action": "ADD_IF_ABSENT"}]


def _options() -> dict[str, Any]:
    """The answer to OPTIONS, which is a local reply for the sake of the CORS filter."""
    return {
        "filter": _when(f"xds.route_name == '{OPTIONS}' && {_DETAILS} == 'cluster_not_found'"),
        "status_code": 204,
        "body_format_override": {"text_format_source": {"inline_string": _NO_WORDS}, "omit_empty_values": True},
    }


def _mapper(error: EdgeError, client: Client) -> dict[str, Any]:
    metadata = "metadata.filter_metadata"
    content_type = f"(('{CLIENT}' in {metadata}) ? {metadata}['{CLIENT}']['content-type'] : '')"
    mapper: dict[str, Any] = {"filter": _when(f"({error.when}) && {client.value.format(content_type)}")}
    match client:
        case Client.GRPC:
            # Envoy makes the body the grpc-message.
            mapper["headers_to_add"] = _headers(_grpc_status(error))
            mapper["body_format_override"] = {"text_format_source": {"inline_string": error.message}}
        case Client.GRPC_WEB:
            mapper["status_code"] = 200
            mapper["headers_to_add"] = _headers({**_grpc_status(error), "grpc-message": error.message})
            mapper["body_format_override"] = {
                "content_type": "application/grpc",
                "text_format_source": {"inline_string": _NO_WORDS},
                "omit_empty_values": True,
            }
        case Client.JSON:
            mapper["status_code"] = error.http
            if error.retry_after is not None:
                mapper["headers_to_add"] = _headers({"retry-after": str(error.retry_after)})
            body = json.loads(MessageToJson(error.status()))
            if error.violations:
                body["details"].append({"@type": _BAD_REQUEST, "fieldViolations": error.violations})
            mapper["body_format_override"] = {"json_format": body}
    return mapper


def _when(expression: str) -> dict[str, Any]:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
                "expression": expression,
            },
        }
    }


def _grpc_status(error: EdgeError) -> dict[str, str]:
    # Binary headers of gRPC are base64 without padding.
    details = base64.b64encode(error.status().SerializeToString()).decode().rstrip("=")
    return {"grpc-status": str(error.code), "grpc-status-details-bin": details}


def _headers(headers: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in headers.items()
    ]


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
