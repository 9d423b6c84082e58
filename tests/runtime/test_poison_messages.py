"""Poison messages that an exception does not end: one that kills its process, and one of a newer version."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from mesh.db import attempts as statements
from mesh.db.unit_of_work import UnitOfWork
from mesh.errors import Unavailable
from mesh.events.attempts import MAX_DELIVERIES
from mesh.events.cloudevents import Received, stream_of_area
from stack.servers import Servers
from tests.runtime.consuming import Publisher, acknowledged, applied, consuming, record
from tests.runtime.deadly import POISON
from tests.runtime.process import Process, Scratch
from tests.runtime.test_consumers import dead_letters

pytestmark = pytest.mark.usefixtures("nothing_yet")


@asynccontextmanager
async def deadly_consumer(scratch: Scratch, servers: Servers, area: str) -> AsyncIterator[asyncio.StreamReader]:
    """A consumer that its poison message kills, always started again. The lines of the reader are its ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.runtime.deadly"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        where = {"database_url": scratch.url, "nats_url": servers.nats.url, "area": area}
        process.stdin.write(json.dumps(where).encode())
        process.stdin.close()
        yield process.stdout
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_event_that_kills_its_process_becomes_a_dead_letter_and_the_others_are_applied(
    scratch: Scratch, here: Process, servers: Servers, publish: Publisher
) -> None:
    await publish.numbers(range(10))
    poison = await publish(POISON)
    await publish.numbers(range(10, 20))
    async with deadly_consumer(scratch, servers, publish.area) as ends:
        assert await ends.readline() == b"ended\n"
        await publish("published after the first end")
        (letter,) = await dead_letters(here, publish.area, 1)
        expected = {*map(str, range(20)), "published after the first end"}
        assert set(await applied(scratch, len(expected))) == expected
        await publish("published after the last end")
        await applied(scratch, len(expected) + 1)
        await acknowledged(here, publish.area)
    assert await scratch.count("effects") == len(expected) + 1, "each once"
    assert letter.headers is not None
    assert letter.headers["ce-id"] == str(poison)
    assert letter.headers["mesh-attempts"] == str(MAX_DELIVERIES)
    assert letter.headers["mesh-error"].startswith("ProcessEnded: ")
    assert await scratch.count("mesh.attempts") == 0


async def test_event_whose_attempts_had_no_end_is_applied_when_the_process_survives_it(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    event_id = await publish("survives")
    for _ in range(MAX_DELIVERIES):
        await scratch.admin.execute(statements.BEGIN.sql, f"test-{publish.area}", [str(event_id)], 1)
    async with consuming(here, publish.area):
        # Its server has delivered it only once, as after a backfill.
        assert await applied(scratch, 1) == ["survives"]
        await acknowledged(here, publish.area)


async def test_consumer_of_a_newer_version_gets_the_types_that_the_older_one_did_not_know(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    async with consuming(here, publish.area):
        await publish("old")
        await publish("new", kind="renamed")
        await publish("also old")
        assert await applied(scratch, 2) == ["old", "also old"]
        await acknowledged(here, publish.area)
    async with consuming(here, publish.area, kinds=("happened", "renamed")):
        assert await applied(scratch, 3) == ["old", "also old", "new"]
        await acknowledged(here, publish.area)
    assert await scratch.count("effects") == 3, "each once"


async def test_older_process_beside_a_newer_one_leaves_unknown_types_as_dead_letters(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    async with consuming(here, publish.area, kinds=("happened", "renamed")) as newer:
        await publish("known to both")
        await applied(scratch, 1)
    async with consuming(here, publish.area, max_attempts=1):
        info = await here.bus.jetstream.consumer_info(stream_of_area(publish.area), newer.name)
        assert len(info.config.filter_subjects or ()) == 2, "an older process does not remove them"
        event_id = await publish("known to the newer", kind="renamed")
        (letter,) = await dead_letters(here, publish.area, 1)
        await publish("after")
        assert await applied(scratch, 2) == ["known to both", "after"]
    assert letter.headers is not None
    assert letter.headers["ce-id"] == str(event_id)
    assert letter.headers["mesh-error"].startswith("EventTypeUnknown: ")
    assert StringValue.FromString(letter.data).value == "known to the newer"


async def test_unknown_fields_of_a_newer_version_stay_in_a_dead_letter(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    unknown = b"\xaa\x06\x03new"
    payload = StringValue(value="known").SerializeToString() + unknown
    good = {"ce-id": str(uuid4()), "ce-subject": str(uuid4()), "ce-sequence": "1"}
    header = {**good, "ce-type": f"commerce.{publish.area}.happened"}
    async with consuming(here, publish.area):
        await publish.raw(f"{header['ce-type']}.x", payload, header)
        assert await applied(scratch, 1) == ["known"]
        await acknowledged(here, publish.area)

    async def fail(*_: object) -> None:
        raise RuntimeError("cannot apply it")

    async with consuming(here, publish.area, fail, service="other", max_attempts=1):
        (letter,) = await dead_letters(here, publish.area, 1, "other")
    assert letter.data == payload


async def test_attempt_that_fails_has_an_end(scratch: Scratch, here: Process, publish: Publisher) -> None:
    failures: list[Exception] = [Unavailable("gone"), RuntimeError("wrong"), Unavailable("gone"), RuntimeError("wrong")]

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        if failures:
            raise failures.pop()
        await record(work, events)

    async with consuming(here, publish.area, apply):
        await publish("waits")
        assert await applied(scratch, 1) == ["waits"]
        await acknowledged(here, publish.area)
    assert await scratch.count("mesh.attempts") == 0
