"""gRPC clients of other services: mutual TLS, round robin over all workers, deadlines, retries and a breaker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh import tasks
from mesh.db.idempotency import HEADER
from mesh.errors import Unavailable
from mesh.ids import new_id
from mesh.observe.trace import Trace
from mesh.rpc import status
from mesh.rpc.breaker import Breaker
from mesh.rpc.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from mesh.rpc.call import Call
    from mesh.settings import ServiceSettings

Reply = TypeVar("Reply", bound="Message")
Stub = TypeVar("Stub")

SERVICE_CONFIG = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}},
)
"""Calls go to the workers that report SERVING. gRPC itself retries only calls that no worker has received."""

SUSPECT_AFTER_S = 1.0
"""The time without an answer after which the breaker probes the peer and another worker is tried as well."""
MIN_PROBED_WORKERS = 3
"""The workers that a probe asks at least if their number is not known."""


class Peer:
    """Another service, with all its addresses. Pass the methods of its `stub` to `ask`."""

    def __init__(
        self, service: str, target: Sequence[str], settings: ServiceSettings, *, suspect_after: float = SUSPECT_AFTER_S
    ) -> None:
        self.service = service
        self._target = target
        self._tls: tuple[Path, Path, Path] = (settings.tls_ca, settings.tls_key, settings.tls_cert)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[object, Any] = {}
        has_one_worker = len(target) == 1 and _is_numeric(target[0])
        self._probed_workers = 1 if has_one_worker else max(MIN_PROBED_WORKERS, len(target))
        self.breaker = Breaker(service, self._probe, means_down=_means_down, suspect_after=suspect_after)
        """The circuit breaker of the peer."""
        self.retries = Retries(hedge_after=None if has_one_worker else suspect_after)
        """The retries of calls to the peer, and their counts."""

    def stub(self, kind: Callable[[grpc.aio.Channel], Stub]) -> Stub:
        """The stub of a generated class. The channel is opened with the first one, inside the event loop."""
        if kind not in self._stubs:
            self._stubs[kind] = kind(self.channel)
        made: Stub = self._stubs[kind]
        return made

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel."""
        if self._channel is None:
            ca, key, certificate = (path.read_bytes() for path in self._tls)
            self._channel = grpc.aio.secure_channel(
                _address(self._target),
                grpc.ssl_channel_credentials(ca, key, certificate),
                options=[
                    # The certificate must be the service's, whatever the address.
                    ("grpc.ssl_target_name_override", self.service),
                    ("grpc.service_config", SERVICE_CONFIG),
                    # A worker that hangs loses its connection after 10 s at most, even if nothing is sent to it.
                    ("grpc.keepalive_time_ms", 5_000),
                    ("grpc.keepalive_timeout_ms", 5_000),
                    # The real timeout of a keepalive ping in gRPC 1.82; the default is 60 s.
                    ("grpc.http2.ping_timeout_ms", 5_000),
                    ("grpc.http2.max_pings_without_data", 0),
                    # No keepalive ping is sent while a ping that measures the bandwidth has no reply.
                    ("grpc.http2.bdp_probe", 0),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1_000),
                    ("grpc.enable_channelz", 0),
                    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
                ],
            )
        return self._channel

    async def start(self) -> None:
        """Do nothing: the channel connects when it is used."""

    async def stop(self) -> None:
        """End the probes and close the channel."""
        await self.breaker.stop()
        if self._channel is not None:
            await self._channel.close(grace=2)

    async def ask(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Reply],
        request: Message,
        *,
        calls: Sequence[Call] = (),
        key: str | None = None,
        timeout: float = 5.0,
        on_behalf_of: Call | None = None,
    ) -> Reply:
        """Call `method`, and again after a transient error.

        Raises the error that the service returns, Unavailable or DeadlineExceeded.

        All attempts of a change carry the same idempotency key, `key` or a new one. `calls` are the calls that wait for
        the reply: its deadline is the latest of theirs, at most `timeout` seconds from now, and its trace that of the
        first. `on_behalf_of` passes the caller's own token on.
        """
        waits = [remaining for call in calls if (remaining := call.remaining()) is not None]
        trace = calls[0].trace if calls else Trace.new()
        metadata = [("traceparent", trace.traceparent), (HEADER, key or str(new_id()))]
        if on_behalf_of is not None and on_behalf_of.authorization:
            metadata.append(("authorization", on_behalf_of.authorization))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (min(timeout, max(waits)) if waits else timeout)

        async def attempt() -> Reply:
            try:
                async with self.breaker.guard():
                    return await method(request, timeout=deadline - loop.time(), metadata=metadata)
            except grpc.aio.AioRpcError as failure:
                raise status.from_rpc_error(failure, self.service) from failure

        return await self.retries.run(attempt, deadline)

    async def _probe(self) -> None:
        """Return when one worker reports SERVING. Raises Unavailable if no probed worker does."""
        stub: Any = self.stub(health_pb2_grpc.HealthStub)
        # In one turn of the event loop, so that round robin sends each to another worker.
        checks = [asyncio.create_task(_is_serving(stub)) for _ in range(self._probed_workers)]
        try:
            for each in asyncio.as_completed(checks):
                if await each:
                    return
        finally:
            await tasks.end(*checks)
        raise Unavailable(f"the {self.service} service is not serving")


async def _is_serving(stub: Any) -> bool:
    try:
        reply = await stub.Check(health_pb2.HealthCheckRequest())
    except grpc.aio.AioRpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _means_down(failure: Exception) -> bool:
    return isinstance(failure, grpc.aio.AioRpcError) and status.is_of_transport(failure)


def _address(target: Sequence[str]) -> str:
    """A gRPC target for several addresses: numeric ones are listed, one DNS name is resolved to all it stands for."""
    if len(target) == 1 and not _is_numeric(target[0]):
        return f"dns:///{target[0]}"
    return f"ipv4:{','.join(target)}"


def _is_numeric(address: str) -> bool:
    return address[0].isdigit()
