"""The HTTP filters of the edge. A request passes them in this order, its response in the opposite order.

    client → gRPC-Web → content type → CORS → compression → rate per address → header limit → identification
           → rate per client → authorization → script → body limit → transcoder → abort → router

The filters before the body limit decide by the headers, so the edge buffers no body of a request that they refuse
(ADR-0033).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gateway.clusters import UNREACHABLE
from gateway.config import EdgeConfig, Limits
from gateway.contracts import methods
from gateway.errors import CLIENT, HEADER_LIMIT
from gateway.scripts import MIN_COMPRESSED_BYTES, lua_settings

ISSUER = "commerce-mesh"
"""Both `iss` and `aud` of the access tokens."""

SUBJECT = "x-mesh-subject"
"""The header in which the verified subject of the token goes to the rate limit, and no further."""

CLIENT_ADDRESS = "x-mesh-client-address"
"""The header in which a service learns the IP address of the client, without a port."""

CONTENT_TYPE = "x-mesh-content-type"
"""The header in which the listener keeps the content type that the client sent, until a filter has noted it."""

_BROTLI = "mesh.brotli"
_GZIP = "mesh.gzip"
_IDENTIFY = "mesh.identify"
_REQUIRE = "envoy.filters.http.jwt_authn"
RATE_OF_ADDRESS = "mesh.rate_of_address"
RATE_OF_CLIENT = "envoy.filters.http.local_ratelimit"

_ADDRESS = {"masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": 64}}
"""The address of a client. The owner of one IPv6 address usually owns its /64."""
_ADDRESS_KEY = {"key": "masked_remote_address"}

Counted = Sequence[tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]]
"""What a rate limit counts: pairs of the actions that produce a descriptor and the entries of that descriptor."""

_TYPES = "type.googleapis.com/envoy.extensions.filters.http"
_MATCHER = "type.googleapis.com/envoy.type.matcher.v3"
_MATCHING = "type.googleapis.com/envoy.extensions.common.matching.v3"
_SKIP = "type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter"


def filters(config: EdgeConfig, descriptors: Path) -> Iterator[dict[str, Any]]:
    """Envoy's `http_filters`. `descriptors` is the file of the contracts' descriptor set.

    The filters that verify tokens are read from files beside it (`token_filters`).
    """
    yield _readiness()
    yield _filter("grpc_web", "grpc_web.v3.GrpcWeb")
    yield _clients_kind()
    yield _filter("cors", "cors.v3.Cors")
    yield _compressor(_BROTLI, "brotli.compressor.v3.Brotli", quality=4, window_bits=16)
    yield _compressor(_GZIP, "gzip.compressor.v3.Gzip", compression_level="COMPRESSION_LEVEL_4", window_bits=13)
    if config.limits.requests_per_second_of_address:
        yield _rate_of_address(config.limits.requests_per_second_of_address)
    yield _header_limit(config.limits)
    if config.limits.requests_per_second:
        yield _from_file(_IDENTIFY, descriptors.parent)
        yield _rate_of_client(config.limits.requests_per_second)
    yield _from_file(_REQUIRE, descriptors.parent)
    yield _filter("lua", "lua.v3.Lua", **lua_settings())
    yield _filter("buffer", "buffer.v3.Buffer", max_request_bytes=config.limits.body_bytes)
    yield _transcoder(descriptors)
    yield _abort()
    yield _filter("router", "router.v3.Router", suppress_envoy_headers=True)


READY_PATH = "/readyz"
"""Answered with 200, or with 503 while the edge drains."""


def _readiness() -> dict[str, Any]:
    path = {"name": ":path", "string_match": {"exact": READY_PATH}}
    return _filter("health_check", "health_check.v3.HealthCheck", pass_through_mode=False, headers=[path])


def cors_policy(origins: Sequence[str]) -> dict[str, Any]:
    """What scripts of these web origins may do; `*` stands for any."""
    policy = {
        "@type": f"{_TYPES}.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "GET, HEAD, POST, PATCH, DELETE",
        "allow_headers": "authorization, content-type, idempotency-key, traceparent, grpc-timeout, x-grpc-web,"
        " x-user-agent",
        "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, idempotency-replayed, retry-after,"
        " allow",
        "max_age": "7200",
    }
    return {"envoy.filters.http.cors": policy}


def _token(requirement: str) -> dict[str, Any]:
    settings = {"@type": f"{_TYPES}.jwt_authn.v3.PerRouteConfig", "requirement_name": requirement}
    return {_REQUIRE: settings}


TOKEN_NEEDED = _token("needed")
"""For a route: the caller must have a good access token."""

TOKEN_WELCOME = _token("welcome")
"""For a route: the caller may have an access token, and it must be good."""


def _without(name: str) -> dict[str, Any]:
    return {
        name: {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "disabled": True,
        }
    }


def body_limit(most_bytes: int) -> dict[str, Any]:
    """For a route: the limit of the body of a request."""
    return {
        "envoy.filters.http.buffer": {
            "@type": f"{_TYPES}.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": most_bytes},
        }
    }


NO_BODY_LIMIT = _without("envoy.filters.http.buffer")
"""For a route: the request goes on before it has ended."""

NO_COMPRESSION = {**_without(_BROTLI), **_without(_GZIP)}
"""For a route whose response must not wait for more data, or has no body."""

_ABORT = "mesh.abort"
_SKIPPED_IF_OK = {
    "matcher_list": {
        "matchers": [
            {
                "predicate": {
                    "single_predicate": {
                        "input": {
                            "name": "status",
                            "typed_config": {
                                "@type": f"{_MATCHER}.HttpResponseTrailerMatchInput",
                                "header_name": "grpc-status",
                            },
                        },
                        "value_match": {"exact": "0"},
                    }
                },
                "on_match": {"action": {"name": "skip", "typed_config": {"@type": _SKIP}}},
            }
        ]
    }
}

ABORT_ON_ERROR = {_ABORT: {"@type": f"{_MATCHING}.ExtensionWithMatcherPerRoute", "xds_matcher": _SKIPPED_IF_OK}}
"""For a route of JSON clients to a stream: an error after the first message aborts the response (ADR-0038)."""

NO_RATE_LIMIT = {**_without(RATE_OF_ADDRESS), **_without(RATE_OF_CLIENT)}
"""For a route: nobody comes too often."""


def _clients_kind() -> dict[str, Any]:
    """Note which protocol the client speaks, for its errors: filters overwrite the content type."""
    noted = {"metadata_namespace": CLIENT, "key": "content-type", "type": "STRING"}
    rule = {"header": CONTENT_TYPE, "on_header_present": noted, "remove": True}
    return _filter("header_to_metadata", "header_to_metadata.v3.Config", request_rules=[rule])


def _transcoder(descriptors: Path) -> dict[str, Any]:
    return _filter(
        "grpc_json_transcoder",
        "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=str(descriptors),
        services=sorted({method.service for method in methods() if method.is_open}),
        convert_grpc_status=True,
        # Keep the route of the JSON path: by default, the transcoder matches again by the name of the method.
        match_incoming_request_route=True,
        # Zeros are shown, for `"reserved": 0` says something. A stream is a line for each message.
        print_options={"always_print_primitive_fields": True, "stream_newline_delimited": True},
        request_validation_options={
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        # As HTML forms and JavaScript write blanks in a query.
        query_param_unescape_plus=True,
        # Of a list of 500 orders with 100 items each.
        max_response_body_size=32 * 1024 * 1024,
    )


def _abort() -> dict[str, Any]:
    """Abort a response if its trailers contain an error. It is off except on routes with `ABORT_ON_ERROR`.

    JSON clients get no trailers, and the transcoder ends the response of a failed stream normally. This external
    processor of trailers cannot be reached, so that Envoy itself fails the call: once the headers are sent, it resets
    the response.
    """
    skipped = dict.fromkeys(("request_header_mode", "response_header_mode", "request_trailer_mode"), "SKIP")
    processor = {
        "@type": f"{_TYPES}.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": UNREACHABLE}},
        "processing_mode": {**skipped, "response_trailer_mode": "SEND"},
    }
    return {
        "name": _ABORT,
        "disabled": True,
        "typed_config": {
            "@type": f"{_MATCHING}.ExtensionWithMatcher",
            "extension_config": {"name": "envoy.filters.http.ext_proc", "typed_config": processor},
            "xds_matcher": _SKIPPED_IF_OK,
        },
    }


def _compressor(name: str, library: str, **settings: Any) -> dict[str, Any]:
    """Compress JSON responses of more than 1 KiB. A client that accepts both gets the first in the chain, Brotli."""
    kind = f"type.googleapis.com/envoy.extensions.compression.{library}"
    return _filter(
        "compressor",
        "compressor.v3.Compressor",
        name=name,
        response_direction_config={
            "common_config": {
                "min_content_length": MIN_COMPRESSED_BYTES,
                "content_type_matcher": [{"exact": "application/json"}],
            },
        },
        compressor_library={"name": name, "typed_config": {"@type": kind, **settings}},
        choose_first=True,
    )


def _header_limit(limits: Limits) -> dict[str, Any]:
    """Refuse requests whose headers are too large or too many, with an error that names the cause."""
    headers = _call("size", _field("request", "headers"))
    too_large = _call("_>_", _field("request", "total_size"), _constant(limits.header_bytes))
    too_many = _call("_>_", headers, _constant(limits.header_count))
    policy = {
        "permissions": [{"any": True}],
        "principals": [{"any": True}],
        "condition": _call("_||_", too_large, too_many),
    }
    return _filter("rbac", "rbac.v3.RBAC", rules={"action": "DENY", "policies": {HEADER_LIMIT: policy}})


def _call(function: str, *arguments: dict[str, Any]) -> dict[str, Any]:
    """A call in CEL, which the filter takes as a syntax tree only."""
    return {"call_expr": {"function": function, "args": list(arguments)}}


def _field(name: str, field: str) -> dict[str, Any]:
    return {"select_expr": {"operand": {"ident_expr": {"name": name}}, "field": field}}


def _constant(number: int) -> dict[str, Any]:
    return {"const_expr": {"int64_value": number}}


def token_filters(jwks: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The filters that verify access tokens with a JSON Web Key Set: for each, the name of its file and its resource.

    Envoy watches the files, and takes a filter with other keys for all further requests (ADR-0044).
    """
    for made in (_identify(jwks), _require_token(jwks)):
        yield _file_of(made["name"]), {"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", **made}


