"""The streams of a mesh, read without a change: an audit acknowledges nothing, and its consumers end by themselves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors
import orjson
from nats.aio.msg import Msg
from nats.js.api import StreamState

from mesh.events.bus import DEAD_LETTERS
from mesh.patches.nats_py import RawReader

_REQUEST = 10_000
"""Messages that one request asks for."""
_ANSWER_WITHIN_S = 30.0
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class StreamsUnreadable(Exception):
    """NATS does not answer, or not with what was asked for."""


class Seen(NamedTuple):
    """An event, as a message of a stream has it, or a row of an outbox."""

    event_id: str
    """Empty for a message that is no event. Its subject is its `aggregate_id` then."""
    type: str
    sequence: str
    aggregate_id: str


class Mark(NamedTuple):
    """A message by which a stream is recognized: one that was lost or replaced by an older copy lacks it."""

    number: int
    event_id: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consumer has come."""

    applied_through: int
    """Every message of the stream up to this one is acknowledged."""
    waiting: int


class Streams:
    """The streams of a mesh."""

    def __init__(self, client: RawReader) -> None:
        self._client = client
        self.jetstream = client.jetstream(timeout=_ANSWER_WITHIN_S)

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Streams]:
        """Connect. Raises StreamsUnreadable."""
        client = RawReader()
        try:
            await client.connect(url, name="mesh audit", allow_reconnect=False, connect_timeout=5, error_cb=_ignore)
        except (OSError, TimeoutError, nats.errors.Error) as error:
            await client.close()
            raise StreamsUnreadable(f"NATS does not answer: {error!r}") from error
        try:
            yield cls(client)
        finally:
            await client.close()

    async def state(self, stream: str) -> StreamState | None:
        """The numbers of a stream; None if it does not exist."""
        try:
            return (await self.jetstream.stream_info(stream)).state
        except nats.js.errors.NotFoundError:
            return None

    async def mark(self, stream: str) -> Mark | None:
        """The number of the last message of a stream, and its id; None if there is no message."""
        state = await self.state(stream)
        if state is None or not state.messages:
            return None
        return await self.message(stream, state.last_seq or 0)

    async def message(self, stream: str, number: int) -> Mark | None:
        """The number and the id of a message; None if it is not there."""
        try:
            found = await self.jetstream.get_msg(stream, number)
        except nats.js.errors.NotFoundError:
            return None
        return Mark(number, (found.headers or {}).get("ce-id", ""))

    async def progress(self, stream: str, consumer: str) -> Progress | None:
        """How far a consumer has come; None if it does not exist."""
        try:
            found = await self.jetstream.consumer_info(stream, consumer)
        except nats.js.errors.NotFoundError:
            return None
        waiting = (found.num_pending or 0) + (found.num_ack_pending or 0)
        return Progress(found.ack_floor.stream_seq if found.ack_floor else 0, waiting)

    async def oldest_waiting(self, stream: str, consumer: str) -> datetime | None:
        """When the oldest event that a consumer has not applied was stored, or one before it; None if none waits."""
        progress = await self.progress(stream, consumer)
        state = await self.state(stream)
        if progress is None or state is None or not progress.waiting:
            return None
        found = await self._next(stream, max(progress.applied_through + 1, state.first_seq or 1))
        return datetime.fromisoformat(found["time"]).astimezone(UTC) if found else None

    async def last_of(self, stream: str, subject: str) -> tuple[int, dict[str, str]] | None:
        """The number and headers of the last message of a subject; None if there is none."""
        try:
            found = await self.jetstream.get_last_msg(stream, subject)
        except nats.js.errors.NotFoundError:
            return None
        return found.seq or 0, found.headers or {}

    async def dead_letter(self, consumer: str, subject: str) -> dict[str, str]:
        """The headers of the last dead letter of a consumer with this subject; empty if there is none."""
        found = await self.last_of(DEAD_LETTERS, f"mesh.dead.{consumer}.{subject}")
        return found[1] if found else {}

    async def read(self, stream: str, since: datetime) -> AsyncIterator[list[Seen]]:
        """The events that a stream has stored since a time, in portions, up to the last one of now."""
        state = await self.state(stream)
        if state is None or not state.messages:
            return
        portions = _Portions(state.last_seq or 0)
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=_ignore_message)
        self._client.read_raw(subscription, portions.read)
        try:
            consumer = await self._create_consumer(stream, since)
            next_request = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
            request = orjson.dumps({"batch": _REQUEST, "no_wait": True})
            while not portions.is_last:
                await self._client.publish(next_request, request, reply=inbox)
                if portion := await portions.next():
                    yield portion
        finally:
            with suppress(nats.errors.Error, OSError):
                await subscription.unsubscribe()

    async def _create_consumer(self, stream: str, since: datetime) -> str:
        config = {
            "deliver_policy": "by_start_time",
            "opt_start_time": since.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "ack_policy": "none",
            "max_deliver": 1,
            "headers_only": True,
            "mem_storage": True,
            "num_replicas": 1,
            # NATS removes it then. The auditor needs no right to delete consumers.
            "inactive_threshold": int(2 * _ANSWER_WITHIN_S * 1e9),
        }
        made = await self._api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
        return str(made["name"])

    async def _next(self, stream: str, number: int) -> dict[str, Any] | None:
        """The first message with this number or a greater one; None if there is none."""
        try:
            found = await self._api(f"STREAM.MSG.GET.{stream}", {"seq": number, "next_by_subj": ">"})
        except nats.js.errors.NotFoundError:
            return None
        message: dict[str, Any] = found["message"]
        return message

    async def _api(self, what: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._client.request(f"$JS.API.{what}", orjson.dumps(request), timeout=_ANSWER_WITHIN_S)
        except (OSError, TimeoutError, nats.errors.Error) as error:
            raise StreamsUnreadable(f"NATS does not answer: {error!r}") from error
        found: dict[str, Any] = orjson.loads(answer.data)
        if refusal := found.get("error"):
            if refusal.get("code") == 404:
                raise nats.js.errors.NotFoundError(**refusal)
            raise StreamsUnreadable(f"NATS refuses {what}: {refusal.get('description')}")
        return found


class _Portions:
    """The messages of a stream up to the number `last`, one request after the other."""

    def __init__(self, last: int) -> None:
        self.is_last = False
        """Whether there are no more."""
        self._last = last
        self._arrived: list[Seen] = []
        self._complete = asyncio.Event()
        self._error = ""

    def read(self, subject: bytes, reply: bytes, header: bytes) -> None:
        """Take a message, or the status of the request."""
        if not reply:
            status = header[9:12]
            # 404: there are no more. 408: the request has ended. Anything else is an error.
            self.is_last = status == b"404"
            self._error = "" if status in (b"404", b"408") else header.decode(errors="replace")
            self._complete.set()
            return
        self._arrived.append(_seen(subject, header))
        if _number(reply) >= self._last:
            self.is_last = True
            self._complete.set()
        elif len(self._arrived) == _REQUEST:
            self._complete.set()

    async def next(self) -> list[Seen]:
        """The messages of a request. Raises StreamsUnreadable."""
        try:
            await asyncio.wait_for(self._complete.wait(), _ANSWER_WITHIN_S)
        except TimeoutError:
            raise StreamsUnreadable("a stream stopped in the middle") from None
        if self._error:
            raise StreamsUnreadable(f"a stream cannot be read: {self._error}")
        self._complete.clear()
        portion, self._arrived = self._arrived, []
        return portion


def _seen(subject: bytes, header: bytes) -> Seen:
    found = Seen(*(_field(header, name) for name in (b"ce-id", b"ce-type", b"ce-sequence", b"ce-subject")))
    is_event = _ID.fullmatch(found.event_id) and found.sequence.isdecimal()
    return found if is_event else Seen("", "", "", subject.decode(errors="replace"))


def _field(header: bytes, name: bytes) -> str:
    """The value of a field, such as `1` in `NATS/1.0\\r\\nce-sequence: 1\\r\\n`; empty if there is none."""
    begin = header.find(b"\r\n%b: " % name)
    if begin < 0:
        return ""
    return header[begin + len(name) + 4 : header.find(b"\r\n", begin + 2)].decode(errors="replace")


def _number(reply: bytes) -> int:
    """The number of a message in its stream: $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<number>.…"""
    tokens = reply.split(b".")
    return int(tokens[5 if len(tokens) == 9 else 7])


async def _ignore_message(_: Msg) -> None:
    """All messages of the subscription are read raw: those of JetStream have headers."""


async def _ignore(_: Exception) -> None:
    """What matters is raised where it is asked for."""
