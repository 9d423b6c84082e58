"""Error handling for servicers from libraries (health, reflection): their errors are named like those of the chain."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from mesh.errors import MeshError
from mesh.observe.trace import Trace
from mesh.rpc import status
from mesh.rpc.chain import Context, parsed

Handler = Any
"""A `grpc.RpcMethodHandler`, whose types are those of gRPC's other, synchronous server."""

log = structlog.get_logger(__name__)


class Guarded:
    """Registers the methods of a servicer with `server`, for the generated `add_…Servicer_to_server` functions.

    Without it gRPC sends the Python exception to the caller when a request cannot be parsed or a method raises.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Handler]) -> None:
        """Register the methods of a service, given by name."""
        guarded = {name: _guarded(handler, f"/{service}/{name}") for name, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, guarded),))

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Do nothing: generated code registers the same methods in both ways."""


def _guarded(handler: Handler, method: str) -> Handler:
    """The same method, which parses its requests itself."""
    parse = handler.request_deserializer
    if parse is None:
        raise TypeError(f"{method} has no request deserializer")

    async def unary_unary(request: bytes, context: Context) -> Any:
        async with _named_errors(context, method):
            return await handler.unary_unary(parsed(parse, request), context)

    async def unary_stream(request: bytes, context: Context) -> None:
        async with _named_errors(context, method):
            await handler.unary_stream(parsed(parse, request), context)

    async def stream_stream(requests: AsyncIterable[bytes], context: Context) -> AsyncIterator[Any]:
        async with _named_errors(context, method):
            async for reply in handler.stream_stream(_parsed_each(parse, requests), context):
                yield reply

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(stream_stream, response_serializer=handler.response_serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(unary_stream, response_serializer=handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(unary_unary, response_serializer=handler.response_serializer)


async def _parsed_each(parse: Callable[[bytes], Any], requests: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    """The parsed requests. Unlike a generator expression, it does not begin to read before it is iterated."""
    async for each in requests:
        yield parsed(parse, each)


@asynccontextmanager
async def _named_errors(context: Context, method: str) -> AsyncIterator[None]:
    """End the call with a named error when the block raises. A status that the method itself has set is kept."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except MeshError as error:
        await status.abort(context, status.without_frames(error))
    except Exception:
        trace = Trace.new()
        log.exception("fault", method=method, trace=trace.trace_id)
        await status.abort(context, status.fault(trace.trace_id))
