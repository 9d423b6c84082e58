"""The event bus: one NATS connection for each process, its streams, and unreliable signals."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import nats.errors
import nats.js.api as js
import nats.js.errors
import orjson
import structlog

from mesh import tasks
from mesh.events.cloudevents import stream_of_area
from mesh.patches.nats_py import NatsClient

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext

MAX_AGE_S = 30 * 24 * 3600
"""How long a stream keeps an event."""
DEDUPLICATION_S = 120
"""How long a stream remembers event ids, so that a restarted relay stores no event twice."""
DEAD_LETTERS = "DEADLETTERS"
"""The stream of dead letters. They stay until they are redriven or deleted."""

_FLOW = 1000
"""The number of messages after which the stream reports its progress. It is larger than any batch, so none comes."""
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A token as in HTTP headers (RFC 9110, section 5.6.2)."""
_START, _ADD, _COMMIT = range(3)
"""The operation of a message in its batch."""

log = structlog.get_logger(__name__)


class ServerTooOld(nats.errors.Error):
    """The NATS server does not support fast-ingest batches (ADR-0018)."""


class Message(NamedTuple):
    """A message to publish."""

    subject: str
    payload: bytes
    headers: dict[str, str]


def _frame(message: Message, reply: str) -> bytes:
    """A message in the wire format of NATS. Raises BadSubjectError or BadHeaderError if it would not be parsed back."""
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
    """Raise BadHeaderError unless these are valid header names. Cached, because most messages have the same names."""
    for name in names:
        if _HEADER_NAME.fullmatch(name) is None:
            raise nats.errors.BadHeaderError(name)


