"""Services for the edge to reach: real gRPC servers with mutual TLS that answer as a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import Default as DefaultPool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.config import Address
from mesh.rpc.reflection import public_services
from mesh.rpc.sizes import MAX_TRANSPORT_BYTES
from stack.pki import Credentials

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Context], Awaitable[Message]]
Answers = Callable[[Any, Context], AsyncIterator[Message]]


@dataclass(frozen=True)
class Received:
    """A call as it arrived."""

    method: str
    request: Message
    metadata: dict[str, str | bytes]


@dataclass
class Upstream(grpc.GenericRpcHandler):
    """One service. A method nobody has told it about answers with an empty response."""

    credentials: Credentials
    received: list[Received] = field(default_factory=list)
    answers: dict[str, Answer | Answers] = field(default_factory=dict)
    """By the name of the method, `CreateOrder`."""
    address: Address = field(default_factory=lambda: Address("127.0.0.1", 0))
    _server: grpc.aio.Server | None = None
    _health: health.aio.HealthServicer = field(default_factory=health.aio.HealthServicer)

    async def start(self) -> None:
        """Listen, on the same port as before if it ran before."""
        # The limits of metadata of the real services.
        limits = [(f"grpc.{name}", MAX_TRANSPORT_BYTES) for name in ("max_metadata_size", "absolute_max_metadata_size")]
        self._server = server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *limits])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(public_services(), server)
        # Last: it answers whatever it is asked.
        server.add_generic_rpc_handlers((self,))
        identity = (self.credentials.key.read_bytes(), self.credentials.cert.read_bytes())
        tls = grpc.ssl_server_credentials([identity], self.credentials.ca.read_bytes(), require_client_auth=True)
        port = server.add_secure_port(f"{self.address.host}:{self.address.port}", tls)
        self.address = Address(self.address.host, port)
        await self.say(serving=True)
        await server.start()

    async def stop(self) -> None:
        """Cut what is under way, and listen no more."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def say(self, *, serving: bool) -> None:
        """Tell the edge, when it asks, whether calls are welcome."""
        states = health_pb2.HealthCheckResponse
        await self._health.set("", states.SERVING if serving else states.NOT_SERVING)

    def forget(self) -> None:
        """Be as new, for the next test."""
        self.received.clear()
        self.answers.clear()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Part of gRPC's interface: the handler of a method."""
        service, _, name = handler_call_details.method.removeprefix("/").rpartition("/")
        try:
            method = DefaultPool().FindServiceByName(service).methods_by_name[name]
        except KeyError:
            return None
        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            self._stream(method) if method.server_streaming else self._unary(method),
            request_deserializer=message_factory.GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _unary(self, method: MethodDescriptor) -> Any:
        async def handle(request: Message, context: Context) -> Message:
            self._receive(method, request, context)
            answer: Any = self.answers.get(method.name)
            return (await answer(request, context)) if answer else _empty(method)

        return handle

    def _stream(self, method: MethodDescriptor) -> Any:
        async def handle(request: Message, context: Context) -> AsyncIterator[Message]:
            self._receive(method, request, context)
            answers: Any = self.answers.get(method.name)
            if answers:
                async for message in answers(request, context):
                    yield message

        return handle

    def _receive(self, method: MethodDescriptor, request: Message, context: Context) -> None:
        self.received.append(Received(method.full_name, request, dict(context.invocation_metadata() or ())))


def _empty(method: MethodDescriptor) -> Message:
    return message_factory.GetMessageClass(method.output_type)()


async def never(_request: Message, _context: Context) -> Message:
    """An answer that does not come."""
    return await asyncio.Future[Message]()
