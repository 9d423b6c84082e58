"""What JetStream delivers to a durable consumer: asked for ahead, so that the next batch is there when it is wanted.

A request asks the server for so many messages; it sends them as they come, until they are sent or the request ends.
The rules are those of the JetStream wire protocol for pull consumers: an answer without a reply subject is the server's
word on a request, with a status of HTTP's kind in its headers.
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
"""How long the server keeps a request."""
_REQUEST_ENDED = "408"
_TROUBLE = (OSError, TimeoutError, nats.errors.Error)
"""What asking fails with while NATS cannot be reached; it passes."""

log = structlog.get_logger(__name__)


class Deliveries:
    """The messages of one durable consumer that come to this process; at most `ahead` are asked for or in hand.

    `ensure` makes the consumer if it is not there. All that can go wrong with NATS is waited for, and logged.
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
        """Messages asked for that have not come."""
        self._era = 0
        """Goes into the reply subject: an answer to a request from before the last `_forget` counts for nothing."""
        self._is_sure = False
        """Whether the consumer is known to be there."""
        self._pause = 0.0
        """Seconds to wait before it is made sure of again."""

    @property
    def in_hand(self) -> int:
        """Messages that have come and were not taken."""
        return len(self._arrived)

    async def take(self, most: int, *, gather: float) -> list[Msg]:
        """Wait for messages and take `most` of them at most, in the order of the stream. None after `end`.

        While there are fewer than that, others have `gather` seconds to come and be taken with them.
        """
        while not self._arrived and not self._ended.is_set():
            await self._keep_asking()
        if self.in_hand < most:
            await tasks.is_set_within(gather, self._ended)
        if self._ended.is_set():
            return []
        batch, self._arrived = self._arrived[:most], self._arrived[most:]
        if self._is_sure:
            try:
                await self._ask()
            except _TROUBLE as error:
                self._failed(error)
        return batch

    def end(self) -> None:
        """Nothing more is taken."""
        self._ended.set()
        self._wake.set()

    async def hand_back(self) -> None:
        """Give the server what has come and was not taken, so that another process gets it at once. After `end`."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        try:
            # What is on its way arrives before this is over. What the server sends afterwards reaches nobody; it sees
            # that, and keeps it for the next who asks.
            async with asyncio.timeout(2):
                await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py leaves it untyped
            for message in self._arrived:
                await message.nak()
        except (TimeoutError, nats.errors.Error) as error:
            log.warning("events not handed back", consumer=self._name, count=self.in_hand, error=repr(error))
        self._arrived = []

    async def resume(self) -> None:
        """Ask anew, after a connection was lost and with it all requests."""
        await self._ensure()
        self._forget()

    async def _keep_asking(self) -> None:
        """Make sure that something is asked for, and wait until something has changed."""
        try:
            if not self._is_sure:
                if await tasks.is_set_within(self._pause, self._ended):
                    return
                self._pause = min(max(0.1, 2 * self._pause), 5.0)
                await self._make_sure()
            await self._ask()
        except _TROUBLE as error:
            self._failed(error)
            return
        if await tasks.is_set_within(2 * EXPIRES_S, self._wake):
            self._wake.clear()
        else:
            # Had the server a request, it would have said by now that it has ended.
            self._forget()

    def _failed(self, error: Exception) -> None:
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
        """Ask for as many as there is room for, when that is half of all or more."""
        room = self._ahead - self._asked - len(self._arrived)
        if room < self._ahead / 2 or self._subscription is None:
            return
        wish = {"batch": room, "expires": int(EXPIRES_S * 1e9)}
        reply = self._subscription.subject.replace("*", str(self._era))
        await self._bus.send(self._request, orjson.dumps(wish), reply=reply)
        self._asked += room

    async def _received(self, message: Msg) -> None:
        if message.reply:
            self._arrived.append(message)
            self._asked = max(self._asked - 1, 0)
            self._pause = 0.0
        else:
            self._heard(message.subject.rpartition(".")[2], message.headers or {})
        self._wake.set()

    def _heard(self, era: str, headers: dict[str, str]) -> None:
        """The server's word on a request: it has ended, or could not be taken."""
        if era != str(self._era):
            return
        status = headers.get("Status")
        if status == _REQUEST_ENDED and (unsent := headers.get("Nats-Pending-Messages")) is not None:
            self._asked = max(self._asked - int(unsent), 0)
            self._pause = 0.0
        else:
            # The consumer was deleted, or has another leader; a request that was well made has no other trouble.
            log.warning("no events", consumer=self._name, status=status, why=headers.get("Description"))
            self._forget()
            self._is_sure = False

    def _forget(self) -> None:
        """Count on no request any more."""
        self._era += 1
        self._asked = 0
        self._wake.set()
