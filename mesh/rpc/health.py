"""The health of a service, for the callers of its contracts and, on a port without TLS, for probes.

The plain port answers `grpc.health.v1.Health/Check` and nothing else. It also refuses Watch: calls that stay open could
keep probes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mesh.errors import Unavailable
from mesh.rpc.foreign import Guarded

LIVENESS = "liveness"
"""SERVING as long as the event loop runs. A process that does not answer has to be restarted."""
READINESS = "readiness"
"""SERVING while the service can do its work. Otherwise it must not receive calls."""

_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 0),
    ("grpc.max_receive_message_length", 1024),
    ("grpc.max_connection_idle_ms", 60_000),
]


class Health:
    """The health service. `readiness`, the names in `services` and the empty name report the same."""

    def __init__(self, listen: str, services: Sequence[str]) -> None:
        """`listen` is the address of the plain port."""
        self.port = 0
        """The plain port, available after `start`."""
        self._listen = listen
        self._ready_names = ("", READINESS, *services)
        self._servicer = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None

    def add_to(self, server: Guarded) -> None:
        """Also add the health service, including Watch, to another server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)  # type: ignore[arg-type]  # it adds methods as one

    async def start(self) -> None:
        """Listen on the plain port. Raises Unavailable if the address is in use."""
        server = grpc.aio.server(options=_OPTIONS)
        Guarded(server).add_registered_method_handlers(
            health.SERVICE_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self._servicer.Check,
                    request_deserializer=health_pb2.HealthCheckRequest.FromString,
                    response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
                )
            },
        )
        try:
            self.port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise Unavailable(f"it cannot listen on {self._listen}") from error
        await self.report(is_ready=False)
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Close the plain port."""
        if self._server is not None:
            await self._server.stop(0)

    async def report(self, *, is_ready: bool) -> None:
        """Report from now on whether the service is ready."""
        states = health_pb2.HealthCheckResponse
        for name in self._ready_names:
            await self._servicer.set(name, states.SERVING if is_ready else states.NOT_SERVING)
