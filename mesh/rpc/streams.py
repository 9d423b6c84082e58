"""Limits the number of open streams, and ends streams when their token expires or is revoked, or the server drains.

A handler of a server-streaming method is an async generator. It passes the links of `mesh.rpc.chain` like any other
handler; `sending` is its last link and `Streams.bounded` the one before parsing.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from random import uniform
from typing import TYPE_CHECKING, Any

import grpc

from mesh.errors import ResourceExhausted, Unauthenticated, Unavailable
from mesh.rpc.call import ANYBODY, Kind

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.rpc.call import Call
    from mesh.rpc.chain import Context, Handler, Incoming
    from mesh.rpc.identity import Tokens

StreamServicer = Callable[[Any, "Call"], AsyncGenerator["Message", None]]
"""A server-streaming method of an `rpc.py`: takes a request and its call, and yields messages."""

RETRY_AFTER_S = 1.0
"""The delay in `RetryInfo` for a stream above a limit."""
DRAINED_RETRY_AFTER_S = (0.5, 2.5)
"""The delay in `RetryInfo` for a drained stream is random between these, so that not all clients reconnect at once."""


class Streams:
    """The open streams of a process."""

    def __init__(self, most: int, most_per_caller: int) -> None:
        """`most` streams may be open, and `most_per_caller` of one person or of one anonymous address."""
        self.count = 0
        """The number of open streams. A stream is open until its status is sent or its client has disconnected."""
        self._most = most
        self._most_per_caller = most_per_caller
        self._of_caller: Counter[str] = Counter()
        self._limits: dict[asyncio.Timeout, Incoming] = {}
        self._is_draining = False

    def bounded(self, behind: Handler) -> Handler:
        """The link that admits a stream, and ends it when its token expires or is revoked, or the server drains.

        Raises ResourceExhausted / OVERLOADED or RATE_LIMITED above a limit, Unauthenticated / TOKEN_INVALID
        when the token expires or is revoked, and Unavailable when the server drains.
        """

        async def bounded(incoming: Incoming) -> bytes:
            self._admit(incoming)
            limit = asyncio.timeout(_until_expiry(incoming))
            try:
                async with limit:
                    self._limits[limit] = incoming
                    return await behind(incoming)
            except TimeoutError:
                if not limit.expired():
                    raise
            finally:
                self._limits.pop(limit, None)
            raise _draining() if self._is_draining else Unauthenticated("the access token has expired or is revoked")

        return bounded

    def drain(self) -> None:
        """End all streams with UNAVAILABLE, and reject further ones, so that their clients reconnect elsewhere."""
        self._is_draining = True
        for limit in self._limits:
            _end(limit)

    def end_revoked(self, tokens: Tokens) -> None:
        """End the streams whose token is revoked."""
        for limit, incoming in self._limits.items():
            try:
                tokens.verified(incoming.metadata.get("authorization", ""))
            except Unauthenticated:
                _end(limit)

    def _admit(self, incoming: Incoming) -> None:
        """Count a stream until its call has ended. Its status may wait for a client that does not read."""
        if self._is_draining:
            raise _draining()
        if self.count >= self._most:
            raise ResourceExhausted(f"{self.count} streams are open", retry_after=RETRY_AFTER_S)
        name = _name_for_bounds(incoming)
        if name and self._of_caller[name] >= self._most_per_caller:
            raise ResourceExhausted(
                f"{self._of_caller[name]} streams of this caller are open",
                reason="RATE_LIMITED",
                retry_after=RETRY_AFTER_S,
            )

        def release(_: object) -> None:
            self.count -= 1
            self._of_caller[name] -= 1
            if not self._of_caller[name]:
                del self._of_caller[name]

        call = asyncio.current_task()
        assert call is not None
        call.add_done_callback(release)
        self.count += 1
        self._of_caller[name] += 1


def sending(servicer: StreamServicer) -> Handler:
    """The last link: send each message that the servicer yields. The generator is closed before the call ends."""

    async def send_each(incoming: Incoming) -> bytes:
        context = incoming.context
        is_begun = False
        async with aclosing(servicer(incoming.request, incoming.call())) as messages:
            async for message in messages:
                try:
                    if not is_begun:
                        await _begin(context)
                        is_begun = True
                    await context.write(message.SerializeToString())
                except grpc.aio.InternalError:
                    # The client is gone, and gRPC has not cancelled the call yet.
                    raise asyncio.CancelledError from None
        return b""

    return send_each


async def _begin(context: Context) -> None:
    """Send the headers, even if the call is cancelled meanwhile.

    gRPC records that they are sent when it has sent them. Otherwise it sends them again with the status, which fails.
    """
    headers = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(headers)
    except asyncio.CancelledError:
        await asyncio.gather(headers, return_exceptions=True)
        raise


def _end(limit: asyncio.Timeout) -> None:
    """End the stream with this limit at once."""
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


def _name_for_bounds(incoming: Incoming) -> str:
    """The key of the limit for each caller; empty for services, which have only the limit of the process."""
    if incoming.caller is ANYBODY:
        return incoming.call().client_network
    return "" if incoming.caller.kind is Kind.SERVICE else str(incoming.caller)


def _until_expiry(incoming: Incoming) -> float | None:
    """The seconds until the token of the caller expires; None without a token."""
    if incoming.expires is None:
        return None
    return max(0.0, incoming.expires - time.time())  # noqa: TID251  # like in `Tokens`


def _draining() -> Unavailable:
    delay = uniform(*DRAINED_RETRY_AFTER_S)  # noqa: S311  # it is no secret
    return Unavailable("the server shuts down", retry_after=round(delay, 3))
