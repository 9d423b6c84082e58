"""The services behind the edge, as Envoy's clusters: who they are, how they are reached, when they are left alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gateway.config import Address, EdgeConfig, TlsFiles

REFLECTION = "reflection"
"""The cluster for reflection, with the endpoints of all services: each describes the whole mesh."""

STREAMS = "HIGH"
"""The routing priority of server streams. Envoy counts each priority of a cluster in a circuit breaker of its own."""


CERTIFICATE = "certificate"
AUTHORITY = "authority"
"""The names of the two secrets of mutual TLS."""

UNREACHABLE = "unreachable"
"""The cluster without endpoints. A call to it fails at once."""


def clusters(config: EdgeConfig, folder: Path) -> list[dict[str, Any]]:
    """A cluster for each service, one for reflection unless it is off, and `UNREACHABLE`.

    `folder` is where Envoy will find the files of `secrets`.
    """
    limits = config.limits
    found = [
        _cluster(
            name,
            addresses,
            folder,
            seconds=config.upstream_seconds,
            certificates=[name],
            thresholds=[_threshold(limits.upstream_requests), _threshold(limits.upstream_streams, priority=STREAMS)],
        )
        for name, addresses in config.upstreams.items()
    ]
    if config.reflection:
        everywhere = [address for addresses in config.upstreams.values() for address in addresses]
        thresholds = [_threshold(limits.reflection_streams)]
        certificates = list(config.upstreams)
        found.append(
            _cluster(
                REFLECTION,
                everywhere,
                folder,
                seconds=config.upstream_seconds,
                certificates=certificates,
                thresholds=thresholds,
            )
        )
    found.append({"name": UNREACHABLE, "type": "STATIC", "typed_extension_protocol_options": _HTTP2})
    return found


_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def _cluster(
    name: str,
    addresses: Sequence[Address],
    folder: Path,
    *,
    seconds: float,
    certificates: Sequence[str],
    thresholds: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """`certificates` are the names of the accepted services, `seconds` is the time that they have to answer."""
    return {
        "name": name,
        "type": "STATIC" if all(_is_ip(address.host) for address in addresses) else "STRICT_DNS",
        "connect_timeout": f"{seconds:g}s",
        "lb_policy": "ROUND_ROBIN",
        "common_lb_config": {
            # By default, with half of the processes or more not serving, Envoy sends calls to those as well.
            "healthy_panic_threshold": {"value": 0.0},
            # And what it has found of their health reaches its workers up to a second later.
            "update_merge_window": "0s",
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(address) for address in addresses]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "initial_stream_window_size": 1024 * 1024,
                        "initial_connection_window_size": 16 * 1024 * 1024,
                        # A machine that is gone says nothing: ask it, so that its calls do not hang.
                        "connection_keepalive": {"interval": "10s", "timeout": "5s"},
                    }
                },
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": _mutual_tls(certificates, folder),
        },
        "health_checks": [
            {
                "grpc_health_check": {},
                "interval": "1s",
                # Without traffic Envoy would look once a minute, and send the first calls to a dead process.
                "no_traffic_interval": "1s",
                "timeout": f"{seconds:g}s",
                # The only process of a service is not called until it is found to serve again.
                "unhealthy_interval": "0.1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
            }
        ],
        # Sick is who breaks connections or does not answer. An error that a service answers with is an answer.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 5,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_local_origin_success_rate": 0,
            "enforcing_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        },
        "circuit_breakers": {"thresholds": thresholds},
    }


def _threshold(requests: int, *, priority: str = "DEFAULT") -> dict[str, Any]:
    return {
        "priority": priority,
        "max_connections": requests,
        "max_pending_requests": requests,
        "max_requests": requests,
        "retry_budget": {"budget_percent": {"value": 20.0}, "min_retry_concurrency": 10},
    }


def secrets(tls: TlsFiles) -> dict[str, dict[str, Any]]:
    """The secrets of mutual TLS, by name, in the form of Envoy's secret discovery service.

    Envoy reads the PEM files again when something is moved into their folder, as cert-manager and the kubelet do.
    """
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    certificate = {
        "certificate_chain": {"filename": str(tls.cert)},
        "private_key": {"filename": str(tls.key)},
        "watched_directory": {"path": str(tls.cert.parent)},
    }
    authority = {
        "trusted_ca": {"filename": str(tls.ca)},
        "watched_directory": {"path": str(tls.ca.parent)},
    }
    return {
        CERTIFICATE: {"@type": kind, "name": CERTIFICATE, "tls_certificate": certificate},
        AUTHORITY: {"@type": kind, "name": AUTHORITY, "validation_context": authority},
    }


def secret_file(name: str) -> str:
    """The name of the file, in the folder of the configuration, that holds a secret."""
    return f"{name}.yaml"


def _secret_config(name: str, folder: Path) -> dict[str, Any]:
    path = {"path": str(folder / secret_file(name))}
    return {"name": name, "sds_config": {"path_config_source": path, "resource_api_version": "V3"}}


def _mutual_tls(names: Sequence[str], folder: Path) -> dict[str, Any]:
    return {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": names[0],
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [_secret_config(CERTIFICATE, folder)],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": name}} for name in names
                    ],
                },
                "validation_context_sds_secret_config": _secret_config(AUTHORITY, folder),
            },
        },
    }


def _endpoint(address: Address) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": address.host, "port_value": address.port}}}}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
