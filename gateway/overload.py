"""The reaction of the edge to memory pressure: it resets the largest requests before it refuses others (ADR-0033)."""

from __future__ import annotations

from typing import Any

from gateway.config import Limits

_HEAP = "envoy.resource_monitors.fixed_heap"
_SMALLEST_COUNTED = 12
"""Power of two: Envoy can reset streams whose buffers hold 4 KiB or more."""


def overload_manager(limits: Limits) -> dict[str, Any]:
    """Envoy's `overload_manager`."""
    return {
        # With the default of 1 s, an attack can allocate hundreds of megabytes between two refreshes.
        "refresh_interval": "0.1s",
        "resource_monitors": [
            _monitor(_HEAP, "fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=limits.heap_bytes),
            _monitor(
                "envoy.resource_monitors.global_downstream_max_connections",
                "downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=limits.connections,
            ),
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _SMALLEST_COUNTED},
        "actions": [
            _action("shrink_heap", threshold={"value": 0.5}),
            # Envoy runs this action when the pressure changes, and not while it is saturated.
            _action("reset_high_memory_stream", scaled={"scaling_threshold": 0.5, "saturation_threshold": 1.0}),
            _action("disable_http_keepalive", threshold={"value": 0.9}),
            _action("stop_accepting_requests", threshold={"value": 0.95}),
            _action("stop_accepting_connections", threshold={"value": 0.98}),
        ],
    }


def _monitor(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.resource_monitors.{kind}", **settings},
    }


def _action(name: str, **trigger: Any) -> dict[str, Any]:
    return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": _HEAP, **trigger}]}
