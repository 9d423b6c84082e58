"""Changes to grpc.aio. Checked with grpcio 1.82.3; it reaches into `grpc._cython`, so the version is pinned.

1. The server asks gRPC for `AHEAD` calls at a time instead of one (ADR-0024). Remove it when grpc.aio asks for more
   than one itself.
2. `_find_method_handler` leaves a reference cycle for every call (ADR-0027). Remove it when it leaves none.

The tests in `tests/runtime/test_grpc_patches.py` fail when one of these stops working, or is no longer needed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import grpc.aio
from grpc._cython import cygrpc
from grpc.aio._server import Server as GrpcServer

AHEAD = 32
"""The number of calls that gRPC may accept before the server asks for more."""


def server(options: Sequence[tuple[str, Any]]) -> grpc.aio.Server:
    """`grpc.aio.server`, without interceptors and limits."""
    return cast("grpc.aio.Server", _Server(options))


class _Details(NamedTuple):
    """The details of a call that a generic handler reads."""

    method: str
    invocation_metadata: Sequence[tuple[str, str | bytes]]


async def _find_method_handler(
    method: str,
    metadata: Sequence[tuple[str, str | bytes]],
    generic_handlers: Sequence[grpc.GenericRpcHandler],
    _no_interceptors: tuple[()],
) -> grpc.RpcMethodHandler[Any, Any] | None:
    """Like gRPC's own function, but without a closure that refers to itself and keeps the call's metadata alive."""
    details = cast("grpc.HandlerCallDetails", _Details(method, metadata))
    for each in generic_handlers:
        if (handler := each.service(details)) is not None:
            return handler
    return None


cygrpc._find_method_handler = _find_method_handler  # noqa: SLF001 - gRPC reads the module attribute at each call


class _Server(GrpcServer):
    """The server of `grpc.aio.server` with another core."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, None, (), (), tuple(options), None)


class _Core(cygrpc.AioServer):  # type: ignore[misc]
    """Requests calls from gRPC ahead, while gRPC's own loop requests one after the other.

    gRPC completes the requests in their order, so the oldest one is always the next.
    """

    def __init__(self, *of_grpc: object) -> None:
        super().__init__(*of_grpc)
        self._asked: deque[asyncio.Task[Any]] = deque()
        self._is_looping = True
        self._is_ending = False

    async def _request_call(self) -> object:
        """The next call. gRPC's loop awaits it as soon as it has passed the previous call to its handler."""
        while not self._asked or (len(self._asked) < AHEAD and not self._is_ending):
            self._asked.append(asyncio.create_task(super()._request_call()))
        return await self._asked.popleft()

    async def _server_main_loop(self, started: asyncio.Future[bool]) -> None:
        """gRPC's loop. After it has ended, nothing receives the requested calls."""
        try:
            await super()._server_main_loop(started)
        finally:
            self._is_looping = False

    async def shutdown(self, grace: float | None) -> None:
        """Shut down like gRPC, after all accepted calls have been passed to their handlers."""
        self._is_ending = True
        while self._is_looping and any(call.done() for call in self._asked):  # noqa: ASYNC110
            await asyncio.sleep(0)
        ending = asyncio.create_task(super().shutdown(grace))
        # gRPC completes the pending requests without a call. A call that it accepts at this moment is not handled; its
        # caller receives an error when the object is deleted.
        await asyncio.gather(*self._asked, return_exceptions=True)
        self._asked.clear()
        await ending
