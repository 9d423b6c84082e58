"""The bus: messages are stored in the order of publication, and the reported number of stored messages is correct."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import nats.errors
import nats.js.api as js
import pytest
from nats.aio.client import Client, ServerVersion
from structlog.testing import capture_logs

from mesh.events.bus import Bus, Message
from mesh.events.cloudevents import stream_of_area
from mesh.patches.nats_py import NatsClient
from stack.servers import Servers
from tests.runtime.process import new_area
from tests.services import TEST_TIMEOUT_S, eventually


@pytest.fixture
async def bus(servers: Servers) -> AsyncIterator[Bus]:
    async with _started(servers) as started:
        yield started


@asynccontextmanager
async def _started(servers: Servers) -> AsyncIterator[Bus]:
    bus = Bus(servers.nats.url, name="test")
    await bus.start()
    try:
        await bus.connected()
        yield bus
    finally:
        await bus.stop()


def messages(area: str, count: int) -> list[Message]:
    """Messages of two aggregates for one stream."""
    subjects = [f"commerce.{area}.happened.{uuid4()}" for _ in range(2)]
    return [
        Message(subjects[number % 2], str(number).encode(), {"Nats-Msg-Id": str(uuid4()), "number": str(number)})
        for number in range(count)
    ]


async def stored(bus: Bus, area: str) -> list[int]:
    """The numbers of the messages that the stream has stored, in order."""
    name = stream_of_area(area)
    state = (await bus.jetstream.stream_info(name)).state
    found = [await bus.jetstream.get_msg(name, seq) for seq in range(1, state.messages + 1)]
    assert [int(message.data or b"") for message in found] == [int((m.headers or {})["number"]) for m in found]
    return [int(message.data or b"") for message in found]


async def answered(bus: Bus, batch: Sequence[Message]) -> int:
    """The number of stored messages that the stream reports for a batch. The test fails if there is no reply."""
    async with asyncio.timeout(TEST_TIMEOUT_S):
        return await bus.publish(batch, timeout=3600)


def lose(monkeypatch: pytest.MonkeyPatch, *lost: int) -> None:
    """Lose these messages of the next batch."""
    send = NatsClient.send

    async def leaky(self: NatsClient, frames: Sequence[bytes]) -> None:
        monkeypatch.setattr(NatsClient, "send", send)
        await send(self, [frame for number, frame in enumerate(frames) if number not in lost])

    monkeypatch.setattr(NatsClient, "send", leaky)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 512])
async def test_messages_are_stored_in_their_order(bus: Bus, count: int) -> None:
    area = new_area()
    await bus.ensure_stream_of(area)
    assert await bus.publish(messages(area, count)) == count
    assert await stored(bus, area) == list(range(count))


async def test_nothing_is_stored_behind_a_message_that_is_lost(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    area = new_area()
    await bus.ensure_stream_of(area)
    batch = messages(area, 8)
    lose(monkeypatch, 3)
    assert await answered(bus, batch) == 3
    assert await stored(bus, area) == [0, 1, 2], "no later message overtakes it"
    assert await bus.publish(batch) == 8, "stored messages count"
    assert await stored(bus, area) == list(range(8)), "they are not stored again"


async def test_batch_without_its_first_message_is_refused(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    area = new_area()
    await bus.ensure_stream_of(area)
    lose(monkeypatch, 0)
    assert await answered(bus, messages(area, 4)) == 0
    assert await stored(bus, area) == []


async def test_batch_without_its_last_message_times_out(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    area = new_area()
    await bus.ensure_stream_of(area)
    batch = messages(area, 4)
    lose(monkeypatch, 3)
    assert await bus.publish(batch, timeout=0.2) == 0, "the outcome is unknown"
    assert await bus.publish(batch) == 4
    assert await stored(bus, area) == list(range(4))


async def test_messages_without_a_stream_are_not_stored(bus: Bus) -> None:
    assert await answered(bus, messages(new_area(), 3)) == 0


async def test_older_stream_accepts_batches_after_ensure_stream(bus: Bus) -> None:
    area = new_area()
    name, subjects = stream_of_area(area), [f"commerce.{area}.>"]
    await bus.jetstream.add_stream(js.StreamConfig(name=name, subjects=subjects))
    assert await answered(bus, messages(area, 2)) == 0
    await bus.ensure_stream_of(area)
    assert await bus.publish(messages(area, 2)) == 2


async def test_two_processes_can_publish_at_the_same_time(bus: Bus, servers: Servers) -> None:
    area = new_area()
    await bus.ensure_stream_of(area)
    async with _started(servers) as other:
        for _ in range(5):
            assert await asyncio.gather(*(each.publish(messages(area, 200)) for each in (bus, other))) == [200, 200]


@pytest.mark.parametrize(
    ("kind", "header", "payload", "refusal"),
    [
        ("happened", {"ce-id": "a\r\nNats-Msg-Id: b"}, b"", nats.errors.BadHeaderError),
        ("happened", {"ce-id": "a\n"}, b"", nats.errors.BadHeaderError),
        ("happened", {"ce-id\r": "a"}, b"", nats.errors.BadHeaderError),
        ("happened", {"ce id": "a"}, b"", nats.errors.BadHeaderError),
        ("happened", {"": "a"}, b"", nats.errors.BadHeaderError),
        ("happened", {}, b"x" * (1024 * 1024 + 1), nats.errors.MaxPayloadError),
        ("has happened", {}, b"", nats.errors.BadSubjectError),
        ("happened\r\nPUB", {}, b"", nats.errors.BadSubjectError),
    ],
)
async def test_message_that_would_break_the_connection_is_refused_before_it_is_sent(
    bus: Bus, kind: str, header: dict[str, str], payload: bytes, refusal: type[Exception]
) -> None:
    area = new_area()
    await bus.ensure_stream_of(area)
    good = messages(area, 2)
    with pytest.raises(refusal):
        await bus.publish([good[0], Message(f"commerce.{area}.{kind}.{uuid4()}", payload, header)])
    assert await bus.publish(good) == 2
    assert await stored(bus, area) == [0, 1]


async def test_connection_without_a_subscription_for_replies_is_replaced(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscribe, refusals = Client.subscribe, [OSError("reset"), nats.errors.ConnectionClosedError()]

    async def reluctant(self: Client, *args: Any, **options: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return await subscribe(self, *args, **options)

    monkeypatch.setattr(Client, "subscribe", reluctant)
    async with _started(servers) as bus:
        area = new_area()
        await bus.ensure_stream_of(area)
        assert await bus.publish(messages(area, 1)) == 1
    assert not refusals


async def test_stopped_bus_publishes_nothing(servers: Servers) -> None:
    async with _started(servers) as bus:
        pass
    with pytest.raises(nats.errors.ConnectionClosedError):
        await bus.publish(messages(new_area(), 1))


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.13.9", "NATS 2.13 is too old: 2.14 or newer is needed"),
        ("of our own", "of our own is not a valid Semantic Version"),
    ],
)
async def test_server_without_batches_is_not_used_and_named_in_the_log(
    servers: Servers, monkeypatch: pytest.MonkeyPatch, version: str, said: str
) -> None:
    monkeypatch.setattr(Client, "connected_server_version", ServerVersion(version))
    bus = Bus(servers.nats.url, name="test")
    with capture_logs() as logs:
        await bus.start()
        await eventually(_is_there(logs, said))
        assert not bus.is_ready
        monkeypatch.setattr(Client, "connected_server_version", ServerVersion("2.14.0"))
        async with asyncio.timeout(TEST_TIMEOUT_S):
            await bus.connected()
    await bus.stop()
    password = urlsplit(servers.nats.url).password
    assert password
    assert password not in repr(logs)
    assert servers.nats.address == f"nats://{logs[0]['address']}"


def _is_there(logs: Sequence[MutableMapping[str, Any]], said: str) -> Callable[[], Awaitable[bool]]:
    async def is_there() -> bool:
        return any(said in entry["error"] for entry in logs)

    return is_there
