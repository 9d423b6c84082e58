"""The routes of the edge: those of the public methods, and no others to the services.

gRPC and gRPC-Web clients have a route for the name of each method, JSON clients have routes for each verb and path.
Envoy therefore knows the requirements of a call, such as a token, before it reads the body (ADR-0033). The routes of
JSON clients also name the script that a request needs (ADR-0036).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from commerce.access.v1 import access_pb2
from gateway.clusters import REFLECTION, STREAMS
from gateway.config import EdgeConfig, Limits
from gateway.contracts import PATH_VARIABLE, Method, methods
from gateway.errors import OPTIONS, WRONG_VERB
from gateway.filters import (
    ABORT_ON_ERROR,
    CLIENT_ADDRESS,
    NO_BODY_LIMIT,
    NO_COMPRESSION,
    REFLECTION_RATE,
    SUBJECT,
    TOKEN_NEEDED,
    TOKEN_WELCOME,
    body_limit,
    cors_policy,
)
from gateway.own import MAX_OWN_BODY_BYTES, OwnResponse, document_responses, own_responses, set_header
from gateway.scripts import HEAD, WITH_QUERY, script_metadata

_REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

STREAM_IDLE = "3600s"
"""How long a stream may be silent. A client that is gone is noticed much sooner, by HTTP/2 pings or TCP."""

_SPEAKS_GRPC = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
"""A gRPC or gRPC-Web client."""
_SPEAKS_JSON = {**_SPEAKS_GRPC, "invert_match": True, "treat_missing_header_as_empty": True}
"""A JSON client."""

_HAS_QUERY = {"name": ":path", "string_match": {"contains": "?"}}
_HAS_NO_QUERY = {**_HAS_QUERY, "invert_match": True}

# Routes to a cluster that does not exist, not direct responses: the CORS filter ignores direct responses.
_NOWHERE = {"cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND"}


def route_table(config: EdgeConfig, folder: Path) -> dict[str, Any]:
    """Envoy's `route_config`. `folder` has the files that the edge serves."""
    open_methods = [method for method in methods() if method.is_open]
    own, documents = own_responses(config), document_responses(config, folder)
    return {
        "name": "edge",
        "max_direct_response_body_size_bytes": MAX_OWN_BODY_BYTES,
        "validate_clusters": False,
        "request_headers_to_remove": [SUBJECT, "x-envoy-internal", "x-forwarded-for"],
        # In the place of `x-forwarded-for`, which says it only to those who know how many proxies there are.
        "request_headers_to_add": [set_header(CLIENT_ADDRESS, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")],
        "virtual_hosts": [
            {
                "name": "edge",
                "domains": ["*"],
                "typed_per_filter_config": cors_policy(config.allowed_origins),
                "response_headers_to_add": [set_header("x-content-type-options", "nosniff")],
                "routes": [
                    *(route for response in own for route in response.routes()),
                    *(_of_json(method, config.limits) for method in open_methods),
                    *(_of_grpc(method, config.limits) for method in open_methods),
                    *(_of_json_with_query(method, config.limits) for method in open_methods),
                    *(_of_head(method, config.limits) for method in open_methods if method.verb == "GET"),
                    *(_reflection(service, config.limits) for service in _REFLECTION_SERVICES if config.reflection),
                    # Envoy compares the routes in order: calls come before files.
                    *(route for response in documents for route in response.routes()),
                    *_other_verbs(open_methods, [*own, *documents]),
                    {"match": {"prefix": "/"}, "route": _NOWHERE},
                ],
            }
        ],
    }


def _of_json(method: Method, limits: Limits) -> dict[str, Any]:
    """The route for JSON clients whose requests have no query: it runs no script before the call."""
    route = _json_route(method, limits, [_verb(method.verb), _SPEAKS_JSON, _HAS_NO_QUERY])
    if method.is_stream:
        route["typed_per_filter_config"] |= ABORT_ON_ERROR
    return route


def _of_json_with_query(method: Method, limits: Limits) -> dict[str, Any]:
    route = _json_route(method, limits, [_verb(method.verb), _SPEAKS_JSON, _HAS_QUERY])
    route["typed_per_filter_config"] |= WITH_QUERY
    if method.is_stream:
        route["typed_per_filter_config"] |= ABORT_ON_ERROR
    return route


def _of_head(method: Method, limits: Limits) -> dict[str, Any]:
    route = _json_route(method, limits, [_verb("HEAD"), _SPEAKS_JSON])
    route["typed_per_filter_config"] |= HEAD | NO_COMPRESSION
    if method.is_stream:
        # Its headers come with the first message; the rest need not be waited for.
        timeout = {"key": "grpc-timeout", "value": "1S"}
        route["request_headers_to_add"] = [{"header": timeout, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    return route


def _json_route(method: Method, limits: Limits, headers: list[dict[str, Any]]) -> dict[str, Any]:
    match = {**_path(method.template), "headers": headers}
    return {"match": match, **_to_service(method, limits), "metadata": script_metadata(method)}


def _of_grpc(method: Method, limits: Limits) -> dict[str, Any]:
    """The route for gRPC and gRPC-Web clients."""
    return {"match": {"path": method.path, "headers": [_SPEAKS_GRPC]}, **_to_service(method, limits)}


def _other_verbs(open_methods: Sequence[Method], own: Sequence[OwnResponse]) -> Iterator[dict[str, Any]]:
    """For each known path of JSON clients: the answer to OPTIONS, and the refusal of verbs that no method has."""
    verbs: dict[str, set[str]] = {response.path: {"GET"} for response in own}
    paths: dict[str, dict[str, Any]] = {response.path: {"path": response.path} for response in own}
    for method in open_methods:
        path = _path(method.template)
        key = str(path)
        paths[key] = path
        verbs.setdefault(key, set()).add(method.verb)
    for key, found in verbs.items():
        allowed = [verb for verb in _VERBS if verb in found or verb == "OPTIONS" or (verb == "HEAD" and "GET" in found)]
        allow = ", ".join(allowed)
        for name, headers in ((OPTIONS, [_verb("OPTIONS"), _SPEAKS_JSON]), (WRONG_VERB, [_SPEAKS_JSON])):
            yield {
                "name": name,
                "match": {**paths[key], "headers": headers},
                "route": _NOWHERE,
                "response_headers_to_add": [set_header("allow", allow)],
            }


_VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def _verb(name: str) -> dict[str, Any]:
    return {"name": ":method", "string_match": {"exact": name}}


def _path(template: str) -> dict[str, Any]:
    """A match of the path of JSON clients. Ids contain no colon; a colon separates a custom verb."""
    literals = PATH_VARIABLE.sub("\0", template).split("\0")
    if len(literals) == 1:
        return {"path": template}
    return {"safe_regex": {"regex": "[^/:]+".join(map(re.escape, literals))}}


def _to_service(method: Method, limits: Limits) -> dict[str, Any]:
    """The destination and the requirements of a call, the same for all kinds of clients."""
    route: dict[str, Any] = {
        "route": {
            "cluster": method.upstream,
            "timeout": f"{method.seconds:g}s",
            "retry_policy": _retries(method),
        },
        "typed_per_filter_config": {**_token(method), **_body(method, limits)},
        "response_headers_to_add": [set_header("cache-control", "no-store")],
    }
    if method.is_stream:
        route["route"]["idle_timeout"] = STREAM_IDLE
        route["route"]["priority"] = STREAMS
        route["typed_per_filter_config"] |= NO_COMPRESSION
    else:
        # The service learns how long it has, unless the client has told it. It is a little longer than the edge
        # waits: gRPC itself ends a call at its deadline, and gives no reason.
        timeout = {"key": "grpc-timeout", "value": f"{method.seconds * 1000 + 250:.0f}m"}
        route["request_headers_to_add"] = [{"header": timeout, "append_action": "ADD_IF_ABSENT"}]
    return route


def _token(method: Method) -> dict[str, Any]:
    return TOKEN_WELCOME if method.access == access_pb2.ACCESS_PUBLIC else TOKEN_NEEDED


def _body(method: Method, limits: Limits) -> dict[str, Any]:
    if method.is_raw:
        return body_limit(limits.raw_body_bytes)
    return body_limit(limits.staff_body_bytes) if method.access == access_pb2.ACCESS_STAFF else {}


def _retries(method: Method) -> dict[str, Any]:
    """A call that never reached a service is sent to another; one that may have, only if it changes nothing."""
    causes = ["connect-failure", "refused-stream"]
    if method.is_read and not method.is_stream:
        causes += ["reset", "unavailable"]
    return {
        "retry_on": ",".join(causes),
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        "host_selection_retry_max_attempts": 3,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
    }


def _reflection(service: str, limits: Limits) -> dict[str, Any]:
    return {
        "match": {"prefix": f"/{service}/", "headers": [_SPEAKS_GRPC]},
        "route": {
            "cluster": REFLECTION,
            "timeout": "0s",
            "max_stream_duration": {"max_stream_duration": f"{limits.reflection_seconds:g}s"},
        },
        # The request is a stream, which the buffer of the body limit would hold back until it ends.
        "typed_per_filter_config": {**NO_BODY_LIMIT, **(REFLECTION_RATE if limits.requests_per_second else {})},
    }