def _from_file(name: str, folder: Path) -> dict[str, Any]:
    source = {"path_config_source": {"path": str(folder / _file_of(name))}, "resource_api_version": "V3"}
    kind = f"{_TYPES}.jwt_authn.v3.JwtAuthentication"
    return {"name": name, "config_discovery": {"config_source": source, "type_urls": [kind]}}


def _file_of(name: str) -> str:
    return f"{name}.yaml"


def _identify(jwks: str) -> dict[str, Any]:
    """Verify the access token, set the header `SUBJECT` if it is valid, and accept every request."""
    mesh = {**_provider(jwks), "claim_to_headers": [{"header_name": SUBJECT, "claim_name": "sub"}]}
    requires = {"requires_any": {"requirements": [{"provider_name": "mesh"}, {"allow_missing_or_failed": {}}]}}
    return _filter(
        "jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        name=_IDENTIFY,
        providers={"mesh": mesh},
        rules=[{"match": {"prefix": "/"}, "requires": requires}],
    )


def _require_token(jwks: str) -> dict[str, Any]:
    """Refuse requests without the access token that their route requires."""
    token = {"provider_name": "mesh"}
    return _filter(
        "jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        name=_REQUIRE,
        providers={"mesh": _provider(jwks)},
        requirement_map={
            "needed": token,
            "welcome": {"requires_any": {"requirements": [token, {"allow_missing": {}}]}},
        },
    )


