"""The edge's HTTP filters: what happens to a request between the client and the router, and to the answer.

    client → gRPC-Web → client's kind → CORS → body limit → bare resources → transcoder → token → rate → router

From the transcoder on every request is gRPC, whatever the client speaks, so that access and routes are
decided in one way, by the name of the method. An answer takes the same way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gateway.config import EdgeConfig
from gateway.contracts import methods
from gateway.errors import CLIENT

ISSUER = "commerce-mesh"
"""Both `iss` and `aud` of the access tokens."""

SUBJECT = "x-mesh-subject"
"""The header in which the verified subject of the token goes to the rate limit, and no further."""

CLIENT_ADDRESS = "x-mesh-client-address"
"""The header in which a service learns the IP address of the client, without a port."""

CONTENT_TYPE = "x-mesh-content-type"
"""The header in which the listener keeps the content type that the client sent, until a filter has noted it."""

_TYPES = "type.googleapis.com/envoy.extensions.filters.http"

_UNWRAP = """\
local of_grpc = {"grpc-status", "grpc-message", "grpc-encoding", "grpc-accept-encoding"}

function envoy_on_response(response)
  if response:headers():get("content-type") ~= "application/json" then
    return
  end
  for _, name in ipairs(of_grpc) do
    response:headers():remove(name)
  end
  local field = response:metadata():get("response_body")
  if field == nil or response:headers():get(":status") ~= "200" then
    return
  end
  local body = response:body()
  local json = body:getBytes(0, body:length())
  local before = '{"' .. field .. '":'
  if json:sub(1, #before) == before then
    local length = body:setBytes(json:sub(#before + 1, -2))
    response:headers():replace("content-length", length)
  end
end
"""


def filters(config: EdgeConfig, descriptors: Path) -> Iterator[dict[str, Any]]:
    """Envoy's `http_filters`. `descriptors` is the file of the contracts' descriptor set."""
    yield _filter("grpc_web", "grpc_web.v3.GrpcWeb")
    yield _clients_kind()
    yield _filter("cors", "cors.v3.Cors")
    yield _filter("buffer", "buffer.v3.Buffer", max_request_bytes=config.limits.body_bytes)
    # Envoy's transcoder does not do what `response_body` asks for, so that `{"order":{…}}` becomes `{…}` here.
    yield _filter("lua", "lua.v3.Lua", default_source_code={"inline_string": _UNWRAP})
    yield _transcoder(descriptors)
    yield _tokens(config.jwks)
    if config.limits.requests_per_second:
        yield _rate_limit(config.limits.requests_per_second)
    yield _filter("router", "router.v3.Router", suppress_envoy_headers=True)


def bare_resource(field: str) -> dict[str, Any]:
    """The metadata of a route whose JSON clients get the one field of the response."""
    return {"filter_metadata": {"envoy.filters.http.lua": {"response_body": field}}}


def cors_policy(origins: Sequence[str]) -> dict[str, Any]:
    """What scripts of these web origins may do; `*` stands for any."""
    policy = {
        "@type": f"{_TYPES}.cors.v3.CorsPolicy",
        "allow_origin_string_match": [{"exact": origin} for origin in origins],
        "allow_methods": "GET, POST, PATCH, DELETE",
        "allow_headers": "authorization, content-type, idempotency-key, traceparent, grpc-timeout, x-grpc-web,"
        " x-user-agent",
        "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, idempotency-replayed, retry-after",
        "max_age": "7200",
    }
    return {"envoy.filters.http.cors": policy}


def _token(requirement: str) -> dict[str, Any]:
    settings = {"@type": f"{_TYPES}.jwt_authn.v3.PerRouteConfig", "requirement_name": requirement}
    return {"envoy.filters.http.jwt_authn": settings}


TOKEN_NEEDED = _token("needed")
"""For a route: the caller must have a good access token."""

TOKEN_WELCOME = _token("welcome")
"""For a route: the caller may have an access token, and it must be good."""


def _without(name: str) -> dict[str, Any]:
    return {
        f"envoy.filters.http.{name}": {
            "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
            "disabled": True,
        }
    }


NO_BODY_LIMIT = _without("buffer")
"""For a route: the request goes on before it has ended."""

NO_RATE_LIMIT = _without("local_ratelimit")
"""For a route: nobody comes too often."""


def _clients_kind() -> dict[str, Any]:
    """Note what the client speaks, for the errors it is told: filters overwrite the content type."""
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
        # Zeros are shown, for `"reserved": 0` says something. A stream is a line for each message.
        print_options={"always_print_primitive_fields": True, "stream_newline_delimited": True},
        request_validation_options={
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        # Of a list of 500 orders with 100 items each.
        max_response_body_size=32 * 1024 * 1024,
    )


def _tokens(jwks: Path) -> dict[str, Any]:
    """Verify the access token, which goes on to the service: it verifies it for itself."""
    token = {"provider_name": "mesh"}
    return _filter(
        "jwt_authn",
        "jwt_authn.v3.JwtAuthentication",
        providers={
            "mesh": {
                "issuer": ISSUER,
                "audiences": [ISSUER],
                "require_expiration": True,
                "forward": True,
                "local_jwks": {"filename": str(jwks)},
                # The scheme may be written in any way; this is how clients do.
                "from_headers": [
                    {"name": "authorization", "value_prefix": scheme} for scheme in ("Bearer ", "bearer ")
                ],
                "claim_to_headers": [{"header_name": SUBJECT, "claim_name": "sub"}],
                "jwt_cache_config": {"jwt_cache_size": 10_000},
            }
        },
        requirement_map={
            "needed": token,
            "welcome": {"requires_any": {"requirements": [token, {"allow_missing": {}}]}},
        },
    )


def _rate_limit(per_second: int) -> dict[str, Any]:
    """So many requests for each customer, and for each address that sends no token."""
    bucket = {"max_tokens": per_second, "tokens_per_fill": per_second, "fill_interval": "1s"}
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    by_subject = {"request_headers": {"header_name": SUBJECT, "descriptor_key": "subject"}}
    without_subject = {
        "header_value_match": {
            "descriptor_key": "anonymous",
            "descriptor_value": "yes",
            "expect_match": False,
            "headers": [{"name": SUBJECT, "present_match": True}],
        }
    }
    return _filter(
        "local_ratelimit",
        "local_ratelimit.v3.LocalRateLimit",
        stat_prefix="rate",
        filter_enabled=always,
        filter_enforced=always,
        rate_limited_as_resource_exhausted=True,
        rate_limits=[{"actions": [by_subject]}, {"actions": [without_subject, {"remote_address": {}}]}],
        # An entry without a value has a bucket for each value that comes; the least used ones are forgotten.
        descriptors=[
            {"entries": [{"key": "subject"}], "token_bucket": bucket},
            {"entries": [{"key": "anonymous", "value": "yes"}, {"key": "remote_address"}], "token_bucket": bucket},
        ],
        max_dynamic_descriptors=100_000,
        always_consume_default_token_bucket=False,
    )


def _filter(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{_TYPES}.{kind}", **settings}}
