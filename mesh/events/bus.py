"""The event bus: one NATS connection per process, its streams, and signals that may be lost."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import nats.errors
import nats.js.api as js
import nats.js.errors
import orjson
import structlog
from nats.aio.client import PING_PROTO, Client

from mesh import tasks
from mesh.events.cloudevents import stream_of

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext

MAX_AGE_S = 30 * 24 * 3600
"""How long a stream keeps an event."""
DEDUPLICATION_S = 120
"""How long a stream remembers event ids, so that a relay that starts again leaves no second copy."""
DEAD_LETTERS = "DEADLETTERS"
"""The stream of events that a consumer could not apply; they stay until a person has seen to them."""

_FLOW = 1000
"""Messages after which a stream is asked to say how far it has come: more than are published at once."""
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A token in the sense of HTTP's headers (RFC 9110, 5.6.2)."""
_START, _ADD, _COMMIT = range(3)
"""What a message is to its batch."""

log = structlog.get_logger(__name__)


class ServerTooOld(nats.errors.Error):
    """A NATS server that does not know the batches in which events are published."""


class Message(NamedTuple):
    """What is published."""

    subject: str
    payload: bytes
    headers: dict[str, str]


_BLANKS = " \t\n\r\v\f"


@lru_cache(maxsize=256)
def _name_in(text: str) -> str | None:
    """The name of a header, as it is received before the colon; none when it is no name."""
    name = text.strip(_BLANKS)
    return name if name.isascii() and name == "".join(name.split()) else None


class _Client(Client):
    """The client of nats-py, which sends many messages as one, and whose `flush` means what it says.

    There the PING overtakes what is buffered (2.16): its answer proves nothing of what was sent before, and `drain`
    throws away messages that came until the server heard of it.
    """

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send messages in wire form, in one piece. While the connection mends itself they wait for that.

        Raises ConnectionClosedError, ConnectionDrainingError, OutboundBufferLimitError when too much waits already, or
        MaxPayloadError.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if self.is_draining_pubs:
            raise nats.errors.ConnectionDrainingError
        if any(len(frame) > self.max_payload for frame in frames):
            raise nats.errors.MaxPayloadError
        data = b"".join(frames)
        if not data:
            return
        if not self.is_connected and self._pending_data_size + len(data) > self._max_pending_size:
            raise nats.errors.OutboundBufferLimitError
        await self._send_command(data)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # As nats-py does (2.16), which takes three times as long: it looks at each character of each name anew.
        fields = (line.partition(":") for line in raw.decode("utf-8", "replace").split("\r\n"))
        return {
            name: value.strip(_BLANKS)
            for text, colon, value in fields
            if colon and (name := _name_in(text)) is not None
        }

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        # Who asked may have given up. nats-py answers a cancelled future all the same, and the error that this is ends
        # the reading: nothing is heard on the connection any more, until two of its own pings are missed.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


