"""Consumers: each event is applied exactly once, a poison message becomes a dead letter, and none is lost."""

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
from mesh.events.cloudevents import Received, stream_of_area
from mesh.events.consumers import Consumer, Handler
from stack.servers import Servers
from tests.runtime.consuming import Gate, Publisher, acknowledged, applied, buffered, consuming, record
from tests.runtime.process import Lingers, Process, Scratch, do, fail_as, process, scratch_database
from tests.services import TEST_TIMEOUT_S, eventually, signal

pytestmark = pytest.mark.usefixtures("nothing_yet")


async def dead_letters(here: Process, area: str, count: int, service: str = "test") -> list[Msg]:
    """The dead letters of a consumer, once there are at least `count`."""
    js = here.bus.jetstream
    subject = f"mesh.dead.{service}-{area}.>"

    async def enough() -> bool:
        info = await js.stream_info(DEAD_LETTERS, subjects_filter=subject)
        return sum((info.state.subjects or {}).values()) >= count

    await eventually(enough)
    subscription = await js.subscribe(subject, stream=DEAD_LETTERS, ordered_consumer=True)
    messages = [await subscription.next_msg(timeout=TEST_TIMEOUT_S) for _ in range(count)]
    await subscription.unsubscribe()
    return messages


async def test_redelivered_event_is_applied_once(scratch: Scratch, here: Process, publish: Publisher) -> None:
    twice = await publish("twice", message_id="first copy")
    async with consuming(here, publish.area):
        await applied(scratch, 1)
        await publish("twice", event_id=twice, message_id="second copy")
        await publish("last")
        assert await applied(scratch, 2) == ["twice", "last"]
        await acknowledged(here, publish.area)
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


