"""The routes of the edge: two for each public method, and no others to the services.

One route matches gRPC and gRPC-Web clients by the name of the method, the other matches JSON clients by HTTP verb and
path. Envoy therefore knows the requirements of a route, such as a token, before it reads the body (ADR-0033).
"""

from __future__ import annotations

import re
from typing import Any

from commerce.access.v1 import access_pb2
from gateway.clusters import REFLECTION, STREAMS
from gateway.config import EdgeConfig, Limits
from gateway.contracts import Method, methods
from gateway.filters import (
    CLIENT_ADDRESS,
    NO_BODY_LIMIT,
    NO_RATE_LIMIT,
    REFLECTION_RATE,
    SUBJECT,
    TOKEN_NEEDED,
    TOKEN_WELCOME,
    bare_resource,
    body_limit,
    cors_policy,
)

_REFLECTION_SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

STREAM_IDLE = "3600s"
"""How long a stream may be silent. A client that is gone is noticed much sooner, by HTTP/2 pings or TCP."""

_SPEAKS_GRPC = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
"""A gRPC or gRPC-Web client."""
_SPEAKS_JSON = {**_SPEAKS_GRPC, "invert_match": True, "treat_missing_header_as_empty": True}
"""A JSON client."""

_NOWHERE = {
    "match": {"prefix": "/"},
    # A route to a cluster that does not exist, not a direct response: CORS only looks at routes.
    "route": {"cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND"},
}


def route_table(config: EdgeConfig) -> dict[str, Any]:
    """Envoy's `route_config`."""
    open_methods = [method for method in methods() if method.is_open]
    return {
        "name": "edge",
        "validate_clusters": False,
        "request_headers_to_remove": [SUBJECT, "x-envoy-internal", "x-forwarded-for"],
        # In the place of `x-forwarded-for`, which says it only to those who know how many proxies there are.
        "request_headers_to_add": [_header(CLIENT_ADDRESS, "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%")],
        "virtual_hosts": [
            {
                "name": "edge",
                "domains": ["*"],
                "typed_per_filter_config": cors_policy(config.allowed_origins),
                "response_headers_to_add": [_header("x-content-type-options", "nosniff")],
                "routes": [
                    _answer("/healthz", {"inline_string": '{"status":"up"}'}, cache="no-store"),
                    _answer("/.well-known/jwks.json", {"filename": str(config.jwks)}, cache="public, max-age=300"),
                    *(_of_json(method, config.limits) for method in open_methods),
                    *(_of_grpc(method, config.limits) for method in open_methods),
                    *(_reflection(service, config.limits) for service in _REFLECTION_SERVICES if config.reflection),
                    _NOWHERE,
                ],
            }
        ],
    }


def _of_json(method: Method, limits: Limits) -> dict[str, Any]:
    """The route for JSON clients."""
    verb = {"name": ":method", "string_match": {"exact": method.verb}}
    route = {"match": {**_path(method.template), "headers": [verb, _SPEAKS_JSON]}, **_to_service(method, limits)}
    if method.response_body:
        route["metadata"] = bare_resource(method.response_body)
    return route


def _of_grpc(method: Method, limits: Limits) -> dict[str, Any]:
    """The route for gRPC and gRPC-Web clients."""
    return {"match": {"path": method.path, "headers": [_SPEAKS_GRPC]}, **_to_service(method, limits)}


def _path(template: str) -> dict[str, Any]:
    """A match of the path of JSON clients. Ids contain no colon; a colon separates a custom verb."""
    parts = re.split(r"{[\w.]+}", template)
    if len(parts) == 1:
        return {"path": template}
    return {"safe_regex": {"regex": "[^/:]+".join(map(re.escape, parts))}}


def _to_service(method: Method, limits: Limits) -> dict[str, Any]:
    """The destination and the requirements of a call, the same for all kinds of clients."""
    route: dict[str, Any] = {
        "route": {
            "cluster": method.upstream,
            "timeout": f"{method.seconds:g}s",
            "retry_policy": _retries(method),
        },
        "typed_per_filter_config": {**_token(method), **_body(method, limits)},
        "response_headers_to_add": [_header("cache-control", "no-store")],
    }
    if method.is_stream:
        route["route"]["idle_timeout"] = STREAM_IDLE
        route["route"]["priority"] = STREAMS
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


def _answer(path: str, body: dict[str, str], *, cache: str) -> dict[str, Any]:
    """What the edge says by itself, however busy it is."""
    return {
        "match": {"path": path, "headers": [{"name": ":method", "string_match": {"exact": "GET"}}]},
        "direct_response": {"status": 200, "body": body},
        "typed_per_filter_config": NO_RATE_LIMIT,
        "response_headers_to_add": [_header("content-type", "application/json"), _header("cache-control", cache)],
    }


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