class Bus:
    """A connection to NATS that reconnects automatically. A service keeps serving calls while it is down."""

    def __init__(self, url: str, *, name: str, replicas: int = 1) -> None:
        self._url = url
        # For logs: without the password.
        self._address = urlsplit(url).netloc.rpartition("@")[2]
        self._name = name
        self._replicas = replicas
        self._client: NatsClient | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._resuming: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._signals: dict[str, Subscription] = {}
        self._inbox = ""
        self._flights: dict[str, asyncio.Future[int]] = {}
        self._numbers = itertools.count()
        self._connections = itertools.count(1)
        self.connection = 0
        """The number of the current connection; 0 while there is none. Signals between two connections are lost."""
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []

    async def start(self) -> None:
        """Start to connect, in the background."""
        self._connecting = asyncio.create_task(self._connect(), name="nats connect")

    async def stop(self) -> None:
        """Send buffered data, then close the connection."""
        await tasks.end(self._connecting, self._resuming)
        if self._client is not None:
            try:
                await asyncio.wait_for(self._client.flush(), 2)
            except (nats.errors.Error, TimeoutError, OSError):
                log.warning("nats not flushed at stop")
            await self._client.close()

    async def flush(self) -> None:
        """Wait until the server has processed everything that was sent before."""
        await self._connection.flush()

    async def connected(self) -> None:
        """Wait until the connection has been established for the first time."""
        await self._ready.wait()

    @property
    def is_ready(self) -> bool:
        """Whether the connection has been established for the first time."""
        return self._ready.is_set()

    @property
    def reconnections(self) -> int:
        """How often the connection was established again."""
        return 0 if self._client is None else int(self._client.stats["reconnects"])

    @property
    def jetstream(self) -> JetStreamContext:
        """The JetStream context. Await `connected` first; raises ConnectionClosedError otherwise."""
        return self._connection.jetstream()

    @property
    def _connection(self) -> NatsClient:
        if self._client is None:
            raise nats.errors.ConnectionClosedError
        return self._client

    def on_reconnect(self, action: Callable[[], Awaitable[None]]) -> None:
        """Run `action` after every reconnection. If it fails, it is repeated with backoff until it succeeds."""
        self._on_reconnect.append(action)

    async def publish(self, messages: Sequence[Message], *, timeout: float = 5.0) -> int:
        """Publish messages to a stream in this order. Returns how many, counted from the first, are certainly stored.

        They are sent in one write as a fast-ingest batch (ADR-0018). The stream stores each message as it arrives and
        none after a lost or rejected one, so no message overtakes another. Returns 0 if no reply arrives within
        `timeout` seconds.

        Raises BadSubjectError, BadHeaderError, MaxPayloadError or ConnectionClosedError, and then sends nothing.
        """
        if not messages:
            return 0
        # The name of a batch must be a single token and unique among all connections.
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
        """Handle a reply of the stream to a batch."""
        flight = self._flights.get(message.subject.removeprefix(f"{self._inbox}.").partition(".")[0])
        # An empty reply means that no stream listens on the subject.
        answer = orjson.loads(message.data or b'{"error": "no stream"}')
        # A reply with a type reports progress. The final reply contains the number of stored messages.
        if flight is None or flight.done() or "type" in answer:
            return
        if error := answer.get("error"):
            log.warning("not stored", subject=message.subject, error=error)
        flight.set_result(answer.get("count", 0))

    async def acknowledge(self, messages: Sequence[Msg]) -> None:
        """Acknowledge messages to JetStream, in one write."""
        await self._connection.send([f"PUB {message.reply} 0\r\n\r\n".encode() for message in messages])

    async def ensure_stream_of(self, area: str) -> None:
        """Create the stream for the events of an area, or update its settings."""
        name = stream_of_area(area)
        await self.ensure_stream(name, f"commerce.{area}.>")

    async def ensure_stream(self, name: str, subjects: str, *, max_age: float = MAX_AGE_S) -> None:
        """Create a stream with file storage for `subjects`, or update its settings.

        Messages expire after `max_age` seconds; 0 means never.
        """
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
            # The stream exists with other settings.
            await self.jetstream.update_stream(config)

    async def ensure_consumer(
        self, stream: str, config: js.ConsumerConfig, *, not_wanted: Collection[str] = ()
    ) -> None:
        """Create a durable pull consumer, or update its settings. Its position in the stream is kept.

        The subjects of a consumer that exists are kept too, except those in `not_wanted`: a newer version of its
        service has added them. If subjects are added, the position returns to their first message, so that a consumer
        gets what was published before it knew the type. Its inbox recognizes the messages that it has applied.
        """
        name = config.durable_name or ""
        try:
            known = await self.jetstream.consumer_info(stream, name)
        except nats.js.errors.NotFoundError:
            await self.jetstream.add_consumer(stream, config)
            return
        wanted = config.filter_subjects or []
        # A consumer without a filter gets all subjects.
        before = known.config.filter_subjects or [each for each in (known.config.filter_subject,) if each] or wanted
        added = set(wanted) - set(before)
        kept = [subject for subject in before if subject not in (*wanted, *not_wanted)]
        config = config.evolve(
            filter_subjects=[*wanted, *kept],
            deliver_policy=known.config.deliver_policy,
            opt_start_seq=known.config.opt_start_seq,
        )
        # A push consumer from before ADR-0016 cannot be converted, so a pull consumer replaces it.
        if known.config.deliver_subject or added:
            done = known.ack_floor.stream_seq if known.ack_floor else 0
            start = min([done + 1, *[first for subject in added if (first := await self._first(stream, subject))]])
            await self.jetstream.delete_consumer(stream, name)
            config = config.evolve(deliver_policy=js.DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=start)
        await self.jetstream.add_consumer(stream, config)

    async def _first(self, stream: str, subject: str) -> int | None:
        """The number of the first message of a subject in a stream, if there is one."""
        try:
            message = await self.jetstream.get_msg(stream, 1, subject=subject, next=True)
        except nats.js.errors.NotFoundError:
            return None
        return message.seq

    async def listen(self, heard: Callable[[Msg], Awaitable[None]]) -> Subscription:
        """Subscribe to a new inbox and call `heard` with each message. The subject of the subscription ends in `*`."""
        client = self._connection
        return await client.subscribe(f"{client.new_inbox()}.*", cb=heard)

    async def send(self, subject: str, payload: bytes, *, reply: str) -> None:
        """Send a message whose replies, if any, go to the subject `reply`."""
        await self._connection.publish(subject, payload, reply=reply)

    async def signal(self, topic: str) -> None:
        """Wake the listeners of `topic`. A signal may be lost, so listeners must also poll."""
        if self._client is not None and self._client.is_connected:
            try:
                await self._client.publish(topic)
            except nats.errors.Error as error:
                log.debug("signal lost", topic=topic, error=repr(error))

    async def on_signal(self, topic: str, action: Callable[[str], None]) -> None:
        """Call `action` with the subject of each message of `topic`, until `off_signal`.

        A topic is a subject, which may contain wildcards. It is subscribed to again after a reconnection.
        """

        async def heard(message: Msg) -> None:
            action(message.subject)

        self._signals[topic] = await self._connection.subscribe(topic, cb=heard)

    async def off_signal(self, topic: str) -> None:
        """Stop listening to `topic`."""
        subscription = self._signals.pop(topic, None)
        if subscription is not None and self._client is not None and not self._client.is_closed:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("not unsubscribed", topic=topic, error=repr(error))

    async def _connect(self) -> None:
        backoff = tasks.Backoff(0.1, 5.0)
        while True:
            client = NatsClient()
            try:
                await client.connect(
                    self._url,
                    name=self._name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.25,  # type: ignore[arg-type]  # it accepts fractions
                    connect_timeout=2,
                    ping_interval=10,
                    pending_size=64 * 1024 * 1024,
                    error_cb=_log_error,
                    disconnected_cb=self._disconnected,
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
                await asyncio.sleep(backoff.next())
            except asyncio.CancelledError:
                # Otherwise a connection that is half established would stay open.
                await client.close()
                raise
            else:
                self._client, self._inbox = client, inbox
                self.connection = next(self._connections)
                self._ready.set()
                return

    async def _disconnected(self) -> None:
        self.connection = 0
        log.warning("nats disconnected")

    async def _reconnected(self) -> None:
        # The client calls this after the server has processed all subscriptions.
        self.connection = next(self._connections)
        log.info("nats connected again")
        if self._resuming is not None:
            self._resuming.cancel()
        # In a task, because the client would treat an error of this callback as a failed reconnection.
        self._resuming = asyncio.create_task(self._resume(), name="nats resume")

    async def _resume(self) -> None:
        for action in self._on_reconnect:
            backoff = tasks.Backoff(0.1, 5.0)
            while True:
                try:
                    await action()
                except (OSError, TimeoutError, nats.errors.Error) as error:
                    pause = backoff.next()
                    log.warning("not resumed after a reconnection", error=repr(error), again_in=pause)
                    await asyncio.sleep(pause)
                else:
                    break


def _operations(count: int) -> list[int]:
    """The operations of the messages of a batch. The only message of a batch is its last one."""
    return [_START, *[_ADD] * (count - 2), _COMMIT] if count > 1 else [_COMMIT] * count


async def _log_error(error: Exception) -> None:
    log.warning("nats error", error=repr(error))
