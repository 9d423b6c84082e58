"""The chain that every call passes: one job for each link, composed once for each method when the server is built.

    telemetry → errors → deadline → identity → access → parsing → validation → idempotency → servicer

Requests arrive and replies leave as bytes, because gRPC would send exceptions of its (de)serializers to the caller.
A link is created from the method and the handler behind it. Links that a method does not need (such as the idempotency
of a read) are left out of its chain. Server-streaming methods have the same links: the last link of their chain sends
the messages, and the bound on open streams replaces the bound on calls (see `mesh.rpc.streams`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError

from commerce.access.v1 import access_pb2
from mesh.db.idempotency import HEADER, IdempotencyKey, Replay
from mesh.errors import (
    Code,
    DeadlineExceeded,
    InvalidArgument,
    MeshError,
    ResourceExhausted,
    Unimplemented,
)
from mesh.observe.trace import Trace
from mesh.rpc import access, status, validation
from mesh.rpc.call import ANYBODY, Call, Caller, Kind
from mesh.rpc.identity import OUTSIDERS, Tokens, peer_name
from mesh.rpc.key_scope import KeyScope, key_scope_of
from mesh.rpc.replies import Reply, to_wire
from mesh.rpc.sizes import MAX_METADATA_BYTES
from mesh.rpc.streams import Streams, StreamServicer, sending

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

Parsed = TypeVar("Parsed")
Context = grpc.aio.ServicerContext[Any, Any]
Servicer = Callable[[Any, Call], Awaitable["Message | Reply[Any]"]]
"""A method of an `rpc.py`: takes a request and its call, and returns a message or the reply of a change."""


@dataclass(slots=True)
class Incoming:
    """A call while the chain processes it: each link adds its part, and the last one creates the `Call`."""

    request: Any
    """Bytes until it is parsed, then a message."""
    context: Context
    method: str
    metadata: Mapping[str, str]
    trace: Trace
    deadline: float | None = None
    peer: str = ""
    caller: Caller = ANYBODY
    expires: float | None = None
    """When the caller's access token expires, in seconds since the epoch; None without a token."""
    key: IdempotencyKey | None = None

    def call(self) -> Call:
        """The call that is passed to the servicer."""
        return Call(self.method, self.trace, self.deadline, self.peer, self.caller, self.metadata, self.key)


Handler = Callable[[Incoming], Awaitable[bytes]]
"""A link and all that follow it: takes a call, returns the serialized reply (none for a stream, which sends them)."""

log = structlog.get_logger("rpc")


@dataclass(frozen=True, slots=True)
class Policy:
    """The configuration of the links."""

    tokens: Tokens
    default_timeout: float = 10.0
    """The timeout in seconds of a call without a deadline."""