def _provider(jwks: str) -> dict[str, Any]:
    """How tokens are verified. The service receives the token too and verifies it again."""
    return {
        "issuer": ISSUER,
        "audiences": [ISSUER],
        "require_expiration": True,
        "forward": True,
        "local_jwks": {"inline_string": jwks},
        # The scheme may be written in any way; this is how clients do.
        "from_headers": [{"name": "authorization", "value_prefix": scheme} for scheme in ("Bearer ", "bearer ")],
        "jwt_cache_config": {"jwt_cache_size": 10_000},
    }


def _rate_of_address(per_second: int) -> dict[str, Any]:
    """Limit all requests of an address, including those that are refused later."""
    return _rate_limit(RATE_OF_ADDRESS, _rates(per_second, [([_ADDRESS], [_ADDRESS_KEY])]))


def _rate_of_client(per_second: int) -> dict[str, Any]:
    """Limit the requests of a customer, or of an address without a valid token."""
    by_subject = {"request_headers": {"header_name": SUBJECT, "descriptor_key": "subject"}}
    without_subject = {
        "header_value_match": {
            "descriptor_key": "anonymous",
            "descriptor_value": "yes",
            "expect_match": False,
            "headers": [{"name": SUBJECT, "present_match": True}],
        }
    }
    counted: Counted = [
        ([by_subject], [{"key": "subject"}]),
        ([without_subject, _ADDRESS], [{"key": "anonymous", "value": "yes"}, _ADDRESS_KEY]),
    ]
    return _rate_limit(RATE_OF_CLIENT, _rates(per_second, counted))


