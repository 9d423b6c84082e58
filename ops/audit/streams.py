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
from mesh.patches.nats_py import NatsClient

_REQUEST = 2048
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consumer has come."""

    applied_through: int
    """Every message of the stream up to this one is acknowledged."""
    waiting: int


class Streams:
    """The streams of a mesh."""

    def __init__(self, client: NatsClient) -> None:
        self._client = client
        self.jetstream = client.jetstream(timeout=_ANSWER_WITHIN_S)

    @classmethod
    @asynccontextmanager
    async def connected(cls, url: str) -> AsyncIterator[Streams]:
        """Connect. Raises StreamsUnreadable."""
        client = NatsClient()
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
        inbox = self._client.new_inbox()
        arrived: asyncio.Queue[Msg] = asyncio.Queue()

        async def put(message: Msg) -> None:
            arrived.put_nowait(message)

        subscription = await self._client.subscribe(
            inbox, cb=put, pending_msgs_limit=4 * _REQUEST, pending_bytes_limit=-1
        )
        consumer = await self._create_consumer(stream, since)
        try:
            next_request = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
            request = orjson.dumps({"batch": _REQUEST, "no_wait": True})
            while True:
                await self._client.publish(next_request, request, reply=inbox)
                portion, is_last = await _portion(arrived, state.last_seq or 0)
                if portion:
                    yield portion
                if is_last:
                    return
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


async def _portion(arrived: asyncio.Queue[Msg], last: int) -> tuple[list[Seen], bool]:
    """The messages of one request, and whether they are the last ones of those up to number `last`."""
    portion: list[Seen] = []
    for _ in range(_REQUEST):
        try:
            message = (
                await asyncio.wait_for(arrived.get(), _ANSWER_WITHIN_S) if arrived.empty() else arrived.get_nowait()
            )
        except TimeoutError:
            raise StreamsUnreadable("a stream stopped in the middle") from None
        headers = message.headers or {}
        if "Status" in headers:
            # 404: there are no more. 408: the request has expired. Anything else is an error.
            if headers["Status"] not in ("404", "408"):
                raise StreamsUnreadable(f"a stream cannot be read: {headers}")
            return portion, headers["Status"] == "404"
        portion.append(_seen(message))
        if _number(message) >= last:
            return portion, True
    return portion, False


def _seen(message: Msg) -> Seen:
    headers = message.headers or {}
    found = Seen(*(headers.get(name, "") for name in ("ce-id", "ce-type", "ce-sequence", "ce-subject")))
    is_event = _ID.fullmatch(found.event_id) and found.sequence.isdecimal()
    return found if is_event else Seen("", "", "", message.subject)


def _number(message: Msg) -> int:
    """The number of a message in its stream: $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<number>.…"""
    tokens = message.reply.split(".")
    return int(tokens[5 if len(tokens) == 9 else 7])


async def _ignore(_: Exception) -> None:
    """What matters is raised where it is asked for."""