class InFlight:
    """Counts the calls in progress and rejects more than `most`."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self._most = most

    def __enter__(self) -> None:
        if self.count >= self._most:
            raise ResourceExhausted(f"{self.count} calls are in progress", retry_after=1.0)
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class ShapeMismatch(Exception):
    """A handler does not fit its method, such as a coroutine for a stream, or the chain does not support the method."""


def chain(
    method: MethodDescriptor,
    servicer: Servicer | StreamServicer | None,
    policy: Policy,
    in_flight: InFlight,
    streams: Streams,
) -> Handler:
    """The handler of a method.

    Raises AccessUndeclared or KeyScopeUndeclared if its contract declares no such rule, and ShapeMismatch.
    """
    rule = access.rule_of(method)
    is_stream = method.server_streaming
    handler = _last(method, servicer)
    if is_change(method):
        scope = key_scope_of(method) if rule == access_pb2.ACCESS_PUBLIC else None
        handler = _idempotency(handler, scope)
    handler = _validation(handler, method)
    handler = _parsing(handler, method)
    if is_stream:
        handler = streams.bounded(handler)
    handler = _access(handler, rule, access.peers_of(method))
    handler = _identity(handler, policy.tokens, ended_subject=access.accepts_ended_subject(method))
    handler = _deadline(handler, None if is_stream else policy.default_timeout)
    handler = _errors(handler, nullcontext() if is_stream else in_flight)
    return _telemetry(handler)


def _last(method: MethodDescriptor, servicer: Any) -> Handler:
    """The link that runs the servicer. Raises ShapeMismatch.

    gRPC discards the result of a coroutine that handles a stream, and sends nothing.
    """
    if method.client_streaming:
        raise ShapeMismatch(f"{method.full_name} takes a stream of requests, which no chain handles")
    if method.server_streaming and is_change(method):
        raise ShapeMismatch(f"{method.full_name} is a stream and must declare NO_SIDE_EFFECTS: no reply can be stored")
    if servicer is None:
        return _unimplemented(method)
    if method.server_streaming:
        if not inspect.isasyncgenfunction(servicer):
            raise ShapeMismatch(f"{method.full_name} is a stream: its handler must be an async generator, with `yield`")
        return sending(servicer)
    if not inspect.iscoroutinefunction(servicer):
        raise ShapeMismatch(f"{method.full_name} has one reply: its handler must be a coroutine function")
    return _serving(servicer)


def is_change(method: MethodDescriptor) -> bool:
    """Whether the contract does not mark the method as free of side effects."""
    return bool(method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS)


def _telemetry(behind: Handler) -> Handler:
    """Log each call at the level debug. Rejected calls are logged elsewhere, and the edge logs every request."""
    if not log.is_enabled_for(logging.DEBUG):
        return behind

    async def telemetry(incoming: Incoming) -> bytes:
        began = perf_counter()
        reply = await behind(incoming)
        log.debug("served", method=incoming.method, caller=str(incoming.caller), trace=incoming.trace.trace_id,
                  ms=round((perf_counter() - began) * 1e3, 2))  # fmt: skip
        return reply

    return telemetry


def _errors(behind: Handler, in_flight: AbstractContextManager[None]) -> Handler:
    async def errors(incoming: Incoming) -> bytes:
        try:
            with in_flight:
                return await behind(incoming)
        except MeshError as error:
            failure = status.without_frames(error)
        except Exception:
            log.exception("fault", method=incoming.method, trace=incoming.trace.trace_id)
            failure = status.fault(incoming.trace.trace_id)
        log.log(
            LEVEL_OF.get(failure.code, logging.INFO), "refused", method=incoming.method, code=failure.code.name,
            reason=failure.reason, error=failure.message, caller=str(incoming.caller), trace=incoming.trace.trace_id,
        )  # fmt: skip
        if failure.code is Code.INTERNAL:
            # Its message is only for the log, because it may contain text of another service or of a library.
            failure = status.fault(incoming.trace.trace_id)
        await status.abort(incoming.context, failure)
        raise AssertionError("abort raises")

    return errors


LEVEL_OF = {Code.INTERNAL: logging.ERROR, Code.UNAVAILABLE: logging.WARNING, Code.RESOURCE_EXHAUSTED: logging.WARNING}
"""The log levels of rejections. All others are faults of the caller and have the level info."""


def _deadline(behind: Handler, default_timeout: float | None) -> Handler:
    """Give calls without a deadline one, unless `default_timeout` is None.

    gRPC itself ends a call at the deadline that its caller has set.
    """
    longest = 3600.0 if default_timeout is not None else 10 * 365 * 86_400.0

    async def wait_until(incoming: Incoming) -> bytes:
        remaining: float | None = incoming.context.time_remaining()  # None without a deadline, unlike in the stubs
        now = asyncio.get_running_loop().time()
        # An absent deadline is None or centuries away.
        if remaining is not None and remaining <= longest:
            incoming.deadline = now + remaining
            return await behind(incoming)
        if default_timeout is None:
            return await behind(incoming)
        deadline = incoming.deadline = now + default_timeout
        try:
            async with asyncio.timeout_at(deadline):
                return await behind(incoming)
        except TimeoutError as error:
            if asyncio.get_running_loop().time() < deadline:
                raise
            raise DeadlineExceeded("the deadline passed before the reply was ready") from error

    return wait_until


def _identity(behind: Handler, tokens: Tokens, *, ended_subject: bool) -> Handler:
    async def identity(incoming: Incoming) -> bytes:
        incoming.peer = peer_name(incoming.context)
        header = incoming.metadata.get("authorization", "")
        incoming.caller, incoming.expires = tokens.verified(header, ended_subject=ended_subject)
        if incoming.caller is ANYBODY and incoming.peer not in OUTSIDERS:
            incoming.caller = Caller(Kind.SERVICE, incoming.peer)
        return await behind(incoming)

    return identity


def _access(behind: Handler, rule: access_pb2.Access.ValueType, peers: frozenset[str]) -> Handler:
    async def check_access(incoming: Incoming) -> bytes:
        access.require(rule, peer=incoming.peer, caller=incoming.caller, peers=peers)
        return await behind(incoming)

    return check_access


def parsed(parse: Callable[[bytes], Parsed], data: bytes) -> Parsed:
    """Parse a request. Raises InvalidArgument / REQUEST_MALFORMED."""
    try:
        return parse(data)
    except DecodeError:
        # Without the parser's error, whose text names internal types.
        raise InvalidArgument(
            "the request cannot be parsed: it is not a message of this method, or a text is not UTF-8",
            reason="REQUEST_MALFORMED",
        ) from None


def _parsing(behind: Handler, method: MethodDescriptor) -> Handler:
    """Parse the request after access was granted. Reject metadata that is too large."""
    parse = message_factory.GetMessageClass(method.input_type).FromString

    async def parse_request(incoming: Incoming) -> bytes:
        size = sum(map(len, incoming.metadata)) + sum(map(len, incoming.metadata.values()))
        if size > MAX_METADATA_BYTES:
            raise InvalidArgument("the metadata is too large", reason="REQUEST_TOO_LARGE")
        incoming.request = parsed(parse, incoming.request)
        return await behind(incoming)

    return parse_request


def _validation(behind: Handler, method: MethodDescriptor) -> Handler:
    violations_of = validation.violations_of(method.input_type)

    async def validate(incoming: Incoming) -> bytes:
        if violations := violations_of(incoming.request):
            raise InvalidArgument("the request is not valid", violations=violations)
        return await behind(incoming)

    return validate


def _idempotency(behind: Handler, anonymous_scope: KeyScope | None) -> Handler:
    async def idempotency(incoming: Incoming) -> bytes:
        text = incoming.metadata.get(HEADER)
        if text is not None:
            scope = (
                b"" if anonymous_scope is None or incoming.caller is not ANYBODY else anonymous_scope(incoming.request)
            )
            incoming.key = IdempotencyKey.of(text, incoming.caller, incoming.method, incoming.request, scope=scope)
        try:
            return await behind(incoming)
        except Replay as replay:
            await incoming.context.send_initial_metadata((("idempotency-replayed", "true"),))
            return replay.wire

    return idempotency


def _serving(servicer: Servicer) -> Handler:
    async def serve(incoming: Incoming) -> bytes:
        return to_wire(await servicer(incoming.request, incoming.call()))

    return serve


def _unimplemented(method: MethodDescriptor) -> Handler:
    async def reject(_: Incoming) -> bytes:
        raise Unimplemented(f"{method.full_name} is not implemented")

    return reject


def entry(handler: Handler, method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
    """The entry of a chain, in the form that gRPC calls."""

    async def enter(request: bytes, context: Context) -> bytes:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        trace = Trace.following(metadata.get("traceparent", ""))
        try:
            return await handler(Incoming(request, context, method, metadata, trace))
        except grpc.aio.AbortError as aborted:
            del request, context
            raise status.without_frames(aborted)  # noqa: B904 - it has no cause

    return enter
