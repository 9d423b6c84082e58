"""Dead letters are grouped by cause and redriven to their consumer alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import asyncpg
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from mesh.db.unit_of_work import UnitOfWork
from mesh.events.bus import DEAD_LETTERS
from mesh.events.cloudevents import Received, stream_of_area
from ops.events import DeadLetters, Selection, Streams
from stack.servers import Servers
from tests.runtime.consuming import Publisher, acknowledged, applied, consuming, record
from tests.runtime.process import Process, Scratch
from tests.services import eventually

pytestmark = pytest.mark.usefixtures("nothing_yet")

WHO = "ada@workstation"


@dataclass(frozen=True)
class MeshOf:
    """The servers as a mesh."""

    nats_url: str
    scratch: Scratch

    async def connect(self, _: str) -> asyncpg.Connection:
        return await asyncpg.connect(self.scratch.url)


@pytest.fixture
async def dead(scratch: Scratch, servers: Servers) -> AsyncIterator[DeadLetters]:
    async with Streams.of(MeshOf(servers.nats.url, scratch)) as streams:
        yield DeadLetters(streams)


async def fail(_: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
    """Fail with an error that names the event."""
    raise RuntimeError(f"event {events[0].id} cannot be applied")


async def killed(here: Process, publish: Publisher, dead: DeadLetters, *texts: str) -> list[UUID]:
    """The ids of events with these texts, which are dead letters of one consumer and applied by another one."""
    ids = [await publish(text) for text in texts]
    async with consuming(here, publish.area, fail, max_attempts=1), consuming(here, publish.area, service="other"):
        await eventually(lambda: count(dead, publish, len(texts)))
        for service in ("test", "other"):
            await acknowledged(here, publish.area, service)
    return ids


def selected(publish: Publisher, *ids: UUID) -> Selection:
    return Selection({str(each) for each in ids}, consumers=[f"test-{publish.area}"])


async def count(dead: DeadLetters, publish: Publisher, expected: int) -> bool:
    return len([letter async for letter in dead.read(selected(publish))]) == expected


async def test_dead_letters_are_grouped_by_consumer_type_and_cause(
    here: Process, publish: Publisher, dead: DeadLetters
) -> None:
    ids = await killed(here, publish, dead, "one", "two", "three", "four")
    await publish.raw(f"commerce.{publish.area}.happened.x", b"junk", {"ce-type": f"commerce.{publish.area}.happened"})
    async with consuming(here, publish.area, max_attempts=1):
        await eventually(lambda: count(dead, publish, 5))
    first, second = await dead.groups(selected(publish))
    assert (first.count, first.consumer) == (4, f"test-{publish.area}")
    assert first.type == f"commerce.{publish.area}.happened"
    assert first.cause == "RuntimeError: event * cannot be applied"
    assert first.examples == [str(each) for each in ids[:3]]
    assert first.first is not None
    assert first.last is not None
    assert first.first <= first.last
    assert second.count == 1
    assert second.cause.startswith("DecodeError: ")


async def test_redriven_events_are_applied_by_their_consumer_alone(
    scratch: Scratch, here: Process, publish: Publisher, dead: DeadLetters
) -> None:
    ids = await killed(here, publish, dead, "one", "two", "three")
    # As for events that are older than the inbox keeps them.
    await scratch.admin.execute("TRUNCATE effects, mesh.inbox")
    told = await dead.redrive(selected(publish), by=WHO, rate=1000, dry_run=True)
    assert (told.count, await count(dead, publish, 3)) == (3, True)
    done = await dead.redrive(selected(publish, *ids[:2]), by=WHO, rate=1000)
    assert (done.count, done.by_consumer, done.missing) == (2, {f"test-{publish.area}": 2}, [])
    assert await count(dead, publish, 1)
    async with consuming(here, publish.area), consuming(here, publish.area, service="other") as other:
        assert sorted(await applied(scratch, 2)) == ["one", "two"]
        for service in ("test", "other"):
            await acknowledged(here, publish.area, service)
        assert other.applied == 0
    assert await scratch.count("effects") == 2


async def test_redriven_event_carries_who_has_redriven_it(here: Process, publish: Publisher, dead: DeadLetters) -> None:
    (event_id,) = await killed(here, publish, dead, "one")
    await dead.redrive(selected(publish), by=WHO, rate=1000)
    message = await here.bus.jetstream.get_last_msg(stream_of_area(publish.area), f"commerce.{publish.area}.>")
    assert message.headers is not None
    assert message.headers["ce-id"] == str(event_id)
    assert message.headers["mesh-redriven-by"] == WHO
    assert message.headers["mesh-redriven-time"]
    assert message.headers["mesh-error"].startswith("RuntimeError")
    assert message.data == StringValue(value="one").SerializeToString()


async def test_redriven_event_that_fails_again_becomes_a_dead_letter_again(
    scratch: Scratch, here: Process, publish: Publisher, dead: DeadLetters
) -> None:
    (event_id,) = await killed(here, publish, dead, "one")
    for _ in range(2):
        await dead.redrive(selected(publish), by=WHO, rate=1000)
        assert await count(dead, publish, 0)
        async with consuming(here, publish.area, fail, max_attempts=1):
            await eventually(lambda: count(dead, publish, 1))
    async with consuming(here, publish.area):
        await dead.redrive(selected(publish, event_id), by=WHO, rate=1000)
        await acknowledged(here, publish.area)
        await eventually(lambda: is_recorded(scratch, f"test-{publish.area}"))


async def is_recorded(scratch: Scratch, consumer: str) -> bool:
    return bool(await scratch.admin.fetchval("SELECT count(*) FROM mesh.inbox WHERE consumer = $1", consumer))


async def test_redrive_that_was_interrupted_applies_each_event_once(
    scratch: Scratch, here: Process, publish: Publisher, dead: DeadLetters
) -> None:
    await killed(here, publish, dead, "one")
    (letter,) = [letter async for letter in dead.read(selected(publish))]
    await dead.redrive(selected(publish), by=WHO, rate=1000)
    # It ended after the publication and before the deletion.
    await here.bus.jetstream.publish(
        letter.subject, letter.data, stream=DEAD_LETTERS, headers={**letter.headers, "Nats-Msg-Id": str(uuid4())}
    )
    await dead.redrive(selected(publish), by=WHO, rate=1000)
    await scratch.admin.execute("TRUNCATE effects")
    async with consuming(here, publish.area, record):
        await applied(scratch, 1)
        await acknowledged(here, publish.area)
    assert await scratch.notes() == ["one"]


async def test_redrive_names_ids_that_are_no_dead_letters(publish: Publisher, dead: DeadLetters) -> None:
    unknown = uuid4()
    done = await dead.redrive(selected(publish, unknown), by=WHO, rate=1000)
    assert (done.count, done.missing) == (0, [str(unknown)])
