"""The edge's listener: how connections and headers of clients are taken, and what is logged of their calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.config import EdgeConfig
from gateway.errors import local_reply
from gateway.filters import CONTENT_TYPE, filters
from gateway.routes import route_table


def listener(config: EdgeConfig, descriptors: Path) -> dict[str, Any]:
    """Envoy's listener. `descriptors` is the file of the contracts' descriptor set; other files are beside it."""
    return {
        "name": "edge",
        "address": {"socket_address": {"address": config.host, "port_value": config.port}},
        # Else another edge on the same port would get a part of the calls, and neither would know.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": _connection_manager(config, descriptors),
                    }
                ]
            }
        ],
    }


def _connection_manager(config: EdgeConfig, descriptors: Path) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "edge",
        "codec_type": "AUTO",
        "server_name": "commerce-mesh",
        "use_remote_address": True,
        "xff_num_trusted_hops": config.trusted_proxies,
        # No address is trusted more than others, so that none may steer Envoy by its headers.
        "internal_address_config": {},
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        # A filter refuses headers beyond the limit. Envoy's own limit is higher: over HTTP/2 it resets the stream.
        "max_request_headers_kb": 2 * config.limits.header_bytes // 1024,
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_headers_count": 2 * config.limits.header_count,
        },
        "http2_protocol_options": {
            "max_concurrent_streams": config.limits.streams,
            "initial_stream_window_size": 256 * 1024,
            "initial_connection_window_size": 1024 * 1024,
            "connection_keepalive": {"interval": "30s", "timeout": "10s"},
        },
        # A client that sends its request drop by drop holds a connection, but not for long.
        "request_headers_timeout": "10s",
        "request_timeout": f"{config.limits.request_seconds:g}s",
        "stream_idle_timeout": "60s",
        "drain_timeout": "5s",
        "early_header_mutation_extensions": [_clean_headers(config.trusted_proxies)],
        "local_reply_config": local_reply(config.allowed_origins),
        "access_log": [_access_log()],
        "http_filters": list(filters(config, descriptors)),
        "route_config": route_table(config, descriptors.parent),
    }


def _clean_headers(trusted_proxies: int) -> dict[str, Any]:
    """Drop what no client may say, for Envoy and the mesh say it themselves; keep its content type."""
    forged = ["x-forwarded-host", "x-forwarded-port", "x-real-ip", "x-request-id", "forwarded"]
    if not trusted_proxies:
        forged += ["x-forwarded-for", "x-forwarded-proto"]
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3"
            ".HeaderMutation",
            "mutations": [
                *({"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in ("x-envoy-", "x-mesh-")),
                *({"remove": name} for name in forged),
                {"append": {"header": {"key": CONTENT_TYPE, "value": "%REQ(content-type)%"}}},
            ],
        },
    }


def _access_log() -> dict[str, Any]:
    """A line of JSON for each call, on standard output. Queries are left out: they may hold names."""
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {
                "omit_empty_values": True,
                "json_format": {
                    "time": "%START_TIME%",
                    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                    "protocol": "%PROTOCOL%",
                    "verb": "%REQ(x-envoy-original-method?:method)%",
                    "path": "%PATH(NQ:ORIG)%",
                    "rpc": "%PATH(NQ:PATH)%",
                    "status": "%RESPONSE_CODE%",
                    # In headers or in trailers, never in both; in neither when an error was sent as JSON.
                    "grpc_status": "%RESP(grpc-status)%%TRAILER(grpc-status)%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "flags": "%RESPONSE_FLAGS%",
                    "ms": "%DURATION%",
                    "bytes_in": "%BYTES_RECEIVED%",
                    "bytes_out": "%BYTES_SENT%",
                    "service": "%UPSTREAM_CLUSTER%",
                    "upstream": "%UPSTREAM_HOST%",
                    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                    "request_id": "%REQ(x-request-id)%",
                    "traceparent": "%REQ(traceparent)%",
                },
            },
        },
    }
