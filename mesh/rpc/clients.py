"""gRPC clients of other services: mutual TLS, round robin over all addresses, deadlines, retries that are safe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from mesh.db.idempotency import HEADER
from mesh.ids import new_id
from mesh.observe.trace import Trace
from mesh.rpc import status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from mesh.rpc.call import Call
    from mesh.settings import ServiceSettings

Reply = TypeVar("Reply", bound="Message")
Stub = TypeVar("Stub")

SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
    }
)
"""UNAVAILABLE is tried again: every change carries a key, so nothing is done twice."""


class Peer:
    """Another service, by all its addresses. Take a `stub` and give its methods to `ask`."""

    def __init__(self, service: str, target: Sequence[str], settings: ServiceSettings) -> None:
        self.service = service
        self._target = target
        self._tls: tuple[Path, Path, Path] = (settings.tls_ca, settings.tls_key, settings.tls_cert)
        self._channel: grpc.aio.Channel | None = None
        self._stubs: dict[object, Any] = {}

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
                    ("grpc.keepalive_time_ms", 10_000),
                    ("grpc.keepalive_timeout_ms", 5_000),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 2_000),
                    ("grpc.enable_channelz", 0),
                    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
                ],
            )
        return self._channel

    async def start(self) -> None:
        """Nothing to wait for: the channel connects when it is used."""

    async def stop(self) -> None:
        """Close the channel."""
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
        """Call `method`. Raises the error that the service answered with, or Unavailable, or DeadlineExceeded.

        A change gets an idempotency key, `key` or a new one. `calls` are those that wait for the answer: its deadline
        is the latest of theirs, at most `timeout` seconds, and its trace that of the first. `on_behalf_of` passes the
        caller's own token on.
        """
        waits = [remaining for call in calls if (remaining := call.remaining()) is not None]
        trace = calls[0].trace if calls else Trace.new()
        metadata = [("traceparent", trace.traceparent), (HEADER, key or str(new_id()))]
        if on_behalf_of is not None and on_behalf_of.authorization:
            metadata.append(("authorization", on_behalf_of.authorization))
        try:
            return await method(request, timeout=min(timeout, max(waits)) if waits else timeout, metadata=metadata)
        except grpc.aio.AioRpcError as failure:
            raise status.from_rpc_error(failure, self.service) from failure


def _address(target: Sequence[str]) -> str:
    """A gRPC target for several addresses: numeric ones are listed, one DNS name is resolved to all it stands for."""
    if len(target) == 1 and not target[0][0].isdigit():
        return f"dns:///{target[0]}"
    return f"ipv4:{','.join(target)}"