def _rate_limit(name: str, rates: dict[str, Any]) -> dict[str, Any]:
    return _filter("local_ratelimit", "local_ratelimit.v3.LocalRateLimit", name=name, **rates)


def _rates(per_second: int, counted: Counted) -> dict[str, Any]:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return {
        "stat_prefix": "rate",
        "filter_enabled": always,
        "filter_enforced": always,
        "rate_limited_as_resource_exhausted": True,
        "rate_limits": [{"actions": actions} for actions, _ in counted],
        # An entry without a value has a bucket for each value; the least recently used ones are dropped.
        "descriptors": [{"entries": entries, "token_bucket": _bucket(per_second)} for _, entries in counted],
        "max_dynamic_descriptors": 100_000,
        "always_consume_default_token_bucket": False,
    }


def _bucket(per_second: int) -> dict[str, Any]:
    return {"max_tokens": per_second, "tokens_per_fill": per_second, "fill_interval": "1s"}


_REFLECTIONS_PER_SECOND = 20
REFLECTION_RATE = {
    RATE_OF_CLIENT: {
        "@type": f"{_TYPES}.local_ratelimit.v3.LocalRateLimit",
        **_rates(_REFLECTIONS_PER_SECOND, [([_ADDRESS], [_ADDRESS_KEY])]),
        # Envoy requires it for a route; no request counts in it.
        "token_bucket": _bucket(_REFLECTIONS_PER_SECOND),
    }
}
"""For the routes of reflection: a limit of their own per address, so that they leave the other requests theirs."""


def _filter(extension: str, kind: str, *, name: str = "", **settings: Any) -> dict[str, Any]:
    """A filter. `name` distinguishes two filters of the same extension; routes refer to it."""
    return {
        "name": name or f"envoy.filters.http.{extension}",
        "typed_config": {"@type": f"{_TYPES}.{kind}", **settings},
    }