def _frame(message: Message, reply: str) -> bytes:
    """A message as NATS wants it on the wire. Raises BadSubjectError or BadHeaderError when it would be another one."""
    if message.subject.split() != [message.subject]:
        raise nats.errors.BadSubjectError
    _require_names(tuple(message.headers))
    header = "".join(["NATS/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in message.headers.items()), "\r\n"])
    if header.count("\n") != len(message.headers) + 2 or header.count("\r") != len(message.headers) + 2:
        raise nats.errors.BadHeaderError(header)
    head = header.encode()
    line = f"HPUB {message.subject} {reply} {len(head)} {len(head) + len(message.payload)}\r\n"
    return b"".join((line.encode(), head, message.payload, b"\r\n"))


@lru_cache(maxsize=64)
def _require_names(names: tuple[str, ...]) -> None:
    """Raise BadHeaderError unless these are names of headers; looked at once, for most messages have the same."""
    for name in names:
        if _HEADER_NAME.fullmatch(name) is None:
            raise nats.errors.BadHeaderError(name)


class Bus:
    """A connection to NATS that comes back by itself. A service can serve, and take orders, while it is down."""

    def __init__(self, url: str, *, name: str, replicas: int = 1) -> None:
        self._url = url
        # For the log: without the password.
        self._address = urlsplit(url).netloc.rpartition("@")[2]
        self._name = name
        self._replicas = replicas
        self._client: _Client | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._mending: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._signals: dict[str, Subscription] = {}
        self._inbox = ""
        self._flights: dict[str, asyncio.Future[int]] = {}
        self._numbers = itertools.count()
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        """Begin to connect, in the background."""
        self._connecting = asyncio.create_task(self._connect(), name="nats connect")

    async def stop(self) -> None:
        """Send what is buffered, then close."""
        await tasks.end(self._connecting, self._mending)
        if self._client is not None:
            try:
                await asyncio.wait_for(self._client.flush(), 2)
            except (nats.errors.Error, TimeoutError, OSError):
                log.warning("nats not flushed at stop")
            await self._client.close()

    async def connected(self) -> None:
        """Wait until the connection has been made once; afterwards it mends itself."""
        await self._ready.wait()

    @property
    def jetstream(self) -> JetStreamContext:
        """JetStream. Await `connected` first."""
        return self._connection.jetstream()

    @property
    def _connection(self) -> _Client:
        if self._client is None:
            raise nats.errors.ConnectionClosedError
        return self._client

    def on_reconnect(self, action: Callable[[], Awaitable[None]]) -> None:
        """Do `action` whenever the connection has come back; again, when it fails, until it succeeds."""
        self._on_reconnect.append(action)

    async def publish(self, messages: Sequence[Message], *, timeout: float = 5.0) -> int:
        """Publish to a stream, in this order; how many of them, from the first on, it has for sure.

        They leave in one write, as a fast-ingest batch (ADR-0018): each is stored as it comes, and after one that is
        lost or refused none is, so that no message overtakes another one.

        Raises BadSubjectError, BadHeaderError, MaxPayloadError or ConnectionClosedError, and then sends nothing.
        """
        if not messages:
            return 0
        # The name of a batch is one token, and no other connection's.
        batch = f"{self._inbox.rpartition('.')[2]}-{next(self._numbers)}"
        frames = [
            _frame(message, f"{self._inbox}.{batch}.{_FLOW}.fail.{number}.{operation}.$FI")
            for number, (message, operation) in enumerate(zip(messages, _operations(len(messages)), strict=True), 1)
        ]
        flight: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._flights[batch] = flight
        try:
            async with asyncio.timeout(timeout):
                await self._connection.send(frames)
                return await flight
        except TimeoutError:
            log.warning("not acknowledged in time", messages=len(messages))
            return 0
        finally:
            del self._flights[batch]

    async def _answered(self, message: Msg) -> None:
        """The stream's word on a batch."""
        flight = self._flights.get(message.subject.removeprefix(f"{self._inbox}.").partition(".")[0])
        # An empty answer is the server's word that no stream listens.
        answer = orjson.loads(message.data or b'{"error": "no stream"}')
        # What has a type is said on the way; the last word is how many were stored before the batch ended.
        if flight is None or flight.done() or "type" in answer:
            return
        if error := answer.get("error"):
            log.warning("not stored", subject=message.subject, error=error)
        flight.set_result(answer.get("count", 0))

    async def acknowledge(self, messages: Sequence[Msg]) -> None:
        """Tell JetStream that these are done with."""
        await self._connection.send([f"PUB {message.reply} 0\r\n\r\n".encode() for message in messages])

    async def ensure_stream_of(self, area: str) -> None:
        """Make the stream of an area's events, or bring its settings up to date."""
        name = stream_of(f"commerce.{area}.")
        await self.ensure_stream(name, f"commerce.{area}.>")

    async def ensure_stream(self, name: str, subjects: str, *, max_age: float = MAX_AGE_S) -> None:
        """Make a stream on files for `subjects`, or bring its settings up to date; with `max_age` 0 it keeps all."""
        config = js.StreamConfig(
            name=name,
            subjects=[subjects],
            storage=js.StorageType.FILE,
            retention=js.RetentionPolicy.LIMITS,
            max_age=max_age,
            duplicate_window=DEDUPLICATION_S,
            num_replicas=self._replicas,
            allow_batched=True,
        )
        try:
            await self.jetstream.add_stream(config)
        except nats.js.errors.BadRequestError:
            # It is there with other settings.
            await self.jetstream.update_stream(config)

    async def ensure_consumer(self, stream: str, config: js.ConsumerConfig) -> None:
        """Make a durable pull consumer, or bring its settings up to date; where it stands in the stream stays."""
        name = config.durable_name or ""
        try:
            known = await self.jetstream.consumer_info(stream, name)
        except nats.js.errors.NotFoundError:
            pass
        else:
            config = config.evolve(deliver_policy=known.config.deliver_policy, opt_start_seq=known.config.opt_start_seq)
            if known.config.deliver_subject:
                # It pushes, as consumers did before ADR-0016, and that cannot be changed: one in its place goes on.
                await self.jetstream.delete_consumer(stream, name)
                done = known.ack_floor.stream_seq if known.ack_floor else 0
                config = config.evolve(deliver_policy=js.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=done + 1)
        await self.jetstream.add_consumer(stream, config)

    async def listen(self, heard: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Call `heard` with what comes to an inbox of its own; the subject of the subscription ends in a `*`."""
        client = self._connection
        return await client.subscribe(f"{client.new_inbox()}.*", cb=heard)

    async def send(self, subject: str, payload: bytes, *, reply: str) -> None:
        """Send a message that is answered, if at all, to the subject `reply`."""
        await self._connection.publish(subject, payload, reply=reply)

    async def signal(self, topic: str) -> None:
        """Tell whoever listens to `topic` to look. May be lost: only ever a short cut past a poll."""
        if self._client is not None and self._client.is_connected:
            try:
                await self._client.publish(topic)
            except nats.errors.Error as error:
                log.debug("signal lost", topic=topic, error=repr(error))

    async def on_signal(self, topic: str, action: Callable[[], None]) -> None:
        """Call `action` at each signal of `topic`, until `off_signal`."""

        async def heard(_: Msg) -> None:
            action()

        self._signals[topic] = await self._connection.subscribe(topic, cb=heard)

    async def off_signal(self, topic: str) -> None:
        """No longer listen to `topic`."""
        subscription = self._signals.pop(topic, None)
        if subscription is not None and self._client is not None and not self._client.is_closed:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("not unsubscribed", topic=topic, error=repr(error))

    async def _connect(self) -> None:
        delay = 0.1
        while True:
            client = _Client()
            try:
                await client.connect(
                    self._url,
                    name=self._name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.25,  # type: ignore[arg-type]  # it takes fractions
                    connect_timeout=2,
                    ping_interval=10,
                    pending_size=64 * 1024 * 1024,
                    error_cb=_log_error,
                    disconnected_cb=_log_disconnect,
                    reconnected_cb=self._reconnected,
                )
                version = client.connected_server_version
                if (version.major, version.minor) < (2, 14):
                    raise ServerTooOld(f"NATS {version.major}.{version.minor} is too old: 2.14 or newer is needed")
                inbox = client.new_inbox()
                await client.subscribe(f"{inbox}.>", cb=self._answered)
            except (OSError, TimeoutError, ValueError, nats.errors.Error) as error:
                log.warning("nats cannot be used", address=self._address, error=repr(error))
                await client.close()
                await asyncio.sleep(delay)
                delay = min(delay * 2, 5.0)
            except asyncio.CancelledError:
                # Half made, it would stay open.
                await client.close()
                raise
            else:
                self._client, self._inbox = client, inbox
                self._ready.set()
                return

    async def _reconnected(self) -> None:
        log.info("nats connected again")
        if self._mending is not None:
            self._mending.cancel()
        # Not here: what this callback raises, the client takes for a failure to reconnect.
        self._mending = asyncio.create_task(self._mend(), name="nats mend")

    async def _mend(self) -> None:
        for action in self._on_reconnect:
            delay = 0.1
            while True:
                try:
                    await action()
                except (OSError, TimeoutError, nats.errors.Error) as error:
                    log.warning("not mended after a reconnection", error=repr(error), again_in=delay)
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, 5.0)
                else:
                    break


def _operations(count: int) -> list[int]:
    """What each message of a batch is to it; one alone is the last one too."""
    return [_START, *[_ADD] * (count - 2), _COMMIT] if count > 1 else [_COMMIT] * count


async def _log_error(error: Exception) -> None:
    log.warning("nats error", error=repr(error))


async def _log_disconnect() -> None:
    log.warning("nats disconnected")
