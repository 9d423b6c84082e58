"""The messages of a durable JetStream consumer, prefetched for the next batch (ADR-0016).

A pull request asks the server for a number of messages. The server sends them as they become available, until all are
sent or the request expires. This module implements the JetStream protocol for pull consumers: a message without a reply
subject is the server's status of a request, with an HTTP-like status code in its headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import nats.errors
import orjson
import structlog

from mesh import tasks

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from mesh.events.bus import Bus

EXPIRES_S = 10.0
"""Seconds after which a pull request expires."""
_REQUEST_ENDED = "408"
_UNREACHABLE = (OSError, TimeoutError, nats.errors.Error)
"""The errors of a pull request while NATS cannot be reached. They are transient."""

log = structlog.get_logger(__name__)


class Deliveries:
    """The messages of one durable consumer for this process. At most `ahead` are requested or buffered.

    `ensure` must create the consumer if it does not exist. Errors of NATS are logged and retried.
    """

    def __init__(
        self, stream: str, consumer: str, *, ahead: int, bus: Bus, ensure: Callable[[], Awaitable[None]]
    ) -> None:
        self._name = consumer
        self._request = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._ahead = ahead
        self._bus = bus
        self._ensure = ensure
        self._subscription: Subscription | None = None
        self._arrived: list[Msg] = []
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._asked = 0
        """The number of messages that are requested and have not arrived."""
        self._era = 0
        """A part of the reply subject. Replies to requests from before the last `_forget` are ignored."""
        self._is_sure = False
        """Whether the consumer is known to exist."""
        self._backoff = tasks.Backoff(0.1, 5.0)
        self._pause = 0.0
        """Seconds to wait before `ensure` is called again."""

    @property
    def in_hand(self) -> int:
        """The number of messages that have arrived and were not taken."""
        return len(self._arrived)

    async def take(self, most: int, *, linger: float) -> list[Msg]:
        """Wait for messages and return at most `most` of them, in the order of the stream. Returns none after `end`.

        If fewer than `most` messages are present, it lingers for `linger` seconds first.
        """
        while not self._arrived and not self._ended.is_set():
            await self._keep_asking()
        if self.in_hand < most:
            await tasks.is_set_within(linger, self._ended)
        if self._ended.is_set():
            return []
        batch, self._arrived = self._arrived[:most], self._arrived[most:]
        if self._is_sure:
            try:
                await self._ask()
            except _UNREACHABLE as error:
                self._failed(error)
        return batch

    def end(self) -> None:
        """Make `take` return nothing from now on."""
        self._ended.set()
        self._wake.set()

    async def hand_back(self) -> None:
        """Return all messages that were not taken, so that another process gets them immediately. Call `end` first."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            # Messages in transit arrive before this returns. The server finds no receiver for later ones and keeps them
            # for the next request.
            async with asyncio.timeout(2):
                await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py leaves it untyped
            for message in self._arrived:
                await message.nak()
        except (TimeoutError, nats.errors.Error) as error:
            log.warning("events not handed back", consumer=self._name, count=self.in_hand, error=repr(error))
        self._arrived = []

    async def resume(self) -> None:
        """Send new requests after a reconnection, because all earlier ones are lost."""
        await self._ensure()
        self._forget()

    async def _keep_asking(self) -> None:
        """Ensure that messages are requested, and wait for a message, a status or a timeout."""
        try:
            if not self._is_sure:
                if await tasks.is_set_within(self._pause, self._ended):
                    return
                await self._make_sure()
            await self._ask()
        except _UNREACHABLE as error:
            self._failed(error)
            return
        if await tasks.is_set_within(2 * EXPIRES_S, self._wake):
            self._wake.clear()
        else:
            # The server has no request, since it would have reported its expiry by now.
            self._forget()

    def _failed(self, error: Exception) -> None:
        self._pause = self._backoff.next()
        log.warning("cannot ask for events", consumer=self._name, error=repr(error), again_in=self._pause)
        self._is_sure = False

    async def _make_sure(self) -> None:
        if self._subscription is None:
            await self._bus.connected()
            self._subscription = await self._bus.listen(self._received)
        await self._ensure()
        self._forget()
        self._is_sure = True

    async def _ask(self) -> None:
        """Request as many messages as there is room for, if that is at least half of `ahead`."""
        room = self._ahead - self._asked - len(self._arrived)
        if room < self._ahead / 2 or self._subscription is None:
            return
        request = {"batch": room, "expires": int(EXPIRES_S * 1e9)}
        reply = self._subscription.subject.replace("*", str(self._era))
        await self._bus.send(self._request, orjson.dumps(request), reply=reply)
        self._asked += room

    async def _received(self, message: Msg) -> None:
        if message.reply:
            self._arrived.append(message)
            self._asked = max(self._asked - 1, 0)
            self._succeeded()
        else:
            self._heard(message.subject.rpartition(".")[2], message.headers or {})
        self._wake.set()

    def _heard(self, era: str, headers: dict[str, str]) -> None:
        """Handle the status of a request: it has expired or was rejected."""
        if era != str(self._era):
            return
        status = headers.get("Status")
        if status == _REQUEST_ENDED and (unsent := headers.get("Nats-Pending-Messages")) is not None:
            self._asked = max(self._asked - int(unsent), 0)
            self._succeeded()
        else:
            # The consumer was deleted or has a new leader. A well-formed request fails for no other reason.
            log.warning("no events", consumer=self._name, status=status, why=headers.get("Description"))
            self._forget()
            self._pause = self._backoff.next()
            self._is_sure = False

    def _succeeded(self) -> None:
        self._backoff.reset()
        self._pause = 0.0

    def _forget(self) -> None:
        """Ignore all requests that were sent so far."""
        self._era += 1
        self._asked = 0
        self._wake.set()
