"""Consumers: each event is applied exactly once, a bad one is parked, and nothing is dropped."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from signal import SIGKILL
from uuid import UUID, uuid4

import asyncpg
import nats
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from mesh import consumers, deliveries
from mesh.bus import DEAD_LETTERS, MAX_AGE_S, Bus
from mesh.consumers import ACK_WAIT_S, Consumer, Handler
from mesh.errors import DeadlineExceeded, MeshError, ResourceExhausted, Unavailable
from mesh.events import Received, headers, stream_of
from mesh.unit_of_work import UnitOfWork
from stack.servers import Servers
from tests.service.runtime import Process, Rests, Scratch, do, fail_as, new_area, process, scratch_database
from tests.services import eventually

Apply = Callable[[UnitOfWork, Sequence[Received[StringValue]]], Awaitable[None]]


@pytest.fixture(scope="module")
async def scratch(servers: Servers) -> AsyncIterator[Scratch]:
    async with scratch_database(servers) as made:
        yield made


@pytest.fixture(scope="module")
async def here(scratch: Scratch, servers: Servers) -> AsyncIterator[Process]:
    async with process(scratch, servers) as started:
        await started.bus.connected()
        yield started


@pytest.fixture(autouse=True)
async def nothing_yet(scratch: Scratch) -> None:
    await scratch.empty()


class Publisher:
    """Publishes events of one area as its relay would."""

    def __init__(self, client: Client, area: str) -> None:
        self.area = area
        self._js = client.jetstream()

    async def __call__(
        self, text: str, *, event_id: UUID | None = None, kind: str = "happened", message_id: str | None = None
    ) -> UUID:
        event_id, aggregate = event_id or uuid4(), uuid4()
        header = headers(
            event_id=event_id,
            event_type=f"commerce.{self.area}.{kind}",
            source=self.area,
            aggregate_id=aggregate,
            sequence=1,
            time=datetime.now(UTC),
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        if message_id is not None:
            header["Nats-Msg-Id"] = message_id
        await self.raw(f"commerce.{self.area}.{kind}.{aggregate}", StringValue(value=text).SerializeToString(), header)
        return event_id

    async def raw(self, subject: str, payload: bytes, header: dict[str, str] | None = None) -> None:
        await self._js.publish(subject, payload, timeout=1, headers=header)


@pytest.fixture
async def publish(here: Process, servers: Servers) -> AsyncIterator[Publisher]:
    area = new_area()
    await here.bus.ensure_stream_of(area)
    client = await nats.connect(servers.nats.url)
    yield Publisher(client, area)
    await client.close()


async def record(work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
    """The plainest consumer: what it got, in its order."""
    await do(work, *(event.payload.value for event in events))


@asynccontextmanager
async def consuming(
    here: Process,
    area: str,
    apply: Apply = record,
    *,
    service: str = "test",
    kinds: Sequence[str] = ("happened",),
    apart: bool = False,
    gather: float = consumers.GATHER_S,
) -> AsyncIterator[Consumer]:
    def applying() -> Apply:
        # One of its own for each type, so that the types do not come together.
        return partial(apply) if apart else apply

    handlers = {f"commerce.{area}.{kind}": Handler(StringValue, applying()) for kind in kinds}
    consumer = Consumer(service, area, handlers, bus=here.bus, units=here.units, gather=gather)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


async def applied(scratch: Scratch, count: int, *, within: float = 20) -> list[str]:
    """The effects, once there are so many."""

    async def enough() -> bool:
        return await scratch.count("effects") >= count

    await eventually(enough, within=within)
    return await scratch.notes()


async def settled(here: Process, area: str, service: str = "test") -> None:
    """Until the consumer owes no acknowledgement."""

    async def look() -> bool:
        info = await here.bus.jetstream.consumer_info(stream_of(f"commerce.{area}."), f"{service}-{area}")
        return bool(info.num_ack_pending == 0 and info.num_pending == 0)

    await eventually(look)


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
        for number in range(100):
            await publish(str(number))
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
    async with consuming(here, publish.area, gather=12.5) as consumer:
        await publish("first")
        await eventually(gathering.is_under_way)
        for number in range(20):
            await publish(str(number))
        await eventually(Gate().gathered(consumer, 21))
        assert consumer.batches == 0
        gathering.end()
        assert await applied(scratch, 21) == ["first", *(str(number) for number in range(20))]
        assert consumer.batches == 1


async def test_a_consumer_does_not_wait_for_others_when_it_is_stopped(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    async with consuming(here, publish.area, gather=3600) as consumer:
        await publish("first")
        await publish("second")
        await eventually(Gate().gathered(consumer, 2))
    assert consumer._task is not None
    assert not consumer._task.cancelled(), "it was not waited for until it had to be cut off"
    async with consuming(here, publish.area):
        assert {*await applied(scratch, 2)} == {"first", "second"}


async def test_a_batch_that_is_full_begins_at_once(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "MAX_BATCH", 10)
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        gathering = Rests(monkeypatch, consumers.GATHER_S)
        for number in range(19):
            await publish(str(number))
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
            attempts += len(events) == 1 and work.must_look
            raise RuntimeError("cannot\n apply it")

    async with consuming(here, publish.area, apply) as consumer:
        await gate.shut(publish)
        for number in range(10):
            await publish(str(number))
        poison = await publish("poison")
        for number in range(10, 20):
            await publish(str(number))
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
            kill(mortal, "postgres")
            for number in range(20):
                await publish(str(number))

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


async def test_stop_hands_what_it_has_not_applied_to_another_consumer_at_once(
    scratch: Scratch, here: Process, publish: Publisher, servers: Servers
) -> None:
    gate = Gate()
    loop = asyncio.get_running_loop()
    async with process(scratch, servers) as there, consuming(here, publish.area, gate.record) as first:
        await gate.shut(publish)
        for number in range(500):
            await publish(str(number))
        await eventually(gate.gathered(first, 500))
        stopping = asyncio.create_task(first.stop())
        await asyncio.sleep(0)
        gate.open()
        await stopping
        assert first.applied == 1, "the batch under way is finished, and no other one begun"
        began = loop.time()
        async with consuming(there, publish.area):
            assert sorted(await applied(scratch, 501)) == sorted(["gate", *(str(n) for n in range(500))])
        assert loop.time() - began < ACK_WAIT_S / 2, "without waiting for the time of an acknowledgement to pass"


async def test_what_is_on_its_way_to_a_consumer_that_stops_is_handed_back_too(
    scratch: Scratch, here: Process, publish: Publisher, servers: Servers
) -> None:
    loop = asyncio.get_running_loop()
    async with process(scratch, servers) as there:
        sending = asyncio.create_task(_send(publish, 3000))
        for number in range(1, 6):
            async with consuming(here, publish.area):
                await applied(scratch, 100 * number)
        began = loop.time()
        async with consuming(there, publish.area):
            await sending
            assert sorted(await applied(scratch, 3000)) == sorted(str(number) for number in range(3000))
        assert loop.time() - began < ACK_WAIT_S / 2


async def test_a_flush_is_sent_after_what_was_sent_before_it() -> None:
    wire: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"fake","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
        while line := await reader.readline():
            wire.append(line.strip())
            if wire[-1] == b"PING":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        bus = Bus(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", name="test")
        await bus.start()
        await bus.connected()
        await bus.signal("topic")
        await bus._connection.flush()
        assert wire[-3:] == [b"PUB topic  0", b"", b"PING"]
        await bus.stop()


async def test_a_request_for_events_that_ends_or_is_lost_is_made_again(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[str] = []

    async def send(subject: str, payload: bytes, *, reply: str) -> None:
        requests.append(reply)
        if len(requests) != 2:
            await Bus.send(here.bus, subject, payload, reply=reply)

    monkeypatch.setattr(deliveries, "EXPIRES_S", 0.2)
    monkeypatch.setattr(here.bus, "send", send)
    async with consuming(here, publish.area):
        # The first one ends, the second one is lost, the third one ends.
        await eventually(lambda: _reached(requests, 4))
        await publish("late")
        assert await applied(scratch, 1) == ["late"]


async def test_a_request_that_cannot_be_sent_loses_no_batch_and_is_made_again(
    scratch: Scratch, here: Process, publish: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    requests: list[str] = []

    async def send(subject: str, payload: bytes, *, reply: str) -> None:
        requests.append(reply)
        if len(requests) == 2:
            raise nats.errors.OutboundBufferLimitError
        await Bus.send(here.bus, subject, payload, reply=reply)

    monkeypatch.setattr(here.bus, "send", send)
    monkeypatch.setattr(consumers, "MAX_BATCH", 10)  # so it asks for 20, and again once there is room for 10
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        for number in range(15):
            await publish(str(number))
        await eventually(gate.gathered(consumer, 15))
        gate.open()
        assert sorted(await applied(scratch, 16)) == sorted(["gate", *(str(number) for number in range(15))])
        assert len(requests) >= 2
        await publish("after")
        assert (await applied(scratch, 17))[-1] == "after"


@pytest.mark.parametrize("idle", [True, False], ids=["while it waits", "while it works"])
async def test_a_consumer_whose_place_at_the_server_was_deleted_makes_it_again(
    scratch: Scratch, here: Process, publish: Publisher, idle: bool
) -> None:
    gate = Gate()
    async with consuming(here, publish.area, gate.record) as consumer:
        await gate.shut(publish)
        if idle:
            gate.open()
            await settled(here, publish.area)
        await here.bus.jetstream.delete_consumer(stream_of(f"commerce.{publish.area}."), consumer.name)
        gate.open()
        await publish("after")
        assert await applied(scratch, 2) == ["gate", "after"]


async def test_a_consumer_that_pushed_goes_on_where_it_was_as_one_that_is_asked(
    scratch: Scratch, here: Process, publish: Publisher
) -> None:
    stream, name = stream_of(f"commerce.{publish.area}."), f"test-{publish.area}"
    js = here.bus.jetstream
    await js.add_consumer(
        stream, durable_name=name, deliver_subject="somewhere", deliver_group=name, ack_policy="explicit"
    )
    old = await js.subscribe_bind(stream, ConsumerConfig(deliver_subject="somewhere", deliver_group=name), name)
    await publish("done")
    await (await old.next_msg(timeout=5)).ack_sync()
    await old.unsubscribe()
    await publish("not done")
    for _ in range(2):
        # Once in its place, and once when it is there.
        async with consuming(here, publish.area):
            assert await applied(scratch, 1) == ["not done"]
            await settled(here, publish.area)
    assert await scratch.count("mesh.inbox") == 1


async def test_a_consumer_goes_on_after_nats_was_killed_and_after_it_lost_its_store(
    scratch: Scratch, tmp_path: Path
) -> None:
    area = new_area()
    async with (
        Servers.started(tmp_path, only={"nats"}) as mortal,
        process(scratch, mortal) as there,
        consuming(there, area),
    ):
        await there.bus.connected()
        client = await nats.connect(
            mortal.nats.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_quiet
        )
        publish = Publisher(client, area)
        await eventually(lambda: _published(publish, "before"))
        await applied(scratch, 1)
        kill(mortal, "nats")
        await eventually(lambda: _published(publish, "after the kill"))
        await applied(scratch, 2)
        # A machine that lost its disk: the streams and consumers are made again by those who need them.
        shutil.rmtree(tmp_path / "nats" / "store")
        kill(mortal, "nats")
        await eventually(lambda: _published(publish, "after the loss"))
        assert set(await applied(scratch, 3)) == {"before", "after the kill", "after the loss"}
        await client.close()


async def test_what_is_to_be_done_after_a_reconnection_is_tried_until_it_succeeds(tmp_path: Path) -> None:
    outcomes: list[Exception | None] = [nats.errors.TimeoutError(), OSError("not yet"), None]
    done = asyncio.Event()

    async def action() -> None:
        if outcome := outcomes.pop(0):
            raise outcome
        done.set()

    async with Servers.started(tmp_path, only={"nats"}) as mortal:
        bus = Bus(mortal.nats.url, name="test")
        bus.on_reconnect(action)
        await bus.start()
        await bus.connected()
        kill(mortal, "nats")
        async with asyncio.timeout(20):
            await done.wait()
        assert bus._connection.stats["reconnects"] == 1, "and the connection is not given up for it"
        await bus.stop()


class Gate:
    """Keeps the first batch from ending, so that all later events gather behind it."""

    def __init__(self) -> None:
        self._entered, self._opened = asyncio.Event(), asyncio.Event()

    async def record(self, work: UnitOfWork, events: Sequence[Received[StringValue]]) -> None:
        self._entered.set()
        await self._opened.wait()
        await record(work, events)

    async def shut(self, publish: Publisher) -> None:
        await publish("gate")
        async with asyncio.timeout(10):
            await self._entered.wait()

    def open(self) -> None:
        self._opened.set()

    @staticmethod
    def gathered(consumer: Consumer, count: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return consumer._deliveries.in_hand == count

        return look


def kill(servers: Servers, name: str) -> None:
    """End a server as a crash does."""
    identity = servers.supervisor[name].identity
    assert identity is not None
    os.kill(identity.pid, SIGKILL)


async def _holds(scratch: Scratch, note: str) -> bool:
    return note in await scratch.notes()


async def _send(publish: Publisher, count: int) -> None:
    for number in range(count):
        await publish(str(number))


async def _published(publish: Publisher, text: str) -> bool:
    try:
        await publish(text)
    except (OSError, TimeoutError, nats.errors.Error):
        return False
    return True


async def _reached(sequence: Sequence[object], count: int) -> bool:
    return len(sequence) >= count


async def _quiet(_: Exception) -> None:
    return None