async def test_two_copies_of_an_event_in_one_batch_are_applied_once(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        twice = await publish("twice", message_id="first copy")
        await publish("twice", event_id=twice, message_id="second copy")
        await eventually(buffered(consumer, 2))
        gate.open()
        assert await applied(scratch, 2) == ["gate", "twice"]
        await acknowledged(here, publish.area)
        assert consumer.batches == 2


async def test_event_is_applied_once_by_each_consumer(scratch: Scratch, here: Process, publish: Publisher) -> None:
    async with consuming(here, publish.area, service="one"), consuming(here, publish.area, service="two"):
        await publish("for both")
        assert await applied(scratch, 2) == ["for both", "for both"]


async def test_events_that_arrive_during_a_batch_form_the_next_batch_in_one_transaction(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(100))
        await eventually(buffered(consumer, 100))
        gate.open()
        assert await applied(scratch, 101) == ["gate", *(str(number) for number in range(100))]
        assert await scratch.admin.fetchval("SELECT count(DISTINCT xmin::text) FROM effects") == 2
        assert await scratch.admin.fetchval("SELECT count(DISTINCT xmin::text) FROM mesh.inbox") == 2
        await acknowledged(here, publish.area)
        assert (consumer.batches, consumer.applied) == (2, 101)


async def test_events_that_arrive_while_a_batch_lingers_are_applied_together(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    lingers = Lingers(monkeypatch, 12.5)
    async with consuming(here, publish.area, linger=12.5) as consumer:
        await publish("first")
        await eventually(lingers.has_begun)
        await publish.numbers(range(20))
        await eventually(buffered(consumer, 21))
        assert consumer.batches == 0
        lingers.end()
        assert await applied(scratch, 21) == ["first", *(str(number) for number in range(20))]
        await acknowledged(here, publish.area)
        assert consumer.batches == 1


async def test_consumer_that_is_stopped_does_not_linger(scratch: Scratch, here: Process, publish: Publisher) -> None:
    async with consuming(here, publish.area, linger=3600) as consumer:
        await publish("first")
        await publish("second")
        await eventually(buffered(consumer, 2))
    assert not consumer.was_cancelled, "it stops before its timeout"
    async with consuming(here, publish.area):
        assert {*await applied(scratch, 2)} == {"first", "second"}


async def test_full_batch_does_not_linger(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record, max_batch=10) as consumer:
        await gate.shut(publish)
        lingers = Lingers(monkeypatch, consumers.LINGER_S)
        await publish.numbers(range(19))
        await eventually(buffered(consumer, 19))
        gate.open()
        await applied(scratch, 11)
        await eventually(lingers.has_begun)
        assert (consumer.buffered, lingers.begun, consumer.batches) == (9, 1, 2)
        lingers.end()
        await applied(scratch, 20)


async def test_event_types_that_a_consumer_does_not_know_are_not_delivered_to_it(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    """A newer version of the publisher may have more types."""
    async with consuming(here, publish.area) as consumer:
        await publish("unknown", kind="happened_twice")
        await publish("known")
        assert await applied(scratch, 1) == ["known"]
        await acknowledged(here, publish.area)
        info = await here.bus.jetstream.consumer_info(stream_of_area(publish.area), consumer.name)
    assert (info.delivered and info.delivered.consumer_seq, info.num_redelivered) == (1, 0)


@pytest.mark.parametrize("apart", [True, False], ids=["each type alone", "types with one apply"])
async def test_causes_in_a_batch_are_applied_before_their_effects(
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
        await eventually(buffered(consumer, 10))
        gate.open()
        expected = ["gate", *(f"cause {number}" for number in range(5)), *(f"effect {number}" for number in range(5))]
        assert await applied(scratch, 11) == expected
        assert sizes == ([1, 5, 5] if apart else [1, 10])


async def test_poison_message_is_retried_then_dead_lettered_and_its_batch_is_applied(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    gate = Gate()
    attempts = 0

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        nonlocal attempts
        await gate.record(work, events)
        if any(event.payload.value == "poison" for event in events):
            attempts += len(events) == 1 and work.pessimistic
            raise RuntimeError("cannot\n apply it")

    async with consuming(here, publish.area, apply, max_attempts=3) as consumer:
        await gate.shut(publish)
        await publish.numbers(range(10))
        poison = await publish("poison")
        await publish.numbers(range(10, 20))
        await eventually(buffered(consumer, 21))
        gate.open()
        message = (await dead_letters(here, publish.area, 1))[0]
        assert sorted(await applied(scratch, 21)) == sorted(["gate", *(str(number) for number in range(20))])
        await acknowledged(here, publish.area)
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
async def test_message_that_is_no_event_becomes_a_dead_letter(
    scratch: Scratch, here: Process, publish: Publisher, what: str
) -> None:
    subject = f"commerce.{publish.area}.happened.x"
    async with consuming(here, publish.area, max_attempts=1):
        match what:
            case "no headers":
                await publish.raw(subject, b"junk")
            case "headers of no event":
                await publish.raw(subject, b"", {"ce-id": "no id", "ce-type": f"commerce.{publish.area}.happened"})
            case _:
                known = await publish("good")
                good = {"ce-id": str(uuid4()), "ce-subject": str(known), "ce-sequence": "1"}
                await publish.raw(subject, b"\xff", {**good, "ce-type": f"commerce.{publish.area}.happened"})
        assert (await dead_letters(here, publish.area, 1))[0].data in {b"junk", b"", b"\xff"}
        await publish("after")
        await eventually(lambda: _holds(scratch, "after"))


@pytest.mark.parametrize(
    "passing", [Unavailable("gone"), DeadlineExceeded("slow"), ResourceExhausted("busy")], ids=lambda e: e.reason
)
async def test_transient_error_never_makes_a_dead_letter(
    scratch: Scratch, here: Process, publish: Publisher, passing: MeshError
) -> None:
    turns = 0

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise passing
        await record(work, events)

    async with consuming(here, publish.area, apply, max_attempts=1):
        await publish("waits")
        assert await applied(scratch, 1) == ["waits"]
        await acknowledged(here, publish.area)
    info = await here.bus.jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"mesh.dead.test-{publish.area}.>")
    assert not info.state.subjects


@pytest.mark.parametrize("state", ["53100", "25006", "28P01"], ids=["disk full", "read only", "password changed"])
async def test_failing_database_never_makes_a_dead_letter(
    scratch: Scratch, here: Process, publish: Publisher, state: str
) -> None:
    turns = 0

    async def apply(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            await fail_as(work, state)
        await record(work, events)

    async with consuming(here, publish.area, apply, max_attempts=1):
        await publish("waits")
        assert await applied(scratch, 1) == ["waits"]
        await acknowledged(here, publish.area)
    info = await here.bus.jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"mesh.dead.test-{publish.area}.>")
    assert not info.state.subjects


async def test_events_are_applied_after_an_outage_of_the_database_without_dead_letters(
    here: Process, servers: Servers, publish: Publisher, tmp_path: Path
) -> None:
    async with (
        Servers.started(tmp_path, only={"postgres"}, is_durable=True) as mortal,
        scratch_database(mortal) as doomed,
    ):
        mixed = Servers(postgres=mortal.postgres, nats=servers.nats, redis=servers.redis, supervisor=mortal.supervisor)
        async with process(doomed, mixed) as there, consuming(there, publish.area, max_attempts=1):
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
                attempts: int = await connection.fetchval("SELECT count(*) FROM mesh.attempts")
                await connection.close()
                # An attempt that an outage has failed is no reason to give up an event.
                return count if count >= 21 and not attempts else None

            assert await eventually(back) == 21
            await acknowledged(there, publish.area)
    info = await here.bus.jetstream.stream_info(DEAD_LETTERS, subjects_filter=f"mesh.dead.test-{publish.area}.>")
    assert not info.state.subjects


async def test_dead_letters_never_expire_even_in_a_stream_created_with_an_age_limit(
    here: Process, publish: Publisher
) -> None:
    await here.bus.ensure_stream(DEAD_LETTERS, "mesh.dead.>")
    async with consuming(here, publish.area):

        async def for_ever() -> bool:
            return (await here.bus.jetstream.stream_info(DEAD_LETTERS)).config.max_age == 0

        await eventually(for_ever)
    info = await here.bus.jetstream.stream_info(stream_of_area(publish.area))
    assert info.config.max_age == MAX_AGE_S


async def _holds(scratch: Scratch, note: str) -> bool:
    return note in await scratch.notes()
