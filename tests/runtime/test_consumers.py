"""Consumers: each event is applied exactly once, a bad one is parked, and nothing is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from nats.aio.msg import Msg

from mesh.db.unit_of_work import UnitOfWork
from mesh.errors import DeadlineExceeded, MeshError, ResourceExhausted, Unavailable
from mesh.events import consumers
from mesh.events.bus import DEAD_LETTERS, MAX_AGE_S
from mesh.events.cloudevents import Received, stream_of
from mesh.events.consumers import Consumer, Handler
from stack.servers import Servers
from tests.runtime.consuming import Gate, Publisher, applied, consuming, record, settled
from tests.runtime.process import Process, Rests, Scratch, do, fail_as, process, scratch_database
from tests.services import eventually, signal

pytestmark = pytest.mark.usefixtures("nothing_yet")


async def parked(here: Process, area: str, count: int, service: str = "test") -> list[Msg]:
    """The dead letters of a consumer, once there are so many."""
    js = here.bus.jetstream
    subject = f"mesh.dead.{service}-{area}.>"

    async def enough() -> bool:
        info = await js.stream_info(DEAD_LETTERS, subjects_filter=subject)
        return sum((info.state.subjects or {}).values()) >= count

    await eventually(enough)
    subscription = await js.subscribe(subject, stream=DEAD_LETTERS, ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=5) for _ in range(count)]
    await subscription.unsubscribe()
    return messages


async def test_an_event_that_is_delivered_twice_is_applied_once(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    twice = await publish("twice", message_id="first copy")
    async with consuming(here, publish.area):
        await applied(scratch, 1)
        await publish("twice", event_id=twice, message_id="second copy")
        await publish("last")
        assert await applied(scratch, 2) == ["twice", "last"]
        await settled(here, publish.area)
    assert await scratch.count("mesh.inbox") == 2


async def test_use_case_gets_the_value_that_an_event_is_translated_to(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    async def apply(work: UnitOfWork, events: Sequence[Received[int]]) -> None:
        await do(work, *(str(event.payload + 1) for event in events))

    def to_int(message: StringValue) -> int:
        return int(message.value)

    handlers = {f"commerce.{publish.area}.happened": Handler(StringValue, apply, translate=to_int)}
    consumer = Consumer("test", publish.area, handlers, bus=here.bus, units=here.units)
    await consumer.start()
    await publish("41")
    assert await applied(scratch, 1) == ["42"]
    await consumer.stop()


async def test_two_copies_in_one_batch_are_applied_once(scratch: Scratch, here: Process, publish: Publisher) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        twice = await publish("twice", message_id="first copy")
        await publish("twice", event_id=twice, message_id="second copy")
        await eventually(gate.gathered(consumer, 2))
        gate.open()
        assert await applied(scratch, 2) == ["gate", "twice"]
        await settled(here, publish.area)
        assert consumer.batches == 2


async def test_each_consumer_applies_an_event_for_itself(scratch: Scratch, here: Process, publish: Publisher) -> None:
    async with consuming(here, publish.area, service="one"), consuming(here, publish.area, service="two"):
        await publish("for both")
        assert await applied(scratch, 2) == ["for both", "for both"]


async def test_what_arrives_during_a_batch_is_applied_in_the_next_one_in_one_transaction(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(100))
        await eventually(gate.gathered(consumer, 100))
        gate.open()
        assert await applied(scratch, 101) == ["gate", *(str(number) for number in range(100))]
        assert await scratch.admin.fetchval("SELECT count(DISTINCT xmin::text) FROM effects") == 2
        assert await scratch.admin.fetchval("SELECT count(DISTINCT xmin::text) FROM mesh.inbox") == 2
        assert (consumer.batches, consumer.applied) == (2, 101)


async def test_events_that_come_within_some_time_are_applied_together(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathering = Rests(monkeypatch, 12.5)
    async with consuming(here, publish.area, linger=12.5) as consumer:
        await publish("first")
        await eventually(gathering.is_under_way)
        await publish.numbers(range(20))
        await eventually(Gate().gathered(consumer, 21))
        assert consumer.batches == 0
        gathering.end()
        assert await applied(scratch, 21) == ["first", *(str(number) for number in range(20))]
        assert consumer.batches == 1


async def test_a_consumer_does_not_wait_for_others_when_it_is_stopped(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    async with consuming(here, publish.area, linger=3600) as consumer:
        await publish("first")
        await publish("second")
        await eventually(Gate().gathered(consumer, 2))
    assert not consumer.was_cancelled, "it was not waited for until it had to be cut off"
    async with consuming(here, publish.area):
        assert {*await applied(scratch, 2)} == {"first", "second"}


async def test_a_batch_that_is_full_begins_at_once(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "MAX_BATCH", 10)
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        gathering = Rests(monkeypatch, consumers.LINGER_S)
        await publish.numbers(range(19))
        await eventually(gate.gathered(consumer, 19))
        gate.open()
        await applied(scratch, 11)
        await eventually(gate.gathered(consumer, 9))
        assert (gathering.begun, consumer.batches) == (1, 2)
        gathering.end()
        await applied(scratch, 20)


@pytest.mark.parametrize("apart", [True, False], ids=["each type by itself", "types with one apply"])
async def test_within_a_batch_causes_are_applied_before_their_effects(
    scratch: Scratch, here: Process, publish: Publisher, apart: bool
) -> None:
    gate = Gate()
    sizes: list[int] = []

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        sizes.append(len(events))
        await gate.record(work, events)

    kinds = ("cause", "effect", "happened")
    async with consuming(here, publish.area, apply, kinds=kinds, apart=apart) as consumer:
        await gate.shut(publish)
        for number in range(5):
            await publish(f"effect {number}", kind="effect")
            await publish(f"cause {number}", kind="cause")
        await eventually(gate.gathered(consumer, 10))
        gate.open()
        expected = ["gate", *(f"cause {number}" for number in range(5)), *(f"effect {number}" for number in range(5))]
        assert await applied(scratch, 11) == expected
        assert sizes == ([1, 5, 5] if apart else [1, 10])


async def test_a_poison_event_is_tried_again_then_parked_and_the_others_of_its_batch_go_through(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "MAX_ATTEMPTS", 3)
    gate = Gate()
    attempts = 0

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        nonlocal attempts
        await gate.record(work, events)
        if any(event.payload.value == "poison" for event in events):
            attempts += len(events) == 1 and work.pessimistic
            raise RuntimeError("cannot\n apply it")

    async with consuming(here, publish.area, apply) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(10))
        poison = await publish("poison")
        await publish.numbers(range(10, 20))
        await eventually(gate.gathered(consumer, 21))
        gate.open()
        message = (await parked(here, publish.area, 1))[0]
        assert sorted(await applied(scratch, 21)) == sorted(["gate", *(str(number) for number in range(20))])
        await settled(here, publish.area)
    assert attempts == 3
    assert message.headers is not None
    assert message.headers["ce-id"] == str(poison)
    assert message.headers["ce-type"] == f"commerce.{publish.area}.happened"
    assert message.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c")
    assert message.headers["mesh-consumer"] == f"test-{publish.area}"
    assert message.headers["mesh-subject"] == message.subject.removeprefix(f"mesh.dead.test-{publish.area}.")
    assert message.headers["mesh-attempts"] == "3"
    assert message.headers["mesh-error"] == "RuntimeError: cannot apply it"
    assert StringValue.FromString(message.data).value == "poison"
    assert await scratch.admin.fetchval("SELECT count(*) FROM mesh.inbox WHERE event_id = $1", poison) == 0


@pytest.mark.parametrize("what", ["no headers", "headers of no event", "a payload of no message"])
async def test_a_message_that_is_no_event_is_parked(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(consumers, "MAX_ATTEMPTS", 1)
    subject = f"commerce.{publish.area}.happened.x"
    async with consuming(here, publish.area):
        match what:
            case "no headers":
                await publish.raw(subject, b"junk")
            case "headers of no event":
                await publish.raw(subject, b"", {"ce-id": "no id", "ce-type": f"commerce.{publish.area}.happened"})
            case _:
                known = await publish("good")
                good = {"ce-id": str(uuid4()), "ce-subject": str(known), "ce-sequence": "1"}
                await publish.raw(subject, b"\xff", {**good, "ce-type": f"commerce.{publish.area}.happened"})
        assert (await parked(here, publish.area, 1))[0].data in {b"junk", b"", b"\xff"}
        await publish("after")
        await eventually(lambda: _holds(scratch, "after"))


@pytest.mark.parametrize(
    "passing", [Unavailable("gone"), DeadlineExceeded("slow"), ResourceExhausted("busy")], ids=lambda e: e.reason
)
async def test_what_is_not_the_events_fault_never_parks_it(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch, passing: MeshError
) -> None:
    monkeypatch.setattr(consumers, "MAX_ATTEMPTS", 1)
    turns = 0

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise passing
        await record(work, events)

    async with consuming(here, publish.area, apply):
        await publish("waits")
        assert await applied(scratch, 1) == ["waits"]
        await settled(here, publish.area)
    info = await here.bus.jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"mesh.dead.test-{publish.area}.>")
    assert not info.state.subjects


@pytest.mark.parametrize("state", ["53100", "25006", "28P01"], ids=["disk full", "read only", "password changed"])
async def test_a_database_that_ails_while_an_event_is_applied_never_parks_it(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(consumers, "MAX_ATTEMPTS", 1)
    turns = 0

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            await fail_as(work, state)
        await record(work, events)

    async with consuming(here, publish.area, apply):
        await publish("waits")
        assert await applied(scratch, 1) == ["waits"]
        await settled(here, publish.area)
    info = await here.bus.jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"mesh.dead.test-{publish.area}.>")
    assert not info.state.subjects


async def test_while_the_database_is_down_nothing_is_parked_and_all_is_applied_when_it_is_back(
    here: Process, servers: Servers, publish: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "MAX_ATTEMPTS", 1)
    async with (
        Servers.started(tmp_path, only={"postgres"}, is_durable=True) as mortal,
        scratch_database(mortal) as doomed,
    ):
        mixed = Servers(postgres=mortal.postgres, nats=servers.nats, redis=servers.redis, supervisor=mortal.supervisor)
        async with process(doomed, mixed) as there, consuming(there, publish.area):
            await publish("before")
            await applied(doomed, 1)
            signal(mortal, "postgres", SIGKILL)
            await publish.numbers(range(20))

            async def back() -> int | None:
                try:
                    connection = await asyncpg.connect(doomed.url)
                except (OSError, asyncpg.PostgresError):
                    return None
                count: int = await connection.fetchval("SELECT count(*) FROM effects")
                await connection.close()
                return count if count >= 21 else None

            assert await eventually(back, within=30) == 21
            await settled(there, publish.area)
    info = await here.bus.jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"mesh.dead.test-{publish.area}.>")
    assert not info.state.subjects


async def test_dead_letters_are_kept_for_ever_also_where_they_once_were_not(here: Process, publish: Publisher) -> None:
    await here.bus.ensure_stream(DEAD_LETTERS, "mesh.dead.>")
    async with consuming(here, publish.area):

        async def for_ever() -> bool:
            return (await here.bus.jetstream.stream_info(DEAD_LETTERS)).config.max_age == 0

        await eventually(for_ever)
    info = await here.bus.jetstream.stream_info(stream_of(f"commerce.{publish.area}."))
    assert info.config.max_age == MAX_AGE_S


async def _holds(scratch: Scratch, note: str) -> bool:
    return note in await scratch.notes()
