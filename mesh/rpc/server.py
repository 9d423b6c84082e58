"""The gRPC server of a service: its contract's methods behind the chain, health, and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf import descriptor_pool

from mesh import tasks
from mesh.errors import Unavailable
from mesh.patches import grpc_aio as accepting
from mesh.rpc import foreign, key_files, reflection
from mesh.rpc.chain import InFlight, Policy, chain, entry
from mesh.rpc.health import Health
from mesh.rpc.identity import Tokens
from mesh.rpc.sizes import MAX_TRANSPORT_BYTES
from mesh.rpc.streams import Streams

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from mesh.settings import ServiceSettings

_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.enable_channelz", 0),
    # No pings that measure the bandwidth, because calls are small.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_concurrent_streams", 10_000),
    # They are equal, because between them gRPC rejects requests at random.
    ("grpc.max_metadata_size", MAX_TRANSPORT_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_TRANSPORT_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

CHECKS_TIMEOUT_S = 5.0
"""The timeout of the checks in seconds. A part that hangs counts as failed."""
Check = Callable[[], Awaitable[None]]

log = structlog.get_logger(__name__)


class MethodUnknown(Exception):
    """A servicer has a method that its contract does not have."""


class Server:
    """Serves contracts with mutual TLS. Health reports SERVING while all checks pass and it does not drain."""

    def __init__(
        self,
        settings: ServiceSettings,
        servicers: Mapping[str, object],
        *,
        checks: Sequence[Check],
        revoked: Collection[str] = (),
        checks_timeout: float = CHECKS_TIMEOUT_S,
        reflection_limits: reflection.Limits = reflection.DEFAULT_LIMITS,
    ) -> None:
        """`servicers` are listed by the full name of their service, such as `commerce.order.v1.OrderService`.

        Access tokens of the sessions and subjects whose ids are in `revoked` are refused, and their streams
        end within seconds.

        After `checks_timeout` seconds, a check counts as failed.

        Raises AccessUndeclared, KeyScopeUndeclared, MethodUnknown or ShapeMismatch if a contract is incomplete or does
        not match its servicer.
        Raises SettingsInvalid if a file with keys or certificates is not valid.
        """
        key_files.require_valid(settings)
        self.port = 0
        """The port on which it listens, available after `start`."""
        self._settings = settings
        self._checks = checks
        self._checks_timeout = checks_timeout
        self._reflection_limits = reflection_limits
        self._in_flight = InFlight(settings.max_in_flight)
        self.streams = Streams(settings.max_streams, settings.max_streams_per_caller)
        """The open streams."""
        self._revoked = revoked
        self._tokens = Tokens(settings.jwks, revoked=revoked)
        policy = Policy(self._tokens, settings.default_timeout)
        pool = descriptor_pool.Default()
        self._handlers = {
            name: self._handlers_of(pool.FindServiceByName(name), servicer, policy)
            for name, servicer in servicers.items()
        }
        self.health = Health(settings.health_listen, tuple(self._handlers))
        """The health service, also on its plain port."""
        self._server: grpc.aio.Server | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        """The number of calls in progress, without open streams."""
        return self._in_flight.count

    async def start(self) -> None:
        """Listen, and report SERVING as soon as the checks pass. Raises Unavailable if an address is in use."""
        server = self._server = accepting.server(_OPTIONS)
        for name, handlers in self._handlers.items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        guarded = foreign.Guarded(server)
        self.health.add_to(guarded)
        if self._settings.reflection:
            reflection.enable(guarded, self._reflection_limits)
        credentials = grpc.ssl_server_credentials(
            [(self._settings.tls_key.read_bytes(), self._settings.tls_cert.read_bytes())],
            root_certificates=self._settings.tls_ca.read_bytes(),
            require_client_auth=True,
        )
        try:
            self.port = server.add_secure_port(self._settings.listen, credentials)
        except RuntimeError as error:
            raise Unavailable(f"it cannot listen on {self._settings.listen}") from error
        await self.health.start()
        await server.start()
        await self._check()
        self._watch = asyncio.create_task(self._keep_checking(), name="health")
        log.info("listening", port=self.port, health_port=self.health.port)

    async def stop(self) -> None:
        """Drain: report NOT_SERVING, accept no new calls, and give those in progress `drain_seconds` to finish.

        Open streams end with UNAVAILABLE.
        """
        if self._server is None:
            return
        await tasks.end(self._watch)
        await self.health.report(is_ready=False)
        if self._settings.drain_notice_seconds:
            await asyncio.sleep(self._settings.drain_notice_seconds)
        log.info("draining", in_flight=self.in_flight, streams=self.streams.count)
        # Both take effect in later turns of the loop, so clients get the GOAWAY before their streams end.
        self.streams.drain()
        await self._server.stop(self._settings.drain_seconds)
        log.info("drained", cut=self.in_flight + self.streams.count)
        await self.health.stop()

    def _handlers_of(
        self, service: ServiceDescriptor, servicer: object, policy: Policy
    ) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        unknown = {name for name in vars(type(servicer)) if name[0].isupper()} - set(service.methods_by_name)
        if unknown:
            raise MethodUnknown(f"{service.full_name} has no {sorted(unknown)}")
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in service.methods:
            served = chain(method, getattr(servicer, method.name, None), policy, self._in_flight, self.streams)
            make = (
                grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
            )
            handlers[method.name] = make(entry(served, f"/{service.full_name}/{method.name}"))
        return handlers

    async def _keep_checking(self) -> None:
        while True:
            await asyncio.sleep(1)
            if self._revoked:
                self.streams.end_revoked(self._tokens)
            await self._check()

    async def _check(self) -> None:
        try:
            async with asyncio.timeout(self._checks_timeout):
                for check in self._checks:
                    await check()
        except Exception as error:  # noqa: BLE001  # after any error of a check the service is not ready
            log.warning("not ready", error=repr(error))
            await self.health.report(is_ready=False)
        else:
            await self.health.report(is_ready=True)
